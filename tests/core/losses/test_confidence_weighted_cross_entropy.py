from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    ConfidenceWeightedCrossEntropy,
    confidence_weighted_cross_entropy,
)

Cls = dict[str, Tensor]


@given(rows=st.integers(1, 6), classes=st.integers(2, 7), seed=st.integers(0, 10**6))
def test_is_the_papers_formula(rows: int, classes: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=g, dtype=torch.float64)
    target = torch.randint(0, classes, (rows,), generator=g)
    weights = teacher.softmax(1).amax(1)
    each = [-student[i].log_softmax(0)[target[i]] for i in range(rows)]
    expected = sum(w * e for w, e in zip(weights / weights.sum(), each, strict=True))
    value = confidence_weighted_cross_entropy(student, teacher, target)
    torch.testing.assert_close(value, expected)


def test_an_evenly_sure_teacher_leaves_the_plain_cross_entropy(golden_cls: Cls):
    student, target = golden_cls["ls"], golden_cls["y"]
    teacher = torch.eye(10)[:8] * 3.0  # as sure of every sample, each of another class
    value = confidence_weighted_cross_entropy(student, teacher, target)
    torch.testing.assert_close(value, F.cross_entropy(student, target))


def test_only_the_largest_probability_counts(golden_cls: Cls):
    """Which class it is of, and how the rest is spread, make no difference."""
    student, target = golden_cls["ls"], golden_cls["y"]
    g = torch.Generator().manual_seed(1)
    sure = torch.linspace(0.55, 0.95, 8)

    def teacher() -> Tensor:
        rest = torch.rand(8, 9, generator=g)
        rest = rest / rest.sum(1, keepdim=True) * (1 - sure[:, None])
        probabilities = torch.cat([sure[:, None], rest], 1)
        return torch.stack([p[torch.randperm(10, generator=g)] for p in probabilities]).log()

    values = [confidence_weighted_cross_entropy(student, teacher(), target) for _ in range(3)]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_a_sure_teachers_samples_count_more(golden_cls: Cls):
    student, target = golden_cls["ls"], golden_cls["y"]
    each = F.cross_entropy(student, target, reduction="none")
    teacher = torch.zeros(8, 10)
    teacher[each.argmax(), 0] = 30.0  # weight 1 for the worst, 0.1 for the others
    worst = each.max()
    expected = (worst + 0.1 * (each.sum() - worst)) / 1.7
    value = confidence_weighted_cross_entropy(student, teacher, target)
    torch.testing.assert_close(value, expected)


def test_ignored_positions_leave_the_normaliser_too(golden_cls: Cls):
    student, teacher, target = (golden_cls[key].clone() for key in ("ls", "lt", "y"))
    expected = confidence_weighted_cross_entropy(student[2:], teacher[2:], target[2:])
    target[:2] = 255
    student[:2], teacher[:2] = 1e4, -1e4
    value = confidence_weighted_cross_entropy(student, teacher, target, ignore_index=255)
    torch.testing.assert_close(value, expected)


def test_tokens_with_the_classes_last(golden_cls: Cls):
    student, teacher, target = (golden_cls[key] for key in ("ls", "lt", "y"))
    value = ConfidenceWeightedCrossEntropy(dim=-1)(
        student.reshape(2, 4, 10), teacher.reshape(2, 4, 10), target.reshape(2, 4)
    )
    expected = confidence_weighted_cross_entropy(student, teacher, target)
    torch.testing.assert_close(value, expected)


def test_what_does_not_fit(golden_cls: Cls):
    student, teacher, target = (golden_cls[key] for key in ("ls", "lt", "y"))
    with pytest.raises(ConfigError, match="none of the 10 classes"):
        confidence_weighted_cross_entropy(student, teacher, target + 10)
    with pytest.raises(ShapeError, match=r"got \(7,\)"):
        confidence_weighted_cross_entropy(student, teacher, target[:7])
