"""Logit distillation from a teacher of which only some classes were kept."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from ..errors import ConfigError, ShapeError
from ._autograd import BLOCK, by_hand, forbid_second_derivatives
from ._reduction import (
    check_choice,
    check_temperature,
    class_axis,
    compute_dtype,
    full_precision,
    resolve_axis,
    soften,
    weighted_mean,
)
from ._row_kl import LOG2E, row_kl

Tail = Literal["bucket", "renormalised", "sampled"]


class SparseLogits(NamedTuple):
    """Some classes of a teacher: what :func:`top_k_kl_div` takes and a cache stores.

    Attributes:
        values: Log-probabilities of the kept classes at the temperature of the loss: the shape of
            the logits with K numbers on the axis of the classes.
        indices: Which classes they are, the same shape.
        tail: Log of the probability of all other classes together, the shape of the logits without
            the axis of the classes; None where it is not needed, or to be found from `values`.
    """

    values: Tensor
    indices: Tensor
    tail: Tensor | None = None


Sparse = SparseLogits | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


def sparse_logits(
    teacher_logits: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    tail: Tail = "bucket",
    dim: int = -1,
    generator: Generator | None = None,
) -> SparseLogits:
    """Keep K classes of a teacher's logits, for a cache or to save memory.

    Args:
        teacher_logits: Logits with the classes on `dim`.
        k: How many classes to keep: the most probable ones or, with `tail="sampled"`, independent
            draws from the teacher's distribution (the same class may come up again).
        temperature: T of the loss they are for: the log-probabilities are those of logits / T.
        tail: As in :func:`top_k_kl_div`; the log of the rest's probability is kept for `"bucket"`.
        dim: Axis of the classes.
        generator: Random numbers for `"sampled"`.

    Raises:
        ShapeError: If there are fewer than `k` classes to choose from, or `dim` is no axis.
        ConfigError: If `k` is below 1, the temperature not above 0, or `tail` unknown.

    Example:
        >>> import torch
        >>> kept = sparse_logits(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), 2)
        >>> kept.indices.tolist()
        [[1, 2]]
        >>> round(kept.tail.exp().add(kept.values.exp().sum(1)).item(), 5)
        1.0
    """
    _check_options(tail, temperature)
    axis = class_axis(teacher_logits, dim, "softmax")
    classes = teacher_logits.shape[axis]
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}.")
    if k > classes and tail != "sampled":
        raise ShapeError(
            f"k={k} classes are to be kept of logits of shape {tuple(teacher_logits.shape)}, which "
            f"have {classes} on axis {axis}. Choose a smaller k."
        )
    with full_precision(teacher_logits):
        logits = teacher_logits.detach().to(compute_dtype(teacher_logits))
        log_p = soften(logits, temperature).log_softmax(axis)
        if tail == "sampled":
            rows = log_p.movedim(axis, -1)
            drawn = torch.multinomial(
                rows.reshape(-1, classes).exp(), k, replacement=True, generator=generator
            )
            indices = drawn.reshape(*rows.shape[:-1], k).movedim(-1, axis)
            return SparseLogits(log_p.gather(axis, indices), indices)
        values, indices = log_p.topk(k, axis)
        if tail == "renormalised":
            return SparseLogits(values, indices)
        others = log_p.scatter(axis, indices, -torch.inf)
        return SparseLogits(values, indices, others.logsumexp(axis))


def top_k_kl_div(
    student: Tensor,
    teacher: Sparse,
    *,
    tail: Tail = "bucket",
    temperature: float = 1.0,
    dim: int = -1,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence from a teacher known in K of the V classes.

    .. math:: L = T^2 \left[ \sum_{k \in \mathcal K} p^t_k (\log p^t_k - \log p^s_k)
              + p^t_{\mathrm{rest}} (\log p^t_{\mathrm{rest}} - \log p^s_{\mathrm{rest}}) \right]

    averaged over the positions, with :math:`p_{\mathrm{rest}} = 1 - \sum_{k \in \mathcal K} p_k`.
    What becomes of the classes that were not kept:

    * `"bucket"` (default, the formula): they are one class more on both sides. The value is at
      most that of :func:`kl_div` with the whole teacher, and the same where at most one class is
      missing.
    * `"renormalised"`: both sides are a softmax over the kept classes only. That is cheapest, for
      the student's other logits are not looked at; they get no gradient either, so that the student
      is free to find a class likely which the teacher finds impossible.
    * `"sampled"`: the kept classes are draws from the teacher's distribution,
      :math:`L = \frac{T^2}{K} \sum_k (\log p^t_k - \log p^s_k)`. Value and gradient are those of
      :func:`kl_div` on average over the draws, which the most probable classes alone never give.
      A single value can be negative.

    Args:
        student: Logits of all V classes on `dim`: (N, V), (B, T, V), ...
        teacher: (values, indices) or (values, indices, tail) as :func:`sparse_logits` makes them.
            Their softmax is already that of the loss's temperature: `temperature` divides the
            student alone. Values may be logits instead of log-probabilities, then for `"bucket"`
            `tail` is the log of the sum of the exponentials of the others. Without `tail` they must
            be log-probabilities, and what is missing to 1 is the rest. The indices of a position
            must differ from each other, except for `"sampled"`; this is not checked.
        tail: What becomes of the other classes.
        temperature: T.
        dim: Axis of the classes, and of the kept ones.
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar (nats times T squared). There are no second derivatives, unless under the
        reference backend.

    Raises:
        ShapeError: If values, indices and tail do not fit each other or the student, a single class
            is to be renormalised, more are kept than there are, or an index is no class (looked at
            on the CPU only: on a GPU that would wait for the device, which itself stops at such an
            index).
        ConfigError: If `tail` is unknown, the temperature not above 0, the teacher not a tuple of
            two or three, or the indices not integers.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2014
        (arXiv 1503.02531) for the divergence. Anshumann et al.: Sparse Logit Sampling:
        Accelerating Knowledge Distillation in LLMs, ACL 2025 (arXiv 2503.16870) for `"sampled"`
        and for the bias of the most probable classes.

    Lecture:
        Output logits

    When it helps:
        When the teacher's outputs are stored once and read in every epoch, or its vocabulary is
        too large to keep all probabilities.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
        >>> teacher = torch.tensor([[0.0, 3.0, 1.0, 0.0]])
        >>> round(top_k_kl_div(student, sparse_logits(teacher, 2)).item(), 4)
        1.514
        >>> round(top_k_kl_div(student, sparse_logits(teacher, 3)).item(), 4)  # all but one: kl_div
        1.5489
    """
    _check_options(tail, temperature)
    if not isinstance(teacher, tuple) or len(teacher) not in (2, 3):
        raise ConfigError(
            "the teacher must be a tuple (values, indices) or (values, indices, tail), as "
            f"sparse_logits makes it, got {type(teacher).__name__}. For all classes use kl_div."
        )
    values, indices = teacher[0], teacher[1]
    rest = teacher[2] if len(teacher) == 3 else None
    with full_precision(student):
        axis = resolve_axis(student, dim)
        _check_teacher(student, values, indices, rest, axis, tail)
        dtype = compute_dtype(student, values)
        student, values = student.to(dtype), values.detach().to(dtype)
        if not torch.compiler.is_compiling() and indices.is_inference():
            indices = indices.clone()  # which backward may keep
        indices = indices.long()
        if tail == "sampled":
            kept, log_sum = _gathered(student, indices, axis, temperature, rest_only=False)
            log_s = kept - log_sum.unsqueeze(axis)
            losses = (values - log_s).mean(axis) * temperature**2
            return weighted_mean(losses, weight, total)
        if tail == "renormalised" or indices.shape[axis] == student.shape[axis]:
            kept = student.gather(axis, indices)
            # The teacher is softened already; row_kl divides both sides.
            losses = row_kl(kept, values * temperature, dim=axis, temperature=temperature)
            return weighted_mean(losses, weight, total)
        kept, log_rest = _gathered(student, indices, axis, temperature, rest_only=True)
        rest = _missing(values, axis) if rest is None else rest.detach().to(dtype)
        # Finite, so that the difference of two impossible classes is 0 and not NaN.
        rest = rest.clamp(min=torch.finfo(dtype).min / 4)
        losses = row_kl(
            torch.cat([kept, log_rest.unsqueeze(axis)], axis),
            torch.cat([values, rest.unsqueeze(axis)], axis),
            dim=axis,
        )
        return weighted_mean(losses * temperature**2, weight, total)


