from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import ChannelWiseDistillation, channel_wise_distillation, kl_div


def slow(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The paper's formula, one channel at a time."""
    total, channels = 0.0, 0
    for s_image, t_image in zip(student, teacher, strict=True):
        for s_map, t_map in zip(s_image, t_image, strict=True):
            p, q = (
                [math.exp(z / temperature) for z in m.flatten().tolist()] for m in (t_map, s_map)
            )
            p_sum, q_sum = math.fsum(p), math.fsum(q)
            total += math.fsum(
                a / p_sum * math.log(a / p_sum / (b / q_sum)) for a, b in zip(p, q, strict=True)
            )
            channels += 1
    return temperature**2 * total / channels


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_definition(golden_cls: dict[str, Tensor], temperature: float):
    student, teacher = golden_cls["fs"].double(), golden_cls["ft"].double()
    value = channel_wise_distillation(student, teacher, temperature=temperature).item()
    assert value == pytest.approx(slow(student, teacher, temperature), rel=1e-9)


def test_value_of_the_common_code(golden_dense: dict[str, Tensor]):
    """Its reduction written out: the sum over all, divided by the channels and the batch."""
    student, teacher = golden_dense["ps"].double(), golden_dense["pt"].double()
    s, t = (z.reshape(2 * 19, -1) / 4.0 for z in (student, teacher))
    p_t = t.softmax(1)
    code = (p_t * t.log_softmax(1) - p_t * s.log_softmax(1)).sum() * 4.0**2 / (19 * 2)
    torch.testing.assert_close(channel_wise_distillation(student, teacher), code)


def test_is_the_divergence_over_the_places(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["fs"], golden_cls["ft"]
    rows = [z.reshape(-1, 64) for z in (student, teacher)]
    torch.testing.assert_close(
        channel_wise_distillation(student, teacher), kl_div(*rows, temperature=4.0)
    )


def test_the_level_of_a_channel_does_not_count(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["fs"].double(), golden_cls["ft"].double()
    levels = torch.linspace(-5, 5, 6, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(
        channel_wise_distillation(student + levels, teacher - 2 * levels),
        channel_wise_distillation(student, teacher),
    )


def test_any_number_of_axes_and_channels_last(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["fs"].double(), golden_cls["ft"].double()
    expected = channel_wise_distillation(student, teacher)
    flat = channel_wise_distillation(student.flatten(2), teacher.flatten(2))
    last = [z.to(memory_format=torch.channels_last) for z in (student, teacher)]
    torch.testing.assert_close(flat, expected)
    torch.testing.assert_close(channel_wise_distillation(*last), expected)


def test_places_can_be_permuted(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["fs"].double(), golden_cls["ft"].double()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    moved = [z.flatten(2)[:, :, order] for z in (student, teacher)]
    torch.testing.assert_close(
        channel_wise_distillation(*moved), channel_wise_distillation(student, teacher)
    )


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 1, 1)])
def test_no_map_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match="maps of several places"):
        channel_wise_distillation(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
def test_bad_temperature(temperature: float):
    maps = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ConfigError, match="temperature"):
        channel_wise_distillation(maps, maps, temperature=temperature)
    with pytest.raises(ConfigError, match="temperature"):
        ChannelWiseDistillation(temperature=temperature)
