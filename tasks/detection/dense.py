"""mmdet's dense heads (GFL, ATSS, PAA, RetinaNet, FCOS, RTMDet, binned ones) for the distiller."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from mmdet.models.dense_heads import (
    AnchorHead,
    FCOSHead,
    GFLHead,
    PAAHead,
    RTMDetHead,
    RTMDetInsHead,
    TOODHead,
    VFNetHead,
)
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.utils import unpack_gt_instances
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ...core.distiller import Context, Region
from ...core.errors import ConfigError, TeacherError
from ...core.taps import Captured
from .adapter import (
    DetectionAdapter,
    check_alike,
    ground_truth,
    level_map,
    padded_size,
    refuse_scaled,
)
from .assignment import Assignment, flat_targets, taught_labels
from .heads import is_binned
from .positions import (
    base_anchors,
    bin_values,
    bins_of,
    box_numbers,
    decoded_boxes,
    flatten,
    level_sizes,
    positions_of_levels,
    priors_of,
    probabilities,
    stride_of_each,
    strides,
)
from .regions import general_instances, gi_cells, valuable_region

__all__ = ["DenseHeadAdapter"]


@dataclass
class _Targets:
    """The student's own label assignment of one batch; positions as in the outputs."""

    positive: Tensor  # (P,) bool
    counted: Tensor  # (P,) bool, False for anchors in the padding
    boxes: Tensor  # (P, 4) in the units of outputs.box, 0 where not positive