def _missing(log_p: Tensor, axis: int) -> Tensor:
    """Log of what the probabilities lack to 1, but never less than rounding leaves."""
    missing = 1 - log_p.exp().sum(axis)
    return missing.clamp(min=torch.finfo(log_p.dtype).eps).log()


def _gathered(
    student: Tensor, indices: Tensor, axis: int, temperature: float, *, rest_only: bool
) -> tuple[Tensor, Tensor]:
    """The softened logits of the kept classes, and log-sum-exp of all classes or of the rest."""
    if not by_hand():
        student = soften(student, temperature)
        others = student.scatter(axis, indices, -torch.inf) if rest_only else student
        return student.gather(axis, indices), others.logsumexp(axis)
    # Rows of all classes, so that a block of rows is a piece of memory.
    rows, picked = student.movedim(axis, -1), indices.movedim(axis, -1)
    kept, log_sum = _Gather.apply(  # type: ignore
        rows.reshape(-1, rows.shape[-1]),
        picked.reshape(-1, picked.shape[-1]),
        float(temperature),
        rest_only,
    )
    return kept.reshape(picked.shape).movedim(-1, axis), log_sum.reshape(rows.shape[:-1])


class _Gather(torch.autograd.Function):
    """Reads the logits once and writes their gradient once, holding no other tensor of their size.

    Autograd's own graph would write, hold and add up several.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, indices: Tensor, temperature: float, rest_only: bool
    ) -> tuple[Tensor, Tensor]:
        kept = soften(student.gather(1, indices), temperature)
        log_sum = student.new_empty(len(student))
        for rows in _blocks(student):
            block = student[rows].clone()
            if rest_only:
                block.scatter_(1, indices[rows], -torch.inf)
            top = block.amax(1, keepdim=True)
            sums = block.sub_(top).mul_(LOG2E / temperature).exp2_().sum(1)
            log_sum[rows] = sums.log() + top.squeeze(1) / temperature
        ctx.save_for_backward(student, indices, log_sum)
        ctx.temperature, ctx.rest_only = temperature, rest_only
        return kept, log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        forbid_second_derivatives()
        student, indices, log_sum = ctx.saved_tensors
        grad_kept, grad_sum = (grad / ctx.temperature for grad in grads)
        slope = torch.empty_like(student)
        for rows in _blocks(student):
            block = slope[rows]
            torch.mul(student[rows], LOG2E / ctx.temperature, out=block)
            block.sub_(log_sum[rows, None] * LOG2E).exp2_().mul_(grad_sum[rows, None])
            if ctx.rest_only:  # what has just been written there may be infinite
                block.scatter_(1, indices[rows], 0.0)
            block.scatter_add_(1, indices[rows], grad_kept[rows])
        return slope, None, None, None


def _blocks(rows: Tensor) -> list[slice]:
    size = max(1, BLOCK // rows.shape[1])
    if rows.device.type != "cpu":  # one launch each, and no cache to stay in
        size = max(1, len(rows))
    return [slice(i, i + size) for i in range(0, len(rows), size)]


def _check_teacher(
    student: Tensor, values: Tensor, indices: Tensor, rest: Tensor | None, axis: int, tail: Tail
) -> None:
    classes = student.shape[axis]
    positions = (*student.shape[:axis], *student.shape[axis + 1 :])
    kept = values.shape[axis] if values.ndim == student.ndim else 0
    expected = (*student.shape[:axis], kept, *student.shape[axis + 1 :])
    if kept < 1 or tuple(values.shape) != expected:
        raise ShapeError(
            "the teacher's values must have the shape of the student with the kept classes on "
            f"axis {axis}, got student {tuple(student.shape)} and values {tuple(values.shape)}."
        )
    if kept > classes and tail != "sampled":
        raise ShapeError(
            f"the teacher keeps {kept} classes, values {tuple(values.shape)}, of only {classes} "
            f"that the student {tuple(student.shape)} has."
        )
    if kept < 2 and tail == "renormalised":
        raise ShapeError(
            "tail='renormalised' needs at least 2 kept classes, got values "
            f"{tuple(values.shape)}: a softmax over one class is always 1."
        )
    if indices.shape != values.shape:
        raise ShapeError(
            "the teacher's values and indices must have the same shape, got values "
            f"{tuple(values.shape)} and indices {tuple(indices.shape)}."
        )
    if rest is not None and tuple(rest.shape) != positions:
        raise ShapeError(
            f"the teacher's tail must hold one number a position, shape {positions}, got "
            f"{tuple(rest.shape)}."
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ConfigError(f"the teacher's indices must be integers, got {indices.dtype}.")
    # Elsewhere than on the CPU, looking would wait for the device.
    look = indices.device.type == "cpu" and not torch.compiler.is_compiling()
    if look and indices.numel() and (indices.min() < 0 or indices.max() >= classes):
        raise ShapeError(
            f"the teacher's indices must lie in [0, {classes}) for a student of shape "
            f"{tuple(student.shape)}, got {indices.min().item()} to {indices.max().item()}. Have "
            "teacher and student the same classes in the same order?"
        )


def _check_options(tail: str, temperature: float) -> None:
    check_choice("tail", tail, get_args(Tail))
    check_temperature(temperature)


class TopKKLDivergence(nn.Module):
    """Module form of :func:`top_k_kl_div`, same arguments and defaults, and `k`.

    Args:
        k: Classes to keep of a teacher that gives all its logits, by :func:`sparse_logits` with the
            same temperature, tail and axis. A teacher of which only some are known (a cache) is
            taken as it is; it must be of that k.
        tail: As in :func:`top_k_kl_div`.
        temperature: Likewise.
        dim: Likewise.

    Raises:
        ConfigError: If an option cannot be meant; when called, if the teacher gives all its logits
            and `k` is missing, or knows another number of classes.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
        >>> loss = TopKKLDivergence(tail="renormalised")
        >>> abs(round(loss(logits, sparse_logits(logits, 2, tail="renormalised")).item(), 5))
        0.0
        >>> abs(round(TopKKLDivergence(k=2)(logits, logits).item(), 5))
        0.0
    """

    takes_sparse = True
    """A :class:`SparseLogits` will do as the teacher."""

    def __init__(
        self,
        *,
        k: int | None = None,
        tail: Tail = "bucket",
        temperature: float = 1.0,
        dim: int = -1,
    ) -> None:
        super().__init__()
        _check_options(tail, temperature)
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise ConfigError(f"k must be a whole number of at least 1, got {k!r}.")
        self.k = k
        self.tail: Tail = tail
        self.temperature = temperature
        self.dim = dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor | Sparse,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return top_k_kl_div(
            student,
            self._kept(teacher),
            tail=self.tail,
            temperature=self.temperature,
            dim=self.dim,
            weight=weight,
            total=total,
        )

    def _kept(self, teacher: Tensor | Sparse) -> Sparse:
        if isinstance(teacher, Tensor):
            if self.k is None:
                raise ConfigError(
                    "the teacher gives all its logits, so TopKKLDivergence has to be told how many "
                    "classes to keep: add k=10, say. For all classes use KLDivergence."
                )
            return sparse_logits(
                teacher, self.k, temperature=self.temperature, tail=self.tail, dim=self.dim
            )
        if self.k is not None and isinstance(teacher, tuple) and teacher[0].ndim:
            kept = teacher[0].shape[resolve_axis(teacher[0], self.dim)]
            if kept != self.k:
                raise ConfigError(
                    f"the loss is of k={self.k} classes, but {kept} of the teacher's were kept. "
                    "Write the cache anew, or change k."
                )
        return teacher

    def extra_repr(self) -> str:
        k = "" if self.k is None else f"k={self.k}, "
        return f"{k}tail={self.tail!r}, temperature={self.temperature}, dim={self.dim}"
