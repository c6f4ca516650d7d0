"""Hard labels and softened teacher in one pass: the whole objective of Hinton et al. 2014."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._backend import compilable
from ._reduction import (
    check_temperature,
    class_axis,
    full_precision,
    matched_pair,
    soften,
)
from ._row_kl import LOG2E, Slope
from ._rows import RowLoss, Scale


def cross_entropy_kl_div(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.9,
    temperature: float = 4.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    dim: int = 1,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy with the labels and divergence from the softened teacher, in one pass.

    .. math:: L = -(1 - \alpha) \log p^s_y(1)
              + \alpha T^2 \sum_c p^t_c(T) (\log p^t_c(T) - \log p^s_c(T)),
              \qquad p(T) = \mathrm{softmax}(z / T)

    averaged over the positions. The value is that of `F.cross_entropy` and :func:`kl_div` with the
    weights :math:`1 - \alpha` and :math:`\alpha`; the logits are read once for both, and there is
    one gradient instead of two to be added. The temperature applies to the soft term only.

    Here :math:`\alpha` is the mass on the soft term, as in most code; some papers have it on the
    labels. The paper asks for a considerably lower weight on the labels and does not give a number.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        target: Class indices, the shape of the logits without `dim`.
        alpha: Mass on the soft term, 0 to 1. 0.9 with T = 4 is common for CIFAR, 0.5 with T = 1 for
            ImageNet.
        temperature: T of the soft term.
        label_smoothing: Share of the hard term that goes to all classes alike.
        ignore_index: Positions with this target count for neither term; the mean is over the
            others.
        dim: Axis of the classes; -1 for (B, T, K).
        weight: One number a position: the shape of `target`.
        total: Normaliser in place of `sum(weight)` over the positions that are not ignored, or of
            their number.

    Returns:
        A scalar >= 0. No second derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, `target` does not have one number a position, `dim` is no
            axis, or there is a single class.
        ConfigError: If an option is out of its range, `target` is not of an integer type, or (on
            the CPU; elsewhere the device reports it) holds a number that is no class.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS 2014 workshop,
        section 2 (arXiv 1503.02531).

    Lecture:
        Output logits

    When it helps:
        With a labelled classification task, in place of two losses: labels keep the student from
        copying the teacher's mistakes, and large outputs are read once instead of twice.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[5.0, 1.0]])
        >>> student = torch.tensor([[3.0, 2.0]])
        >>> loss = cross_entropy_kl_div(student, teacher, torch.tensor([0]), temperature=1.0)
        >>> round(loss.item(), 4)  # 0.1 * 0.3133 + 0.9 * 0.2412
        0.2484
    """
    _check_options(alpha, temperature, label_smoothing)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, "softmax")
        target = _checked_target(target, student, axis, ignore_index)
        counts = target != ignore_index
        if weight is None:
            weight = counts
        elif weight.shape == counts.shape:  # else the mean says what is wrong
            weight = weight * counts
        options = {
            "alpha": float(alpha),
            "temperature": float(temperature),
            "smoothing": float(label_smoothing),
        }
        loss = RowLoss(partial(_joint, **options), partial(_plain_joint, **options), axis)
        # Any class will do where the weight is 0.
        index = torch.where(counts, target, 0).unsqueeze(axis)
        return loss.mean(student, teacher, index, weight=weight, total=total)


def _check_options(alpha: float, temperature: float, label_smoothing: float) -> None:
    check_temperature(temperature)
    for name, share in (("alpha", alpha), ("label_smoothing", label_smoothing)):
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} must be from 0 to 1, got {share}.")


