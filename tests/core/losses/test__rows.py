from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.losses import _rows
from taskdistill.core.losses._row_kl import divergence, row_kl


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    dim=st.integers(0, 3),
    order=st.permutations(range(4)),
    most=st.sampled_from([4, 40, 400, 4000]),
)
def test_blocks_cover_every_place_once(shape: list[int], dim: int, order: list[int], most: int):
    """Whatever the layout, whole along the classes, and not above the limit if that can be."""
    dim %= len(shape)
    order = [axis for axis in order if axis < len(shape)]
    logits = torch.zeros([shape[axis] for axis in order]).permute(
        [order.index(axis) for axis in range(len(shape))]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "SMALLEST_BLOCK", most)
        patch.setattr(_rows, "LARGEST_BLOCK", most)
        for index in _rows._blocks(logits, dim):
            block = logits[index]
            block += 1
            assert block.shape[dim] == shape[dim]
            assert block.numel() * 4 <= most or block.numel() == shape[dim]
    assert torch.equal(logits, torch.ones(shape))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_many_blocks_are_as_one(monkeypatch, activation, dim: int, weighted: bool):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    student = pair[0].clone().requires_grad_()
    shape = [size for axis, size in enumerate(student.shape) if axis != dim]
    weight = torch.rand(shape, generator=generator) if weighted else None
    loss = divergence(dim, 2.0, activation)

    def both() -> list[Tensor]:
        value = loss.mean(student, pair[1], weight=weight)
        return [value.detach(), *torch.autograd.grad(value, student)]

    expected = both()
    monkeypatch.setattr(_rows, "SMALLEST_BLOCK", 100)
    monkeypatch.setattr(_rows, "LARGEST_BLOCK", 100)
    assert len(list(_rows._blocks(student, dim))) > 10
    for found, one in zip(both(), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("within", [0, 1])
def test_mean_within_an_axis_first(within: int):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    student = pair[0].clone().requires_grad_()
    weight = torch.rand(4 if within == 0 else 3, generator=generator, dtype=torch.float64)
    value = divergence(2, 1.0).mean(student, pair[1], weight=weight, within=within)
    values = row_kl(student, pair[1], dim=2).mean(within)
    expected = (values * weight).sum() / weight.sum()
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(grad, expected_grad)


def test_values_of_positions_take_any_gradient():
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    student = pair[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: row_kl(s, pair[1], dim=1), (student,))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_gradient_lies_in_memory_as_the_student(memory: torch.memory_format):
    pair = [torch.randn(2, 3, 4, 5).to(memory_format=memory) for _ in range(2)]
    student = pair[0].requires_grad_()
    divergence(1, 1.0).mean(student, pair[1]).backward()
    assert student.grad is not None and student.grad.stride() == student.stride()


def test_backward_works_in_the_memory_of_forward(monkeypatch):
    """One tensor of the size of the logits in all, also with a factor in front of the loss."""
    made: list[int] = []
    empty_like = torch.empty_like

    def watched(tensor: Tensor) -> Tensor:
        out = empty_like(tensor)
        made.append(out.data_ptr())
        return out

    monkeypatch.setattr(torch, "empty_like", watched)
    student = torch.randn(30, 40, requires_grad=True)
    (3 * divergence(1, 1.0).mean(student, torch.randn(30, 40))).backward()
    assert student.grad is not None and [student.grad.data_ptr()] == made
