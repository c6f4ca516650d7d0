"""Feature imitation: the mean squared difference of two feature maps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ShapeError
from ._reduction import check_choice, full_precision, matched_pair, weighted_mean

Normalize = Literal["channel"]


def feature_imitation(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    total: Tensor | float | None = None,
    normalize: Normalize | None = None,
) -> Tensor:
    r"""Mean squared difference of two feature maps, optionally within a mask.

    .. math:: L = \frac{1}{\sum_i m_i} \sum_i m_i \frac{1}{C} \sum_c (s_{ic} - t_{ic})^2

    over the positions i (:math:`m_i = 1` without a mask). The mask chooses where to imitate:
    inside boxes, near objects, or a soft map.

    `normalize="channel"` first standardises every channel of both sides over batch and space
    (to mean 0 and variance 1, divided by the number of positions), so that only the pattern
    counts and not its size. Without a mask, half the value is then the Pearson distance
    :math:`1 - r`, averaged over the channels: the loss of PKD. A constant channel has no pattern:
    it becomes 0 and gets no gradient.

    Args:
        student: (B, C, H, W) map, or any (B, C, ...) of four axes or more; (B, T, C) tokens;
            (N, C) vectors.
        teacher: The same shape; use an adapter where channels or strides differ.
        mask: One number a position: (B, H, W) or (B, 1, H, W); (B, T) or (B, T, 1).
        total: Normaliser in place of `sum(mask)`, or of the number of positions.
        normalize: `"channel"`, or None for the plain difference.

    Returns:
        A scalar >= 0, in squared units of the feature.

    Raises:
        ShapeError: If the shapes differ, an axis is missing, there are no channels, or the mask
            does not fit.
        ConfigError: If `normalize` is unknown.

    Reference:
        Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation,
        NeurIPS 2017, section 3.4 (sums over C, H and W: C * H * W times this value).
        Cao et al.: PKD, NeurIPS 2022, section 3.2 (half this value with `normalize="channel"`).

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
        >>> feature_imitation(student, teacher).item()
        1.0
        >>> teacher[..., 0] = 9.0
        >>> mask = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
        >>> feature_imitation(student, teacher, mask=mask).item()
        1.0
    """
    check_normalize(normalize)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        channel = _channel_axis(student)
        if mask is not None and mask.ndim == student.ndim and mask.shape[channel] == 1:
            mask = mask.squeeze(channel)
        if normalize == "channel":
            student, teacher = _standardise(student, channel), _standardise(teacher, channel)
        # mse_loss keeps its inputs by reference, a difference of our own would be one more copy.
        if mask is None:
            # One reduction instead of two: the channels are as many at every position.
            channels = student.shape[channel]
            summed = F.mse_loss(student, teacher, reduction="sum") / channels
            return weighted_mean(
                summed, total=student.numel() // channels if total is None else total
            )
        values = F.mse_loss(student, teacher, reduction="none").mean(channel)
        return weighted_mean(values, mask, total)


def check_normalize(normalize: str | None) -> None:
    """Raise ConfigError unless `normalize` is a known one."""
    if normalize is not None:
        check_choice("normalize", normalize, ("channel",))


def _channel_axis(feature: Tensor) -> int:
    if feature.ndim < 2:
        raise ShapeError(
            "a feature must be (N, C), (B, T, C) or (B, C, H, W), got shape "
            f"{tuple(feature.shape)}."
        )
    axis = 2 if feature.ndim == 3 else 1
    if feature.shape[axis] == 0:
        raise ShapeError(f"a feature needs channels, got shape {tuple(feature.shape)}.")
    return axis


def _standardise(feature: Tensor, channel: int) -> Tensor:
    axes = [axis for axis in range(feature.ndim) if axis != channel]
    mean = feature.mean(axes, keepdim=True)
    centred = feature - mean
    variance = centred.square().mean(axes, keepdim=True)
    # Below this a channel is constant but for rounding, and dividing would blow the rounding up.
    rounding = 16 * torch.finfo(feature.dtype).eps * mean.detach()
    live = variance > rounding.square() + 1e-12
    return centred * torch.where(live, variance, torch.inf).rsqrt()


class FeatureImitation(nn.Module):
    """Module form of :func:`feature_imitation`; `weight` is the function's `mask`.

    Example:
        >>> import torch
        >>> FeatureImitation()(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item()
        1.0
    """

    def __init__(self, *, normalize: Normalize | None = None) -> None:
        super().__init__()
        check_normalize(normalize)
        self.normalize: Normalize | None = normalize

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return feature_imitation(
            student, teacher, mask=weight, total=total, normalize=self.normalize
        )

    def extra_repr(self) -> str:
        return f"normalize={self.normalize!r}"