def _checked_target(target: Tensor, student: Tensor, axis: int, ignore_index: int) -> Tensor:
    shape = list(student.shape)
    classes = shape.pop(axis)
    if list(target.shape) != shape:
        raise ShapeError(
            f"target must hold one class index a position, shape {tuple(shape)} for logits "
            f"{tuple(student.shape)} with the classes on axis {axis}, got {tuple(target.shape)}."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ConfigError(
            f"target must hold class indices of an integer type, got {target.dtype}. For soft "
            "labels use soft_cross_entropy."
        )
    target = target.long()
    if target.is_cpu and not torch.compiler.is_compiling():
        wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
        if wrong.any():
            raise ConfigError(
                f"target holds {int(target[wrong][0])}, which is none of the {classes} classes, 0 "
                f"to {classes - 1}. Positions to be left out carry ignore_index={ignore_index}."
            )
    return target


@compilable
def _joint(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    alpha: float,
    temperature: float,
    smoothing: float,
) -> Slope:
    rate = LOG2E / temperature
    t = teacher - teacher.amax(dim, True)
    s = student - student.amax(dim, True)
    apart = torch.sub(t, s, out=out)
    p_t = t.mul_(rate).exp2_()
    sum_t = p_t.sum(dim, True)
    cross = apart.mul_(p_t).sum(dim, True) / (sum_t * temperature)
    picked = s.gather(dim, target) * (1 - smoothing)
    if smoothing:
        picked = picked + s.mean(dim, True) * smoothing
    p_1 = torch.mul(s, LOG2E, out=out).exp2_()
    sum_1 = p_1.sum(dim, True)
    p_s = s.mul_(rate).exp2_()
    sum_s = p_s.sum(dim, True)
    soft = (cross + (sum_s / sum_t).log()).clamp(min=0) * temperature**2
    values = (sum_1.log() - picked) * (1 - alpha) + soft * alpha
    if not wanted:
        return values.squeeze(dim), None
    hard_scale, soft_scale = scale * (1 - alpha), scale * (alpha * temperature)
    p_s = p_s.mul_(soft_scale / sum_s).addcmul_(p_t, soft_scale / sum_t, value=-1)
    slope = torch.addcmul(p_s, p_1, hard_scale / sum_1, out=out)
    if smoothing:
        slope = slope.sub_(hard_scale * (smoothing / student.shape[dim]))
    label_scale = hard_scale * (1 - smoothing)
    if torch.compiler.is_compiling():  # which fuses a comparison, but would copy for a scatter
        classes = torch.arange(student.shape[dim], device=student.device)
        classes = classes.reshape([-1 if axis == dim else 1 for axis in range(student.ndim)])
        return values.squeeze(dim), slope - label_scale * (classes == target)
    labelled = slope.gather(dim, target) - label_scale
    return values.squeeze(dim), slope.scatter_(dim, target, labelled)


def _plain_joint(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    dim: int,
    *,
    alpha: float,
    temperature: float,
    smoothing: float,
) -> Tensor:
    log_s = soften(student, temperature).log_softmax(dim)
    log_t = soften(teacher, temperature).log_softmax(dim)
    soft = (log_t.exp() * (log_t - log_s)).sum(dim) * temperature**2
    log_1 = student.log_softmax(dim)
    hard = (1 - smoothing) * log_1.gather(dim, target).squeeze(dim) + smoothing * log_1.mean(dim)
    return alpha * soft - (1 - alpha) * hard


class CrossEntropyKLDivergence(nn.Module):
    """Module form of :func:`cross_entropy_kl_div`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = CrossEntropyKLDivergence(alpha=0.5)
        >>> logits, target = torch.zeros(3, 2), torch.tensor([0, 1, -100])
        >>> round(loss(logits, logits, target).item(), 4)
        0.3466
    """

    def __init__(
        self,
        *,
        alpha: float = 0.9,
        temperature: float = 4.0,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        dim: int = 1,
    ) -> None:
        super().__init__()
        _check_options(alpha, temperature, label_smoothing)
        self.alpha = alpha
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.dim = dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return cross_entropy_kl_div(
            student,
            teacher,
            target,
            alpha=self.alpha,
            temperature=self.temperature,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            dim=self.dim,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, temperature={self.temperature}, "
            f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}, "
            f"dim={self.dim}"
        )
