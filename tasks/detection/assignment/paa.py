"""PAA's losses under labels that are already known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads import PAAHead
from mmdet.models.dense_heads.paa_head import EPS
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ..positions import flatten, priors_of
from .labels import flat_targets

__all__ = ["paa_loss"]


def paa_loss(
    head: PAAHead,
    raw: Any,
    labels: Sequence[AssignResult],
    data_samples: Sequence[Any],
    *,
    iou_weighted: bool = True,
) -> dict[str, Tensor]:
    r"""Compute PAA's three losses with the labels given, in place of its own reassignment.

    With :math:`N_+` positives in B images: class loss over all anchors divided by
    :math:`\max(N_+, B)`; the loss of the predicted IoU over positives, divided by :math:`N_+`; and
    the box loss over positives

    .. math:: L_{box} = \frac{\sum_i u_i \ell_i}{\sum_i u_i},
              \qquad u_i = \mathrm{IoU}(b_i, \hat b_i)

    As in mmdet's PAA, the counts are those of one process.

    Args:
        head: The student's.
        raw: What it said, ``head(features)``: class logits, deltas, IoU logits.
        labels: Of each image, over all its anchors.
        data_samples: The batch's annotations.
        iou_weighted: Weigh the box loss as above, so that PAA's own labels give PAA's own loss.
            False counts every positive 1, as mmdet's ``LADHead`` does.

    Returns:
        ``loss_cls``, ``loss_bbox`` and ``loss_iou``.

    Example:
        >>> import torch
        >>> from mmdet.structures import DetDataSample
        >>> from mmengine.structures import InstanceData
        >>> head = PAAHead(2, 8, feat_channels=8, stacked_convs=1, reg_decoded_bbox=True,
        ...     norm_cfg=dict(type="GN", num_groups=4),
        ...     anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], scales=[2.0],
        ...     strides=[8]), loss_bbox=dict(type="GIoULoss"))
        >>> sample = DetDataSample(metainfo=dict(img_shape=(16, 16), pad_shape=(16, 16)))
        >>> sample.gt_instances = InstanceData(
        ...     bboxes=torch.tensor([[-8.0, -8.0, 8.0, 8.0]]), labels=torch.tensor([1]))
        >>> first = torch.tensor([1, 0, 0, 0])
        >>> label = AssignResult(1, first, first.float(), torch.tensor([1, -1, -1, -1]))
        >>> losses = paa_loss(head, head([torch.zeros(1, 8, 2, 2)]), [label], [sample])
        >>> sorted(losses)
        ['loss_bbox', 'loss_cls', 'loss_iou']
    """
    images = len(data_samples)
    # Focal loss in half precision has no kernel on the GPU, and few digits anywhere.
    scores = flatten(raw[0], head.cls_out_channels).float()
    deltas, quality = flatten(raw[1], 4).float(), flatten(raw[2], 1).float()
    classes, counts, boxes = flat_targets(head, labels, data_samples)
    positive = (classes < head.num_classes).nonzero().squeeze(1)
    loss_cls = head.loss_cls(scores, classes, counts, avg_factor=max(len(positive), images))
    if not len(positive):
        return dict(loss_cls=loss_cls, loss_bbox=deltas.sum() * 0, loss_iou=quality.sum() * 0)
    anchors, target = priors_of(head, raw).repeat(images, 1)[positive], boxes[positive]
    said = head.bbox_coder.decode(anchors, deltas[positive])
    overlap = bbox_overlaps(said.detach(), target, is_aligned=True)
    loss_iou = head.loss_centerness(quality[positive], overlap[:, None], avg_factor=len(positive))
    if iou_weighted:
        loss_bbox = head.loss_bbox(said, target, overlap.clamp(min=EPS), avg_factor=overlap.sum())
    else:
        loss_bbox = head.loss_bbox(said, target, avg_factor=len(positive))
    return dict(loss_cls=loss_cls, loss_bbox=loss_bbox, loss_iou=loss_iou)
