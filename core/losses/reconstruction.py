"""Reconstruction: how far a generated image is from the one it should be."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from ._reduction import check_choice, full_precision, matched_pair, weighted_mean
from .feature_imitation import channel_axis

Norm = Literal["l1", "l2", "smooth_l1"]


def reconstruction(
    student: Tensor,
    teacher: Tensor,
    *,
    norm: Norm = "l1",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Mean distance, element by element, between an image and the one it should be.

    .. math:: L = \frac{1}{\sum_i m_i} \sum_i m_i \frac{1}{C} \sum_c d(s_{ic} - t_{ic})

    over the positions i (:math:`m_i = 1` without a weight), with :math:`d(x) = |x|` for `"l1"`,
    :math:`x^2` for `"l2"`, and for `"smooth_l1"` :math:`x^2 / 2` where :math:`|x| < 1`, else
    :math:`|x| - 1/2`.

    In GAN compression the image is held against the ground truth where there is one (paired data)
    and against the teacher's output where there is none. The paper leaves the norm open; its code
    has `"l1"` by default, the other two as options, and weights the term by 100 (10 for
    horse2zebra and map2sat).

    Args:
        student: (B, C, H, W) images, or any (B, C, ...); (B, T, C) tokens; (N, C) vectors.
        teacher: The same shape.
        norm: `"l1"` (as in the authors' code), `"l2"` or `"smooth_l1"`.
        weight: One number a position: (B, H, W), (B, T) or (N,).
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in units of the image (squared for `"l2"`).

    Raises:
        ConfigError: If the norm is unknown.
        ShapeError: If the shapes differ, there are no channels, or the weight does not fit.

    Reference:
        Li et al.: GAN Compression: Efficient Architectures for Interactive Conditional GANs,
        CVPR 2020, section on unifying unpaired and paired learning (arXiv 2003.08936).

    Lecture:
        Generative adversarial networks

    When it helps:
        An image translator whose teacher is unpaired: the teacher's output makes the data paired,
        and the student is spared the cycle.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 2.0)
        >>> [reconstruction(student, teacher, norm=n).item() for n in ("l1", "l2", "smooth_l1")]
        [2.0, 4.0, 1.5]
    """
    check_choice("norm", norm, get_args(Norm))
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = channel_axis(student)
        if norm == "l1":
            values = (student - teacher).abs()
        elif norm == "l2":
            values = (student - teacher).square()
        else:
            values = F.smooth_l1_loss(student, teacher, reduction="none")
        return weighted_mean(values.mean(axis), weight, total)


class Reconstruction(nn.Module):
    """Module form of :func:`reconstruction`.

    Args:
        norm: `"l1"`, `"l2"` or `"smooth_l1"`.

    Raises:
        ConfigError: If the norm is unknown.

    Example:
        >>> import torch
        >>> Reconstruction()(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item()
        1.0
    """

    def __init__(self, *, norm: Norm = "l1") -> None:
        super().__init__()
        check_choice("norm", norm, get_args(Norm))
        self.norm: Norm = norm

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return reconstruction(student, teacher, norm=self.norm, weight=weight, total=total)

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"
