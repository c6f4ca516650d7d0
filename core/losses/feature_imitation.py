"""Feature imitation: the mean squared difference of two feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ._autograd import by_hand, wants_gradient, with_gradient
from ._reduction import full_precision, matched_pair, weighted_mean


def feature_imitation(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Mean squared difference of two feature maps, optionally within a mask.

    .. math:: L = \frac{1}{\sum_i m_i} \sum_i m_i \frac{1}{C} \sum_c (s_{ic} - t_{ic})^2

    over the positions i (:math:`m_i = 1` without a mask). The mask chooses where to imitate:
    inside boxes, near objects, or a soft map. For the pattern of a channel without its size see
    :func:`pearson_distance`.

    Between forward and backward only the difference is kept, neither of the two maps; it becomes
    the gradient in place.

    Args:
        student: (B, C, H, W) map, or any (B, C, ...) of four axes or more; (B, T, C) tokens;
            (N, C) vectors.
        teacher: The same shape; use an adapter where channels or strides differ.
        mask: One number a position: (B, H, W) or (B, 1, H, W); (B, T) or (B, T, 1).
        total: Normaliser in place of `sum(mask)`, or of the number of positions.

    Returns:
        A scalar >= 0, in squared units of the feature. No second derivatives: backward with
        `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If the shapes differ, an axis is missing, there are no channels, or the mask
            does not fit.

    Reference:
        Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation,
        NeurIPS 2017, section 3.4 (sums over C, H and W: C * H * W times this value).

    Lecture:
        Object detection

    When it helps:
        Dense prediction, where what a layer sees at every place matters more than one label an
        image. With a mask it leaves out background that would outweigh the objects.

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
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        channel = channel_axis(student)
        channels = student.shape[channel]
        if mask is not None and mask.ndim == student.ndim and mask.shape[channel] == 1:
            mask = mask.squeeze(channel)
        if mask is None:
            # One reduction instead of two: the channels are as many at every position.
            summed = _squares(student, teacher, None) / channels
            return weighted_mean(
                summed, total=student.numel() // channels if total is None else total
            )
        return weighted_mean(_squares(student, teacher, channel) / channels, mask, total)


def channel_axis(feature: Tensor) -> int:
    """The axis of the channels: 1, but 2 for tokens.

    Raises:
        ShapeError: If there is no such axis, or nothing on it.
    """
    if feature.ndim < 2:
        raise ShapeError(
            "a feature must be (N, C), (B, T, C) or (B, C, H, W), got shape "
            f"{tuple(feature.shape)}."
        )
    axis = 2 if feature.ndim == 3 else 1
    if feature.shape[axis] == 0:
        raise ShapeError(f"a feature needs channels, got shape {tuple(feature.shape)}.")
    return axis


def _squares(student: Tensor, teacher: Tensor, dim: int | None) -> Tensor:
    """Sum of the squared differences along `dim`, or of all of them."""
    if not by_hand():
        squares = (student - teacher).square()
        return squares.sum() if dim is None else squares.sum(dim)
    with torch.no_grad():
        difference = student - teacher
        values = sum_of_squares(difference) if dim is None else _squares_along(difference, dim)
    if not wants_gradient(student):
        return values
    # The derivative is twice the difference: the 2 goes with the value, and spares a pass.
    shape = () if dim is None else tuple(values.unsqueeze(dim).shape)
    return 2 * with_gradient(values / 2, (student,), (difference,), shape)


def sum_of_squares(dense: Tensor) -> Tensor:
    """Sum of the squares of a tensor without gaps, in no more memory.

    Row by row, as one long float32 sum would lose four digits of ten million numbers.
    """
    flat = dense.as_strided((dense.numel(),), (1,))
    whole = flat.numel() // 1024 * 1024
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, 1024), dim=1).square().sum()
    return rows + flat[whole:].square().sum()


def _squares_along(difference: Tensor, dim: int) -> Tensor:
    if difference.device.type != "cpu":
        return torch.linalg.vector_norm(difference, dim=dim).square()
    # One sample at a time: its squares then stay in the cache. (vector_norm is slow here.)
    values = [(sample * sample).sum(dim - 1) for sample in difference]
    shape = [size for axis, size in enumerate(difference.shape) if axis != dim]
    return torch.stack(values) if values else difference.new_zeros(shape)


class FeatureImitation(nn.Module):
    """Module form of :func:`feature_imitation`; `weight` is the function's `mask`.

    Example:
        >>> import torch
        >>> FeatureImitation()(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item()
        1.0
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return feature_imitation(student, teacher, mask=weight, total=total)
