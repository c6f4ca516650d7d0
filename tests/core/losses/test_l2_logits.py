from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import L2Logits, l2_logits


def slow_l2(student: Tensor, teacher: Tensor, space: str, center: str | None) -> float:
    """The definition, one number at a time; rows are (N, K)."""

    def prepare(row: list[float]) -> list[float]:
        if space == "probs":
            powers = [math.exp(z - max(row)) for z in row]
            return [power / math.fsum(powers) for power in powers]
        mean = math.fsum(row) / len(row) if center else 0.0
        return [z - mean for z in row]

    rows = [
        math.fsum((a - b) ** 2 for a, b in zip(prepare(s), prepare(t), strict=True))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    return (1.0 if space == "probs" else 0.5) * math.fsum(rows) / len(rows)


def test_golden(golden_logits: tuple[Tensor, Tensor]):
    value = l2_logits(*golden_logits).item()
    assert value == pytest.approx(91.4751587, rel=1e-6)
    assert value * 2 / 10 == pytest.approx(18.2950325, rel=1e-6)
    assert value * 2 / 10 == pytest.approx(F.mse_loss(*golden_logits).item(), rel=1e-6)
    assert l2_logits(*golden_logits, space="probs").item() == pytest.approx(0.949778259, rel=1e-6)


OPTIONS = [{}, {"center": "mean"}, {"space": "probs"}]


@settings(deadline=None)
@given(
    batch=st.integers(0, 3),
    classes=st.integers(2, 6),
    width=st.integers(0, 3),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition_in_every_layout(batch, classes, width, options, seed: int):
    generator = torch.Generator().manual_seed(seed)
    size = (batch, classes, 2, width)
    maps = [3 * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    value = l2_logits(*maps, **options)
    last = l2_logits(*(tensor.movedim(1, -1) for tensor in maps), dim=-1, **options)
    torch.testing.assert_close(value, last, rtol=1e-12, atol=1e-14)
    rows = [tensor.movedim(1, -1).reshape(-1, classes) for tensor in maps]
    if len(rows[0]):
        expected = slow_l2(*rows, options.get("space", "logits"), options.get("center"))
        assert value.item() == pytest.approx(expected, rel=1e-12)
    else:
        assert value.item() == 0.0


def test_a_shift_costs_unless_centred(golden_logits: tuple[Tensor, Tensor]):
    student, teacher = (tensor.double() for tensor in golden_logits)
    assert l2_logits(student + 1, student).item() == pytest.approx(10 / 2)
    expected = l2_logits(student, teacher, center="mean")
    shift = torch.linspace(-50, 50, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(l2_logits(student + shift, teacher, center="mean"), expected)
    torch.testing.assert_close(l2_logits(student, teacher - shift, center="mean"), expected)
    # Taking the mean off is a projection: it removes K / 2 times the squared difference of means.
    means = (student - teacher).mean(1).square().mean() * 10 / 2
    torch.testing.assert_close(expected + means, l2_logits(student, teacher))


def test_probabilities_saturate_where_logits_do_not():
    """A student that is sure and wrong learns nothing from its probabilities."""
    student = torch.tensor([[0.0, 60.0]], requires_grad=True)
    teacher = torch.tensor([[60.0, 0.0]])
    value = l2_logits(student, teacher, space="probs")
    (grad,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(2.0)
    assert grad.abs().max() < 1e-20
    (grad,) = torch.autograd.grad(l2_logits(student, teacher), student)
    assert grad.tolist() == [[-60.0, 60.0]]


def test_a_single_class_has_a_logit_but_no_probability():
    student, teacher = torch.ones(2, 1), torch.zeros(2, 1)
    assert l2_logits(student, teacher).item() == 0.5
    for options in OPTIONS[1:]:
        with pytest.raises(ShapeError, match="at least 2"):
            l2_logits(student, teacher, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_teacher_of_inference_mode(options):
    student = torch.randn(3, 4, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(3, 4)
    l2_logits(student, teacher, **options).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_keeps_one_tensor_of_the_size_of_the_logits():
    student = torch.randn(64, 50, requires_grad=True)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        l2_logits(student, torch.randn(64, 50))
    assert sum(held.values()) == student.numel()


def test_second_derivatives_are_refused(golden_logits: tuple[Tensor, Tensor]):
    student, teacher = golden_logits
    value = l2_logits(student.requires_grad_(), teacher)
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


def test_bad_options():
    logits = torch.zeros(2, 3)
    for make in (lambda **o: L2Logits(**o), lambda **o: l2_logits(logits, logits, **o)):
        with pytest.raises(ConfigError, match="Did you mean 'logits'"):
            make(space="logit")
        with pytest.raises(ConfigError, match="center must be one of 'mean'"):
            make(center="median")
        with pytest.raises(ConfigError, match="probabilities sum to 1"):
            make(space="probs", center="mean")
