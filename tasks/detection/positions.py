"""What mmdet's dense heads say, position by position.

A position is one anchor (or point) of one image. Flattened, positions of a batch go images first,
then levels, then the head's own order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import FCOSHead, GFLHead, RTMDetHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from .heads import is_binned

__all__ = [
    "base_anchors",
    "bin_values",
    "bins_of",
    "box_numbers",
    "decoded_boxes",
    "flatten",
    "level_sizes",
    "positions_of_levels",
    "priors_of",
    "probabilities",
    "stride_of_each",
    "strides",
]


def flatten(levels: Sequence[Tensor], width: int) -> Tensor:
    """Bring maps ``(B, A * width, H, W)`` of all levels to one row a position.

    Example:
        >>> flatten([torch.zeros(2, 6, 4, 4), torch.zeros(2, 6, 2, 2)], 3).shape
        torch.Size([80, 3])
    """
    images = len(levels[0])
    rows = [level.permute(0, 2, 3, 1).reshape(images, -1, width) for level in levels]
    return torch.cat(rows, 1).flatten(0, 1)


def level_sizes(raw: Any) -> list[tuple[int, int]]:
    """Height and width of each level of a head's raw output."""
    return [(level.shape[-2], level.shape[-1]) for level in raw[0]]


def positions_of_levels(head: Any, raw: Any) -> list[int]:
    """How many positions of one image each level has."""
    each = head.prior_generator.num_base_priors
    return [h * w * n for (h, w), n in zip(level_sizes(raw), each, strict=True)]


def strides(head: Any) -> list[int]:
    """The head's strides in pixels, one a level."""
    return [s[0] if isinstance(s, (tuple, list)) else s for s in head.prior_generator.strides]


def stride_of_each(head: Any, raw: Any) -> Tensor:
    """The stride of every position of one image, ``(A,)``."""
    counts = positions_of_levels(head, raw)
    return torch.cat(
        [
            torch.full((count,), float(stride), device=raw[0][0].device)
            for count, stride in zip(counts, strides(head), strict=True)
        ]
    )


def priors_of(head: Any, raw: Any) -> Tensor:
    """The anchors ``(A, 4)`` of one image, or its points ``(A, 2)`` where the head has no anchors.

    In pixels of the padded image; the same for every image of a batch.
    """
    sizes, device = level_sizes(raw), raw[0][0].device
    return torch.cat(head.prior_generator.grid_priors(sizes, device=device))


def base_anchors(head: Any) -> list[list[list[float]]]:
    """The anchors of each level's first location, rounded, to be compared with another head's."""
    levels = head.prior_generator.base_anchors
    return [[[round(x, 3) for x in box] for box in level.tolist()] for level in levels]


def bin_values(head: Any) -> list[float] | None:
    """What a binned head's bins stand for, likewise; None of other heads."""
    return [round(x, 4) for x in head.bins.values.tolist()] if is_binned(head) else None


def bins_of(head: Any, raw: Any) -> Tensor | None:
    """The logits of the edge distributions, ``(P, 4, n + 1)``, or None where there are none."""
    if isinstance(head, GFLHead):
        return flatten(raw[1], 4 * (head.reg_max + 1)).unflatten(-1, (4, head.reg_max + 1))
    if is_binned(head):
        return flatten(raw[1], 4 * head.bins.count).unflatten(-1, (4, head.bins.count))
    return None


def box_numbers(head: Any, raw: Any) -> Tensor:
    """The four numbers a position regresses, ``(P, 4)``, in one unit for every kind of head.

    Encoded deltas of RetinaNet, ATSS and PAA; distances to the edges in strides of the others.
    """
    if isinstance(head, GFLHead):
        bins = bins_of(head, raw)
        assert bins is not None
        return head.integral(bins.flatten(1)).view(-1, 4)
    if is_binned(head):
        return head.bins.expect(bins_of(head, raw))
    levels = raw[1]
    if isinstance(head, (FCOSHead, RTMDetHead)):
        # mmdet gives pixels, except FCOS in training with norm_on_bbox, where it gives strides.
        if not (isinstance(head, FCOSHead) and head.norm_on_bbox and head.training):
            levels = [level / s for level, s in zip(levels, strides(head), strict=True)]
    return flatten(levels, 4)


def decoded_boxes(head: Any, raw: Any) -> Tensor:
    """The boxes that every position predicts: ``(B, A, 4)``, corners in pixels, not clipped."""
    numbers = box_numbers(head, raw).unflatten(0, (len(raw[0][0]), -1))
    priors = priors_of(head, raw)
    if isinstance(head.bbox_coder, DeltaXYWHBBoxCoder):
        coder: Any = head.bbox_coder
        return torch.stack([coder.decode(priors, deltas) for deltas in numbers])
    points = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
    distances = numbers * stride_of_each(head, raw)[:, None]
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def probabilities(head: Any, raw: Any) -> Tensor:
    """The probability of every class at every position, without background: ``(B, A, K)``."""
    logits = flatten(raw[0], head.cls_out_channels).float()
    if head.use_sigmoid_cls:
        values = logits.sigmoid()
    else:
        values = logits.softmax(-1)[:, : head.num_classes]
    return values.unflatten(0, (len(raw[0][0]), -1))