class DenseHeadAdapter(DetectionAdapter):
    """Compare single-stage detectors position by position.

    A position is one anchor (or point) of one image: outputs are ``(P, ...)`` with
    ``P = batch x anchors of all levels``, images first, then levels, then the head's own order.
    The regions follow the *student's* label assignment, as its own loss made it (or the teacher's,
    where that assigns the labels). Of features, a region is a map
    for each level: a cell counts as its highest position does.

    Every head is brought to one unit: ``outputs.box`` holds deltas (RetinaNet, ATSS, PAA), or
    distances to the four edges in strides (FCOS, RTMDet, and the expectation of GFL's
    distribution).
    """

    outputs = {
        "cls": "class logits, (P, classes)",
        "box": "four box numbers, (P, 4)",
        "box_bins": "logits of the edge distributions, (P, 4, n+1); GFL and binned heads",
    }
    own_regions = {
        "all": "every position outside the padding, each counting 1",
        "main": "the student's positives, each counting 1",
        "main_score": "the student's positives, by the student's top class score",
        "vlr": "the valuable localization region without the positives, each counting 1",
        "vlr_iou": "the same, by IoU with the ground truth",
        "teacher_score": "every position, by the largest top class score of the teachers",
        "gi": "of features: the cells of boxes where student and teacher differ most in score "
        "(Dai et al. 2021), each counting 1",
    }
    teacher_regions = ("teacher_score", "gi")

    # What assigns the labels where a teacher does: how, its name and its head.
    _assignment: Assignment | None = None
    _assigner: str = ""
    _teacher_head: Any = None
    # What the student's own loss assigned on this batch, so that nothing is assigned twice.
    _found: Sequence[Any] = ()
    _assigned_already: Any = None

    @property
    def reads(self) -> list[str]:
        """The head's raw output."""
        return ["bbox_head"]

    # -- what must agree -----------------------------------------------------------------------

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse heads whose positions or numbers do not correspond; see the base class."""
        super().check(outputs, regions)
        own = set(regions) & set(self.own_regions)
        if not outputs and not own:
            return
        head = _head(self.student)
        _check_kind(head, "student")
        if "box_bins" in outputs and not (isinstance(head, GFLHead) or is_binned(head)):
            raise ConfigError(
                f"outputs.box_bins needs a GFL-type student or a binned head; "
                f"{type(head).__name__} regresses four numbers. Use outputs.box with "
                f"BoundedRegression, or a binned head (BinnedRetinaHead, ...)."
            )
        if {"vlr", "vlr_iou"} & set(regions) and isinstance(head, (FCOSHead, RTMDetHead)):
            kind = "FCOS" if isinstance(head, FCOSHead) else "RTMDet"
            raise ConfigError(f"{kind} has no anchors, hence no valuable localization region.")
        refuse_scaled(self.preprocess, self.teachers, "outputs of dense heads")
        for name, teacher in self.teachers.items():
            theirs = _head(teacher)
            _check_kind(theirs, f"teacher {name!r}")
            check_alike(
                name,
                _properties(head, theirs, outputs),
                "Their outputs cannot be compared position by position; take a teacher trained "
                "with the same, or match features only.",
            )

    # -- labels from a teacher -----------------------------------------------------------------

    def check_assignment(self, options: Mapping[str, Any], teachers: Mapping[str, Any]) -> str:
        """Label assignment distillation (Nguyen et al. 2022); see the base class.

        Args:
            options: ``scheme`` (``"own"``: the teacher's own assigner; ``"paa"``: probabilistic,
                from the teacher's costs), ``of`` (which teacher; the first by default), and
                further arguments of :class:`.assignment.Assignment`.
            teachers: The teachers by name.
        """
        options = dict(options)
        name = options.pop("of", None) or next(iter(teachers))
        if name not in teachers:
            raise ConfigError(
                f"distill.assignment is of teacher {name!r}, but the teachers are {list(teachers)}."
            )
        refuse_scaled(self.preprocess, [name], "labels")
        head = _head(self.student)
        _check_kind(head, "student")
        try:
            self._assignment = Assignment(head, **options)
        except TypeError as error:
            raise ConfigError(f"distill.assignment={options}: {error}.") from error
        self._assignment.check(_head(teachers[name]))
        self._teacher_head, self._assigner = _head(teachers[name]), name
        return name

    def loss(self, inputs: Tensor, data_samples: Any, ask: Callable[[str], Any]) -> dict[str, Any]:
        """The student's losses, on the labels of the teacher where it assigns them."""
        if self._assignment is None:
            with _assigning(_head(self.student)) as self._found:
                return super().loss(inputs, data_samples, ask)
        raw = ask(self._assigner)
        return self._assignment.loss(self.student, inputs, data_samples, self._teacher_head, raw)

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
        raw = seen.calls("bbox_head")[0]
        head = _head(self.student)
        student = _outputs(head, raw, outputs)
        teachers = {
            name: _outputs(_head(self.teachers[name]), out, outputs) for name, out in asked.items()
        }
        found, self._found = self._found, ()  # nothing outlives the step
        # Of a head that assigns several times there is no telling which is meant.
        self._assigned_already = found[0] if len(found) == 1 else None
        with torch.no_grad():
            targets = self._targets(head, raw, data_samples, want_boxes="box" in outputs)
            found = {
                name: self._instances(head, raw, asked, data_samples, targets)
                if name == "gi"
                else self._region(name, head, raw, asked, data_samples, targets)
                for name in regions
            }
        return Context(student, teachers, found, {"box": targets.boxes})

    def _targets(self, head: Any, raw: Any, data_samples: Any, want_boxes: bool) -> _Targets:
        boxes, ignored, metas = unpack_gt_instances(data_samples)
        sizes = level_sizes(raw)
        images, device = len(metas), raw[0][0].device
        if isinstance(head, FCOSHead):
            points = head.prior_generator.grid_priors(sizes, dtype=raw[1][0].dtype, device=device)
            labels, targets = self._assigned_already or head.get_targets(points, boxes)
            labels = torch.cat([x.view(images, -1) for x in labels], 1).flatten()
            each = [1.0 if head.norm_on_bbox else float(s) for s in strides(head)]
            distances = [x.view(images, -1, 4) / s for x, s in zip(targets, each, strict=True)]
            positive = (labels >= 0) & (labels < head.num_classes)
            numbers = torch.cat(distances, 1).flatten(0, 1) * positive[:, None]
            return _Targets(positive, torch.ones_like(positive), numbers)
        labels, label_weights, targets = self._assigned(head, raw, data_samples)
        positive = (labels >= 0) & (labels < head.num_classes)
        numbers = torch.zeros(len(labels), 4, device=device)
        if want_boxes:
            priors = priors_of(head, raw).repeat(images, 1)[positive]
            numbers[positive] = _encode(head, raw, priors, targets[positive], positive).to(numbers)
        return _Targets(positive, label_weights > 0, numbers)

    def _assigned(self, head: Any, raw: Any, data_samples: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, label weights and box targets of every position, as the student trains on."""
        if isinstance(head, PAAHead):
            # Which chooses among its candidates only inside its loss.
            given = self._assignment
            taught = None if given is None else given.labels(data_samples)
            labels = taught or taught_labels(head, raw, data_samples, "own")
            return flat_targets(head, labels, data_samples)
        boxes, ignored, metas = unpack_gt_instances(data_samples)
        anchors, valid = head.get_anchors(level_sizes(raw), metas, device=raw[0][0].device)
        more: dict[str, Any] = dict(batch_gt_instances_ignore=ignored)
        result: Any
        if self._assigned_already is not None:
            result = self._assigned_already
        elif isinstance(head, RTMDetHead):
            logits = flatten(raw[0], head.cls_out_channels).unflatten(0, (len(metas), -1))
            decoded = decoded_boxes(head, raw)
            result = head.get_targets(logits, decoded, anchors, valid, boxes, metas, **more)
        else:
            result = head.get_targets(anchors, valid, boxes, metas, **more)
        # ATSS-type heads put the anchors first.
        found = result[1:4] if len(result) == 6 else result[:3]
        classes, weights, targets = (torch.cat(list(levels), 1).flatten(0, 1) for levels in found)
        return classes, weights, targets

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
        total = reduce_mean(weight.sum())
        at = _maps(weight, head, raw)
        return Region(weight, total, average=reduce_mean, at=at)

    @staticmethod
    def _valuable(head: Any, raw: Any, data_samples: Any) -> Tensor:
        anchors, counts = priors_of(head, raw), positions_of_levels(head, raw)
        topk = getattr(head.assigner, "topk", 9)
        values = [
            valuable_region(anchors, counts, truth, topk=topk)
            for truth in ground_truth(data_samples)
        ]
        return torch.cat(values)

    def _instances(
        self,
        head: Any,
        raw: Any,
        asked: Mapping[str, Any],
        data_samples: Any,
        targets: _Targets,
    ) -> Region:
        """Where the student and the first compared teacher differ most, image by image."""
        name, answer = next(iter(asked.items()))
        theirs = _head(self.teachers[name])
        sizes, counts = level_sizes(raw), positions_of_levels(head, raw)
        # In the padding, they are made to agree.
        inside = targets.counted.view(len(raw[0][0]), -1, 1)
        scores = [probabilities(h, out) * inside for h, out in ((head, raw), (theirs, answer))]
        boxes = decoded_boxes(head, raw), decoded_boxes(theirs, answer)
        chosen = [
            general_instances(ours, taught, own, others, counts)
            for ours, taught, own, others in zip(*scores, *boxes, strict=True)
        ]
        levels = gi_cells(chosen, padded_size(data_samples), sizes)
        return Region(at=lambda size: level_map(levels, size), average=reduce_mean)


def _maps(weight: Tensor, head: Any, raw: Any) -> Callable[[tuple[int, int]], Tensor]:
    """Lay the weights of positions out as one map a level; a cell counts as its highest."""

    @cache  # once a batch, and only where features are weighed
    def levels() -> list[Tensor]:
        rows = weight.unflatten(0, (len(raw[0][0]), -1)).split(positions_of_levels(head, raw), 1)
        return [
            row.unflatten(1, (*size, -1)).amax(-1)
            for row, size in zip(rows, level_sizes(raw), strict=True)
        ]

    return lambda size: level_map(levels(), size)


def _head(model: nn.Module) -> Any:
    if not hasattr(model, "bbox_head"):
        raise TeacherError(
            f"{type(model).__name__} has no dense bbox_head; this adapter distils single-stage "
            "detectors."
        )
    return model.bbox_head


@contextmanager
def _assigning(head: Any) -> Iterator[list[Any]]:
    """Keep what a head's ``get_targets`` returns while the block runs."""
    found: list[Any] = []
    own = getattr(head, "get_targets", None)
    if own is None:
        yield found
        return

    def get_targets(*args: Any, **kwargs: Any) -> Any:
        found.append(own(*args, **kwargs))
        return found[-1]

    head.get_targets = get_targets  # before the class's own, and gone after the block
    try:
        yield found
    finally:
        del head.get_targets


def _check_kind(head: Any, whose: str) -> None:
    # The last three descend from these and mean something else by their numbers.
    others = (TOODHead, VFNetHead, RTMDetInsHead)
    if not isinstance(head, (AnchorHead, FCOSHead)) or isinstance(head, others):
        raise TeacherError(
            f"The {whose}'s head is a {type(head).__name__}; outputs of GFL, ATSS, PAA, RetinaNet, "
            "FCOS and RTMDet-type heads can be compared. Features of any detector can be matched "
            "by taps."
        )


def _properties(ours: Any, theirs: Any, outputs: Collection[str]) -> list[tuple[str, Any, Any]]:
    """What has to be equal for positions and numbers to mean the same, with both values."""
    found = [
        ("the number of classes", ours.num_classes, theirs.num_classes),
        ("class output channels", ours.cls_out_channels, theirs.cls_out_channels),
        ("strides", *(strides(h) for h in (ours, theirs))),
        ("anchors a location", *(_anchors_per_location(h) for h in (ours, theirs))),
    ]
    if "box" in outputs or "box_bins" in outputs:
        found.append(("box coding", *(_coding(h) for h in (ours, theirs))))
        found.append(("anchors or points", *(_priors(h) for h in (ours, theirs))))
    if "box_bins" in outputs:
        found.append(("reg_max", *(getattr(h, "reg_max", None) for h in (ours, theirs))))
        found.append(("the bins", *(bin_values(h) for h in (ours, theirs))))
    return found


def _anchors_per_location(head: Any) -> list[int]:
    return list(head.prior_generator.num_base_priors)


def _priors(head: Any) -> list[list[list[float]]] | str:
    """What box numbers are relative to, at the first location of each level."""
    generator = head.prior_generator
    if not isinstance(head.bbox_coder, DeltaXYWHBBoxCoder):
        # Distances have an origin, but no size.
        return f"offset {getattr(generator, 'offset', getattr(generator, 'center_offset', 0))}"
    return base_anchors(head)


def _coding(head: Any) -> str:
    coder = head.bbox_coder
    if isinstance(coder, DeltaXYWHBBoxCoder):
        return f"deltas, means {tuple(coder.means)}, stds {tuple(coder.stds)}"
    return "distances to the edges"


def _outputs(head: Any, raw: Any, names: Collection[str]) -> dict[str, Tensor]:
    found = {}
    if "cls" in names:
        found["cls"] = flatten(raw[0], head.cls_out_channels)
    if "box" in names:
        found["box"] = box_numbers(head, raw)
    if "box_bins" in names:
        bins = bins_of(head, raw)
        assert bins is not None
        found["box_bins"] = bins
    return found


def _encode(head: Any, raw: Any, priors: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Bring the targets of the positives to the units of ``outputs.box``."""
    if isinstance(head, (GFLHead, RTMDetHead)):
        images = len(raw[0][0])
        each = stride_of_each(head, raw).repeat(images)[positive, None]
        points = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
        most = head.reg_max if isinstance(head, GFLHead) else None
        return head.bbox_coder.encode(points / each, targets / each, most)
    if head.reg_decoded_bbox or isinstance(head, PAAHead):
        return head.bbox_coder.encode(priors, targets)
    return targets


def _top_score(head: Any, raw: Any) -> Tensor:
    return probabilities(head, raw).flatten(0, 1).amax(-1)
