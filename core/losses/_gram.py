"""The distance of two Gram matrices: what losses on pairs of channels or positions are made of."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ShapeError
from ._autograd import forbid_second_derivatives
from ._backend import plain
from ._reduction import compute_dtype, full_precision

# A vector shorter than this has no direction: it becomes zeros and gets no gradient.
SHORTEST = 1e-12
# Side of the blocks in which a Gram matrix over positions is formed, if it is larger.
BLOCK = 512
# Numbers of both sides to work on at a time on a CPU.
CACHED = 2**18

Axis = Literal[1, 2]


def same_positions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Check two maps that may differ in channels alone; return both in the computing precision.

    Raises:
        ShapeError: If batch, height or width differ, or there are no channels.
    """
    for name, feature in (("student", student), ("teacher", teacher)):
        if feature.ndim < 3 or feature.shape[1] == 0:
            raise ShapeError(
                f"a feature must be (B, C, H, W) with channels, got {name} {tuple(feature.shape)}."
            )
    if student.shape[:1] + student.shape[2:] != teacher.shape[:1] + teacher.shape[2:]:
        raise ShapeError(
            "student and teacher may differ in their channels only, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}. Pool or resize the larger "
            "map first, for example with an adapter."
        )
    dtype = compute_dtype(student, teacher)
    return student.to(dtype), teacher.detach().to(dtype)


def unit(feature: Tensor, axis: Axis, *, detach_norm: bool = False) -> Tensor:
    """Divide by the L2 norm along `axis`, through autograd; too short a vector becomes 0."""
    squares = feature.square().sum(axis, keepdim=True)
    live = squares > SHORTEST**2
    # Masked before the root, whose derivative at 0 is infinite.
    inverse = torch.where(live, squares, 1.0).rsqrt() * live
    return feature * (inverse.detach() if detach_norm else inverse)


def gram_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    scales: tuple[float, float],
    axis: Axis,
    detach_norm: bool = False,
) -> Tensor:
    r"""Squared Frobenius norm of a S^T S - b T^T T of every sample, shape (B,).

    S and T are the features divided by their L2 norms along `axis`. The P x P matrices over the
    positions are formed only where that is less work than the equal sum over pairs of channels,
    a^2 |S S^T|^2 + b^2 |T T^T|^2 - 2 a b |S T^T|^2, and then in blocks.

    That sum cancels where student and teacher nearly agree. With equally many channels (and a = b)
    it is written in S - T, which does not; otherwise float32 leaves an absolute error of some 1e-8
    of the largest term in the value. The gradient keeps its digits.

    Args:
        student: (B, C_s, P), checked and in the computing precision.
        teacher: (B, C_t, P), the same.
        scales: a and b.
        axis: 1 for vectors over the channels, 2 for vectors over the positions.
        detach_norm: Take the student's norms for constants in the gradient.
    """
    if plain():
        s = unit(student, axis, detach_norm=detach_norm)
        t = unit(teacher, axis)
        residual = scales[0] * (s.mT @ s) - scales[1] * (t.mT @ t)
        return residual.square().sum((1, 2))
    wanted = torch.is_grad_enabled() and student.requires_grad
    return _GramDistance.apply(student, teacher, scales, axis, detach_norm, wanted)  # type: ignore


