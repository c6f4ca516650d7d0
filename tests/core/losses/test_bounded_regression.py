from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import BoundedRegression, bounded_regression

Boxes = tuple[Tensor, Tensor, Tensor]


def slow(student: Tensor, teacher: Tensor, target: Tensor, margin: float) -> float:
    """The paper's formula, one box at a time."""
    values = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        s_error = sum((a - b) ** 2 for a, b in zip(s, y, strict=True))
        t_error = sum((a - b) ** 2 for a, b in zip(t, y, strict=True))
        values.append(s_error if s_error + margin > t_error else 0.0)
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("margin", "expected", "active"), [(0.0, 2.38931751, 5), (0.5, 2.73892832, 7)]
)
def test_golden(golden_boxes: Boxes, margin: float, expected: float, active: int):
    student, teacher, target = golden_boxes
    student.requires_grad_()
    value = bounded_regression(student, teacher, target, margin=margin)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert student.grad is not None and student.grad.any(1).sum() == active


@settings(deadline=None)
@given(
    rows=st.integers(1, 8),
    margin=st.floats(0, 5),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(rows: int, margin: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(3, rows, 4, generator=generator, dtype=torch.float64)
    student, teacher, target = boxes
    value = bounded_regression(student, teacher, target, margin=margin).item()
    assert value == pytest.approx(slow(student, teacher, target, margin), rel=1e-12)


def test_a_larger_margin_never_switches_a_box_off(golden_boxes: Boxes):
    margins = torch.linspace(0, 20, 41).tolist()
    values = [bounded_regression(*golden_boxes, margin=m).item() for m in margins]
    assert values == sorted(values) and values[0] < values[-1]


def test_a_huge_margin_is_plain_squared_error(golden_boxes: Boxes):
    student, _, target = golden_boxes
    expected = (student - target).square().sum(1).mean()
    torch.testing.assert_close(bounded_regression(*golden_boxes, margin=1e6), expected)


def test_boxes_are_decided_one_by_one():
    target = torch.zeros(2, 4)
    teacher = torch.full((2, 4), 1.0)
    student = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]], requires_grad=True)
    value = bounded_regression(student, teacher, target)
    value.backward()
    assert value.item() == 4.5
    assert student.grad is not None
    assert student.grad.tolist() == [[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_at_equality_the_comparison_is_strict():
    target, prediction = torch.zeros(1, 4), torch.ones(1, 4)
    assert bounded_regression(prediction, prediction, target).item() == 0.0
    assert bounded_regression(prediction, prediction, target, margin=0.1).item() == 4.0


def test_any_leading_axes(golden_boxes: Boxes):
    grid = [boxes.reshape(2, 8, 4) for boxes in golden_boxes]
    weight = torch.rand(2, 8)
    torch.testing.assert_close(
        bounded_regression(*grid, weight=weight),
        bounded_regression(*golden_boxes, weight=weight.flatten()),
    )


def test_shapes_are_named(golden_boxes: Boxes):
    student, teacher, target = golden_boxes
    with pytest.raises(ShapeError, match=r"student \(16, 4\) and target \(1, 4\)"):
        bounded_regression(student, teacher, target[:1])
    with pytest.raises(ShapeError, match=r"4 coordinates of a box, got shape \(8, 8\)"):
        bounded_regression(*(boxes.reshape(8, 8) for boxes in golden_boxes))


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_bad_margin(golden_boxes: Boxes, margin: float):
    with pytest.raises(ConfigError, match="margin must be >= 0"):
        bounded_regression(*golden_boxes, margin=margin)
    with pytest.raises(ConfigError, match="margin must be >= 0"):
        BoundedRegression(margin=margin)
