"""Where in the image dense detectors are compared: the valuable localization region."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["box_distance_iou", "valuable_region"]


def box_distance_iou(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and DIoU of every anchor with every box.

    DIoU = IoU - d^2 / c^2, with d the distance of the centres and c the diagonal of the smallest
    box around both (Zheng et al., AAAI 2020, eq. 7).

    Args:
        anchors: ``(A, 4)``, corners in pixels.
        boxes: ``(G, 4)``.

    Returns:
        Two ``(A, G)`` tensors.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> [round(float(x), 4) for x in box_distance_iou(box, box + 1.0)]
        [0.1429, 0.0317]
    """
    a, b = anchors[:, None], boxes[None]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        0
    )
    intersection = overlap.prod(-1)
    area = [(x[..., 2:] - x[..., :2]).clamp(0).prod(-1) for x in (a, b)]
    tiny = torch.finfo(anchors.dtype).tiny
    iou = intersection / (area[0] + area[1] - intersection).clamp_min(tiny)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return iou, iou - centres.square().sum(-1) / around.square().sum(-1).clamp_min(tiny)


def valuable_region(
    anchors: Tensor, level_sizes: list[int], boxes: Tensor, *, topk: int = 9, gamma: float = 0.25
) -> Tensor:
    """Return, for every anchor, how valuable it is for localization outside the positives.

    For each box, ATSS's threshold is t = mean + std of the IoU of the ``topk`` anchors nearest in
    each level. An anchor is in the region if gamma * t <= DIoU < t for some box; its value is
    its largest IoU with such a box, 0 outside.

    Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022,
    section 3.3 and algorithm 1 (gamma = 0.25).

    Args:
        anchors: ``(A, 4)``, corners in pixels, levels one after another.
        level_sizes: Number of anchors of each level.
        boxes: ``(G, 4)`` ground truth; may be empty.
        topk: Candidates of each level.
        gamma: Lower end of the region.

    Returns:
        ``(A,)`` values in [0, 1].

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [4, 0, 12, 8], [40, 40, 48, 48]])
        >>> valuable_region(anchors, [3], torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
        tensor([0.0000, 0.3333, 0.0000])
    """
    if len(boxes) == 0 or len(anchors) == 0:
        return anchors.new_zeros(len(anchors))
    iou, diou = box_distance_iou(anchors, boxes)
    centres = torch.cdist((anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2)
    candidates, start = [], 0
    for size in level_sizes:
        nearest = centres[start : start + size].topk(min(topk, size), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += size
    chosen = iou.gather(0, torch.cat(candidates))
    # With a single candidate the deviation is not defined; it adds nothing then.
    spread = chosen.std(0) if len(chosen) > 1 else torch.zeros_like(chosen[0])
    threshold = chosen.mean(0) + spread
    inside = (diou < threshold) & (diou >= gamma * threshold)
    return (iou * inside).amax(1)
