"""PKD: the Pearson correlation of feature maps, channel by channel (Cao et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._autograd import BLOCK, by_hand, wants_gradient, with_gradient
from ._reduction import full_precision, matched_pair
from .feature_imitation import channel_axis


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""One minus the Pearson correlation of student and teacher, averaged over the channels.

    .. math:: L = \frac{1}{C} \sum_c (1 - r_c)
        = \frac{1}{C} \sum_c \frac{1}{2m} \sum_{i=1}^{m} (\hat{s}_{ci} - \hat{t}_{ci})^2

    where every channel of either side is standardised over the m positions of the whole batch,
    :math:`\hat{s} = (s - \mu_s) / \sigma_s`. Only where a channel responds counts, not how
    strongly: scaling or shifting a channel of either side changes nothing.

    A constant channel has no pattern: it is taken as 0 and gets no gradient; against a channel
    that has one it adds 1/2 to the sum. As constant counts a standard deviation below 1e-6, or
    one that is only the rounding of the mean.

    The statistics join the samples of a batch, so the value is not the mean of the samples'
    values, and there is no weight per position. Common code divides by the standard deviation
    with m - 1, plus 1e-6: :math:`(m - 1) / m` times this value.

    Args:
        student: (B, C, H, W) map, or any (B, C, ...) of four axes or more; (B, T, C) tokens;
            (N, C) vectors.
        teacher: The same shape; use an adapter where channels or strides differ.

    Returns:
        A scalar in [0, 2]; 0 at equality. No second derivatives: backward with
        `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If the shapes differ, an axis is missing or there are no channels.

    Reference:
        Cao et al.: PKD: General Distillation Framework for Object Detectors via Pearson
        Correlation Coefficient, NeurIPS 2022 (arXiv 2207.02039).

    Lecture:
        Object detection

    When it helps:
        Teacher and student of different families or heads, whose features differ in size: plain
        imitation would spend itself on the scale and on the channels with the largest values.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
        >>> teacher = torch.tensor([[10.0, 3.0], [20.0, 2.0], [30.0, 1.0]])
        >>> round(pearson_distance(student, teacher).item(), 6)  # 1 - r is 0 and 2
        1.0
    """
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = channel_axis(student)
        if student.numel() == 0:
            return student.sum()
        if by_hand():
            return _with_gradient(student, teacher, axis)
        s, t = _standardise(student, axis)[0], _standardise(teacher, axis)[0]
        return (s - t).square().mean() / 2


def _standardise(feature: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Every channel with mean 0 and variance 1, and what it was divided by, inverted."""
    axes = [axis for axis in range(feature.ndim) if axis != channel]
    mean = feature.mean(axes, keepdim=True)
    centred = feature - mean
    variance = centred.square().mean(axes, keepdim=True)
    # Below this a channel is constant but for rounding, and dividing would blow the rounding up.
    rounding = 16 * torch.finfo(feature.dtype).eps * mean.detach()
    live = variance > rounding.square() + 1e-12
    scale = torch.where(live, variance, torch.inf).rsqrt()
    return centred * scale, scale


@torch.no_grad()
def _block(student: Tensor, teacher: Tensor, axis: int, slope: Tensor | None) -> Tensor:
    """The distance of each of a few channels; writes its derivative into `slope`."""
    axes = [other for other in range(student.ndim) if other != axis]
    s, scale = _standardise(student, axis)
    t, _ = _standardise(teacher, axis)
    difference = s.sub(t)
    distance = torch.mul(difference, difference, out=t).mean(axes, keepdim=True) / 2
    if slope is not None:
        # ((s - t) - mean((s - t) s) s) / (m sigma): the part that no rescaling undoes.
        along = torch.mul(s, difference, out=t).mean(axes, keepdim=True)
        difference.addcmul_(s, along, value=-1)
        torch.mul(difference, scale * (student.shape[axis] / student.numel()), out=slope)
    return distance


def _with_gradient(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    channels = student.shape[axis]
    step = channels
    if student.device.type == "cpu":
        # A few channels at a time, so that all their passes but the first find them in the cache.
        step = max(1, BLOCK * channels // student.numel())
    slope = torch.empty_like(student) if wants_gradient(student) else None
    with torch.no_grad():
        distances = []
        for start in range(0, channels, step):
            size = min(step, channels - start)
            s, t = (x.narrow(axis, start, size) for x in (student, teacher))
            into = None if slope is None else slope.narrow(axis, start, size)
            distances.append(_block(s, t, axis, into).flatten())
        value = torch.cat(distances).sum()
    if slope is not None:
        value = with_gradient(value, (student,), (slope,))
    return value / channels


class PearsonDistance(nn.Module):
    """Module form of :func:`pearson_distance`.

    Example:
        >>> import torch
        >>> features = torch.arange(6.0).reshape(3, 2)
        >>> PearsonDistance()(features, 5 * features + 1).item() < 1e-6
        True
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pearson_distance(student, teacher)
