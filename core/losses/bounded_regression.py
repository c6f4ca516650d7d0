"""Box regression bounded by the teacher (Chen et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._reduction import full_precision, matched_pair, weighted_mean


def bounded_regression(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    margin: float = 0.0,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Squared box error of the student, as long as it is not better than the teacher.

    .. math:: L = \frac{1}{N} \sum_i \lVert s_i - y_i \rVert^2 \,
              \mathbf{1}[\lVert s_i - y_i \rVert^2 + m > \lVert t_i - y_i \rVert^2]

    with the ground truth y, decided box by box and averaged over all N boxes, those at 0 included.
    The teacher is an upper bound and not a target: its regression may point away from the truth.
    The larger the margin m, the more boxes stay active. The choice itself has no gradient.

    Args:
        student: Regression output, (..., 4): encoded deltas or distances of foreground boxes, for
            the class of the target only.
        teacher: The same for the same boxes or anchors.
        target: What the student is trained to regress, the same shape and encoding.
        margin: m >= 0, in squared units of the regression; 0 by default. Published codes disagree
            about it.
        weight: One number a box: the shape without the last axis.
        total: Normaliser in place of `sum(weight)`, or of the number of boxes.

    Returns:
        A scalar >= 0, in squared units of the regression.

    Raises:
        ShapeError: If the three shapes differ or the last axis is not 4.
        ConfigError: If the margin is negative.

    Reference:
        Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation,
        NeurIPS 2017, section 3.3.

    Lecture:
        Object detection.

    When it helps:
        For regression heads that put out four plain numbers, where the teacher's own may be wrong:
        it pushes only the boxes on which the student is still worse than the teacher.

    Example:
        >>> import torch
        >>> target = torch.zeros(2, 4)
        >>> teacher = torch.full((2, 4), 0.5)  # squared error 1 a box
        >>> student = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
        >>> bounded_regression(student, teacher, target).item()  # the second box is good enough
        2.0
    """
    _check_margin(margin)
    if target.shape != student.shape:
        raise ShapeError(
            "student and target must have the same shape, got student "
            f"{tuple(student.shape)} and target {tuple(target.shape)}."
        )
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        if student.ndim == 0 or student.shape[-1] != 4:
            raise ShapeError(
                "the last axis must be the 4 coordinates of a box, got shape "
                f"{tuple(student.shape)}. Select the target's class and reshape to (N, 4)."
            )
        target = target.detach().to(student.dtype)
        student_error = (student - target).square().sum(-1)
        teacher_error = (teacher - target).square().sum(-1)
        active = student_error.detach() + margin > teacher_error
        values = torch.where(active, student_error, torch.zeros_like(student_error))
        return weighted_mean(values, weight, total)


def _check_margin(margin: float) -> None:
    if not margin >= 0:
        raise ConfigError(
            f"margin must be >= 0, got {margin}. It is added to the student's error: a larger one "
            "keeps more boxes active."
        )


class BoundedRegression(nn.Module):
    """Module form of :func:`bounded_regression`.

    Example:
        >>> import torch
        >>> target = torch.zeros(2, 4)
        >>> BoundedRegression(margin=0.1)(target + 1, target, target).item()
        4.0
    """

    def __init__(self, *, margin: float = 0.0) -> None:
        super().__init__()
        _check_margin(margin)
        self.margin = margin

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return bounded_regression(
            student, teacher, target, margin=self.margin, weight=weight, total=total
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}"
