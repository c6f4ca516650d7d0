"""Channel-wise distillation of maps (CWD, Shu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..errors import ShapeError
from ._reduction import check_temperature, full_precision, matched_pair
from ._row_kl import divergence


def channel_wise_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence between the maps of each channel, read as distributions over the positions.

    .. math:: L = \frac{T^2}{C} \sum_c \sum_i p^t_{ci} (\log p^t_{ci} - \log p^s_{ci}),
              \qquad p_c = \mathrm{softmax}_i (f_{c i} / T)

    summed over the places i of the map, averaged over the channels c and the batch. A softmax over
    the places of one channel, not over the channels of one place: what is compared is where each
    channel is active, whatever its level.

    This is the normalisation of the authors' code, and the value of mmrazor's
    `ChannelWiseDivergence` (both divide by C and by the batch) at the same temperature and a loss
    weight of 1.

    Args:
        student: Logits or feature maps (B, C, H, W), or any (B, C, ...).
        teacher: The same shape; use an adapter where channels or strides differ.
        temperature: T, 4 in the authors' recipe for logits. The code of mmrazor has 1 by default.
        weight: One number a channel and sample, (B, C).
        total: Normaliser in place of `sum(weight)`, or of B * C.

    Returns:
        A scalar >= 0 (nats times T squared); 0 at equality. No second derivatives, as in
        :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, or there is no map: fewer than 3 axes or a single place,
            over which every softmax is 1.
        ConfigError: If the temperature is not above 0.

    Reference:
        Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021
        (arXiv 2011.13256).

    Lecture:
        Semantic segmentation

    When it helps:
        For dense prediction, on logits as well as on features: a channel's few salient places
        count most, instead of the many of the background.

    Example:
        >>> import torch
        >>> student = torch.zeros(1, 1, 2, 2)
        >>> teacher = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
        >>> round(channel_wise_distillation(student, teacher).item(), 3)
        1.888
        >>> channel_wise_distillation(student + 7, student).item()  # the level does not count
        0.0
    """
    check_temperature(temperature)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        if student.ndim < 3 or student.shape[2:].numel() == 1:
            raise ShapeError(
                "channel-wise distillation compares maps of several places, (B, C, H, W) or "
                f"(B, C, ...), got shape {tuple(student.shape)}. For vectors use kl_div."
            )
        loss = divergence(2, temperature)
        return loss.mean(student.flatten(2), teacher.flatten(2), weight=weight, total=total)


class ChannelWiseDistillation(nn.Module):
    """Module form of :func:`channel_wise_distillation`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = ChannelWiseDistillation()
        >>> loss(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).item()
        0.0
    """

    per_position: ClassVar[bool] = False  # a weight is one a channel

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return channel_wise_distillation(
            student, teacher, temperature=self.temperature, weight=weight, total=total
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
