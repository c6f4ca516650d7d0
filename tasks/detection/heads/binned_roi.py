"""The second stage of Faster and Mask R-CNN with distributions over bins in place of deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmdet.utils import InstanceList
from torch import Tensor

from ....core.errors import ConfigError
from .bins import LOSS_DFL, bins_for_deltas, distribution_loss

__all__ = ["BinnedShared2FCBBoxHead"]


@MODELS.register_module()
class BinnedShared2FCBBoxHead(Shared2FCBBoxHead):
    """mmdet's ``Shared2FCBBoxHead`` with four distributions a box in place of four deltas.

    ``forward`` gives the class scores and the raw logits ``(R, classes * 4 * count)``, or
    ``(R, 4 * count)`` with ``reg_class_agnostic``, the bins innermost. Box loss, decoding and NMS
    are mmdet's own on the expectations, also where a cascade refines its boxes.

    The loss gains ``loss_dfl``: over positives and for their own class, ``DistributionFocalLoss``
    of the encoded deltas (also with ``reg_decoded_bbox``), a mean over the four, divided by what
    ``loss_bbox`` is divided by (the number of sampled boxes, negatives included).

    Args:
        *args: As for ``Shared2FCBBoxHead``.
        bins: Any of ``count``, ``low`` and ``high`` (:class:`.bins.Bins`), in the units of the
            coder. Default 17 bins, and the range of :func:`.bins.bins_for_deltas`.
        loss_dfl: Default ``DistributionFocalLoss`` with GFL's weight 0.25.
        **kwargs: As for ``Shared2FCBBoxHead``.

    Raises:
        ConfigError: If ``bins`` cannot be meant, or the head has no regression (``with_reg``).

    Example:
        >>> import torch
        >>> head = BinnedShared2FCBBoxHead(16, in_channels=4, roi_feat_size=3, num_classes=2)
        >>> head.bins
        Bins(low=-10.0, high=10.0, count=17)
        >>> scores, logits = head(torch.zeros(5, 4, 3, 3))
        >>> logits.shape  # 2 classes, 4 numbers, 17 bins
        torch.Size([5, 136])
    """

    def __init__(
        self,
        *args: Any,
        bins: Mapping[str, Any] | None = None,
        loss_dfl: Mapping[str, Any] = LOSS_DFL,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not self.with_reg:
            raise ConfigError(
                "BinnedShared2FCBBoxHead is about regression and got with_reg=False. Take "
                "Shared2FCBBoxHead for a head without it."
            )
        self.bins = bins_for_deltas(bins, self.bbox_coder)
        self.loss_dfl = MODELS.build(dict(loss_dfl))
        layer = dict(
            self.reg_predictor_cfg,
            in_features=self.fc_reg.in_features,
            out_features=self.fc_reg.out_features * self.bins.count,
        )
        self.fc_reg = MODELS.build(layer)

    def _numbers(self, logits: Tensor) -> Tensor:
        """Logits ``(R, k * 4 * count)`` to deltas ``(R, k * 4)``."""
        return self.bins.expect(logits.unflatten(1, (-1, self.bins.count)))

    def loss(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
        reduction_override: str | None = None,
    ) -> dict[str, Tensor]:
        losses = super().loss(
            cls_score,
            self._numbers(bbox_pred),
            rois,
            labels,
            label_weights,
            bbox_targets,
            bbox_weights,
            reduction_override=reduction_override,
        )
        positive = ((labels >= 0) & (labels < self.num_classes)).nonzero().squeeze(1)
        targets = bbox_targets[positive]
        if self.reg_decoded_bbox:
            targets = self.bbox_coder.encode(rois[positive, 1:], targets)
        which = 0 if self.reg_class_agnostic else labels[positive]
        logits = bbox_pred.unflatten(1, (-1, 4, self.bins.count))[positive, which]
        losses["loss_dfl"] = distribution_loss(
            self.loss_dfl,
            self.bins,
            logits,
            targets,
            bbox_weights[positive],
            float(len(bbox_targets)),
        )
        return losses

    def predict_by_feat(
        self, rois: Any, cls_scores: Any, bbox_preds: Sequence[Tensor], *args: Any, **kwargs: Any
    ) -> InstanceList:
        numbers: Any = tuple(self._numbers(logits) for logits in bbox_preds)
        return super().predict_by_feat(rois, cls_scores, numbers, *args, **kwargs)

    def regress_by_class(
        self, priors: Tensor, label: Tensor, bbox_pred: Tensor, img_meta: dict
    ) -> Tensor:
        return super().regress_by_class(priors, label, self._numbers(bbox_pred), img_meta)
