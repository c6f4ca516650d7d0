from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ShapeError
from taskdistill.core.losses import feature_imitation


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 6, 5, 7, generator=generator, dtype=torch.float64)
    return student, teacher + 0.5 * student


@settings(deadline=None)
@given(
    shape=st.sampled_from([(3, 4), (2, 5, 3), (1, 3, 2, 4), (2, 1, 1, 1), (2, 3, 2, 2, 2)]),
    seed=st.integers(0, 10**6),
)
def test_is_the_mean_over_every_element(shape: tuple[int, ...], seed: int):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    differences = (student - teacher).flatten().tolist()
    expected = sum(d * d for d in differences) / len(differences)
    assert feature_imitation(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("keep", [False, True])
def test_a_binary_mask_selects_positions(maps: tuple[Tensor, Tensor], keep: bool):
    student, teacher = maps
    mask = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.6
    chosen = [x.movedim(1, -1)[mask] for x in maps]
    value = feature_imitation(student, teacher, mask=mask[:, None] if keep else mask)
    torch.testing.assert_close(value, feature_imitation(*chosen))


def test_token_and_map_layouts_agree(maps: tuple[Tensor, Tensor]):
    tokens = [x.flatten(2).mT for x in maps]
    mask = torch.rand(4, 5, 7, dtype=torch.float64)
    expected = feature_imitation(*maps, mask=mask)
    for shape in ((4, 35), (4, 35, 1)):
        value = feature_imitation(*tokens, mask=mask.reshape(shape))
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_value_and_gradient_are_the_formula_s(
    golden_cls: dict[str, Tensor], masked: bool, layout: torch.memory_format
):
    student, teacher = (golden_cls[x].clone(memory_format=layout) for x in ("fs", "ft"))
    mask = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)) if masked else None
    student.requires_grad_()
    weight = torch.ones(4, 8, 8) if mask is None else mask
    expected = ((student - teacher) ** 2 * weight[:, None]).sum() / (6 * weight.sum())
    value = feature_imitation(student, teacher, mask=mask)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0])


def test_golden_value(golden_cls: dict[str, Tensor]):
    value = feature_imitation(golden_cls["fs"], golden_cls["ft"])
    assert value.item() == pytest.approx(F.mse_loss(golden_cls["fs"], golden_cls["ft"]).item())


def test_ten_million_squares_keep_their_digits():
    """One long float32 sum would be off by 1e-4 and more."""
    student = torch.randn(10, 1000, 1000, generator=torch.Generator().manual_seed(0))
    exact = sum(row.double().square().sum().item() for row in student) / student.numel()
    assert feature_imitation(student, torch.zeros(())[None, None].expand_as(student)).item() == (
        pytest.approx(exact, rel=3e-7)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_keeps_the_difference_alone_and_gives_it_away(masked: bool):
    """Neither feature has to outlive the forward pass, and backward allocates nothing large."""
    student, teacher = torch.randn(2, 2, 3, 4, 4)
    student.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        value = feature_imitation(student, teacher, mask=torch.ones(2, 4, 4) if masked else None)
    assert all(tensor.numel() < student.numel() for tensor in kept)
    known = value.grad_fn
    while known is not None and not hasattr(known, "slopes"):
        known = known.next_functions[0][0]
    assert known is not None
    (difference,) = known.slopes
    place = difference.data_ptr()
    del difference
    value.backward()
    assert student.grad is not None and student.grad.data_ptr() == place


def test_a_teacher_of_inference_mode_will_do():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(2, 3, 4, 4)
    feature_imitation(student, teacher).backward()
    assert student.grad is not None


@pytest.mark.parametrize("shape", [(3,), ()])
def test_a_feature_needs_a_channel_axis(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match="a feature must be"):
        feature_imitation(torch.ones(shape), torch.ones(shape))


def test_a_feature_needs_channels():
    with pytest.raises(ShapeError, match="needs channels"):
        feature_imitation(torch.ones(2, 0, 3, 3), torch.ones(2, 0, 3, 3))


def test_a_mask_of_another_resolution_is_refused(maps: tuple[Tensor, Tensor]):
    with pytest.raises(ShapeError, match=r"\(4, 5, 7\), got \(4, 10, 14\)"):
        feature_imitation(*maps, mask=torch.ones(4, 10, 14))
