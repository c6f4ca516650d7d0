from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    SoftCrossEntropy,
    kl_div,
    soft_cross_entropy,
    weighted_soft_cross_entropy,
)

Pair = tuple[Tensor, Tensor]


def softened(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp((z - max(row)) / temperature) for z in row]
    return [p / math.fsum(powers) for p in powers]


def test_golden(golden_logits: Pair):
    assert soft_cross_entropy(*golden_logits).item() == pytest.approx(5.72695875, rel=1e-6)


def test_golden_at_a_temperature(golden_logits: Pair):
    value = soft_cross_entropy(*golden_logits, temperature=3.0).item()
    assert value == pytest.approx(25.6413422, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_the_definition(golden_logits: Pair, temperature: float):
    student, teacher = (z.double() for z in golden_logits)
    rows = [
        -math.fsum(
            p * math.log(q)
            for p, q in zip(softened(t, temperature), softened(s, temperature), strict=True)
        )
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    value = soft_cross_entropy(student, teacher, temperature=temperature).item()
    assert value == pytest.approx(temperature**2 * math.fsum(rows) / len(rows), rel=1e-10)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_is_the_divergence_plus_the_entropy(golden_logits: Pair, activation, temperature: float):
    student, teacher = (z.double() for z in golden_logits)
    student.requires_grad_()
    options = {"temperature": temperature, "activation": activation}
    value = soft_cross_entropy(student, teacher, **options)
    divergence = kl_div(student, teacher, **options)
    entropy = soft_cross_entropy(teacher, teacher, **options)
    torch.testing.assert_close(value, divergence + entropy)
    grads = [torch.autograd.grad(v, student)[0] for v in (value, divergence)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-14)


def test_sigmoid_is_the_binary_cross_entropy(golden_logits: Pair):
    student, teacher = (z.double() for z in golden_logits)
    expected = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="sum")
    value = soft_cross_entropy(student, teacher, activation="sigmoid")
    torch.testing.assert_close(value, expected / len(student))


def test_is_the_weighted_one_with_equal_weights(golden_logits: Pair):
    expected = weighted_soft_cross_entropy(*golden_logits, background=None)
    torch.testing.assert_close(soft_cross_entropy(*golden_logits), expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_opposite_certainties_give_their_difference(activation):
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = soft_cross_entropy(student, -student.detach(), activation=activation)
    value.backward()
    assert value.item() == 2e4
    assert student.grad is not None and student.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": math.nan}, {"activation": "tanh"}]
)
def test_bad_options(options: dict):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SoftCrossEntropy(**options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        soft_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2), **options)


def test_a_single_class_is_refused():
    with pytest.raises(ShapeError, match="softmax needs at least 2"):
        soft_cross_entropy(torch.zeros(2, 1), torch.zeros(2, 1))
