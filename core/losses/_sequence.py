"""What the losses of transformers share: layers, padding, and maps made of queries and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ._autograd import by_hand, forbid_second_derivatives
from ._backend import compilable, use_compiled
from ._reduction import compute_dtype, weighted_mean
from ._row_kl import LOG2E, divergence

Layers = Tensor | Sequence[Tensor]

# Entries of a map worked on at a time: three such blocks of float32 about fill the second-level
# cache of a core. A GPU wants few large kernels instead.
_CPU_BLOCK = 2**18
_GPU_BLOCK = 2**24


def same_number(student: Sequence[object], teacher: Sequence[object], what: str = "layers") -> None:
    """Raise ShapeError unless both sides are as many, and at least one."""
    if len(student) != len(teacher) or not student:
        raise ShapeError(
            f"student and teacher must give the same number of {what}, at least one, got "
            f"{len(student)} and {len(teacher)}. Choose as many of the teacher's."
        )


def layer_pairs(student: Layers, teacher: Layers) -> list[tuple[Tensor, Tensor]]:
    """Return the layers of both sides two by two; a tensor is one layer.

    Raises:
        ShapeError: If the sides have different numbers of layers, or none.
    """
    students = [student] if isinstance(student, Tensor) else list(student)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    same_number(students, teachers)
    return list(zip(students, teachers, strict=True))


def mean_over_layers(values: list[Tensor]) -> Tensor:
    """Average the losses of the layers."""
    return values[0] if len(values) == 1 else torch.stack(values).mean()


def check_mask(mask: Tensor | None, batch: int, tokens: int) -> None:
    """Raise ShapeError unless there is one number a token."""
    if mask is not None and mask.shape != (batch, tokens):
        raise ShapeError(
            f"weight must hold one number a position, shape {(batch, tokens)} for (B, T), got "
            f"{tuple(mask.shape)}."
        )


def padded_keys(mask: Tensor | None) -> Tensor | None:
    """Where a map (B, A, T, T) has padding for a key: (B, 1, 1, T), or None."""
    return None if mask is None else (mask.detach() <= 0)[:, None, None, :]


def lowest(dtype: torch.dtype) -> float:
    """A score that no softmax sees, with room to subtract from it."""
    return torch.finfo(dtype).min / 4


def map_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    scale: float | None,
    mask: Tensor | None,
    total: Tensor | float | None,
) -> Tensor:
    """KL of softmax(scale * Q K^T) of the teacher from the student's, mean over heads and tokens.

    The maps exist a block at a time only.

    Args:
        student: Queries and keys, (B, A, T, d) each; twice the same tensor for a relation.
        teacher: The same with a width of its own.
        scale: None for 1 / sqrt(d) of either side.
        mask: (B, T), see :func:`padded_keys`.
        total: As in `weighted_mean`.
    """
    dtype = compute_dtype(*student, *teacher)
    related = student[0] is student[1]
    keys = student[1].to(dtype)
    queries = keys if related else student[0].to(dtype)
    teacher_queries, teacher_keys = (t.detach().to(dtype) for t in teacher)
    scales = [1 / math.sqrt(t.shape[-1]) if scale is None else scale for t in (keys, teacher_keys)]
    padding = padded_keys(mask)
    if not by_hand():
        maps = [scales[0] * queries @ keys.mT, scales[1] * teacher_queries @ teacher_keys.mT]
        if padding is not None:
            maps = [scores.masked_fill(padding, lowest(dtype)) for scores in maps]
        return divergence(3, 1.0).mean(*maps, weight=mask, total=total, within=1)
    if mask is not None:
        mask = mask.detach().to(dtype)
    summed = _MapKL.apply(
        None if related else queries,
        keys,
        teacher_queries,
        teacher_keys,
        scales,
        mask,
        padding,
        torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad),
    )
    if total is None:
        total = keys.shape[0] * keys.shape[2] if mask is None else mask.sum()
    return weighted_mean(summed, total=total)  # type: ignore


class _MapKL(torch.autograd.Function):
    """The divergences summed over the tokens, weighted, with the gradients formed on the way.

    A map is T / d times as large as what it is made of, and is not wanted after its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor | None,
        keys: Tensor,
        teacher_queries: Tensor,
        teacher_keys: Tensor,
        scales: list[float],
        weight: Tensor | None,
        padding: Tensor | None,
        gradients: bool,
    ) -> Tensor:
        batch, heads, tokens, _ = keys.shape
        related = queries is None
        k, t_k = keys.flatten(0, 1), teacher_keys.flatten(0, 1)
        # Scores come as multiples of log(2), since exp2 costs less than exp.
        q = scales[0] * LOG2E * (k if queries is None else queries.flatten(0, 1))
        t_q = scales[1] * LOG2E * teacher_queries.flatten(0, 1)
        if padding is not None:
            padding = padding.expand(batch, heads, 1, tokens).reshape(-1, 1, tokens)
        rows = k.new_full((batch, heads, tokens, 1), 1 / heads)  # the weight of a row of a map
        if weight is not None:
            rows = rows * weight[:, None, :, None]
        rows = rows.flatten(0, 1)

        on_cpu = k.device.type == "cpu"
        fused = use_compiled() and not on_cpu  # within the cache of a core it gains nothing
        block = _CPU_BLOCK if on_cpu else _GPU_BLOCK
        length = max(1, min(tokens, block // max(tokens, 1)))
        group = max(1, block // max(length * tokens, 1)) if length == tokens else 1
        buffers = [k.new_empty(min(group, len(k)) * length * tokens) for _ in range(3)]
        d_k = torch.zeros_like(k) if gradients else k.new_empty(0)
        d_q = torch.empty_like(q) if gradients and not related else d_k
        summed = k.new_zeros(())
        for first in range(0, len(k), group):
            maps = slice(first, first + group)
            for start in range(0, tokens, length):
                part = (maps, slice(start, start + length))
                size = (len(q[part]), q[part].shape[1], tokens)
                s, t, spare = (b[: math.prod(size)].view(size) for b in buffers)
                torch.bmm(q[part], k[maps].mT, out=s)
                torch.bmm(t_q[part], t_k[maps].mT, out=t)
                if padding is not None:
                    for scores in (s, t):
                        scores.masked_fill_(padding[maps], lowest(k.dtype))
                values, slope = _fused(s, t) if fused else _in_place(s, t, spare)
                summed += (values * rows[part]).sum()
                if not gradients:
                    continue
                weighted = q[part] * (rows[part] / LOG2E)
                if related:
                    d_k[part] += (slope @ k[maps]).mul_(rows[part] * scales[0])
                else:
                    torch.bmm(slope, k[maps], out=d_q[part])
                d_k[maps].baddbmm_(slope.mT, weighted)
        if gradients and not related:
            d_q.mul_(rows * scales[0])
        ctx.related, ctx.shape = related, keys.shape
        ctx.save_for_backward(d_q, d_k)
        return summed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        forbid_second_derivatives()
        d_q, d_k = ctx.saved_tensors
        d_queries = None if ctx.related else (grad * d_q).view(ctx.shape)
        return d_queries, (grad * d_k).view(ctx.shape), None, None, None, None, None, None


def _in_place(s: Tensor, t: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """KL of the rows of a block of scores, and its slope p_s - p_t; uses up all three."""
    s.sub_(s.amax(-1, keepdim=True))
    t.sub_(t.amax(-1, keepdim=True))
    gap = torch.sub(t, s, out=spare)
    over_t = t.exp2_().sum(-1, keepdim=True).reciprocal_()
    values = gap.mul_(t).sum(-1, keepdim=True) * over_t / LOG2E
    over_s = s.exp2_().sum(-1, keepdim=True).reciprocal_()
    values = values + (over_t / over_s).log_()
    # Below 0 only by rounding.
    return values.clamp_(min=0), s.mul_(over_s).addcmul_(t, over_t, value=-1)


@compilable
def _fused(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`_in_place` computes, for the compiler to fuse."""
    s = s - s.amax(-1, keepdim=True)
    t = t - t.amax(-1, keepdim=True)
    e_s, e_t = s.exp2(), t.exp2()
    sum_s, sum_t = e_s.sum(-1, keepdim=True), e_t.sum(-1, keepdim=True)
    values = (e_t * (t - s)).sum(-1, keepdim=True) / (sum_t * LOG2E) + (sum_s / sum_t).log()
    return values.clamp(min=0), e_s / sum_s - e_t / sum_t


def check_scale(scale: float | None) -> None:
    """Raise ConfigError unless the scale is None or a finite number above 0."""
    if scale is not None and not 0 < scale < math.inf:
        raise ConfigError(f"scale must be a finite number > 0 or None, got {scale}.")
