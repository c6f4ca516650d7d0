"""Focal divergence of yes/no classes, the soft labels of SoLAD (Nguyen et al. 2022)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ._backend import compilable
from ._reduction import class_axis, full_precision, matched_pair
from ._row_kl import LOG2E
from ._rows import RowLoss, Scale

# Under the root of the focal factor, as in the authors' code: without it the factor has no slope
# where student and teacher agree.
SMOOTHING = 1e-6


def focal_kl_div(
    student: Tensor,
    teacher: Tensor,
    *,
    gamma: float = 0.5,
    dim: int = 1,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence of independent classes, each weighted by how far student and teacher differ.

    .. math:: L = \sum_c \mathrm{KL}(p^t_c \Vert p^s_c) \,
              \left((p^t_c - p^s_c)^2 + 10^{-6}\right)^{\gamma / 2}, \qquad p = \sigma(z)

    summed over the classes, averaged over the positions. KL is that of a yes/no question, both
    answers counted. The factor is :math:`|p^t - p^s|^\gamma` but for the small number: the many
    classes and places where both already agree, nearly all background, do not drown the few where
    they do not. The gradient flows through the factor too, so that beside weighing the divergence
    it pulls the probabilities together by itself.

    Other normalisations: the authors' code, with a loss weight of 10, averages over the positions
    and over the K classes as well; that is a weight of 10 / K here.

    Args:
        student: Class logits of a detection head without background channel, any shape with the
            classes on `dim`: (P, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        gamma: 0.5 in the authors' code; 0 is :func:`kl_div` with `activation="sigmoid"`.
        dim: Axis of the classes.
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0 (nats); 0 at equality. No second derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ or `dim` is no axis.
        ConfigError: If gamma is negative or not finite.

    Reference:
        Nguyen et al.: Improving Object Detection by Label Assignment Distillation, WACV 2022
        (arXiv 2108.10520), the soft labels of SoLAD.

    Lecture:
        Object detection

    When it helps:
        Beside label assignment distillation, or alone, where a detector asks a yes/no question of
        every class at thousands of places and almost all of them are easy.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[2.0, -4.0]])
        >>> student = torch.tensor([[0.0, -4.0]])
        >>> round(focal_kl_div(student, teacher).item(), 4)
        0.2023
        >>> round(focal_kl_div(student, teacher, gamma=0.0).item(), 4)
        0.3278
        >>> focal_kl_div(teacher, teacher).item()
        0.0
    """
    _check_gamma(gamma)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, "sigmoid")
        options = {"gamma": float(gamma)}
        loss = RowLoss(partial(_focal_kl, **options), partial(_plain_focal_kl, **options), axis)
        return loss.mean(student, teacher, weight=weight, total=total)


@compilable
def _focal_kl(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    gamma: float,
) -> tuple[Tensor, Tensor | None]:
    # The divergence as in the plain sigmoid one: of the question to which the teacher says no, with
    # z the evidence for no and e = exp(-|z|).
    flip = torch.copysign(torch.ones_like(teacher), teacher)
    s, t = student * flip, teacher * flip
    e_t = (t * -LOG2E).exp2_()
    inverse = (e_t + 1).reciprocal_()
    p_t = e_t * inverse
    kl = s.abs().mul_(-LOG2E).exp2_().sub_(e_t).mul_(inverse).log1p_()
    kl = kl.sub_(s.clamp(max=0)).add_(t.sub_(s).neg_().mul_(p_t)).clamp_(min=0)
    p_s = s.neg_().sigmoid_()
    apart = p_t.sub_(p_s)
    square = apart.square().add_(SMOOTHING)
    factor = square.pow(gamma / 2)
    values = (kl * factor).sum(dim)
    if not wanted:
        return values, None
    # With d = p_t - p_s and f the factor: KL' = d, f' = gamma f d p_s (1 - p_s) / (d^2 + 1e-6).
    slope = p_s.mul_(1 - p_s).mul_(kl).mul_(gamma).div_(square).add_(1)
    slope = slope.mul_(apart).mul_(factor).mul_(scale)
    return values, torch.mul(slope, flip, out=out)


def _plain_focal_kl(
    student: Tensor, teacher: Tensor, extra: None, dim: int, *, gamma: float
) -> Tensor:
    p_s, p_t = student.sigmoid(), teacher.sigmoid()
    yes = p_t * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    factor = ((p_t - p_s).square() + SMOOTHING) ** (gamma / 2)
    return ((yes + no) * factor).sum(dim)


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise ConfigError(f"gamma must be a finite number >= 0, got {gamma}.")


class FocalKLDivergence(nn.Module):
    """Module form of :func:`focal_kl_div`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = FocalKLDivergence(gamma=0.5)
        >>> loss(torch.zeros(3, 80), torch.zeros(3, 80)).item()
        0.0
    """

    def __init__(self, *, gamma: float = 0.5, dim: int = 1) -> None:
        super().__init__()
        _check_gamma(gamma)
        self.gamma = gamma
        self.dim = dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return focal_kl_div(
            student, teacher, gamma=self.gamma, dim=self.dim, weight=weight, total=total
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, dim={self.dim}"
