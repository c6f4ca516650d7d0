"""Logit distillation from hidden states, without ever holding the logits of a large vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError
from ._autograd import by_hand, wants_gradient, with_gradient
from ._reduction import check_temperature, compute_dtype, full_precision, weighted_mean
from ._row_kl import divergence, row_kl
from ._rows import RowLoss

_CHUNK = 30 << 20  # bytes of logits of one side that exist at a time

Side = tuple[Tensor, Tensor, Tensor | None]
Head = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]


def linear_kl_div(
    student: Head,
    teacher: Head,
    *,
    temperature: float = 1.0,
    rows: int | None = None,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r""":func:`kl_div` of the outputs of two linear heads.

    .. math:: L = T^2 \, \mathrm{KL}\left(\mathrm{softmax}((W^t h^t + b^t) / T) \,\Vert\,
              \mathrm{softmax}((W^s h^s + b^s) / T)\right)

    averaged over the positions, for the hidden states :math:`h` and heads :math:`W, b` of both
    sides. The logits, which for 8000 tokens and 30 000 classes take 1 GB a side, exist for some
    rows at a time only. The gradients of the student's hidden states and of its head are computed
    together with the value; a frozen head (or one used under `detach()`) costs nothing.

    Inside a function that is itself compiled (`torch.compile`) and under the reference backend it
    is the formula as written, with all logits.

    Args:
        student: (hidden, head weight) or (hidden, head weight, head bias): (..., H_s), (V, H_s),
            (V,). Give `lm_head.weight` itself, so that it receives its gradient.
        teacher: The same for the teacher, whose hidden size may differ: (..., H_t), (V, H_t), (V,).
        temperature: T.
        rows: How many positions are computed at a time. By default as many as make 30 MiB of
            logits a side.
        weight: One number a position: the shape of the hidden states without the last axis. Leave
            positions out before the call where possible (padding, unmasked tokens): a weight of 0
            costs as much as any other.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0 (nats times T squared) up to rounding; 0 at equality. There are no second
        derivatives, unless under the reference backend.

    Raises:
        ShapeError: If the positions or the vocabularies of the two sides differ, a head does not
            fit its hidden states, or there is a single class.
        ConfigError: If the temperature is not above 0, `rows` below 1, or a side is not a tuple
            of two or three tensors.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2014
        (arXiv 1503.02531) for the divergence. Hsu et al.: Liger Kernel, 2024 (arXiv 2410.10989)
        for computing the head in pieces together with its gradient.

    Lecture:
        Output logits

    When it helps:
        With language models, whose logits otherwise take more memory than the rest of the step.

    Example:
        >>> import torch
        >>> from taskdistill.core.losses import kl_div
        >>> g = torch.Generator().manual_seed(0)
        >>> hidden, head = torch.randn(6, 4, generator=g), torch.randn(9, 4, generator=g)
        >>> wide, wide_head = torch.randn(6, 8, generator=g), torch.randn(9, 8, generator=g)
        >>> value = linear_kl_div((hidden, head), (wide, wide_head))
        >>> torch.allclose(value, kl_div(hidden @ head.T, wide @ wide_head.T))
        True
    """
    _check_options(temperature, rows)
    _check_heads(student, teacher)
    with full_precision(student[0]):
        dtype = compute_dtype(*(x for x in (*student, *teacher) if x is not None))
        positions = student[0].shape[:-1]
        s, t = _flat(student, dtype), _flat(teacher, dtype, detach=True)
        if not by_hand():
            values = row_kl(F.linear(*s), F.linear(*t), dim=1, temperature=temperature)
            return weighted_mean(values.reshape(positions), weight, total)
        if rows is None:
            rows = max(1, _CHUNK // (len(s[1]) * s[1].element_size()))
        loss = divergence(1, temperature)
        if not wants_gradient(*s):
            values = s[0].new_empty(len(s[0]))
            for chunk, logits_s, logits_t in _chunks(s, t, rows):
                values[chunk] = loss.values(logits_s, logits_t)
            return weighted_mean(values.reshape(positions), weight, total)
        # The mean is linear: its derivative says what each position counts, with all checks made.
        probe = s[0].new_zeros(positions).requires_grad_()
        (scale,) = torch.autograd.grad(weighted_mean(probe, weight, total), probe)
        return _with_gradients(s, t, scale.reshape(-1), loss, rows)


def _with_gradients(
    student: Side, teacher: Side, scale: Tensor, loss: RowLoss, rows: int
) -> Tensor:
    """The scaled sum over the positions, with its gradients formed chunk by chunk."""
    inputs = tuple(x for x in student if x is not None)
    slopes = tuple(torch.zeros_like(x) if wants_gradient(x) else None for x in inputs)
    d_hidden, d_head, d_bias = (*slopes, None)[:3]
    student = _flat(student, student[0].dtype, detach=True)
    hidden, head, _ = student
    value = hidden.new_zeros(())
    for chunk, s, t in _chunks(student, teacher, rows):
        s.requires_grad_()
        # The slope is written over the teacher's logits.
        part = loss.mean(s, t, weight=scale[chunk], total=1.0, consume_teacher=True)
        (slope,) = torch.autograd.grad(part, s)
        value += part.detach()
        if d_hidden is not None:
            torch.mm(slope, head, out=d_hidden[chunk])
        if d_head is not None:
            d_head.addmm_(slope.T, hidden[chunk])
        if d_bias is not None:
            d_bias += slope.sum(0)
    return with_gradient(value, inputs, slopes)


def _chunks(student: Side, teacher: Side, rows: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The logits of some rows at a time, in memory that the next rows take over."""
    hidden, head, _ = student
    buffers = [hidden.new_empty(min(rows, len(hidden)), len(head)) for _ in range(2)]
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        yield (
            chunk,
            _logits(student, chunk, buffers[0]),
            _logits(teacher, chunk, buffers[1]),
        )


