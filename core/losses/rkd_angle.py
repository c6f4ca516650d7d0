"""Relational distillation of angles (Park et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._backend import compilable, plain, use_compiled
from ._pairs import (
    Among,
    arrange,
    check_delta,
    embedding_pair,
    squared_distances,
    with_gradient,
    with_rescue,
)
from ._reduction import check_choice, full_precision

# Angles at a time. On a CPU three tensors of them fit the cache of a core, elsewhere few and large
# launches are better.
CPU_BLOCK = 1 << 17
BLOCK = 1 << 23


def rkd_angle(
    student: Tensor,
    teacher: Tensor,
    *,
    triplets: Among = "distinct",
    delta: float = 1.0,
) -> Tensor:
    r"""Match the angles that the samples of a batch form with one another.

    .. math::
        L = \frac{1}{N(N-1)(N-2)} \sum_{i \neq j \neq k} h_\delta(\psi^s_{ijk} - \psi^t_{ijk}),
        \qquad \psi_{ijk} = \cos \angle x_i x_j x_k = \Big\langle
        \frac{x_i - x_j}{\lVert x_i - x_j \rVert}, \frac{x_k - x_j}{\lVert x_k - x_j \rVert}
        \Big\rangle

    with the Huber loss :math:`h_\delta(d) = d^2 / 2` up to :math:`\delta`, and
    :math:`\delta (|d| - \delta / 2)` beyond. Neither place, size nor orientation of the embeddings
    counts, so the widths may differ. The cosine at a sample that coincides with one of the other
    two is 0. Under DDP each rank sees the relations within its own rows.

    The angles follow from the distances, and pass by in blocks: the memory grows with
    :math:`N^2 + N D`, the time with :math:`N^3`.

    Where the samples are more alike than the rounding of the embeddings shows, the student has
    collapsed and its cosines are all 0. There the loss has no direction of its own (it jumps,
    whatever moves) and the gradient leads to the teacher's arrangement instead. Short of that the
    gradient is exact, and like that of every loss without a unit it grows as one over the spread
    of the embeddings: clip it where a collapse is to be feared.

    Args:
        student: Embeddings (B, D). With fewer than three there is nothing to compare: 0.
        teacher: Embeddings (B, D') of the same samples.
        triplets: `"distinct"` averages over three different samples; the paper has the sum. `"all"`
            counts the degenerate ones among the :math:`N^3` as well, as the authors' code does:
            smaller by the factor :math:`(N - 1)(N - 2) / N^2`, unless samples coincide.
        delta: Where the Huber loss turns linear; 1 in the paper.

    Returns:
        A scalar >= 0; 0 at equality. The gradient is computed together with the value, so there
        are no second derivatives: backward with `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If an input is no matrix (B, D), or the numbers of samples differ.
        ConfigError: If `triplets` is unknown or `delta` not above 0.

    Reference:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, section 3.2.2
        (arXiv 1904.05068).

    Lecture:
        Relational information

    When it helps:
        Together with :func:`rkd_distance`, where the embedding itself is the product. Angles
        leave the student more freedom than distances, and often converge faster in the paper.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(rkd_angle(3 * teacher.flip(1) + 7, teacher).item(), 4)
        0.0
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        >>> round(rkd_angle(student, teacher).item(), 4)
        0.5833
    """
    check_choice("triplets", triplets, get_args(Among))
    check_delta(delta)
    distinct = triplets == "distinct"
    with full_precision(student):
        student, teacher = embedding_pair(student, teacher)
        count = len(student)
        if count < 3:
            return (student * 0.0).sum()
        averaged = count * (count - 1) * (count - 2) if distinct else count**3
        if plain():
            s, t = arrange(student), arrange(teacher)
            value = _reference(s.points, t.points, distinct, delta) / averaged
            return with_rescue(value, student, s, t)
        with torch.no_grad():
            t = arrange(teacher)
            wanted, t_scale = _distances(t.points), t.scale
            del t  # of no more use, and as large as the teacher
            s = arrange(student)
            body = _compiled if use_compiled() else _blocked
            if torch.compiler.is_compiling():
                body = _opaque
            value, slope = body(*_distances(s.points), *wanted, distinct, delta)
            factor = value.new_full((), 1 / averaged)
            value *= factor
        return with_gradient(value, slope + slope.T, factor, student, teacher, s, t_scale)


def _distances(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances of all pairs and one over the distances, 0 for coincident ones.

    From products in float64: an angle between near points is the difference of products that are
    much larger. What follows is homogeneous, and needs no more than float32.
    """
    exact = points if points.device.type == "mps" else points.double()  # which has no float64
    squares = squared_distances(exact, margin=32.0).to(points.dtype)
    return squares, torch.where(squares > 0, squares, torch.inf).rsqrt()


def _blocked(
    squares: Tensor,
    inverses: Tensor,
    teacher_squares: Tensor,
    teacher_inverses: Tensor,
    distinct: bool,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """Return the sum over all angles and its derivative with respect to every squared distance.

    With D the squared distances and u one over the distances, the angle at a between b and c is
    (D_ab + D_ac - D_bc) u_ab u_ac / 2. Blocks are [a, b, c].
    """
    count = len(squares)
    rows = max(1, (CPU_BLOCK if squares.device.type == "cpu" else BLOCK) // count**2)
    shape = (min(rows, count), count, count)
    buffers = [squares.new_empty(shape) for _ in range(3)]
    value, slope = squares.new_zeros(()), torch.zeros_like(squares)
    opposite = torch.zeros_like(squares)
    for first in range(0, count, rows):
        at = slice(first, first + rows)
        near = inverses[at]
        cosine, difference, pull = (buffer[: len(near)] for buffer in buffers)
        _cosines(squares, near, at, cosine)
        _cosines(teacher_squares, teacher_inverses[at], at, difference)
        torch.sub(cosine, difference, out=difference)
        if distinct:
            difference.diagonal(dim1=1, dim2=2).zero_()
        torch.clamp(difference, -delta, delta, out=pull)
        flat = pull.flatten()
        value += torch.dot(flat, difference.flatten()) - 0.5 * torch.dot(flat, flat)
        # D_ab as one of the two sides, in u and in the sum ...
        slope[at] = near.square() * cosine.mul_(pull).sum(2)
        pull *= near[:, None, :]
        torch.addcmul(slope[at], near, pull.sum(2), value=-1, out=slope[at])
        # ... and D_bc as the side opposite of a.
        pull *= near[:, :, None]
        opposite += pull.sum(0)
    return value, slope.add_(opposite, alpha=0.5).neg_()


def _cosines(squares: Tensor, inverses: Tensor, at: slice, out: Tensor) -> None:
    """Write the cosines at some points between all pairs of points."""
    half = 0.5 * squares[at] * inverses
    torch.addcmul(half[:, None, :], squares, inverses[:, None, :], value=-0.5, out=out)
    out *= inverses[:, :, None]
    out.addcmul_(half[:, :, None], inverses[:, None, :])


# Inside a graph that is being compiled, one node: traced, the blocks would make it as long as there
# are blocks, and without blocks it would hold N^3 numbers.
_opaque = torch.library.custom_op("taskdistill::rkd_angle", _blocked, mutates_args=())


@_opaque.register_fake
def _(
    squares: Tensor,
    inverses: Tensor,
    teacher_squares: Tensor,
    teacher_inverses: Tensor,
    distinct: bool,
    delta: float,
) -> tuple[Tensor, Tensor]:
    return squares.new_empty(()), torch.empty_like(squares)


def _compiled(
    squares: Tensor,
    inverses: Tensor,
    teacher_squares: Tensor,
    teacher_inverses: Tensor,
    distinct: bool,
    delta: float,
) -> tuple[Tensor, Tensor]:
    from torch._inductor import config

    # By default the compiler stores what is as long as this before it sums it up.
    limits = ("realize_reads_threshold", "realize_acc_reads_threshold", "realize_opcount_threshold")
    with config.patch({name: 1000 for name in limits if hasattr(config, name)}):
        return _fused(squares, inverses, teacher_squares, teacher_inverses, distinct, delta)


@compilable
def _fused(
    squares: Tensor,
    inverses: Tensor,
    teacher_squares: Tensor,
    teacher_inverses: Tensor,
    distinct: bool,
    delta: float,
) -> tuple[Tensor, Tensor]:
    # Without a compiler after all, not by way of N^3 numbers.
    body = _whole if torch.compiler.is_compiling() else _blocked
    return body(squares, inverses, teacher_squares, teacher_inverses, distinct, delta)


def _whole(
    squares: Tensor,
    inverses: Tensor,
    teacher_squares: Tensor,
    teacher_inverses: Tensor,
    distinct: bool,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """The same as sums over c, of which a compiler need not hold the terms.

    D_ab is a side of the angle at a between b and c, and opposite of the angle at c.
    """
    cosine = _at_first(squares, inverses)
    difference = cosine - _at_first(teacher_squares, teacher_inverses)
    value = _huber(difference, delta).sum()
    if distinct:  # without b = c
        own = squares * inverses.square() - teacher_squares * teacher_inverses.square()
        value = value - _huber(own, delta).sum()
    u_ab, u_ac, u_bc = inverses[:, :, None], inverses[:, None, :], inverses
    pull = difference.clamp(-delta, delta)
    opposite = _at_last(squares, inverses) - _at_last(teacher_squares, teacher_inverses)
    opposite = opposite.clamp(-delta, delta)
    slope = (pull * u_ab * (u_ac - cosine * u_ab) - 0.5 * opposite * u_ac * u_bc).sum(2)
    return value, slope


def _at_first(squares: Tensor, inverses: Tensor) -> Tensor:
    """Cosines at a between b and c."""
    ab, ac = squares[:, :, None], squares[:, None, :]
    return 0.5 * (ab + ac - squares) * inverses[:, :, None] * inverses[:, None, :]


def _at_last(squares: Tensor, inverses: Tensor) -> Tensor:
    """Cosines at c between a and b."""
    ab, ac = squares[:, :, None], squares[:, None, :]
    return 0.5 * (ac + squares - ab) * inverses[:, None, :] * inverses


def _huber(difference: Tensor, delta: float) -> Tensor:
    near = difference.clamp(-delta, delta)
    return near * (difference - 0.5 * near)


def _reference(student: Tensor, teacher: Tensor, distinct: bool, delta: float) -> Tensor:
    sides = []
    for points in (student, teacher):
        arms = points - points[:, None]
        squares = arms.square().sum(2, keepdim=True)
        near = squares == 0
        arms = (arms * squares.masked_fill(near, 1.0).rsqrt()).masked_fill(near, 0.0)
        sides.append(arms @ arms.mT)
    difference = sides[0] - sides[1]
    if distinct:
        same = torch.eye(len(student), dtype=torch.bool, device=student.device)
        difference = difference.masked_fill(same, 0.0)
    return F.huber_loss(difference, torch.zeros_like(difference), reduction="sum", delta=delta)


class RKDAngle(nn.Module):
    """Module form of :func:`rkd_angle`, same arguments and defaults.

    Example:
        >>> import torch
        >>> round(RKDAngle()(torch.eye(3), 5 * torch.eye(3)).item(), 4)
        0.0
    """

    any_channels: ClassVar[bool] = True

    def __init__(self, *, triplets: Among = "distinct", delta: float = 1.0) -> None:
        super().__init__()
        check_choice("triplets", triplets, get_args(Among))
        check_delta(delta)
        self.triplets: Among = triplets
        self.delta = delta

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd_angle(student, teacher, triplets=self.triplets, delta=self.delta)

    def extra_repr(self) -> str:
        return f"triplets={self.triplets!r}, delta={self.delta}"