class _GramDistance(torch.autograd.Function):
    """The distance; the gradient 4 S (S^T S - T^T T), carried back through the norms.

    With fewer positions than channels the residual is smaller than the student, and backward forms
    the gradient from it and the feature, which the student's own graph keeps alive. Otherwise the
    gradient is formed here: later it would take the teacher, which nobody else needs to keep.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        scales: tuple[float, float],
        axis: Axis,
        detach_norm: bool,
        wanted: bool,
    ) -> Tensor:
        rows, width, positions = student.shape
        ctx.scale, ctx.axis, ctx.detach_norm = scales[0], axis, detach_norm
        ctx.from_residual = positions < width and positions <= BLOCK
        if not wanted:
            held = None
        elif ctx.from_residual:
            held = student.new_empty(rows, positions, positions)
        else:
            held = student.new_empty(student.shape)
        values = student.new_empty(rows)
        for part in _parts(student, teacher):
            s, inverse = _scaled_unit(student[part], axis, scales[0])
            t, _ = _scaled_unit(teacher[part], axis, scales[1])
            if ctx.from_residual:
                slope = _residual(s, s, t, t)
                values[part] = slope.square().sum((1, 2))
            elif _channels_are_cheaper(width, t.shape[1], positions):
                values[part], slope = _over_channels(s, t, wanted)
            else:
                values[part], slope = _over_positions(s, t, wanted)
            del t
            if held is not None and slope is not None:
                held[part] = slope if ctx.from_residual else _through_norm(slope, s, inverse, ctx)
        if ctx.from_residual:
            ctx.save_for_backward(student, held)
        else:
            ctx.save_for_backward(held)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        forbid_second_derivatives()
        grad = grad[:, None, None]
        if not ctx.from_residual:
            (slope,) = ctx.saved_tensors
            return grad * slope, None, None, None, None, None
        student, residual = ctx.saved_tensors
        with full_precision(student):
            s, inverse = _scaled_unit(student, ctx.axis, ctx.scale)
            slope = _through_norm(torch.bmm(s, residual * (4 * grad)), s, inverse, ctx)
        return slope, None, None, None, None, None


def _parts(student: Tensor, teacher: Tensor) -> list[slice]:
    """Which samples to work on together: on a CPU as many as stay in its cache."""
    rows = len(student)
    if student.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, rows)]
    numbers = (student.shape[1] + teacher.shape[1]) * student.shape[2]
    step = max(1, CACHED // max(numbers, 1))
    return [slice(i, i + step) for i in range(0, rows, step)]


def inverse_norm(feature: Tensor, axis: Axis) -> Tensor:
    """1 / |x| along `axis`, which is kept; 0 where the vector is too short."""
    norm = torch.linalg.vector_norm(feature, dim=axis, keepdim=True)
    return torch.where(norm > SHORTEST, 1 / norm, 0.0)


def _scaled_unit(feature: Tensor, axis: Axis, scale: float) -> tuple[Tensor, Tensor]:
    """The unit vectors times sqrt(scale), and what the feature was multiplied with."""
    inverse = inverse_norm(feature, axis) * scale**0.5
    return feature * inverse, inverse


def _through_norm(slope: Tensor, s: Tensor, inverse: Tensor, ctx: Any) -> Tensor:
    """Turn the gradient for s = x * inverse into that for x, in place."""
    if not ctx.detach_norm:
        along = (s * slope).sum(ctx.axis, keepdim=True) / ctx.scale
        slope = slope.addcmul_(s, along, value=-1)
    return slope.mul_(inverse)


def _residual(s_i: Tensor, s_j: Tensor, t_i: Tensor, t_j: Tensor) -> Tensor:
    return torch.baddbmm(torch.bmm(t_i.mT, t_j), s_i.mT, s_j, beta=-1)


def _channels_are_cheaper(width_s: int, width_t: int, positions: int) -> bool:
    """Compare multiplications; blocks leave out nearly half of a symmetric matrix."""
    over_channels = 2 * width_s**2 + width_t**2 + 2 * width_s * width_t
    over_positions = positions * (2 * width_s + width_t) * (0.6 if positions > BLOCK else 1)
    return over_channels <= over_positions


def _over_channels(s: Tensor, t: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    if s.shape[1] == t.shape[1]:
        # S = T + D:  S^T S - T^T T = D^T S + T^T D.
        d = s - t
        dd, dt, tt = torch.bmm(d, d.mT), torch.bmm(d, t.mT), torch.bmm(t, t.mT)
        sd = dd + dt.mT
        value = 2 * (dt * sd).sum((1, 2))
        ss = dt.add_(sd).add_(tt)
        value = (value + dd.mul_(tt.add_(ss)).sum((1, 2))).clamp_min(0)
        return value, torch.bmm(sd, t).baddbmm_(ss, d, beta=4, alpha=4) if wanted else None
    ss, st, tt = torch.bmm(s, s.mT), torch.bmm(s, t.mT), torch.bmm(t, t.mT)
    value = (_square_sum(ss) + _square_sum(tt) - 2 * _square_sum(st)).clamp_min(0).to(s.dtype)
    if not wanted:
        return value, None
    return value, torch.bmm(ss, s).baddbmm_(st, t, beta=4, alpha=-4)


def _square_sum(gram: Tensor) -> Tensor:
    # The three sums nearly cancel in the end. The products' own rounding averages out.
    dtype = gram.dtype if gram.device.type == "mps" else torch.float64
    return gram.square().sum((1, 2), dtype=dtype)


def _over_positions(s: Tensor, t: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    value = s.new_zeros(len(s))
    slope = torch.zeros_like(s) if wanted else None
    parts = [slice(i, i + BLOCK) for i in range(0, s.shape[2], BLOCK)]
    for n, i in enumerate(parts):
        for j in parts[n:]:
            block = _residual(s[:, :, i], s[:, :, j], t[:, :, i], t[:, :, j])
            value = value + (1 if i is j else 2) * block.square().sum((1, 2))
            if slope is not None:
                slope[:, :, j] += torch.bmm(s[:, :, i], block).mul_(4)
                if i is not j:
                    slope[:, :, i] += torch.bmm(s[:, :, j], block.mT).mul_(4)
    return value, slope
