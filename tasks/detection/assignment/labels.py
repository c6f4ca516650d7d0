"""The labels that a teacher's head assigns to its anchors, from its own predictions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from mmdet.models.dense_heads import (
    ATSSHead,
    FreeAnchorRetinaHead,
    FSAFHead,
    GFLHead,
    PAAHead,
    RetinaHead,
    TOODHead,
    VFNetHead,
)
from mmdet.models.task_modules.assigners import (
    AssignResult,
    ATSSAssigner,
    MaxIoUAssigner,
)
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.models.utils import levels_to_images, unpack_gt_instances
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ....core.errors import ConfigError, did_you_mean
from ..positions import decoded_boxes, flatten, level_sizes, positions_of_levels
from .probabilistic import check_finite, probabilistic_assignment
from .taught import own_assigner

__all__ = [
    "Scheme",
    "check_scheme",
    "flat_targets",
    "is_supported",
    "taught_labels",
    "trainable_anchors",
]

Scheme = Literal["own", "paa"]


def is_supported(head: Any) -> bool:
    """Whether it is a kind of head whose anchors are assigned in a way known here."""
    return isinstance(head, (ATSSHead, GFLHead, RetinaHead)) and not isinstance(
        # They descend from those, but assign anchors in ways of their own.
        head,
        (FreeAnchorRetinaHead, FSAFHead, TOODHead, VFNetHead),
    )


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that there is not.

    Raises:
        ConfigError: Offers the nearest.
    """
    known = get_args(Scheme)
    if scheme not in known:
        raise ConfigError(
            f"assignment.scheme must be one of {', '.join(map(repr, known))}, got {scheme!r}."
            f"{did_you_mean(str(scheme), known)} 'own' is the teacher's own assigner, 'paa' the "
            "probabilistic assignment of its predictions."
        )


def trainable_anchors(
    head: Any, sizes: Sequence[tuple[int, int]], metas: Sequence[Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The anchors of one image and which of them each image trains.

    mmdet leaves out those in the padding and, where ``train_cfg.allowed_border`` is not negative,
    those that reach over the border.

    Returns:
        Anchors ``(A, 4)`` and flags ``(B, A)``.
    """
    anchors, valid = head.get_anchors(list(sizes), list(metas), device=device)
    flat = torch.cat(anchors[0])
    border = (head.train_cfg or {}).get("allowed_border", -1)
    flags = [
        anchor_inside_flags(flat, torch.cat(levels), meta["img_shape"][:2], border)
        for levels, meta in zip(valid, metas, strict=True)
    ]
    return flat, torch.stack(flags)


@torch.no_grad()
def taught_labels(
    head: Any,
    raw: Any,
    data_samples: Sequence[Any],
    scheme: Scheme = "own",
    topk: int = 9,
) -> list[AssignResult]:
    """Assign every anchor of a batch as the teacher would, from its own predictions.

    ``"own"``: by the head's own assigner, as in its training. A PAA head assigns by the cost of its
    own losses and the mixture fitted to it. Assigners that look at predictions get them: in
    ``bboxes`` decoded corners, in ``scores`` probabilities (logits for an ``ATSSAssigner`` with
    ``alpha``, as in DDOD). ATSS, GFL and RetinaNet heads with mmdet's usual assigners look at their
    anchors alone: then the labels do not depend on what the teacher has learnt.

    ``"paa"``: by :func:`.probabilistic.probabilistic_assignment` of the predictions of any of these
    heads, which is label assignment distillation for teachers that were not trained with PAA.

    Args:
        head: A head of ATSS, GFL, PAA or RetinaNet kind.
        raw: What it said of the batch, ``head(features)``.
        data_samples: The batch's annotations.
        scheme: ``"own"`` or ``"paa"``.
        topk: Candidates of each object and level for ``"paa"``; 9 in the paper.

    Returns:
        mmdet's ``AssignResult`` for each image, over all its anchors: ``gt_inds`` is the 1-based
        number of an object, 0 for background, and -1 where an anchor is ignored or not trained;
        ``max_overlaps`` the IoU with that object.

    Raises:
        ConfigError: If there is no such scheme.
        TeacherError: If an assignment cost is not finite.

    Reference:
        Nguyen et al.: Improving Object Detection by Label Assignment Distillation, WACV 2022
        (arXiv 2108.10520), section 3.

    Example:
        >>> from mmdet.structures import DetDataSample
        >>> head = RetinaHead(2, 8, feat_channels=8, stacked_convs=1, train_cfg=dict(
        ...     assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4),
        ...     allowed_border=-1, pos_weight=-1))
        >>> raw = head([torch.zeros(1, 8, side, side) for side in (16, 8, 4, 2, 1)])
        >>> sample = DetDataSample(metainfo=dict(img_shape=(128, 128), pad_shape=(128, 128)))
        >>> sample.gt_instances = InstanceData(
        ...     bboxes=torch.tensor([[16.0, 16.0, 48.0, 48.0]]), labels=torch.tensor([1]))
        >>> (result,) = taught_labels(head, raw, [sample])
        >>> len(result.gt_inds), int(result.gt_inds.max())
        (3069, 1)
    """
    check_scheme(scheme)
    device = raw[0][0].device
    with torch.autocast(device.type, enabled=False):
        # Half precision would make ties of costs.
        raw = tuple([level.detach().float() for level in levels] for levels in raw)
        truth, ignored, metas = unpack_gt_instances(list(data_samples))
        if scheme == "own" and isinstance(head, PAAHead):
            found = _by_own_losses(head, raw, truth, ignored, metas)
        else:
            found = _one_by_one(head, raw, truth, ignored, metas, scheme, topk)
        anchors = torch.cat(head.prior_generator.grid_priors(level_sizes(raw), device=device))
        return [_result(*each, anchors) for each in zip(found, truth, strict=True)]


def _by_own_losses(
    head: PAAHead,
    raw: Any,
    truth: list[Any],
    ignored: list[Any],
    metas: list[dict],
) -> list[Tensor]:
    """PAA's own steps, as its loss takes them."""
    anchors, valid = head.get_anchors(level_sizes(raw), metas, device=raw[0][0].device)
    targets = head.get_targets(
        anchors,
        valid,
        truth,
        metas,
        batch_gt_instances_ignore=ignored,
    )
    scores = [x.reshape(-1, head.cls_out_channels) for x in levels_to_images(raw[0])]
    boxes = [x.reshape(-1, 4) for x in levels_to_images(raw[1])]
    found = []
    for levels, score, box, label, weight, target, box_weight, candidates, owner in zip(
        anchors, scores, boxes, *targets, strict=True
    ):
        (losses,) = head.get_pos_loss(
            levels, score, box, label, weight, target, box_weight, candidates
        )
        check_finite(losses)
        # In single precision the mixture's variance can come out negative, which is an error.
        label, weight, *_ = head.paa_reassign(
            losses.double(), label, weight, box_weight, candidates, owner, levels
        )
        gt_inds = torch.where(weight > 0, 0, -1)
        positive = label[candidates] < head.num_classes
        gt_inds[candidates[positive]] = owner[positive] + 1
        found.append(gt_inds)
    return found


def _one_by_one(
    head: Any,
    raw: Any,
    truth: list[Any],
    ignored: list[Any],
    metas: list[dict],
    scheme: Scheme,
    topk: int,
) -> list[Tensor]:
    anchors, trained = trainable_anchors(head, level_sizes(raw), metas, raw[0][0].device)
    logits = flatten(raw[0], head.cls_out_channels).unflatten(0, (len(metas), -1))
    boxes = decoded_boxes(head, raw)
    counts = torch.tensor(positions_of_levels(head, raw), device=anchors.device)
    level = torch.repeat_interleave(counts)
    found = []
    for i, inside in enumerate(trained):
        gt_inds = torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device)
        # A level may have lost all its anchors.
        left = level[inside].bincount(minlength=len(raw[0])).tolist()
        own_anchors, own_logits, own_boxes = anchors[inside], logits[i, inside], boxes[i, inside]
        if scheme == "paa":
            gt_inds[inside] = probabilistic_assignment(
                own_logits, own_boxes, own_anchors, left, truth[i], topk
            )
        else:
            said = InstanceData(priors=own_anchors, scores=own_logits, bboxes=own_boxes)
            gt_inds[inside] = _ask(head, said, left, truth[i], ignored[i])
        found.append(gt_inds)
    return found