def _logits(side: Side, chunk: slice, buffer: Tensor) -> Tensor:
    hidden, head, bias = side
    rows = hidden[chunk]
    logits = torch.mm(rows, head.T, out=buffer[: len(rows)])
    return logits if bias is None else logits.add_(bias)


def _parts(side: Head) -> Side:
    return side[0], side[1], side[2] if len(side) == 3 else None


def _flat(side: Head, dtype: torch.dtype, *, detach: bool = False) -> Side:
    hidden, head, bias = _parts(side)
    if detach:
        hidden, head, bias = hidden.detach(), head.detach(), None if bias is None else bias.detach()
    rows = hidden.reshape(-1, hidden.shape[-1])
    return rows.to(dtype), head.to(dtype), None if bias is None else bias.to(dtype)


def _check_heads(student: Head, teacher: Head) -> None:
    for name, side in (("student", student), ("teacher", teacher)):
        if not isinstance(side, tuple) or len(side) not in (2, 3):
            raise ConfigError(
                f"the {name} must be a tuple (hidden, head weight) or (hidden, head weight, head "
                f"bias), got {type(side).__name__}. For logits use kl_div."
            )
        hidden, head, bias = _parts(side)
        shapes = f"hidden states {tuple(hidden.shape)} and head {tuple(head.shape)}"
        if hidden.ndim < 2 or head.ndim != 2 or hidden.shape[-1] != head.shape[1]:
            raise ShapeError(
                f"the {name}'s head must be (classes, hidden size) for hidden states (..., hidden "
                f"size), got {shapes}."
            )
        if bias is not None and bias.shape != head.shape[:1]:
            raise ShapeError(
                f"the {name}'s bias must hold one number for each of the {len(head)} classes, got "
                f"{tuple(bias.shape)}."
            )
    if student[0].shape[:-1] != teacher[0].shape[:-1]:
        raise ShapeError(
            "student and teacher must have the same positions, got hidden states "
            f"{tuple(student[0].shape)} and {tuple(teacher[0].shape)}."
        )
    if len(student[1]) != len(teacher[1]) or len(student[1]) < 2:
        raise ShapeError(
            "student and teacher must have the same classes, at least 2, got heads "
            f"{tuple(student[1].shape)} and {tuple(teacher[1].shape)}. Drop the classes that one "
            "side lacks (padding of the vocabulary) from the other's head."
        )


def _check_options(temperature: float, rows: int | None) -> None:
    check_temperature(temperature)
    if rows is not None and rows < 1:
        raise ConfigError(f"rows must be at least 1, got {rows}.")


class LinearKLDivergence(nn.Module):
    """Module form of :func:`linear_kl_div`, same arguments and defaults.

    Example:
        >>> import torch
        >>> hidden, head = torch.ones(3, 4), torch.ones(5, 4)
        >>> LinearKLDivergence()((hidden, head), (hidden, head)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 1.0, rows: int | None = None) -> None:
        super().__init__()
        _check_options(temperature, rows)
        self.temperature = temperature
        self.rows = rows

    def forward(
        self,
        student: Head,
        teacher: Head,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return linear_kl_div(
            student,
            teacher,
            temperature=self.temperature,
            rows=self.rows,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, rows={self.rows}"
