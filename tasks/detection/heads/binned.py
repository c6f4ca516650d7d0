"""RetinaNet, ATSS and FCOS heads that regress distributions over bins.

Four numbers a position (encoded deltas, or distances to the edges) become four distributions, as
in GFL; everything else (assignment, box loss, decoding, NMS) is mmdet's own, on the expectations.
Localization distillation can then compare the distributions (Zheng et al. 2022, "Localization
Distillation", which turns the box representation of any detector into them).

``forward`` gives the raw logits in place of the four numbers, in GFL's layout: the channels of a
level are ``(anchors, 4, count)``, the bins innermost. Losses gain ``loss_dfl``. A checkpoint of
the plain head fits but for its last regression layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import Scale
from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, RetinaHead
from mmdet.registry import MODELS
from mmdet.utils import InstanceList, reduce_mean
from torch import Tensor, nn

from ....core.errors import ConfigError
from .bins import LOSS_DFL, Bins, bins_for_deltas, build_bins, distribution_loss

__all__ = ["BinnedATSSHead", "BinnedFCOSHead", "BinnedRetinaHead"]


def _widened(layer: nn.Conv2d, count: int) -> nn.Conv2d:
    """The same convolution with ``count`` times as many outputs."""
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels * count,
        layer.kernel_size,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
    )


def _numbers(bins: Bins, level: Tensor) -> Tensor:
    """Logits of one level ``(B, A * 4 * count, H, W)`` to expectations ``(B, A * 4, H, W)``."""
    return bins.expect(level.unflatten(1, (-1, bins.count)).movedim(2, -1))


def _rows(bins: Bins, level: Tensor) -> Tensor:
    """Logits of one level as ``(positions, 4, count)``, in the order of mmdet's targets."""
    return level.permute(0, 2, 3, 1).reshape(-1, 4, bins.count)


