from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    WeightedSoftCrossEntropy,
    kl_div,
    weighted_soft_cross_entropy,
)


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [p / math.fsum(powers) for p in powers]


def slow(student: Tensor, teacher: Tensor, weights: list[float]) -> float:
    """The paper's formula, one number at a time."""
    rows = [
        -math.fsum(
            w * p * math.log(q)
            for w, p, q in zip(weights, softmax(t_row), softmax(s_row), strict=True)
        )
        for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    return math.fsum(rows) / len(rows)


def test_golden(golden_logits: tuple[Tensor, Tensor]):
    assert weighted_soft_cross_entropy(*golden_logits).item() == pytest.approx(5.76912594, rel=1e-6)


def test_golden_without_weights(golden_logits: tuple[Tensor, Tensor]):
    value = weighted_soft_cross_entropy(*golden_logits, background=None).item()
    assert value == pytest.approx(5.72695876, rel=1e-6)


@settings(deadline=None)
@given(
    rows=st.integers(1, 5),
    classes=st.integers(2, 7),
    background=st.integers(-2, 1),
    background_weight=st.floats(0, 4),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(
    rows: int, classes: int, background: int, background_weight: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    weights = [1.0] * classes
    weights[background] = background_weight
    expected = slow(student, teacher, weights)
    value = weighted_soft_cross_entropy(
        student, teacher, background=background, background_weight=background_weight
    )
    assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    given_weights = weighted_soft_cross_entropy(student, teacher, class_weight=weights)
    torch.testing.assert_close(given_weights, value)


def test_last_background_equals_first_after_rolling(golden_logits: tuple[Tensor, Tensor]):
    rolled = [z.roll(-1, 1) for z in golden_logits]
    torch.testing.assert_close(
        weighted_soft_cross_entropy(*rolled, background=-1),
        weighted_soft_cross_entropy(*golden_logits),
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_unweighted_is_the_divergence_plus_the_entropy(
    golden_logits: tuple[Tensor, Tensor], temperature: float
):
    student, teacher = (z.double() for z in golden_logits)
    entropy = weighted_soft_cross_entropy(
        teacher, teacher, background=None, temperature=temperature
    )
    torch.testing.assert_close(
        weighted_soft_cross_entropy(student, teacher, background=None, temperature=temperature),
        kl_div(student, teacher, temperature=temperature) + entropy,
    )


def test_sigmoid_is_a_binary_cross_entropy(golden_logits: tuple[Tensor, Tensor]):
    student, teacher = (z.double() for z in golden_logits)
    value = weighted_soft_cross_entropy(
        student, teacher, background_weight=1.0, activation="sigmoid"
    )
    expected = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="sum")
    torch.testing.assert_close(value, expected / len(student))


def test_sigmoid_weights_yes_and_no(golden_logits: tuple[Tensor, Tensor]):
    """One class as a question equals two classes with the background last."""
    student, teacher = (z[:, :1].double() for z in golden_logits)
    pair = [torch.cat([z, torch.zeros_like(z)], 1) for z in (student, teacher)]
    torch.testing.assert_close(
        weighted_soft_cross_entropy(
            student, teacher, activation="sigmoid", class_weight=[0.7], background_weight=1.5
        ),
        weighted_soft_cross_entropy(*pair, class_weight=[0.7, 1.5]),
    )


@pytest.mark.parametrize("dim", [1, -2])
def test_map_layout(golden_logits: tuple[Tensor, Tensor], dim: int):
    maps = [z.reshape(2, 4, 10).mT for z in golden_logits]
    torch.testing.assert_close(
        weighted_soft_cross_entropy(*maps, dim=dim), weighted_soft_cross_entropy(*golden_logits)
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_gradcheck(golden_logits: tuple[Tensor, Tensor], activation):
    student, teacher = (z[:3, :4].double() for z in golden_logits)
    assert torch.autograd.gradcheck(
        lambda s: weighted_soft_cross_entropy(s, teacher, activation=activation, temperature=2.0),
        (student.requires_grad_(),),
        atol=1e-7,
        rtol=1e-6,
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_extremes(activation):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = weighted_soft_cross_entropy(student, -student.detach(), activation=activation)
    value.backward()
    assert torch.isfinite(value) and value > 1e4
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_lowest_point_is_the_reweighted_teacher():
    """Said in the docstring: with unequal weights the best student is not the teacher."""
    teacher = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    weights = torch.tensor([1.5, 1.0, 1.0], dtype=torch.float64)
    best = (teacher.softmax(1) * weights).log().requires_grad_()
    (grad,) = torch.autograd.grad(weighted_soft_cross_entropy(best, teacher), best)
    assert grad.abs().max() < 1e-12


def test_module_keeps_class_weights_out_of_checkpoints():
    module = WeightedSoftCrossEntropy(class_weight=[1.0, 2.0])
    assert not module.state_dict()
    assert module.to("meta").class_weight.device.type == "meta"  # type: ignore


@pytest.mark.parametrize("background", [3, -4])
def test_background_is_no_class(background: int):
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=f"background={background} is none of the 3 classes"):
        weighted_soft_cross_entropy(logits, logits, background=background)


def test_class_weights_must_fit():
    logits = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"each of the 3 classes .* got shape \(2,\)"):
        weighted_soft_cross_entropy(logits, logits, class_weight=[1.0, 2.0])


@pytest.mark.parametrize(
    "options", [{"background_weight": -1.0}, {"temperature": 0.0}, {"activation": "tanh"}]
)
def test_bad_options(options: dict):
    with pytest.raises(ConfigError, match=next(iter(options))):
        WeightedSoftCrossEntropy(**options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        weighted_soft_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2), **options)
