from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ShapeError
from taskdistill.core.losses import _autograd, pearson_distance


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 6, 5, 7, generator=generator, dtype=torch.float64)
    return student, teacher + 0.5 * student


def correlation(student: Tensor, teacher: Tensor) -> float:
    """From the textbook, over two lists of numbers."""
    a, b = student.flatten().tolist(), teacher.flatten().tolist()
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    up = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    down = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return up / math.sqrt(down)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(3, 4), (2, 5, 3), (1, 3, 2, 4), (2, 1, 3, 1), (2, 3, 2, 2, 2)]),
    seed=st.integers(0, 10**6),
)
def test_is_one_minus_the_correlation(shape: tuple[int, ...], seed: int):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    axis = 2 if len(shape) == 3 else 1
    channels = [(student.select(axis, c), teacher.select(axis, c)) for c in range(shape[axis])]
    expected = sum(1 - correlation(s, t) for s, t in channels) / len(channels)
    assert pearson_distance(student, teacher).item() == pytest.approx(expected, abs=1e-9)


def test_common_code_s_form(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["fs"], golden_cls["ft"]
    rows = [x.transpose(0, 1).flatten(1) for x in (student, teacher)]
    s, t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6) for x in rows)
    m = rows[0].shape[1]
    expected = (s - t).square().mean().item() / 2
    assert pearson_distance(student, teacher).item() * (m - 1) / m == pytest.approx(expected, 1e-5)


def test_ignores_scale_and_shift_of_either_side(maps: tuple[Tensor, Tensor]):
    student, teacher = maps
    scale = torch.linspace(0.1, 40, 6, dtype=torch.float64)[:, None, None]
    moved = pearson_distance(scale * student - 3, teacher / scale + 9)
    torch.testing.assert_close(moved, pearson_distance(*maps))


def test_bounds(maps: tuple[Tensor, Tensor]):
    student, _ = maps
    assert pearson_distance(student, 3 * student + 1).item() == pytest.approx(0.0, abs=1e-12)
    assert pearson_distance(student, 1 - 3 * student).item() == pytest.approx(2.0, abs=1e-12)


def test_does_not_depend_on_batch_order_or_repetition(maps: tuple[Tensor, Tensor]):
    order = torch.tensor([2, 0, 3, 1, 2, 0, 3, 1])
    moved = pearson_distance(*(x[order] for x in maps))
    torch.testing.assert_close(moved, pearson_distance(*maps))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_channels_change_nothing(
    maps: tuple[Tensor, Tensor], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
):
    def run() -> tuple[Tensor, Tensor]:
        student = maps[0].clone(memory_format=layout).requires_grad_()
        value = pearson_distance(student, maps[1])
        return value.detach(), torch.autograd.grad(value, student)[0]

    whole = run()
    for block in (1, 4 * 35 * 4):  # one channel at a time; four and the rest
        monkeypatch.setattr("taskdistill.core.losses._autograd.BLOCK", block)
        monkeypatch.setitem(pearson_distance.__globals__, "BLOCK", block)
        for found, expected in zip(run(), whole, strict=True):
            torch.testing.assert_close(found, expected)
    assert _autograd.BLOCK == 4 * 35 * 4


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_channel_has_no_pattern(constant: float, dtype: torch.dtype):
    """A dead channel must get no gradient, above all not one divided by its rounding."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 2, 9, 9, generator=generator, dtype=dtype)
    student[:, 0] = constant
    student.requires_grad_()
    value = pearson_distance(student, teacher)
    value.backward()
    assert student.grad is not None
    assert student.grad[:, 0].abs().max() == 0 < student.grad[:, 1].abs().max() < 1
    distance = 1 - correlation(student.detach()[:, 1], teacher[:, 1])
    assert value.item() == pytest.approx((0.5 + distance) / 2, rel=1e-4)


def test_a_dead_teacher_channel_teaches_nothing(maps: tuple[Tensor, Tensor]):
    student, teacher = maps[0].clone().requires_grad_(), maps[1].clone()
    teacher[:, 2] = 5.0
    (grad,) = torch.autograd.grad(pearson_distance(student, teacher), student)
    assert grad[:, 2].abs().max() < 1e-15 < 1e-6 < grad[:, 1].abs().max()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 3, 0, 4), (1, 3, 1, 1)])
def test_next_to_nothing(shape: tuple[int, ...]):
    student = torch.ones(shape, requires_grad=True)
    value = pearson_distance(student, torch.zeros(shape))
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(shape))


def test_float32_near_a_correlation_of_one():
    """The difference form keeps digits that 1 - r would lose."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 8, 32, 32, generator=generator)
    teacher = student + 1e-3 * torch.randn(student.shape, generator=generator)
    exact = pearson_distance(student.double(), teacher.double()).item()
    assert exact < 1e-6
    assert pearson_distance(student, teacher).item() == pytest.approx(exact, rel=1e-3)


def test_a_teacher_of_inference_mode_will_do(maps: tuple[Tensor, Tensor]):
    student = maps[0].clone().requires_grad_()
    with torch.inference_mode():
        teacher = maps[1].clone()
    pearson_distance(student, teacher).backward()
    assert student.grad is not None


def test_a_feature_needs_a_channel_axis():
    with pytest.raises(ShapeError, match="a feature must be"):
        pearson_distance(torch.ones(3), torch.ones(3))