class _BinnedAnchorHead(AnchorHead):
    """What RetinaNet and ATSS share; stands before mmdet's head among the bases."""

    regressor: ClassVar[str]

    def __init__(
        self,
        *args: Any,
        bins: Mapping[str, Any] | None = None,
        loss_dfl: Mapping[str, Any] = LOSS_DFL,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.bins = bins_for_deltas(bins, self.bbox_coder)
        self.loss_dfl = MODELS.build(dict(loss_dfl))
        setattr(self, self.regressor, _widened(getattr(self, self.regressor), self.bins.count))

    def _dfl(
        self,
        level: Tensor,
        anchors: Tensor,
        targets: Tensor,
        positive: Tensor,
        weight: Tensor,
        avg_factor: Any,
    ) -> Tensor:
        """The distribution loss of one level; all but ``level`` flat, one row a position."""
        numbers = targets[positive]
        if self.reg_decoded_bbox:
            numbers = self.bbox_coder.encode(anchors[positive], numbers)
        return distribution_loss(
            self.loss_dfl,
            self.bins,
            _rows(self.bins, level)[positive],
            numbers,
            weight,
            avg_factor,
        )

    def _positive(self, labels: Tensor) -> Tensor:
        labels = labels.reshape(-1)
        return ((labels >= 0) & (labels < self.num_classes)).nonzero().squeeze(1)

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        losses = super().loss_by_feat(*args, **kwargs)
        # Each level brought its box and its distribution loss as one tensor of two, so that mmdet
        # divided both by the same number and the targets were made once.
        pairs = losses.pop("loss_bbox")
        losses["loss_bbox"] = [pair[0] for pair in pairs]
        losses["loss_dfl"] = [pair[1] for pair in pairs]
        return losses

    def predict_by_feat(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> InstanceList:
        numbers = [_numbers(self.bins, level) for level in bbox_preds]
        return super().predict_by_feat(cls_scores, numbers, *args, **kwargs)


@MODELS.register_module()
class BinnedRetinaHead(_BinnedAnchorHead, RetinaHead):
    """mmdet's ``RetinaHead`` with four distributions an anchor in place of four deltas.

    The loss gains ``loss_dfl``: over positives, ``DistributionFocalLoss`` of the encoded deltas
    (also with ``reg_decoded_bbox``), a mean over the four, divided by what ``loss_bbox`` is divided
    by (the number of positives; mmdet counts an image without any as one).

    Args:
        *args: As for ``RetinaHead``.
        bins: Any of ``count``, ``low`` and ``high`` (:class:`.bins.Bins`), in the units of the
            coder. Default 17 bins, and the range of :func:`.bins.bins_for_deltas`.
        loss_dfl: Default ``DistributionFocalLoss`` with GFL's weight 0.25.
        **kwargs: As for ``RetinaHead``.

    Raises:
        ConfigError: If ``bins`` cannot be meant.

    Example:
        >>> head = BinnedRetinaHead(3, 8, feat_channels=8, bins=dict(count=9))
        >>> head.bins
        Bins(low=-1.0, high=1.0, count=9)
        >>> scores, logits = head([torch.zeros(1, 8, 4, 4)])
        >>> logits[0].shape  # 9 anchors, 4 numbers, 9 bins
        torch.Size([1, 324, 4, 4])
    """

    regressor = "retina_reg"

    def loss_by_feat_single(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        anchors: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
        avg_factor: Any,
    ) -> tuple[Tensor, Tensor]:
        loss_cls, loss_bbox = super().loss_by_feat_single(
            cls_score,
            _numbers(self.bins, bbox_pred),
            anchors,
            labels,
            label_weights,
            bbox_targets,
            bbox_weights,
            avg_factor,
        )
        positive = self._positive(labels)
        weight = bbox_weights.reshape(-1, 4)[positive]
        loss_dfl = self._dfl(
            bbox_pred,
            anchors.reshape(-1, 4),
            bbox_targets.reshape(-1, 4),
            positive,
            weight,
            avg_factor,
        )
        return loss_cls, torch.stack([loss_bbox, loss_dfl])


@MODELS.register_module()
class BinnedATSSHead(_BinnedAnchorHead, ATSSHead):
    """mmdet's ``ATSSHead`` with four distributions an anchor in place of four deltas.

    The loss gains ``loss_dfl``: over positives, ``DistributionFocalLoss`` of the encoded deltas, a
    mean over the four, weighted and averaged as ``loss_bbox`` is (by the centerness targets).

    Args:
        *args: As for ``ATSSHead``.
        bins: Any of ``count``, ``low`` and ``high`` (:class:`.bins.Bins`), in the units of the
            coder. Default 17 bins, and the range of :func:`.bins.bins_for_deltas`.
        loss_dfl: Default ``DistributionFocalLoss`` with GFL's weight 0.25.
        **kwargs: As for ``ATSSHead``.

    Raises:
        ConfigError: If ``bins`` cannot be meant, or ``reg_decoded_bbox`` is False: mmdet's
            ``ATSSHead`` takes the centerness of decoded boxes only.

    Example:
        >>> coder = dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2])
        >>> head = BinnedATSSHead(3, 32, feat_channels=32, bbox_coder=coder)
        >>> head.bins
        Bins(low=-10.0, high=10.0, count=17)
    """

    regressor = "atss_reg"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.reg_decoded_bbox:
            raise ConfigError(
                "BinnedATSSHead needs reg_decoded_bbox=True (its default): ATSSHead weighs the box "
                "loss by the centerness of decoded boxes. Take the line out of the config."
            )

    def loss_by_feat_single(
        self,
        anchors: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        centerness: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        avg_factor: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loss_cls, loss_bbox, loss_centerness, total = super().loss_by_feat_single(
            anchors,
            cls_score,
            _numbers(self.bins, bbox_pred),
            centerness,
            labels,
            label_weights,
            bbox_targets,
            avg_factor,
        )
        anchors, bbox_targets = anchors.reshape(-1, 4), bbox_targets.reshape(-1, 4)
        positive = self._positive(labels)
        weight = bbox_targets.new_zeros(0)
        if len(positive):
            weight = self.centerness_target(anchors[positive], bbox_targets[positive])
        loss_dfl = self._dfl(bbox_pred, anchors, bbox_targets, positive, weight, 1.0)
        return loss_cls, torch.stack([loss_bbox, loss_dfl]), loss_centerness, total


@MODELS.register_module()
class BinnedFCOSHead(FCOSHead):
    """mmdet's ``FCOSHead`` with four distributions a point in place of four distances.

    The bins are distances in strides, whatever ``norm_on_bbox`` says; the box loss sees them in
    strides with it and in pixels without, as in ``FCOSHead``. Distances need no ``exp`` and no
    clamp: an expectation is never below ``low``. In training as in evaluation, ``forward`` gives
    the same logits.

    The loss gains ``loss_dfl``: over positives, ``DistributionFocalLoss`` of the distances in
    strides, a mean over the four, weighted and averaged as ``loss_bbox`` is (by the centerness
    targets).

    Args:
        *args: As for ``FCOSHead``.
        bins: Any of ``count``, ``low`` and ``high`` (:class:`.bins.Bins`), in strides. Default 17
            bins from 0 to 16, as GFL's; FCOS's own ``regress_ranges`` need 8 strides, 16 in the
            last level only for objects of more than 2048 pixels.
        loss_dfl: Default ``DistributionFocalLoss`` with GFL's weight 0.25.
        **kwargs: As for ``FCOSHead``.

    Raises:
        ConfigError: If ``bins`` cannot be meant.

    Example:
        >>> head = BinnedFCOSHead(3, 32, feat_channels=32)
        >>> head.bins
        Bins(low=0.0, high=16.0, count=17)
    """

    def __init__(
        self,
        *args: Any,
        bins: Mapping[str, Any] | None = None,
        loss_dfl: Mapping[str, Any] = LOSS_DFL,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.bins = build_bins(bins, 0.0, 16.0)
        self.loss_dfl = MODELS.build(dict(loss_dfl))
        self.conv_reg = _widened(self.conv_reg, self.bins.count)
        self._kept: list[tuple[Any, Any]] | None = None

    def forward_single(self, x: Tensor, scale: Scale, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        # Past FCOSHead's own, which makes distances of its numbers.
        cls_score, logits, cls_feat, reg_feat = super(FCOSHead, self).forward_single(x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        return cls_score, scale(logits).float(), centerness

    def _pixels_a_stride(self) -> list[int]:
        return [stride[0] for stride in self.prior_generator.strides]

    def get_targets(
        self, points: list[Tensor], batch_gt_instances: InstanceList
    ) -> tuple[list[Tensor], list[Tensor]]:
        targets = super().get_targets(points, batch_gt_instances)
        if self._kept is not None:
            self._kept.append(targets)
        return targets

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # The unit of FCOSHead's targets, in pixels or in strides, is that of its box loss.
        per_stride = [1 if self.norm_on_bbox else s for s in self._pixels_a_stride()]
        numbers = [
            _numbers(self.bins, level) * s for level, s in zip(bbox_preds, per_stride, strict=True)
        ]
        # mmdet keeps its targets to itself, and making them twice would cost as much again.
        self._kept = []
        try:
            losses = super().loss_by_feat(cls_scores, numbers, *args, **kwargs)
            ((labels, boxes),) = self._kept
        finally:
            self._kept = None
        losses["loss_dfl"] = self._dfl(bbox_preds, labels, boxes, per_stride)
        return losses

    def _dfl(
        self,
        levels: list[Tensor],
        labels: list[Tensor],
        boxes: list[Tensor],
        per_stride: Sequence[int],
    ) -> Tensor:
        label = torch.cat(labels)
        positive = ((label >= 0) & (label < self.num_classes)).nonzero().squeeze(1)
        logits = torch.cat([_rows(self.bins, level) for level in levels])[positive]
        distances = [box / s for box, s in zip(boxes, per_stride, strict=True)]
        targets = torch.cat(distances)[positive]
        weight = self.centerness_target(targets)
        avg_factor = reduce_mean(weight.sum().detach()).clamp(min=1e-6)
        return distribution_loss(self.loss_dfl, self.bins, logits, targets, weight, avg_factor)

    def predict_by_feat(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> InstanceList:
        strides = self._pixels_a_stride()
        pixels = [
            _numbers(self.bins, level) * s for level, s in zip(bbox_preds, strides, strict=True)
        ]
        return super().predict_by_feat(cls_scores, pixels, *args, **kwargs)
