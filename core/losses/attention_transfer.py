"""Attention transfer: where a network looks, read off its activations."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._maps import channel_energy, row_norm, smallest, unit
from ._reduction import check_choice, compute_dtype, full_precision, weighted_mean

Reduce = Literal["sum", "max"]
Form = Literal["paper", "squared", "code"]


def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    p: float = 2,
    reduce: Reduce = "sum",
    form: Form = "paper",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Distance of the spatial attention maps of two features.

    .. math:: L = \left\lVert \frac{Q_S}{\lVert Q_S \rVert_2} - \frac{Q_T}{\lVert Q_T \rVert_2}
        \right\rVert_2, \qquad Q = \sum_c \lvert A_c \rvert^p

    per sample, averaged over the samples. Q is a vector over the positions of the map, so the
    numbers of channels may differ. Neither the size of the features nor that of the map enters.
    The paper adds :math:`\beta / 2` times the sum over layers to the task loss.

    The authors' code, and everything derived from it, computes something else: the square of the
    norm, averaged over batch *and* positions. `form="code"` is that; `form="squared"` is the
    squared norm without the division, H * W times `"code"`. So a weight of 1000 with `"code"` is
    1000 / (H * W) with `"squared"`, and there is no fixed factor to `"paper"`, whose gradient does
    not fade near equality.

    Args:
        student: (B, C, H, W), or any (B, C, ...). Usually the output of a group of blocks, after
            its ReLU.
        teacher: The same but for C.
        p: Exponent, at least 1. Larger ones give more to the strongest place. 2 in the
            authors' code.
        reduce: `"sum"` over the channels, or `"max"`.
        form: `"paper"`, `"squared"` or `"code"`, see above. The value of `"code"` alone depends on
            the size of the map.
        weight: (B,), one number a sample.
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar: at most the square root of 2 with `"paper"`. At equality it is 0 with
        subgradient 0. A map of zeros (float32: nothing above 1e-16) stays zeros and gets no
        gradient.

    Raises:
        ShapeError: If the batches or map sizes differ, or there are no channels or positions.
        ConfigError: If `p`, `reduce` or `form` is none of the above.

    Reference:
        Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of
        Convolutional Neural Networks via Attention Transfer, ICLR 2017, section 3
        on activation-based transfer (arXiv 1612.03928).

    Lecture:
        Gradients

    When it helps:
        When the student sees the same image at the same resolution but with far fewer channels:
        it needs no adapter, and costs next to nothing beside the networks.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> teacher = torch.tensor([[[[0.0, 0.0], [3.0, 0.0]], [[0.0, 0.0], [4.0, 0.0]]]])
        >>> round(attention_transfer(student, teacher).item(), 4)
        1.4142
        >>> attention_transfer(student, teacher, form="code").item()
        0.5
    """
    _check_options(p, reduce, form)
    _check_maps(student, teacher)
    with full_precision(student):
        dtype = compute_dtype(student, teacher)
        attention_s = _attention(student.to(dtype), p, reduce)
        attention_t = _attention(teacher.detach().to(dtype), p, reduce)
        difference = attention_s - attention_t
        if form == "paper":
            return weighted_mean(row_norm(difference), weight, total)
        values = difference.square().sum(1)
        if form == "code":
            values = values / difference.shape[1]
        return weighted_mean(values, weight, total)


def _attention(feature: Tensor, p: float, reduce: Reduce) -> Tensor:
    rows = feature.flatten(2)
    least = smallest(rows.dtype)
    if p == 2 and reduce == "sum":
        return unit(channel_energy(rows), least**2)
    # Scaling a sample changes nothing in the end, and keeps the powers within range.
    size = rows.detach().abs().amax((1, 2), keepdim=True)
    rows = rows.abs() / torch.where(size > least, size, torch.inf)
    return unit(rows.pow(p).sum(1) if reduce == "sum" else rows.amax(1).pow(p), 0.0)


def _check_options(p: float, reduce: str, form: str) -> None:
    if not 1 <= p < math.inf:
        raise ConfigError(f"p must be a finite number >= 1, got {p}.")
    check_choice("reduce", reduce, get_args(Reduce))
    check_choice("form", form, get_args(Form))


def _check_maps(student: Tensor, teacher: Tensor) -> None:
    shapes = f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}."
    if min(student.ndim, teacher.ndim) < 3:
        raise ShapeError(f"attention needs maps (B, C, H, W) or (B, C, ...), {shapes}")
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ShapeError(
            f"student and teacher must agree in all but the channels, {shapes} Tap layers of the "
            "same resolution, or pool the larger map first."
        )
    if 0 in student.shape[1:] or 0 in teacher.shape[1:]:
        raise ShapeError(f"attention needs channels and positions, {shapes}")


class AttentionTransfer(nn.Module):
    """Module form of :func:`attention_transfer`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = AttentionTransfer(form="code")
        >>> loss(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)).item()
        0.0
    """

    any_channels: ClassVar[bool] = True
    per_position: ClassVar[bool] = False  # a weight is one a sample

    def __init__(self, *, p: float = 2, reduce: Reduce = "sum", form: Form = "paper") -> None:
        super().__init__()
        _check_options(p, reduce, form)
        self.p = p
        self.reduce: Reduce = reduce
        self.form: Form = form

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return attention_transfer(
            student,
            teacher,
            p=self.p,
            reduce=self.reduce,
            form=self.form,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, reduce={self.reduce!r}, form={self.form!r}"
