"""Activation boundaries: which neurons are on, not how much."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError
from ._autograd import by_hand, with_gradient
from ._backend import compilable, use_compiled
from ._maps import blocks, fit, workspace
from ._reduction import compute_dtype, full_precision, weighted_mean


def activation_boundaries(
    student: Tensor,
    teacher: Tensor,
    *,
    margin: float = 1.0,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Push every neuron of the student to the side of zero where the teacher's is, with a margin.

    .. math:: L = \sum_c \max(0,\ m - \sigma_c s_c)^2, \qquad \sigma_c = 2 \cdot [t_c > 0] - 1

    summed over the channels, averaged over the positions. It stands in for what is really meant,
    the number of neurons that are on in one network and off in the other
    (:func:`boundary_disagreement`), which has no gradient. Of the teacher only the signs enter:
    values before or after its ReLU do equally, and so does a bool mask, which takes a quarter of
    the memory in a cache.

    **The student's values must be those before its ReLU**, and not overwritten by it
    (`inplace=True`): after it nothing is negative, so a neuron that should be off keeps the loss
    m^2 with no gradient. Between the two usually lies a 1x1 convolution with batch normalisation
    to the teacher's channels.

    The paper's own code divides the sum by the batch size only: H * W times this value, and a
    common reimplementation takes 3/1000 of that; others average over the channels too: this value
    divided by C.

    Args:
        student: (B, C, H, W), (B, C), or any (B, C, ...), before the ReLU.
        teacher: The same shape, floating point or bool (`teacher > 0`).
        margin: m, how far beyond zero counts as safe. 1 as in the paper's code.
        weight: One number a position: the shape of the student without its channels.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0; 0 where every neuron is on the teacher's side by at least the margin, so
        not at equality. The gradient is computed together with the value: there are no second
        derivatives outside the reference backend, backward with `create_graph=True` raises
        DistillError.

    Raises:
        ShapeError: If the shapes differ or there is no channel axis.
        ConfigError: If the margin is not a finite number above 0.

    Reference:
        Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed
        by Hidden Neurons, AAAI 2019 (arXiv 1811.03233).

    Lecture:
        Sparsity patterns

    When it helps:
        As a first stage before the training proper: it brings the student's layers into a state
        from which the task is learnt faster and from less data.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.5, -3.0, 2.0]])
        >>> teacher = torch.tensor([[4.0, -0.1, 0.0]])
        >>> activation_boundaries(student, teacher).item()
        9.25
        >>> activation_boundaries(student, teacher > 0).item()
        9.25
    """
    _check_margin(margin)
    _check_pair(student, teacher)
    with full_precision(student):
        student = student.to(compute_dtype(student))
        teacher = teacher.detach()
        if by_hand():
            values = _known_hinge(student, teacher, margin)
        else:
            side = torch.where(teacher > 0, 1.0, -1.0).to(student.dtype)
            values = F.relu(margin - side * student).square().sum(1)
        return weighted_mean(values, weight, total)


def _known_hinge(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """The squared hinge with its gradient, formed on the way: one tensor is held, not five.

    What is compared comes out of an adapter that nobody else keeps, so it may go.
    """
    with torch.no_grad():
        values, slope = (_hinge if use_compiled() else _hinge_in_blocks)(student, teacher, margin)
    return 8 * with_gradient(values, (student,), (slope,), (len(values), 1, *values.shape[1:]))


# Both bodies halve everything (student, margin, hinge), since -sigma / 2 is the quickest to come
# by, and leave a factor of 8 to the end: the square of the half is a quarter, its half an eighth.


def _hinge_in_blocks(student: Tensor, teacher: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    slope = torch.empty_like(student)
    values = student.new_zeros(student.shape[:1] + student.shape[2:])
    spaces = workspace(student, 2)
    for part in blocks(student):
        s, hinge = student[part], slope[part]
        side, square = (fit(space, s) for space in spaces)
        # A comparison minus 1/2: choosing by a mask (torch.where) takes ten times as long.
        torch.le(teacher[part], 0, out=side).sub_(0.5)
        torch.mul(s, side, out=hinge).add_(margin / 2).relu_()
        values[part[0]] += torch.mul(hinge, hinge, out=square).sum(1)
        hinge.mul_(side)
    return values.div_(2), slope


@compilable
def _hinge(student: Tensor, teacher: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    side = torch.where(teacher > 0, -0.5, 0.5)
    hinge = F.relu(student * side + margin / 2)
    return (hinge * hinge).sum(1) / 2, hinge * side


def boundary_disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    r"""The share of neurons that are on in one network and off in the other.

    .. math:: L = \mathrm{mean} \, \lvert [s > 0] - [t > 0] \rvert

    What :func:`activation_boundaries` stands in for, exactly. A metric: it has no gradient.

    Args:
        student: Any shape, before or after the ReLU, or a bool mask.
        teacher: The same shape, likewise.

    Returns:
        A float32 scalar between 0 (same patterns) and 1; 0 if there are no neurons.

    Raises:
        ShapeError: If the shapes differ.

    Reference:
        Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed
        by Hidden Neurons, AAAI 2019 (arXiv 1811.03233).

    Lecture:
        Sparsity patterns

    When it helps:
        To see how far the first stage has come: it is no loss.

    Example:
        >>> import torch
        >>> student = torch.tensor([0.5, -3.0, 2.0, 0.0])
        >>> boundary_disagreement(student, torch.tensor([4.0, -0.1, 0.0, -2.0])).item()
        0.25
    """
    _check_same(student, teacher)
    differs = (student > 0) ^ (teacher > 0)
    return differs.sum(dtype=torch.float32) / max(1, differs.numel())


def _check_margin(margin: float) -> None:
    if not 0 < margin < math.inf:
        raise ConfigError(f"margin must be a finite number > 0, got {margin}.")


def _check_same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher must have the same shape, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}. Bring the student to the "
            "teacher's channels first: a 1x1 convolution with batch normalisation."
        )


def _check_pair(student: Tensor, teacher: Tensor) -> None:
    _check_same(student, teacher)
    if student.ndim < 2:
        raise ShapeError(
            f"activations must be (B, C) or (B, C, ...), got shape {tuple(student.shape)}."
        )


class ActivationBoundaries(nn.Module):
    """Module form of :func:`activation_boundaries`, same arguments and defaults.

    Example:
        >>> import torch
        >>> ActivationBoundaries(margin=2.0)(torch.zeros(1, 3), torch.ones(1, 3)).item()
        12.0
    """

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        _check_margin(margin)
        self.margin = margin

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return activation_boundaries(
            student, teacher, margin=self.margin, weight=weight, total=total
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}"
