"""Label assignment distillation: the student's own losses under the teacher's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmdet.models.dense_heads import ATSSHead, GFLHead, PAAHead
from mmdet.models.task_modules.assigners import (
    AssignResult,
    DynamicSoftLabelAssigner,
    SimOTAAssigner,
)
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from ....core.errors import ConfigError, TeacherError
from ..positions import base_anchors, level_sizes, strides
from .labels import Scheme, check_scheme, is_supported, taught_labels, trainable_anchors
from .paa import paa_loss
from .taught import own_assigner, taught_assigner

__all__ = ["Assignment"]

KINDS = "ATSS, GFL, PAA and RetinaNet"
# How far inside a box an anchor's centre has to lie, in pixels, as ATSS has it.
MARGIN = 0.01


class Assignment:
    """Train a student on the labels that its teacher assigns (LAD).

    No soft target is involved: the teacher says which anchors stand for which object, by
    :func:`.labels.taught_labels`, and the student's own losses do the rest.

    A student with ATSS's centerness or GFL's distances cannot learn from an anchor whose centre
    lies outside the object's box. Where the teacher calls one positive, such a student ignores it.

    Args:
        student_head: The student's ``bbox_head``.
        scheme: ``"own"``, the teacher's own assigner, or ``"paa"``, the probabilistic assignment of
            its predictions.
        topk: Candidates of each object and level for ``"paa"``; 9 in the paper.
        iou_weighted: Of a PAA student: see :func:`.paa.paa_loss`.

    Raises:
        ConfigError: If the scheme or the student's kind is none of those known, or ``topk`` is
            below 1.

    Reference:
        Nguyen et al.: Improving Object Detection by Label Assignment Distillation, WACV 2022
        (arXiv 2108.10520).
    """

    def __init__(
        self,
        student_head: nn.Module,
        scheme: Scheme = "own",
        *,
        topk: int = 9,
        iou_weighted: bool = True,
    ) -> None:
        check_scheme(scheme)
        if topk < 1:
            raise ConfigError(f"assignment.topk must be at least 1, got {topk}.")
        if not is_supported(student_head):
            raise ConfigError(
                f"The student's head is a {type(student_head).__name__}; heads of {KINDS} kind can "
                "be trained on a teacher's labels. Leave 'assignment' out."
            )
        if not hasattr(student_head, "assigner"):
            raise ConfigError("The student's config has no model.train_cfg.assigner.")
        self.student_head = student_head
        self.scheme: Scheme = scheme
        self.topk = topk
        self.iou_weighted = iou_weighted
        self._given: WeakKeyDictionary[Any, AssignResult] = WeakKeyDictionary()

    def check(self, teacher_head: nn.Module) -> None:
        """Refuse, before training, a teacher whose labels say nothing of the student's anchors.

        Raises:
            TeacherError: Says what differs or is missing.
        """
        head: Any = teacher_head
        if not is_supported(head):
            raise TeacherError(
                f"The teacher's head is a {type(head).__name__}; labels can be had from heads of "
                f"{KINDS} kind. Take another teacher, or leave 'assignment' out."
            )
        if self.scheme == "own":
            assigner = own_assigner(head) if hasattr(head, "assigner") else None
            if assigner is None:
                raise TeacherError(
                    "The teacher's config has no model.train_cfg.assigner, by which it would "
                    "assign labels. Add it, or use scheme='paa', which needs none."
                )
            if isinstance(assigner, (DynamicSoftLabelAssigner, SimOTAAssigner)):
                raise TeacherError(
                    f"The teacher's {type(assigner).__name__} assigns points, but a "
                    f"{type(head).__name__} has anchors. Use scheme='paa'."
                )
        elif not head.use_sigmoid_cls:
            raise TeacherError(
                "scheme='paa' needs a teacher that asks a yes/no question of every class "
                "(use_sigmoid=True in its loss_cls); this one has a softmax. Use scheme='own'."
            )
        student: Any = self.student_head
        for what, ours, theirs in (
            ("the number of classes", student.num_classes, head.num_classes),
            ("strides", strides(student), strides(head)),
            ("anchors (of a level's first location)", base_anchors(student), base_anchors(head)),
        ):
            if ours != theirs:
                raise TeacherError(
                    f"Student and teacher differ in {what}: student {ours}, teacher {theirs}. "
                    "Labels go from anchor to anchor; take a teacher trained with the same."
                )

    def loss(
        self,
        student: nn.Module,
        inputs: Tensor,
        data_samples: Sequence[Any],
        teacher_head: nn.Module,
        teacher_raw: Any,
    ) -> dict[str, Any]:
        """Compute the student's own losses under the teacher's labels.

        Args:
            student: The detector; its modules are called, so that hooks on them see everything.
            inputs: Images ``(B, 3, H, W)`` as its preprocessor leaves them.
            data_samples: Their annotations.
            teacher_head: The teacher's ``bbox_head``.
            teacher_raw: What it said of the same images.

        Returns:
            mmdet's losses by name.

        Raises:
            TeacherError: If the teacher's anchors are not the student's, or an assignment cost is
                not finite.
        """
        model: Any = student
        head, sizes = model.bbox_head, level_sizes(teacher_raw)
        truth, _, metas = unpack_gt_instances(list(data_samples))
        anchors, trained = trainable_anchors(head, sizes, metas, inputs.device)
        results = [
            _learnable(head, result, inside, anchors, own)
            for result, inside, own in zip(
                taught_labels(teacher_head, teacher_raw, data_samples, self.scheme, self.topk),
                trained,
                truth,
                strict=True,
            )
        ]
        self._given.update(zip(truth, results, strict=True))
        with _levels_must_be(sizes, head):
            if isinstance(head, PAAHead):
                raw = head(model.extract_feat(inputs))
                return paa_loss(head, raw, results, data_samples, iou_weighted=self.iou_weighted)
            # mmdet asks for the trained anchors alone.
            taught_assigner(head).load(
                truth,
                [_only(result, inside) for result, inside in zip(results, trained, strict=True)],
            )
            return model(inputs, data_samples, mode="loss")

    def labels(self, data_samples: Sequence[Any]) -> list[AssignResult] | None:
        """The labels under which :meth:`loss` was computed for these images, over all anchors.

        They are kept as long as the annotations are; None for images that were not taught.
        """
        found = [self._given.get(sample.gt_instances) for sample in data_samples]
        known = [result for result in found if result is not None]
        return known if len(known) == len(found) else None


@contextmanager
def _levels_must_be(sizes: list[tuple[int, int]], head: nn.Module) -> Iterator[None]:
    """Refuse a student whose levels are not the teacher's: the same anchors lie elsewhere there."""

    def compare(_module: nn.Module, _inputs: Any, raw: Any) -> None:
        if level_sizes(raw) != sizes:
            raise TeacherError(
                f"The teacher's levels have sizes {sizes}, the student's {level_sizes(raw)}. "
                "Let the teacher see images of the student's size (no teacher.scale)."
            )

    hook = head.register_forward_hook(compare)
    try:
        yield
    finally:
        hook.remove()


def _learnable(
    head: Any, result: AssignResult, inside: Tensor, anchors: Tensor, truth: Any
) -> AssignResult:
    """Ignore the anchors that the student does not train, and positives it has no words for."""
    gt_inds = result.gt_inds.where(inside, result.gt_inds.new_tensor(-1))
    positive = (gt_inds > 0).nonzero().squeeze(1)
    if isinstance(head, (ATSSHead, GFLHead)) and not isinstance(head, PAAHead):
        boxes = get_box_tensor(truth.bboxes)[gt_inds[positive] - 1]
        centres = (anchors[positive, :2] + anchors[positive, 2:]) / 2
        distances = torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], -1)
        gt_inds[positive[distances.amin(-1) <= MARGIN]] = -1
    labels = result.labels.where(gt_inds > 0, result.labels.new_tensor(-1))
    return AssignResult(result.num_gts, gt_inds, result.max_overlaps, labels)


def _only(result: AssignResult, chosen: Tensor) -> AssignResult:
    return AssignResult(
        result.num_gts,
        result.gt_inds[chosen],
        result.max_overlaps[chosen],
        result.labels[chosen],
    )
