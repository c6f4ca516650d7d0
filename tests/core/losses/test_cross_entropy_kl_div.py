from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    CrossEntropyKLDivergence,
    cross_entropy_kl_div,
    kl_div,
)

Cls = dict[str, Tensor]


def test_golden(golden_cls: Cls):
    value = cross_entropy_kl_div(golden_cls["ls"], golden_cls["lt"], golden_cls["y"])
    assert value.item() == pytest.approx(7.78647518, rel=1e-6)


@settings(deadline=None)
@given(
    alpha=st.floats(0, 1),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    height=st.integers(1, 3),
    ignored=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_is_the_sum_of_two_losses(
    alpha: float, temperature: float, smoothing: float, height: int, ignored: int, seed: int
):
    """Value and gradient of `F.cross_entropy` and `kl_div`, ignored positions included."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 5, height, 2)
    student, teacher = 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (4, height, 2), generator=generator)
    target[:ignored] = 255
    student.requires_grad_()
    value = cross_entropy_kl_div(
        student,
        teacher,
        target,
        alpha=alpha,
        temperature=temperature,
        label_smoothing=smoothing,
        ignore_index=255,
    )
    hard = F.cross_entropy(student, target, ignore_index=255, label_smoothing=smoothing)
    soft = kl_div(student, teacher, temperature=temperature, weight=target != 255)
    expected = (1 - alpha) * hard + alpha * soft
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    (grad,), (expected_grad,) = (torch.autograd.grad(v, student) for v in (value, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_is_exact(golden_cls: Cls, temperature: float):
    student, teacher = golden_cls["ls"][:4].double(), golden_cls["lt"][:4].double()
    target = golden_cls["y"][:4].clone()
    target[1] = -100
    assert torch.autograd.gradcheck(
        lambda s: cross_entropy_kl_div(
            s, teacher, target, temperature=temperature, label_smoothing=0.2
        ),
        (student.requires_grad_(),),
    )


def test_ignored_positions_may_hold_anything(golden_cls: Cls):
    """And leave value and gradient of the others alone; a weight multiplies on top."""
    student, teacher, target = (golden_cls[k].clone() for k in ("ls", "lt", "y"))
    expected = cross_entropy_kl_div(student[2:], teacher[2:], target[2:])
    target[:2] = -100
    student[:2], teacher[:2] = 1e4, -1e4
    student.requires_grad_()
    value = cross_entropy_kl_div(student, teacher, target)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, student)
    assert not grad[:2].any() and grad[2:].all(1).all()
    weight = torch.ones(8)
    weight[5:] = 0
    torch.testing.assert_close(
        cross_entropy_kl_div(student, teacher, target, weight=weight),
        cross_entropy_kl_div(student[2:5], teacher[2:5], target[2:5]),
    )


def test_all_positions_ignored(golden_cls: Cls):
    student = golden_cls["ls"].requires_grad_()
    value = cross_entropy_kl_div(student, golden_cls["lt"], torch.full((8,), -100))
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and not student.grad.any()


def test_tokens_with_the_classes_last(golden_cls: Cls):
    student, teacher, target = (golden_cls[k] for k in ("ls", "lt", "y"))
    value = cross_entropy_kl_div(
        student.reshape(2, 4, 10), teacher.reshape(2, 4, 10), target.reshape(2, 4), dim=-1
    )
    torch.testing.assert_close(value, cross_entropy_kl_div(student, teacher, target))


def test_keeps_one_tensor_of_the_size_of_the_logits():
    student = torch.randn(64, 50, requires_grad=True)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy_kl_div(student, torch.randn(64, 50), torch.zeros(64, dtype=torch.long))
    assert student.numel() <= sum(held.values()) <= student.numel() + 2 * 64


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class(golden_cls: Cls, label: int):
    target = golden_cls["y"].clone()
    target[3] = label
    with pytest.raises(ConfigError, match=f"target holds {label}, which is none of the 10 classes"):
        cross_entropy_kl_div(golden_cls["ls"], golden_cls["lt"], target)


def test_targets_must_fit(golden_cls: Cls):
    student, teacher, target = (golden_cls[k] for k in ("ls", "lt", "y"))
    with pytest.raises(ShapeError, match=r"shape \(8,\) for logits \(8, 10\).* got \(7,\)"):
        cross_entropy_kl_div(student, teacher, target[:7])
    with pytest.raises(ConfigError, match="integer type, got torch.float32"):
        cross_entropy_kl_div(student, teacher, target.float())


@pytest.mark.parametrize(
    "options",
    [{"alpha": -0.1}, {"alpha": 1.1}, {"temperature": 0.0}, {"label_smoothing": 2.0}],
)
def test_bad_options(golden_cls: Cls, options: dict):
    student, teacher, target = (golden_cls[k] for k in ("ls", "lt", "y"))
    with pytest.raises(ConfigError, match=next(iter(options))):
        CrossEntropyKLDivergence(**options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        cross_entropy_kl_div(student, teacher, target, **options)
