"""mmdet's two-stage detectors (Faster and Mask R-CNN) as the distiller sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import BBoxHead, StandardRoIHead
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ...core.distiller import Context, Region
from ...core.errors import ConfigError, TeacherError
from ...core.recipe import output_name
from ...core.taps import Captured
from .adapter import DetectionAdapter, check_alike, padded_size, refuse_scaled
from .heads import is_binned
from .positions import base_anchors, bin_values, flatten, priors_of

__all__ = ["TwoStageAdapter", "run_two_stage"]

_RPN, _ROI = "rpn_head", "roi_head.bbox_head"
_EXTRACTOR = "roi_head.bbox_roi_extractor@input"
_LOSSES = ("loss_cls", "loss_bbox")


class TwoStageAdapter(DetectionAdapter):
    """Compare both stages of two-stage detectors (Chen et al. 2017).

    The first stage is compared anchor by anchor: outputs ``(P, ...)``, ``P = batch x anchors of all
    levels``, images first, then levels, then the head's own order. The second is compared region by
    region: ``(R, ...)``, where the regions of interest are those that the *student* sampled for its
    own loss, on which the teacher's RoI head is run too. A region of interest of the student's is
    thus seen by both networks, and taps inside the RoI heads correspond.

    Labels, samples and regression targets are those of the student's own losses, read where its
    loss modules are called; nothing is sampled or assigned anew.
    """

    outputs = {
        "rpn_cls": "objectness logits of the anchors, (P, 1)",
        "rpn_box": "box deltas of the anchors, (P, 4)",
        "roi_cls": "class logits of the sampled proposals, background last, (R, classes + 1)",
        "roi_box": "box deltas of the sampled proposals, for the class they are assigned, (R, 4)",
        "roi_bins": "logits of their distributions over bins, (R, 4, n+1); binned heads only",
    }
    own_regions = {
        "rpn": "the anchors sampled for the student's RPN loss, each counting 1",
        "rpn_main": "the positives among them; divided by the number of all sampled, as the "
        "student's own box loss is",
        "roi": "the proposals sampled for the student's RoI loss, each counting 1",
        "roi_main": "the positives among them; divided by the number of all sampled, as the "
        "student's own box loss is",
    }
    default_region = {
        "rpn_cls": "rpn",
        "rpn_box": "rpn_main",
        "roi_cls": "roi",
        "roi_box": "roi_main",
        "roi_bins": "roi_main",
    }

    # -- how to run ----------------------------------------------------------------------------

    @property
    def reads(self) -> list[str]:
        """Both heads' raw outputs, the sampled proposals, and what the loss modules are given."""
        found = []
        if self.names("rpn"):
            found += [_RPN, *(f"{_RPN}.{loss}@input" for loss in _LOSSES)]
        if self.names("roi"):
            found += [_EXTRACTOR, _ROI, *(f"{_ROI}.{loss}@input" for loss in _LOSSES)]
        return found

    def forward(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """What pairs need of both stages; the second on two boxes an image, to learn shapes."""
        return lambda images: self.run(model, images, rois=self._probe_rois(images))

    def _probe_rois(self, images: Tensor) -> Tensor | None:
        return _probe_rois(images) if self.names("roi") else None

    def depends_on_student(self, name: str) -> str | None:
        """See the base class."""
        if not self.names("roi"):
            return None
        return (
            "its second stage is run on the regions that the student proposes (outputs.roi_*, taps "
            "and regions of the RoI head)"
        )

    def teacher_forward(
        self, name: str, model: nn.Module, seen: Captured | None, data_samples: Any
    ) -> Callable[[Tensor], Any]:
        """What pairs need of both stages; the second on the student's sampled proposals."""
        rois = None if seen is None or not self.names("roi") else self._rois(seen)
        scaled = self.preprocess.get(name)

        def run(images: Tensor) -> Any:
            proposals = rois
            if rois is not None and scaled is not None:
                y, x = scaled.factors(padded_size(data_samples))
                proposals = rois * rois.new_tensor([1.0, x, y, x, y])
            return self.run(model, images, data_samples, proposals)

        return run

    @staticmethod
    def _rois(seen: Captured) -> Tensor:
        # The last call: hard example mining calls the same modules before.
        return seen.calls(_EXTRACTOR)[-1][1]

    # -- what must agree -----------------------------------------------------------------------

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse heads whose anchors, classes or numbers do not correspond; see the base class."""
        super().check(outputs, regions)
        for pair in self.recipe.pairs:
            stage = output_name(pair.student)[:3]
            if pair.is_output and pair.region is not None and pair.region[:3] != stage:
                own = [name for name in self.own_regions if name.startswith(stage)]
                raise ConfigError(
                    f"Pair {pair.name!r}: {pair.student!r} has other positions than region "
                    f"{pair.region!r}; expected one of {own}."
                )
            pooled = pair.student.startswith("roi_head") and pair.region in ("roi", "roi_main")
            if not pair.is_output and pair.region in self.own_regions and not pooled:
                raise ConfigError(
                    f"Pair {pair.name!r}: region {pair.region!r} is of single positions, but "
                    f"{pair.student!r} is a tap; expected 'boxes' or 'fine_grained' for a map, or "
                    "'roi' or 'roi_main' inside the RoI head."
                )
        stages = {stage for stage in ("rpn", "roi") if self.names(stage)}
        if not stages:
            return
        _check_kind(self.student, "student", stages)
        head = _roi_head(self.student)
        if "roi_bins" in outputs and not is_binned(head):
            raise ConfigError(
                f"outputs.roi_bins needs a binned RoI head; {type(head).__name__} regresses four "
                "numbers. Use outputs.roi_box, or BinnedShared2FCBBoxHead."
            )
        if "rpn" in stages:
            refuse_scaled(self.preprocess, self.teachers, "outputs of the RPN")
        for name, teacher in self.teachers.items():
            _check_kind(teacher, f"teacher {name!r}", stages)
            check_alike(
                name,
                _properties(self.student, teacher, outputs),
                "Their outputs cannot be compared; take a teacher trained with the same, or match "
                "features only.",
            )

    # -- one batch -----------------------------------------------------------------------------

    def output_context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Any,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """See the base class."""
        context = Context(teachers={name: {} for name in asked})
        named = (*outputs, *regions)
        if any(name.startswith("rpn") for name in named):
            self._first_stage(seen, asked, outputs, context)
        if any(name.startswith("roi") for name in named):
            self._second_stage(seen, asked, outputs, context)
        return context

    def _first_stage(
        self, seen: Captured, asked: Mapping[str, Any], outputs: Collection[str], context: Context
    ) -> None:
        head = _rpn_head(self.student)
        raw = seen.calls(_RPN)[0]
        images = len(raw[0][0])
        _extend(context.student, _rpn_outputs(head, raw, outputs))
        for name, answer in asked.items():
            theirs = _rpn_head(self.teachers[name])
            _extend(context.teachers[name], _rpn_outputs(theirs, answer["rpn"], outputs))
        # One call a level: (prediction, labels, weights), positions of one image after another.
        given = [seen.calls(f"{_RPN}.{loss}@input") for loss in _LOSSES]

        def joined(levels: list[Any], index: int) -> Tensor:
            rows = [level[index].detach().unflatten(0, (images, -1)) for level in levels]
            return torch.cat(rows, 1).flatten(0, 1)

        labels, weights = joined(given[0], 1), joined(given[0], 2)
        targets = joined(given[1], 1)
        sampled = weights > 0
        positive = sampled & (labels >= 0) & (labels < head.num_classes)
        if head.reg_decoded_bbox:
            chosen = positive.nonzero().squeeze(1)
            anchors = priors_of(head, raw).repeat(images, 1)[chosen]
            encoded = head.bbox_coder.encode(anchors, targets[chosen])
            targets = torch.zeros_like(targets).index_copy_(0, chosen, encoded.to(targets))
        _extend(context.targets, {"rpn_box": targets * positive[:, None]})
        _extend(context.regions, _regions("rpn", sampled, positive))

    def _second_stage(
        self, seen: Captured, asked: Mapping[str, Any], outputs: Collection[str], context: Context
    ) -> None:
        head = _roi_head(self.student)
        raw, rois = seen.calls(_ROI)[-1], self._rois(seen)
        specs = [f"{_ROI}.{loss}@input" for loss in _LOSSES]
        # Without a proposal there is no class loss, without a positive no box loss.
        labels = weights = rois.new_zeros(0)
        if len(rois):
            labels, weights = seen.calls(specs[0])[-1][1:3]
        sampled = weights > 0
        positive = sampled & (labels >= 0) & (labels < head.num_classes)
        _extend(context.student, _roi_outputs(head, raw, labels, outputs))
        for name, answer in asked.items():
            theirs = _roi_head(self.teachers[name])
            _extend(context.teachers[name], _roi_outputs(theirs, answer["roi"], labels, outputs))
        targets = rois.new_zeros(len(rois), 4)
        if bool(positive.any()) and seen.called(specs[1]):
            chosen = seen.calls(specs[1])[-1][1].detach()
            if head.reg_decoded_bbox:
                chosen = head.bbox_coder.encode(rois[positive, 1:], chosen)
            targets[positive] = chosen.to(targets)
        _extend(context.targets, {"roi_box": targets})
        _extend(context.regions, _regions("roi", sampled, positive))


def run_two_stage(
    model: Any, images: Tensor, *, proposes: bool = True, rois: Tensor | None = None
) -> dict[str, Any]:
    """Run both stages by module calls, the second on given regions of interest.

    Args:
        model: A two-stage detector.
        images: ``(B, 3, H, W)``, preprocessed.
        proposes: Whether the first stage is run.
        rois: ``(R, 5)``: index of the image, then corners in pixels. None leaves the second out.

    Returns:
        ``rpn`` and ``roi``: what the heads that were run return.

    Raises:
        TeacherError: If the second stage is run, but is of a kind that runs otherwise.
    """
    features = model.extract_feat(images)
    found = {}
    if proposes:
        found["rpn"] = model.rpn_head(features)
    if rois is not None:
        roi_head: Any = model.roi_head
        _check_second_stage(roi_head, f"RoI head of {type(model).__name__}")
        extractor = roi_head.bbox_roi_extractor
        regions = extractor(features[: extractor.num_inputs], rois)
        if roi_head.with_shared_head:
            regions = roi_head.shared_head(regions)
        found["roi"] = roi_head.bbox_head(regions)
    return found


def _probe_rois(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    boxes = images.new_tensor([[0, 0, width, height], [0, 0, width / 2, height / 2]])
    index = torch.arange(len(images), device=images.device).repeat_interleave(len(boxes))
    return torch.cat([index[:, None].to(boxes), boxes.repeat(len(images), 1)], 1)


def _regions(stage: str, sampled: Tensor, positive: Tensor) -> dict[str, Region]:
    total = reduce_mean(sampled.float().sum())
    return {
        stage: Region(sampled.float(), total),
        f"{stage}_main": Region(positive.float(), total),
    }


def _extend(values: Any, more: Mapping[str, Any]) -> None:
    values.update(more)


def _rpn_head(model: Any) -> Any:
    return model.rpn_head


def _roi_head(model: Any) -> Any:
    return model.roi_head.bbox_head


def _rpn_outputs(head: Any, raw: Any, names: Collection[str]) -> dict[str, Tensor]:
    found = {}
    if "rpn_cls" in names:
        found["rpn_cls"] = flatten(raw[0], head.cls_out_channels)
    if "rpn_box" in names:
        found["rpn_box"] = flatten(raw[1], 4)
    return found


def _roi_outputs(head: Any, raw: Any, labels: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    scores, numbers = raw
    found = {}
    if "roi_cls" in names:
        found["roi_cls"] = scores
    if {"roi_box", "roi_bins"} & set(names):
        each = (4, head.bins.count) if is_binned(head) else (4,)
        numbers = numbers.unflatten(1, (-1, *each))
        # Of the class a region is assigned; of the background any will do, it counts nothing.
        index = torch.zeros_like(labels) if head.reg_class_agnostic else labels
        index = index.clamp(0, numbers.shape[1] - 1).long()
        numbers = numbers[torch.arange(len(numbers), device=numbers.device), index]
        if "roi_bins" in names:
            found["roi_bins"] = numbers
        if "roi_box" in names:
            found["roi_box"] = head.bins.expect(numbers) if is_binned(head) else numbers
    return found


def _check_kind(model: Any, whose: str, stages: Collection[str]) -> None:
    if not hasattr(model, "roi_head") or not hasattr(model, "rpn_head"):
        raise TeacherError(
            f"The {whose} is a {type(model).__name__}, which has no two stages; outputs of Faster "
            "and Mask R-CNN-type detectors are compared with one another. Features of any detector "
            "can be matched by taps."
        )
    if "rpn" in stages and not isinstance(model.rpn_head, RPNHead):
        raise TeacherError(
            f"The {whose}'s rpn_head is a {type(model.rpn_head).__name__}; expected an RPNHead. "
            "Compare outputs.roi_*, or match features."
        )
    if "roi" not in stages:
        return
    head = model.roi_head
    _check_second_stage(head, f"{whose}'s roi_head")
    if head.bbox_head.custom_cls_channels:
        raise TeacherError(
            f"The {whose}'s RoI class loss is a {type(head.bbox_head.loss_cls).__name__} with "
            "channels of its own; expected one logit a class and one for the background."
        )


def _check_second_stage(head: Any, what: str) -> None:
    # Others run their box heads several times, or on several features.
    plain = getattr(type(head), "_bbox_forward", None) is StandardRoIHead._bbox_forward
    if not plain or not isinstance(head.bbox_head, BBoxHead):
        raise TeacherError(
            f"The {what} is a {type(head).__name__}; outputs and taps of a StandardRoIHead can be "
            "compared. Features before it, and outputs.rpn_*, of any can."
        )


def _properties(ours: Any, theirs: Any, outputs: Collection[str]) -> list[tuple[str, Any, Any]]:
    """What has to be equal for outputs to mean the same, with both values."""
    found = []
    if any(name.startswith("rpn") for name in outputs):
        for what, read in (
            ("the RPN's strides", lambda head: [tuple(s) for s in head.prior_generator.strides]),
            ("the RPN's anchors", base_anchors),
            ("class channels of the RPN", lambda head: head.cls_out_channels),
            ("box coding of the RPN", _coding),
        ):
            found.append((what, read(ours.rpn_head), read(theirs.rpn_head)))
    if any(name.startswith("roi") for name in outputs):
        heads = [model.roi_head.bbox_head for model in (ours, theirs)]
        found.append(("the number of classes", *(head.num_classes for head in heads)))
        if {"roi_box", "roi_bins"} & set(outputs):
            found.append(("box coding of the RoI head", *(_coding(head) for head in heads)))
        if "roi_bins" in outputs:
            found.append(("the bins", *(bin_values(head) for head in heads)))
    return found


def _coding(head: Any) -> str:
    coder = head.bbox_coder
    numbers = [tuple(getattr(coder, key, ())) for key in ("means", "stds")]
    return f"{type(coder).__name__}, means {numbers[0]}, stds {numbers[1]}"
