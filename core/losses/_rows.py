"""The engine of the losses that compare two sets of logits position by position.

Such a loss is one small body of tensor operations on logits, which returns the values and, beside
them, their slope: the derivative with respect to the student's logits. Here it is run block by
block, so that its intermediate results stay in the cache, and only the slope, the future gradient,
is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._autograd import by_hand, forbid_second_derivatives, graph_is_kept, wants_gradient
from ._backend import use_compiled
from ._reduction import weighted_mean

# body(student, teacher, extra, scale, out, dim, wanted) -> (values, slope). `extra` and `scale`
# have size 1 on dim. The slope, None unless wanted, is multiplied by the scale and lies in `out`
# where that is given: a scratch space at first, but maybe the teacher's own memory, so not before
# the teacher has been read.
Scale = Tensor | float
Body = Callable[..., tuple[Tensor, Tensor | None]]
# reference(student, teacher, extra, dim) -> values
Reference = Callable[..., Tensor]
Index = tuple[slice, ...]

# Some blocks are alive at a time, which is to be little beside the logits. Smaller ones would cost
# more time to hand out than to compute; the second level of cache is 1 or 2 MiB.
BLOCKS, SMALLEST_BLOCK, LARGEST_BLOCK = 24, 448 * 2**10, 2**20
ACCELERATOR_BLOCK = 2**26  # there the launches count


class RowLoss(NamedTuple):
    """A loss of logits, one number a position.

    Expects a matched pair in the computing precision and a `dim` that is not negative.
    """

    body: Body
    reference: Reference  # the values alone, as a formula that autograd can follow
    dim: int

    def values(
        self,
        student: Tensor,
        teacher: Tensor,
        extra: Tensor | None = None,
        *,
        consume_teacher: bool = False,
    ) -> Tensor:
        """Return the value of every position: the shape of the logits without `dim`."""
        if not by_hand():  # a compiler finds its own blocks, and its own gradient
            return self.reference(student, teacher, extra, self.dim)
        return _Rows.apply(student, teacher, extra, None, self, consume_teacher)  # type: ignore

    def mean(
        self,
        student: Tensor,
        teacher: Tensor,
        extra: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
        within: int | None = None,
        consume_teacher: bool = False,
    ) -> Tensor:
        """Return `weighted_mean` of the values, which `within` is the axis to average first.

        What a position counts is known before its value is, so that it goes into the slope as it
        is formed, and backward has nothing left to do but to multiply by one number.
        """
        if not by_hand() or not wants_gradient(student):
            values = self.values(student, teacher, extra)
            return weighted_mean(values if within is None else values.mean(within), weight, total)
        scale = _scale(student, self.dim, within, weight, total)
        return _Rows.apply(student, teacher, extra, scale, self, consume_teacher)  # type: ignore


def _scale(
    student: Tensor,
    dim: int,
    within: int | None,
    weight: Tensor | None,
    total: Tensor | float | None,
) -> Scale:
    """What the value of each position is multiplied by in the mean."""
    shape = list(student.shape)
    del shape[dim]
    share = 1 if within is None else shape.pop(within)
    if weight is None and total is None:
        positions = torch.Size(shape).numel() * share
        return 1 / positions if positions else 0.0
    # The mean is linear, so its derivative says it, with all checks in one place.
    probe = student.new_zeros(shape).requires_grad_()
    (scale,) = torch.autograd.grad(weighted_mean(probe, weight, total), probe)
    if within is not None:
        scale = (scale / share).unsqueeze(within)
    # Not expanded over `within`: it broadcasts in the blocks.
    return scale.unsqueeze(dim)


class _Rows(torch.autograd.Function):
    """The values, or their mean if there is a scale, with the gradient formed in forward.

    Autograd's own graph would keep several tensors of the size of the logits until backward, this
    keeps one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        extra: Tensor | None,
        scale: Scale | None,
        loss: RowLoss,
        consume_teacher: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        factor = 1.0 if scale is None else scale
        if use_compiled():
            values, slope = loss.body(student, teacher, extra, factor, None, loss.dim, wanted)
        else:
            into = teacher if consume_teacher and _can_hold_the_slope(teacher, student) else None
            values, slope = _in_blocks(loss, student, teacher, extra, factor, wanted, into)
        ctx.dim = None if scale is not None else loss.dim
        if slope is not None:
            ctx.save_for_backward(slope)
        if scale is None:
            return values
        if isinstance(scale, Tensor):
            return (values * scale.squeeze(loss.dim)).sum()
        return values.sum() * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        forbid_second_derivatives()
        (slope,) = ctx.saved_tensors
        if ctx.dim is not None:
            grad = grad.unsqueeze(ctx.dim)
        if graph_is_kept():
            slope = slope * grad
        elif not _is_one(grad):
            slope = slope.mul_(grad)
        return slope, None, None, None, None, None


def _is_one(grad: Tensor) -> bool:
    # Looking at a number is free on the CPU only.
    return type(grad) is Tensor and grad.is_cpu and grad.ndim == 0 and grad.item() == 1.0


def _can_hold_the_slope(teacher: Tensor, student: Tensor) -> bool:
    dense = teacher.is_contiguous() or (
        teacher.ndim == 4 and teacher.is_contiguous(memory_format=torch.channels_last)
    )
    # A tensor of inference mode may not be changed outside.
    return dense and teacher.stride() == student.stride() and not teacher.is_inference()


def _in_blocks(
    loss: RowLoss,
    student: Tensor,
    teacher: Tensor,
    extra: Tensor | None,
    scale: Scale,
    wanted: bool,
    into: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    dim = loss.dim
    shape = list(student.shape)
    del shape[dim]
    values = student.new_empty(shape)
    slope = None
    if wanted:
        slope = torch.empty_like(student) if into is None else into.detach()
    for index in _blocks(student, dim):
        rest = tuple(part for axis, part in enumerate(index) if axis != dim)
        own = None if extra is None else extra[index]
        factor = scale[_within(index, scale)] if isinstance(scale, Tensor) else scale
        out = None if slope is None else slope[index]
        values[rest] = loss.body(
            student[index], teacher[index], own, factor, out, dim, slope is not None
        )[0]
    return values, slope


def _within(index: Index, scale: Tensor) -> Index:
    """The index for a tensor that has size 1 where it broadcasts."""
    pairs = zip(index, scale.shape, strict=True)
    return tuple(slice(None) if size == 1 else part for part, size in pairs)


def _blocks(logits: Tensor, dim: int) -> Iterator[Index]:
    """Cut along the axes other than `dim`, the outermost in memory first."""
    size = logits.numel() * logits.element_size()
    most = LARGEST_BLOCK if logits.is_cpu else ACCELERATOR_BLOCK
    if logits.is_cpu and size > LARGEST_BLOCK:
        most = min(max(size // BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
    parts = [[slice(None)] for _ in logits.shape]
    axes = [axis for axis in range(logits.ndim) if axis != dim]
    left = size
    for axis in sorted(axes, key=logits.stride, reverse=True):
        if left <= most:
            break
        length = logits.shape[axis]
        step = max(1, most * length // left)
        pieces = -(-length // step)
        step = -(-length // pieces)  # about equal, rather than a small one at the end
        parts[axis] = [slice(i, i + step) for i in range(0, length, step)]
        left = left // length * step
    if size:
        yield from product(*parts)
