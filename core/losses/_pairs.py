"""Distances between the samples of a batch, and the way back: what relational losses are made of.

The differences x_i - x_j, an (N, N, D) tensor, are never formed. A loss is a function of the
squared distances, N x N numbers, and its gradient with respect to the embeddings is one matrix
product more.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError
from ._autograd import forbid_second_derivatives
from ._reduction import compute_dtype

Among = Literal["distinct", "all"]

PANEL = 128  # rows of a matrix product: fewer are slower each, more compute more numbers twice


class Arrangement(NamedTuple):
    """Embeddings without their place and size, neither of which the relations depend on."""

    points: Tensor  # around 0, the largest coordinate 1; all 0 where the embeddings are one point
    size: Tensor  # what they were divided by; 0 where the embeddings are one point
    scale: Tensor  # 1 / size; 0 where the embeddings are one point


def check_delta(delta: float) -> None:
    """Raise ConfigError unless the Huber threshold is a finite number above 0."""
    if not 0 < delta < math.inf:
        raise ConfigError(f"delta must be a finite number > 0, got {delta}.")


def embedding_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes; return both in the computing precision, the teacher detached.

    Raises:
        ShapeError: If one is no matrix (B, D) with D > 0, or the numbers of samples differ.
    """
    for name, embeddings in (("student", student), ("teacher", teacher)):
        if embeddings.ndim != 2 or embeddings.shape[1] == 0:
            raise ShapeError(
                f"{name} embeddings must be (B, D) with D > 0, got student {tuple(student.shape)} "
                f"and teacher {tuple(teacher.shape)}. Flatten or pool a map first."
            )
    if len(student) != len(teacher):
        raise ShapeError(
            "student and teacher must embed the same samples, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}. Widths may differ, the "
            "number of rows may not."
        )
    dtype = compute_dtype(student, teacher)
    return student.to(dtype), teacher.detach().to(dtype)


def arrange(embeddings: Tensor) -> Arrangement:
    """Move the embeddings around 0 and stretch them to size 1.

    Embeddings that differ by no more than their rounding are one point. Place and size count as
    constants in the gradient, which is exact for whatever does not depend on them.
    """
    info = torch.finfo(embeddings.dtype)
    # The first row before the mean: equal rows become exactly 0, and differences between near rows
    # far from 0 lose nothing.
    origin = embeddings.detach()[0]
    points = embeddings - origin
    fixed = points.detach()
    points -= fixed.mean(0)
    reach = torch.maximum(fixed.amax(0), -fixed.amin(0))
    # The constant keeps 1 / size, and with it the gradient, within the range of the dtype.
    rounding = (4 * info.eps * origin).abs_() + 2**20 * info.tiny
    size = torch.where((reach > rounding).any(), reach.amax(), 0.0)
    scale = torch.where(size > 0, size, torch.inf).reciprocal()
    points *= scale
    return Arrangement(points, size, scale)


def squared_distances(points: Tensor, margin: float = 0.0) -> Tensor:
    """Return |x_i - x_j|^2 of all pairs, (N, N), exactly 0 on the diagonal.

    From the Gram matrix, so that the error is that of |x_i|^2: points nearer to each other than
    about sqrt(eps) have a random distance of that size. A `margin` of more than that, in units of
    eps, makes it 0 instead.
    """
    gram = _gram(points)
    norms = gram.diagonal() * (1 - margin * torch.finfo(points.dtype).eps)
    return gram.mul_(-2).add_(norms).add_(norms[:, None]).clamp_(min=0)


def _gram(points: Tensor) -> Tensor:
    count = len(points)
    if count <= PANEL or torch.compiler.is_compiling():
        return points @ points.T
    gram = points.new_empty(count, count)
    for first in range(0, count, PANEL):
        end = first + PANEL
        # Right of the diagonal only; what is below is its mirror image.
        torch.mm(points[first:end], points[first:].T, out=gram[first:end, first:])
        gram[end:, first:end] = gram[first:end, end:].T
    return gram


def with_gradient(
    value: Tensor,
    slope: Tensor,
    factor: Tensor,
    student: Tensor,
    teacher: Tensor,
    s: Arrangement,
    t_scale: Tensor,
) -> Tensor:
    """Return the value as a function of the student.

    Where the student is one point, no direction follows from the loss, which jumps whatever moves.
    There a step against the gradient arranges the student as the teacher, in as many dimensions as
    it has.

    Args:
        value: The loss.
        slope: Its derivative with respect to the squared distance of every two of `s.points`,
            (N, N), symmetric; 0 where the student is one point. Consumed.
        factor: What the slope still has to be multiplied with.
        student: The embeddings of which `s` is the arrangement.
        teacher: The teacher's embeddings.
        s: The student, arranged; consumed.
        t_scale: The scale of the teacher's arrangement, which itself need not be kept.
    """
    # The sum over j of 2 slope_ij (x_i - x_j), as one product.
    own = slope.diagonal()
    own.zero_()
    own.sub_(slope.sum(1))
    slope.mul_(factor * s.scale * -2)
    # Of a student in one point all of the above is 0. Without its mean, and so around 0:
    gone = (s.size == 0).to(value)
    pull = gone * value / len(slope)
    slope.add_(pull / len(slope))
    own.sub_(pull)
    s.points.addcmul_(_in_width(teacher, s), gone * t_scale)
    return _Known.apply(student, value, slope, s.points)  # type: ignore


def with_rescue(value: Tensor, student: Tensor, s: Arrangement, t: Arrangement) -> Tensor:
    """Give the same gradient in one point to a value that autograd differentiates."""
    pull = (s.size == 0) * value.detach() / len(student) * _in_width(t.points, s)
    return value - (pull * (student - student.detach())).sum()


def _in_width(points: Tensor, like: Arrangement) -> Tensor:
    """Pad with zeros, or add up what is beyond: no dimension is lost for good."""
    width = like.points.shape[1]
    if points.shape[1] == width:
        return points
    return F.pad(points, (0, -points.shape[1] % width)).unflatten(1, (-1, width)).sum(1)


class _Known(torch.autograd.Function):
    """A value whose gradient with respect to the student is the product of two small matrices."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, value: Tensor, slope: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(slope, points)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        forbid_second_derivatives()
        slope, points = ctx.saved_tensors
        return (grad * slope) @ points, None, None, None
