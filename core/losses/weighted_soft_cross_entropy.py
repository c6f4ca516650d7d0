"""Soft cross-entropy with a heavier background (Chen et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._reduction import (
    Activation,
    check_activation,
    check_temperature,
    class_axis,
    full_precision,
    matched_pair,
)
from ._row_kl import cross_entropy


def weighted_soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    background_weight: float = 1.5,
    background: int | None = 0,
    class_weight: Tensor | Sequence[float] | None = None,
    temperature: float = 1.0,
    dim: int = 1,
    activation: Activation = "softmax",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy with the teacher's class probabilities, the background counting more.

    .. math:: L = -T^2 \sum_c w_c \, p^t_c \log p^s_c

    summed over the classes, averaged over the positions, with :math:`w = 1.5` for the background
    and 1 for the other classes: most mistakes of a small detector are between background and
    foreground. It is a cross-entropy: at equality its value is the teacher's weighted entropy,
    not 0. With unequal weights its lowest point is not at equality either, but at
    :math:`p^s_c \propto w_c p^t_c`, leaning to the background as meant by the paper.

    With `activation="sigmoid"`, for detectors without a background channel, each class is a
    yes/no question and "no" is the background:

    .. math:: L = -T^2 \sum_c \left[ w_c \, p^t_c \log p^s_c
              + w_{bg} (1 - p^t_c) \log (1 - p^s_c) \right]

    Args:
        student: Logits with the classes on `dim`: (N, K), (B, K, H, W), ...
        teacher: Logits of the same shape, for the same boxes.
        background_weight: Weight of the background; 1.5 in the paper.
        background: Where the background class is, for softmax only. 0 in the paper. The softmax
            heads of mmdet have it last: pass -1. None if there is no background class.
        class_weight: One weight a class, (K,). For softmax it replaces `background_weight`; for
            sigmoid it weighs the "yes" part (1 by default).
        temperature: T, 1 in the paper.
        dim: Axis of the classes.
        activation: `"softmax"`, or `"sigmoid"` for independent classes.
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in nats (times T squared). No second derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, softmax gets a single class, or
            `class_weight` does not have one number a class.
        ConfigError: If `background` is no class, `background_weight` is negative, the temperature
            is not above 0, or the activation is unknown.

    Reference:
        Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation,
        NeurIPS 2017, section 3.2.

    Lecture:
        Object detection

    When it helps:
        In the classification heads of detectors, where most mistakes are between background and
        foreground and few between two kinds of objects.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> value = weighted_soft_cross_entropy(logits, logits)
        >>> round(value.item(), 4)  # (1.5 + 1) / 2 * log(2)
        0.8664
    """
    _check_options(background_weight, temperature, activation)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, activation)
        if class_weight is not None:
            per_class = _given_weights(student, axis, class_weight)
        elif activation == "softmax" and background is not None:
            per_class = _background_weights(student, axis, background, background_weight)
        else:
            per_class = None
        loss = cross_entropy(axis, temperature, activation, per_class, background_weight)
        return loss.mean(student, teacher, weight=weight, total=total)


def _check_options(background_weight: float, temperature: float, activation: str) -> None:
    check_temperature(temperature)
    check_activation(activation)
    if not background_weight >= 0:
        raise ConfigError(f"background_weight must be >= 0, got {background_weight}.")


def _given_weights(student: Tensor, axis: int, class_weight: Tensor | Sequence[float]) -> Tensor:
    classes = student.shape[axis]
    weights = torch.as_tensor(class_weight, dtype=student.dtype, device=student.device)
    if weights.shape != (classes,):
        raise ShapeError(
            f"class_weight must hold one number for each of the {classes} classes on axis {axis} "
            f"of logits {tuple(student.shape)}, got shape {tuple(weights.shape)}."
        )
    return weights.detach()


def _background_weights(
    student: Tensor, axis: int, background: int, background_weight: float
) -> Tensor:
    classes = student.shape[axis]
    if not -classes <= background < classes:
        raise ConfigError(
            f"background={background} is none of the {classes} classes. Use 0 for a first, -1 "
            "for a last background class, None for none."
        )
    weights = student.new_ones(classes)
    weights[background] = background_weight
    return weights


class WeightedSoftCrossEntropy(nn.Module):
    """Module form of :func:`weighted_soft_cross_entropy`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = WeightedSoftCrossEntropy(background=-1)
        >>> round(loss(torch.zeros(3, 2), torch.zeros(3, 2)).item(), 4)
        0.8664
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        background_weight: float = 1.5,
        background: int | None = 0,
        class_weight: Tensor | Sequence[float] | None = None,
        temperature: float = 1.0,
        dim: int = 1,
        activation: Activation = "softmax",
    ) -> None:
        super().__init__()
        _check_options(background_weight, temperature, activation)
        self.background_weight = background_weight
        self.background = background
        self.temperature = temperature
        self.dim = dim
        self.activation: Activation = activation
        weights = None if class_weight is None else torch.as_tensor(class_weight)
        # A buffer follows .to(device); it stays out of checkpoints, the config has it already.
        self.register_buffer("class_weight", weights, persistent=False)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return weighted_soft_cross_entropy(
            student,
            teacher,
            background_weight=self.background_weight,
            background=self.background,
            class_weight=self.class_weight,
            temperature=self.temperature,
            dim=self.dim,
            activation=self.activation,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return (
            f"background_weight={self.background_weight}, background={self.background}, "
            f"temperature={self.temperature}, dim={self.dim}, activation={self.activation!r}"
        )
