"""Pixel-wise distillation of segmentation logits (Liu et al. 2019)."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from . import _row_kl
from ._backend import compilable
from ._reduction import (
    check_choice,
    check_temperature,
    class_axis,
    full_precision,
    matched_pair,
    soften,
)
from ._row_kl import LOG2E, Slope
from ._rows import RowLoss, Scale

Divergence = Literal["student_teacher", "teacher_student", "cross_entropy"]


def pixel_wise(
    student: Tensor,
    teacher: Tensor,
    *,
    divergence: Divergence = "student_teacher",
    temperature: float = 1.0,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence of the class probabilities of every pixel, the student's first as in the paper.

    .. math:: L = T^2 \sum_c p^s_c (\log p^s_c - \log p^t_c), \qquad p = \mathrm{softmax}(z / T)

    summed over the classes, averaged over the pixels of all images. This order,
    :math:`\mathrm{KL}(s \Vert t)`, is the one that the paper prints: it asks the student to leave
    alone what the teacher finds unlikely.

    `divergence="teacher_student"` is the usual order, :func:`kl_div`. The authors' code has the
    cross-entropy :math:`-\sum_c p^t_c \log p^s_c`, `divergence="cross_entropy"`: the gradient of
    :func:`kl_div` again, and another value (see :func:`soft_cross_entropy`). It sums over the
    images too and divides by H * W only, which makes its value N times this one for N images.

    Args:
        student: Logits (N, K, H, W), or any (N, K, ...).
        teacher: Logits of the same shape.
        divergence: `"student_teacher"` (the paper), `"teacher_student"` or `"cross_entropy"` (the
            authors' code).
        temperature: T, 1 in paper and code.
        weight: One number a pixel, (N, H, W); False or 0 where the label is to be ignored. The
            authors' code counts ignored pixels as well.
        total: Normaliser in place of `sum(weight)`, or of the number of pixels.

    Returns:
        A scalar >= 0, in nats (times T squared); 0 at equality but for the cross-entropy. No second
        derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ or there is a single class.
        ConfigError: If the divergence is unknown or the temperature is not above 0.

    Reference:
        Liu et al.: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019,
        "pixel-wise distillation" (arXiv 1903.04197).

    Lecture:
        Semantic segmentation

    When it helps:
        As the basic term for segmentation, under the structured ones: every pixel is a
        classification of its own.

    Example:
        >>> import torch
        >>> student = torch.tensor([[3.0, 2.0]]).reshape(1, 2, 1, 1)
        >>> teacher = torch.tensor([[5.0, 1.0]]).reshape(1, 2, 1, 1)
        >>> round(pixel_wise(student, teacher).item(), 4)
        0.5117
        >>> round(pixel_wise(student, teacher, divergence="teacher_student").item(), 4)
        0.2412
    """
    _check_options(divergence, temperature)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, 1, "softmax")
        loss = _choose(divergence, axis, float(temperature))
        return loss.mean(student, teacher, weight=weight, total=total)


def _check_options(divergence: str, temperature: float) -> None:
    check_choice("divergence", divergence, get_args(Divergence))
    check_temperature(temperature)


def _choose(name: Divergence, dim: int, temperature: float) -> RowLoss:
    if name == "teacher_student":
        return _row_kl.divergence(dim, temperature)
    if name == "cross_entropy":
        return _row_kl.cross_entropy(dim, temperature)
    return RowLoss(
        partial(_reverse_kl, temperature=temperature),
        partial(_plain_reverse_kl, temperature=temperature),
        dim,
    )


@compilable
def _reverse_kl(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    temperature: float,
) -> Slope:
    # KL = sum p_s d - lse_s + lse_t with d = (z_s - z_t) / T; its slope is p_s (d - sum p_s d).
    rate = LOG2E / temperature
    t = teacher - teacher.amax(dim, True)
    s = student - student.amax(dim, True)
    apart = torch.sub(s, t, out=out)
    sum_t = t.mul_(rate).exp2_().sum(dim, True)
    p_s = s.mul_(rate).exp2_()
    sum_s = p_s.sum(dim, True)
    mean = torch.mul(apart, p_s, out=t).sum(dim, True) / sum_s
    values = (mean / temperature + (sum_t / sum_s).log()).clamp(min=0) * temperature**2
    if not wanted:
        return values.squeeze(dim), None
    return values.squeeze(dim), apart.sub_(mean).mul_(p_s).mul_(scale / sum_s)


def _plain_reverse_kl(
    student: Tensor, teacher: Tensor, extra: None, dim: int, *, temperature: float
) -> Tensor:
    log_s = soften(student, temperature).log_softmax(dim)
    log_t = soften(teacher, temperature).log_softmax(dim)
    return (log_s.exp() * (log_s - log_t)).sum(dim) * temperature**2


class PixelWise(nn.Module):
    """Module form of :func:`pixel_wise`, same arguments and defaults.

    Example:
        >>> import torch
        >>> PixelWise()(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).item()
        0.0
    """

    def __init__(
        self, *, divergence: Divergence = "student_teacher", temperature: float = 1.0
    ) -> None:
        super().__init__()
        _check_options(divergence, temperature)
        self.divergence: Divergence = divergence
        self.temperature = temperature

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return pixel_wise(
            student,
            teacher,
            divergence=self.divergence,
            temperature=self.temperature,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"divergence={self.divergence!r}, temperature={self.temperature}"