def _ask(
    head: Any,
    said: Any,
    counts: list[int],
    truth: Any,
    ignored: Any,
) -> Tensor:
    """Call the head's own assigner on the trained anchors of one image."""
    assigner: Any = own_assigner(head)
    by_logits = isinstance(assigner, ATSSAssigner) and assigner.alpha is not None
    if not by_logits:
        # These two warn of predictions, or have no use for them.
        if isinstance(assigner, (ATSSAssigner, MaxIoUAssigner)):
            said = InstanceData(priors=said.priors)
        else:
            logits = said.scores
            said.scores = (
                logits.sigmoid()
                if head.use_sigmoid_cls
                else logits.softmax(-1)[:, : head.num_classes]
            )
    levels = {}
    if "num_level_priors" in inspect.signature(assigner.assign).parameters:
        levels["num_level_priors"] = counts
    return assigner.assign(
        pred_instances=said, gt_instances=truth, gt_instances_ignore=ignored, **levels
    ).gt_inds


def flat_targets(
    head: Any, labels: Sequence[AssignResult], data_samples: Sequence[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring labels to what losses and regions need, one row a position: images one by one.

    Args:
        head: The student's.
        labels: Of each image, over all its anchors.
        data_samples: The batch's annotations.

    Returns:
        Classes ``(P,)``, ``head.num_classes`` where there is no object; how much each position
        counts in the class loss, ``(P,)``: 1 (positives ``train_cfg.pos_weight``, if above 0), 0
        where ignored; and the corners of its object in pixels, ``(P, 4)``, 0 without one.
    """
    gt_inds = torch.cat([result.gt_inds for result in labels])
    positive = gt_inds > 0
    classes = torch.cat([result.labels for result in labels])
    classes = classes.where(positive, classes.new_tensor(head.num_classes))
    counts = (gt_inds >= 0).float()
    pos_weight = (head.train_cfg or {}).get("pos_weight", -1)
    if pos_weight > 0:
        counts[positive] = pos_weight
    boxes = counts.new_zeros(len(gt_inds), 4)
    boxes[positive] = torch.cat(
        [
            get_box_tensor(sample.gt_instances.bboxes)[result.gt_inds[result.gt_inds > 0] - 1]
            for sample, result in zip(data_samples, labels, strict=True)
        ]
    ).to(boxes)
    return classes, counts, boxes


def _result(gt_inds: Tensor, truth: Any, anchors: Tensor) -> AssignResult:
    labels = torch.full_like(gt_inds, -1)
    overlaps = anchors.new_zeros(len(anchors))
    positive = (gt_inds > 0).nonzero().squeeze(1)
    own = gt_inds[positive] - 1
    labels[positive] = truth.labels[own]
    boxes = get_box_tensor(truth.bboxes)[own]
    overlaps[positive] = bbox_overlaps(anchors[positive], boxes, is_aligned=True)
    return AssignResult(len(truth), gt_inds, overlaps, labels)
