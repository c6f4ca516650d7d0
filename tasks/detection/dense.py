"""mmdet's dense heads (GFL, ATSS, RetinaNet, FCOS) as the distiller sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, FCOSHead, GFLHead, TOODHead, VFNetHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.utils import unpack_gt_instances
from mmdet.utils import reduce_mean
from mmengine.config import Config
from torch import Tensor, nn

from ...core.distiller import Context, Region
from ...core.errors import ConfigError, TeacherError
from ...core.taps import Captured
from ..openmm.adapter import TASK_ADAPTERS, TaskAdapter
from .preflight import check_config_data
from .regions import valuable_region

__all__ = ["DenseHeadAdapter"]


@dataclass
class _Targets:
    """The student's own label assignment of one batch; positions as in the outputs."""

    positive: Tensor  # (P,) bool
    counted: Tensor  # (P,) bool, False for anchors in the padding
    boxes: Tensor  # (P, 4) in the units of outputs.box, 0 where not positive


@TASK_ADAPTERS.register_module(name="mmdet")
class DenseHeadAdapter(TaskAdapter):
    """Compare single-stage detectors position by position.

    A position is one anchor (or point) of one image: outputs are ``(P, ...)`` with
    ``P = batch x anchors of all levels``, images first, then levels, then the head's own order.
    The regions follow the *student's* label assignment, made anew from its own assigner and the
    ground truth.

    Every head is brought to one unit: ``outputs.box`` holds deltas (RetinaNet, ATSS), or
    distances to the four edges in strides (FCOS, and the expectation of GFL's distribution).
    """

    outputs = {
        "cls": "class logits, (P, classes)",
        "box": "four box numbers, (P, 4)",
        "box_bins": "logits of the edge distributions, (P, 4, n+1); GFL only",
    }
    regions = {
        "all": "every position outside the padding, each counting 1",
        "main": "the student's positives, each counting 1",
        "main_score": "the student's positives, by the student's top class score",
        "vlr": "the valuable localization region without the positives, each counting 1",
        "vlr_iou": "the same, by IoU with the ground truth",
        "teacher_score": "every position, by the largest top class score of the teachers",
    }

    # -- how to run ----------------------------------------------------------------------------

    @classmethod
    def check_data(cls, cfg: Config) -> None:
        """See :func:`.preflight.check_config_data`."""
        check_config_data(cfg)

    @property
    def reads(self) -> list[str]:
        """The head's raw output."""
        return ["bbox_head"]

    def forward(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """Backbone, neck and head, without assignment or post-processing."""

        def run(images: Tensor) -> Any:
            # The module call, not `.forward` as mmdet's `_forward` has it: taps are hooks.
            return _head(model)(model.extract_feat(images))  # type: ignore[operator]

        return run

    # -- what must agree -----------------------------------------------------------------------

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse heads whose positions or numbers do not correspond; see the base class."""
        _head(self.student)
        if not outputs:
            return
        head = _head(self.student)
        _check_kind(head, "student")
        if "box_bins" in outputs and not isinstance(head, GFLHead):
            raise ConfigError(
                f"outputs.box_bins needs a GFL-type student; {type(head).__name__} regresses four "
                "numbers. Use outputs.box with BoundedRegression."
            )
        if {"vlr", "vlr_iou"} & set(regions) and isinstance(head, FCOSHead):
            raise ConfigError("FCOS has no anchors, hence no valuable localization region.")
        for name, teacher in self.teachers.items():
            theirs = _head(teacher)
            _check_kind(theirs, f"teacher {name!r}")
            for what, ours_value, theirs_value in _properties(head, theirs, outputs):
                if ours_value != theirs_value:
                    raise TeacherError(
                        f"Student and teacher {name!r} differ in {what}: student {ours_value}, "
                        f"teacher {theirs_value}. Their outputs cannot be compared position by "
                        "position; take a teacher trained with the same, or match features only."
                    )

    # -- one batch -----------------------------------------------------------------------------

    def context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Any,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """See the base class."""
        if not outputs:
            return Context()
        raw = seen.calls("bbox_head")[0]
        head = _head(self.student)
        student = _outputs(head, raw, outputs)
        teachers = {n: _outputs(_head(self.teachers[n]), out, outputs) for n, out in asked.items()}
        with torch.no_grad():
            targets = self._targets(head, raw, data_samples, want_boxes="box" in outputs)
            found = {
                name: self._region(name, head, raw, asked, data_samples, targets)
                for name in regions
            }
        return Context(student, teachers, found, {"box": targets.boxes})

    def _targets(self, head: Any, raw: Any, data_samples: Any, want_boxes: bool) -> _Targets:
        boxes, ignored, metas = unpack_gt_instances(data_samples)
        sizes = [level.shape[-2:] for level in raw[0]]
        images, device = len(metas), raw[0][0].device
        if isinstance(head, FCOSHead):
            points = head.prior_generator.grid_priors(sizes, dtype=raw[1][0].dtype, device=device)
            labels, targets = head.get_targets(points, boxes)
            labels = torch.cat([x.view(images, -1) for x in labels], 1).flatten()
            strides = [1.0 if head.norm_on_bbox else float(s) for s in _strides(head)]
            distances = [x.view(images, -1, 4) / s for x, s in zip(targets, strides, strict=True)]
            positive = (labels >= 0) & (labels < head.num_classes)
            numbers = torch.cat(distances, 1).flatten(0, 1) * positive[:, None]
            return _Targets(positive, torch.ones_like(positive), numbers)
        anchors, valid = head.get_anchors(sizes, metas, device=device)
        flat = [torch.cat(levels) for levels in anchors]
        result = head.get_targets(anchors, valid, boxes, metas, batch_gt_instances_ignore=ignored)
        # ATSS-type heads put the anchors first.
        labels, label_weights, targets = result[1:4] if len(result) == 6 else result[:3]
        labels = torch.cat(labels, 1).flatten()
        counted = torch.cat(label_weights, 1).flatten() > 0
        positive = (labels >= 0) & (labels < head.num_classes)
        numbers = torch.zeros(len(labels), 4, device=device)
        if want_boxes:
            chosen = torch.cat(targets, 1).flatten(0, 1)[positive]
            priors = torch.stack(flat).flatten(0, 1)[positive]
            numbers[positive] = _encode(head, raw, priors, chosen, positive, images).to(numbers)
        return _Targets(positive, counted, numbers)

    def _region(
        self,
        name: str,
        head: Any,
        raw: Any,
        asked: Mapping[str, Any],
        data_samples: Any,
        targets: _Targets,
    ) -> Region:
        if name == "all":
            weight = targets.counted.float()
        elif name == "main":
            weight = targets.positive.float()
        elif name == "main_score":
            weight = _top_score(head, raw) * targets.positive
        elif name == "teacher_score":
            scores = [_top_score(_head(self.teachers[n]), out) for n, out in asked.items()]
            score = torch.stack(scores).amax(0)
            weight = score * targets.counted
        else:
            iou = self._valuable(head, raw, data_samples) * targets.counted * ~targets.positive
            weight = iou if name == "vlr_iou" else (iou > 0).float()
        # Averaged over processes, as mmdet does with its number of positives.
        return Region(weight, reduce_mean(weight.sum()))

    @staticmethod
    def _valuable(head: Any, raw: Any, data_samples: Any) -> Tensor:
        boxes, _, metas = unpack_gt_instances(data_samples)
        sizes = [level.shape[-2:] for level in raw[0]]
        anchors, _ = head.get_anchors(sizes, metas, device=raw[0][0].device)
        topk = getattr(head.assigner, "topk", 9)
        values = []
        for levels, instances in zip(anchors, boxes, strict=True):
            truth = instances.bboxes
            truth = truth.tensor if hasattr(truth, "tensor") else truth
            counts = [len(level) for level in levels]
            values.append(valuable_region(torch.cat(levels), counts, truth, topk=topk))
        return torch.cat(values)


def _head(model: nn.Module) -> Any:
    if not hasattr(model, "bbox_head"):
        raise TeacherError(
            f"{type(model).__name__} has no dense bbox_head; this adapter distils single-stage "
            "detectors."
        )
    return model.bbox_head


def _check_kind(head: Any, whose: str) -> None:
    # The last two descend from these and mean something else by their box numbers.
    if not isinstance(head, (AnchorHead, FCOSHead)) or isinstance(head, (TOODHead, VFNetHead)):
        raise TeacherError(
            f"The {whose}'s head is a {type(head).__name__}; outputs of GFL, ATSS, RetinaNet and "
            "FCOS-type heads can be compared. Features of any detector can be matched by taps."
        )


def _properties(ours: Any, theirs: Any, outputs: Collection[str]) -> list[tuple[str, Any, Any]]:
    """What has to be equal for positions and numbers to mean the same, with both values."""
    found = [
        ("the number of classes", ours.num_classes, theirs.num_classes),
        ("class output channels", ours.cls_out_channels, theirs.cls_out_channels),
        ("strides", *(_strides(h) for h in (ours, theirs))),
        ("anchors a location", *(_anchors_per_location(h) for h in (ours, theirs))),
    ]
    if "box" in outputs or "box_bins" in outputs:
        found.append(("box coding", *(_coding(h) for h in (ours, theirs))))
        found.append(("anchors or points", *(_priors(h) for h in (ours, theirs))))
    if "box_bins" in outputs:
        found.append(("reg_max", *(getattr(h, "reg_max", None) for h in (ours, theirs))))
    return found


def _strides(head: Any) -> list[int]:
    return [s[0] if isinstance(s, (tuple, list)) else s for s in head.prior_generator.strides]


def _anchors_per_location(head: Any) -> list[int]:
    return list(head.prior_generator.num_base_priors)


def _priors(head: Any) -> list[list[list[float]]] | str:
    """What box numbers are relative to, at the first location of each level."""
    generator = head.prior_generator
    if not isinstance(head.bbox_coder, DeltaXYWHBBoxCoder):
        # Distances have an origin, but no size.
        return f"offset {getattr(generator, 'offset', getattr(generator, 'center_offset', 0))}"
    return [[[round(x, 3) for x in box] for box in b.tolist()] for b in generator.base_anchors]


def _coding(head: Any) -> str:
    coder = head.bbox_coder
    if isinstance(coder, DeltaXYWHBBoxCoder):
        return f"deltas, means {tuple(coder.means)}, stds {tuple(coder.stds)}"
    return "distances to the edges"


def _flatten(levels: list[Tensor], channels: int) -> Tensor:
    """Turn ``(B, A*channels, H, W)`` of each level into ``(B * positions, channels)``."""
    images = len(levels[0])
    flat = [level.permute(0, 2, 3, 1).reshape(images, -1, channels) for level in levels]
    return torch.cat(flat, 1).flatten(0, 1)


def _outputs(head: Any, raw: Any, names: Collection[str]) -> dict[str, Tensor]:
    found = {}
    if "cls" in names:
        found["cls"] = _flatten(raw[0], head.cls_out_channels)
    if isinstance(head, GFLHead):
        if {"box", "box_bins"} & set(names):
            bins = _flatten(raw[1], 4 * (head.reg_max + 1)).unflatten(-1, (4, head.reg_max + 1))
            found["box_bins"] = bins
            if "box" in names:
                found["box"] = head.integral(bins.flatten(1)).view(-1, 4)
    elif "box" in names:
        levels = raw[1]
        if isinstance(head, FCOSHead) and not (head.norm_on_bbox and head.training):
            # mmdet gives pixels, except in training with norm_on_bbox, where it gives strides.
            levels = [level / s for level, s in zip(levels, head.strides, strict=True)]
        found["box"] = _flatten(levels, 4)
    return found


def _encode(
    head: Any, raw: Any, priors: Tensor, targets: Tensor, positive: Tensor, images: int
) -> Tensor:
    """Bring the targets of the positives to the units of ``outputs.box``."""
    if isinstance(head, GFLHead):
        strides = torch.cat(
            [
                priors.new_full((level.shape[-2] * level.shape[-1],), stride)
                for level, stride in zip(raw[0], _strides(head), strict=True)
            ]
        ).repeat(images)[positive, None]
        centres = (priors[:, :2] + priors[:, 2:]) / 2 / strides
        return head.bbox_coder.encode(centres, targets / strides, head.reg_max)
    if head.reg_decoded_bbox:
        return head.bbox_coder.encode(priors, targets)
    return targets


def _top_score(head: Any, raw: Any) -> Tensor:
    logits = _flatten(raw[0], head.cls_out_channels).float()
    if head.use_sigmoid_cls:
        return logits.sigmoid().amax(-1)
    return logits.softmax(-1)[:, : head.num_classes].amax(-1)
