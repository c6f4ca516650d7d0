"""Decoupled knowledge distillation: target class and other classes apart (Zhao et al. 2022)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._backend import compilable
from ._reduction import check_temperature, full_precision, matched_pair, resolve_axis, soften
from ._row_kl import LOG2E, _sigmoid_kl, row_kl
from ._rows import RowLoss, Scale


def decoupled_kd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    dim: int = 1,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""The divergence of :func:`kl_div` in two parts, weighed apart.

    .. math:: L = T^2 \left[ \alpha \, \mathrm{KL}(b^t \,\Vert\, b^s)
              + \beta \, \mathrm{KL}(\hat p^t \,\Vert\, \hat p^s) \right]

    The first part (TCKD) compares how sure both are of the target class:
    :math:`b = (p_y, 1 - p_y)`. The second (NCKD) compares the other classes among themselves:
    :math:`\hat p_c = p_c / (1 - p_y)`. Both are summed over the classes and averaged over the
    positions.

    :func:`kl_div` is the same with :math:`\alpha = 1` and, for each sample, :math:`\beta =
    1 - p^t_y`: what the teacher knows about the other classes then counts least where it is sure
    of the target. A :math:`\beta` of its own undoes that.

    As in the official code, both parts carry :math:`T^2`. That code hides the target class by
    taking 1000 off its softened logit and takes the logarithm of a probability that may be 0; here
    everything stays in logarithms, which gives the same value and is finite for any logits.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        target: The class of each position, integers in [0, K): the shape of the logits without
            `dim`. Positions to be ignored need a class as well, with weight 0.
        alpha: Weight of the target part; 1 as in the official code.
        beta: Weight of the part of the other classes; 8 is the default of the official code, whose
            configurations set it by the pair of networks (0.5 for ResNet-34 to ResNet-18).
        temperature: T; 4 in the official code on CIFAR-100, 1 on ImageNet.
        dim: Axis of the classes; -1 for (B, T, K).
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0 (nats times T squared) up to rounding; 0 at equality. There are no second
        derivatives, unless under the reference backend.

    Raises:
        ShapeError: If the shapes differ, there are fewer than three classes (then there is nothing
            to compare among the others), or a target is no class (looked at on the CPU only: on a
            GPU that would wait for the device, which itself stops at such a target).
        ConfigError: If the temperature is not above 0, `alpha` or `beta` negative, or the target
            not of integers.

    Reference:
        Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, section
        "Rethinking Knowledge Distillation" (arXiv 2203.08679).

    Lecture:
        Output logits

    When it helps:
        With a confident teacher on many classes, whose small probabilities plain distillation
        hardly looks at. It needs labels.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[4.0, 1.0, 0.0]])
        >>> student = torch.tensor([[4.0, 0.0, 1.0]])  # swaps the other classes
        >>> label = torch.tensor([0])
        >>> round(decoupled_kd(student, teacher, label, temperature=1.0).item(), 4)
        3.6969
        >>> abs(round(decoupled_kd(student, teacher, label, temperature=1.0, beta=0.0).item(), 4))
        0.0
    """
    _check_options(alpha, beta, temperature)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = resolve_axis(student, dim)
        target = _class_index(target, student, axis)
        options = {"alpha": alpha, "beta": beta, "temperature": float(temperature)}
        loss = RowLoss(partial(_body, **options), partial(_plain, **options), axis)
        return loss.mean(student, teacher, target, weight=weight, total=total)


@compilable
def _body(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    # The other classes, as in a plain divergence.
    rate = LOG2E / temperature
    unlikely = _finite_zero(student.dtype, temperature)
    s, t = student.scatter(dim, target, unlikely), teacher.scatter(dim, target, unlikely)
    top_s, top_t = s.amax(dim, True), t.amax(dim, True)
    s, t = s.sub_(top_s), t.sub_(top_t)
    p_t = (t * rate).exp2_()
    sum_t = p_t.sum(dim, True)
    cross = t.sub_(s).mul_(p_t).sum(dim, True) / (sum_t * temperature)
    p_s = s.mul_(rate).exp2_()
    sum_s = p_s.sum(dim, True)
    nckd = (cross + (sum_s / sum_t).log()).clamp(min=0)
    # A yes/no question: the target against all the others together.
    odds_s = (student.gather(dim, target) - top_s) / temperature - sum_s.log()
    odds_t = (teacher.gather(dim, target) - top_t) / temperature - sum_t.log()
    tckd, slope = _sigmoid_kl(odds_s, odds_t, None, alpha, None, dim, wanted, temperature=1.0)
    values = (alpha * tckd + beta * nckd.squeeze(dim)) * temperature**2
    if slope is None:
        return values, None
    scale = scale * temperature
    p_s = p_s.mul_((beta - slope) * scale / sum_s)
    whole = torch.addcmul(p_s, p_t, beta * scale / sum_t, value=-1, out=out)
    return values, whole.scatter_(dim, target, slope * scale)


def _plain(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    dim: int,
    *,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    unlikely = _finite_zero(student.dtype, temperature)
    s = soften(student.scatter(dim, target, unlikely), temperature)
    t = soften(teacher.scatter(dim, target, unlikely), temperature)
    nckd = row_kl(s, t, dim=dim)
    odds_s = soften(student.gather(dim, target), temperature) - s.logsumexp(dim, keepdim=True)
    odds_t = soften(teacher.gather(dim, target), temperature) - t.logsumexp(dim, keepdim=True)
    tckd = row_kl(odds_s, odds_t, dim=dim, activation="sigmoid")
    return (alpha * tckd + beta * nckd) * temperature**2


def _finite_zero(dtype: torch.dtype, temperature: float) -> float:
    """A logit whose probability is 0, finite even when divided by the temperature.

    Minus infinity would turn the difference of two such logits into NaN.
    """
    return torch.finfo(dtype).min / 4 * min(1.0, temperature)


def _class_index(target: Tensor, logits: Tensor, axis: int) -> Tensor:
    """Check the labels and give them the axis of the classes."""
    classes = logits.shape[axis]
    if classes < 3:
        raise ShapeError(
            "decoupled_kd compares the classes other than the target and needs 3 or more of them, "
            f"got logits of shape {tuple(logits.shape)} with {classes} on axis {axis}. For two "
            "classes use kl_div."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ConfigError(f"target must hold class numbers (integers), got {target.dtype}.")
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    if target.shape != expected:
        raise ShapeError(
            f"target must hold one class a position, shape {tuple(expected)} for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(target.shape)}."
        )
    # Elsewhere than on the CPU, looking would wait for the device.
    look = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if look and target.numel() and (target.min() < 0 or target.max() >= classes):
        raise ShapeError(
            f"target must lie in [0, {classes}), got values from {target.min().item()} to "
            f"{target.max().item()}. Give positions to be ignored any class and the weight 0."
        )
    return target.long().unsqueeze(axis)


def _check_options(alpha: float, beta: float, temperature: float) -> None:
    check_temperature(temperature)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be a finite number >= 0, got {value}.")


class DecoupledKD(nn.Module):
    """Module form of :func:`decoupled_kd`, same arguments and defaults.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(2, 10), torch.zeros(2, dtype=torch.long)
        >>> DecoupledKD()(logits, logits, labels).item()
        0.0
    """

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, dim: int = 1
    ) -> None:
        super().__init__()
        _check_options(alpha, beta, temperature)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.dim = dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return decoupled_kd(
            student,
            teacher,
            target,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            dim=self.dim,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, dim={self.dim}"
        )
