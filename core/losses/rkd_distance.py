"""Relational distillation of distances (Park et al. 2019)."""

from __future__ import annotations

import math
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._backend import plain
from ._pairs import (
    Among,
    Arrangement,
    arrange,
    check_delta,
    embedding_pair,
    squared_distances,
    with_gradient,
    with_rescue,
)
from ._reduction import check_choice, full_precision

# Between points of size 1 no mean distance is as small, unless it is 0.
LEAST = 1e-12


def rkd_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    squared: bool = False,
    normalize: bool = True,
    pairs: Among = "distinct",
    delta: float = 1.0,
) -> Tensor:
    r"""Match the distances between the samples of a batch, each side in units of its own mean.

    .. math::
        L = \frac{1}{N(N-1)} \sum_{i \neq j} h_\delta(\psi^s_{ij} - \psi^t_{ij}), \qquad
        \psi_{ij} = \frac{\lVert x_i - x_j \rVert}{\mu}, \qquad
        \mu = \frac{1}{N(N-1)} \sum_{i \neq j} \lVert x_i - x_j \rVert

    with the Huber loss :math:`h_\delta(d) = d^2 / 2` up to :math:`\delta`, and
    :math:`\delta (|d| - \delta / 2)` beyond. Neither place, size nor orientation of the embeddings
    counts, so the widths may differ. Under DDP each rank sees the relations within its own rows.

    Where the samples are more alike than the rounding of the embeddings shows, the student has
    collapsed and its distances are all counted as 0. There the loss has no direction of its own (it
    jumps, whatever moves) and the gradient leads to the teacher's arrangement instead. Short of
    that the gradient is exact, and like that of every loss without a unit it grows as one over the
    spread of the embeddings: clip it where a collapse is to be feared.

    Args:
        student: Embeddings (B, D). With a single one there is nothing to compare: 0.
        teacher: Embeddings (B, D') of the same samples.
        squared: Compare squared distances.
        normalize: Divide by the mean over the distinct pairs; otherwise distances count in units
            of the embeddings.
        pairs: `"distinct"` averages over i != j; the paper has the sum. `"all"` counts the zero
            diagonal as well, as the authors' code does: smaller by the factor (N - 1) / N.
        delta: Where the Huber loss turns linear; 1 in the paper.

    Returns:
        A scalar >= 0; 0 at equality. The gradient is computed together with the value, so there
        are no second derivatives: backward with `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If an input is no matrix (B, D), or the numbers of samples differ.
        ConfigError: If `pairs` is unknown or `delta` not above 0.

    Reference:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, section 3.2.1
        (arXiv 1904.05068).

    Lecture:
        Relational information

    When it helps:
        Where the embedding itself is the product, as in retrieval and metric learning, or where
        student and teacher have embeddings of different width. Wants large batches.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.0], [3.0], [6.0]])
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> round(rkd_distance(student, teacher).item(), 4)
        0.0
        >>> round(rkd_distance(torch.tensor([[0.0], [1.0], [6.0]]), teacher).item(), 4)
        0.0833
    """
    check_choice("pairs", pairs, get_args(Among))
    check_delta(delta)
    with full_precision(student):
        student, teacher = embedding_pair(student, teacher)
        count = len(student)
        if count < 2:
            return (student * 0.0).sum()
        averaged = count * (count - 1 if pairs == "distinct" else count)
        if plain():
            s, t = arrange(student), arrange(teacher)
            value = _reference(s, t, squared, normalize, averaged, delta)
            return with_rescue(value, student, s, t)
        with torch.no_grad():
            t = arrange(teacher)
            wanted, t_size, t_scale = _distances(t.points, squared), t.size, t.scale
            del t  # of no more use, and as large as the teacher
            s = arrange(student)
            found = _distances(s.points, squared)
            value, slope, factor = _huber(
                found, wanted, s.size, t_size, squared, normalize, averaged, delta
            )
        return with_gradient(value, slope, factor, student, teacher, s, t_scale)


def _distances(points: Tensor, squared: bool) -> Tensor:
    squares = squared_distances(points)
    return squares if squared else squares.sqrt_()


def _huber(
    student: Tensor,
    teacher: Tensor,
    student_size: Tensor,
    teacher_size: Tensor,
    squared: bool,
    normalize: bool,
    averaged: int,
    delta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and as a product twice its derivative by every squared distance.

    Consumes the distances.
    """
    count = len(student) * (len(student) - 1)
    mean, other = student.sum() / count, teacher.sum() / count
    rate = _rate(mean, student_size, squared, normalize)
    difference = student * rate
    difference -= teacher.mul_(_rate(other, teacher_size, squared, normalize))
    slope = difference.clamp(-delta, delta)
    along = slope.flatten()
    value = torch.dot(along, difference.flatten()) - 0.5 * torch.dot(along, along)
    if normalize:
        # The mean distance moves as well.
        slope -= torch.dot(along, student.flatten()) * rate / count
    if not squared:
        # Below the error of a distance its direction is still right, one over its size is not.
        least = 2 * math.sqrt(torch.finfo(student.dtype).eps) * mean.clamp(min=LEAST)
        slope /= student.clamp_(min=least)
    return value / averaged, slope, rate * ((2 if squared else 1) / averaged)


def _rate(mean: Tensor, size: Tensor, squared: bool, normalize: bool) -> Tensor:
    """Return what distances between points of size 1 are multiplied with."""
    if normalize:
        return mean.clamp(min=LEAST).reciprocal()
    return size.square() if squared else size


def _reference(
    s: Arrangement, t: Arrangement, squared: bool, normalize: bool, averaged: int, delta: float
) -> Tensor:
    sides = []
    for points, size, _ in (s, t):
        squares = (points[:, None] - points).square().sum(-1)
        near = squares == 0
        distances = squares if squared else squares.masked_fill(near, 1.0).sqrt()
        distances = distances.masked_fill(near, 0.0)
        mean = distances.sum() / (len(points) * (len(points) - 1))
        sides.append(distances * _rate(mean, size, squared, normalize))
    return F.huber_loss(*sides, reduction="sum", delta=delta) / averaged


class RKDDistance(nn.Module):
    """Module form of :func:`rkd_distance`, same arguments and defaults.

    Example:
        >>> import torch
        >>> round(RKDDistance()(torch.eye(3), 5 * torch.eye(3)).item(), 4)
        0.0
    """

    any_channels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        squared: bool = False,
        normalize: bool = True,
        pairs: Among = "distinct",
        delta: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("pairs", pairs, get_args(Among))
        check_delta(delta)
        self.squared = squared
        self.normalize = normalize
        self.pairs: Among = pairs
        self.delta = delta

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd_distance(
            student,
            teacher,
            squared=self.squared,
            normalize=self.normalize,
            pairs=self.pairs,
            delta=self.delta,
        )

    def extra_repr(self) -> str:
        return (
            f"squared={self.squared}, normalize={self.normalize}, pairs={self.pairs!r}, "
            f"delta={self.delta}"
        )
