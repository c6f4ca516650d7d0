"""Transformer detectors (DETR and its family): predictions of queries, matched one to one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import DDQDETRHead, DETRHead, DINOHead, GroundingDINOHead
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...core.distiller import Context, Region
from ...core.errors import ConfigError, TeacherError
from ...core.taps import Captured, Tap
from .adapter import DetectionAdapter, check_alike

__all__ = ["QueryAdapter", "QueryPairs", "match_queries", "run_queries"]


@dataclass(frozen=True)
class QueryPairs:
    """Which queries of one batch are compared.

    The M rows are in this order: images first; in an image the ground truths in their own order,
    then what is matched by its prediction, in the order of the student's queries.

    Args:
        image: Index of the image in the batch, (M,).
        student: Index of the student's query, (M,); without the denoising queries.
        teachers: By name, the index of each teacher's query, (M,).
        truth: Index of the ground truth, within its image, through which student and teachers
            were matched, (M,); -1 where they were matched by their predictions.
    """

    image: Tensor
    student: Tensor
    teachers: Mapping[str, Tensor]
    truth: Tensor


def run_queries(
    model: nn.Module, images: Tensor, data_samples: Sequence[Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Run a transformer detector up to its head, without losses or post-processing.

    Args:
        model: The detector. In training mode DINO makes denoising queries of the ground truth, so
            that it needs ``data_samples``.
        images: Preprocessed images, (B, 3, H, W).
        data_samples: Tell how much of each image is padding, which the transformer leaves out;
            all of it is taken for picture by default. Only proportions are read: images of
            another size than the samples' are no obstacle.

    Returns:
        Class logits (layers, B, queries, classes) and boxes (layers, B, queries, 4): cx, cy, w, h
        in fractions of the image without its padding.

    Raises:
        TeacherError: If the model reads texts beside the images.
    """
    network: Any = model
    if isinstance(network.bbox_head, GroundingDINOHead):
        raise TeacherError(
            f"{type(model).__name__} also reads texts, which a batch of images does not bring; "
            "take a detector of images alone."
        )
    if data_samples is None:
        size = (images.shape[-2], images.shape[-1])
        meta = dict(img_shape=size, batch_input_shape=size)
        data_samples = [DetDataSample(metainfo=meta) for _ in images]
    found = network.forward_transformer(network.extract_feat(images), data_samples)
    given = {name: found[name] for name in ("hidden_states", "references") if name in found}
    # The module call, not `.forward` as mmdet's `_forward` has it: taps are hooks.
    return network.bbox_head(**given)


def match_queries(
    student: InstanceData,
    teacher: InstanceData,
    truth: InstanceData,
    meta: Mapping[str, Any],
    assigner: HungarianAssigner,
    teacher_assigner: HungarianAssigner,
) -> tuple[Tensor, Tensor]:
    r"""Match the student's queries with the teacher's in one image, one to one.

    1. Each side's own assigner gives a query to every ground truth; the two queries of one ground
       truth are a pair.
    2. The student's other queries are assigned to the teacher's other predictions as if these were
       ground truth: box and top class of each, by the costs of the student's own assigner,

       .. math:: \hat\sigma = \arg\min_\sigma \sum_j
                 c_{cls}(p^s_{\sigma(j)}, \arg\max_k p^t_{jk}) + c_{box}(b^s_{\sigma(j)}, b^t_j)

       with the box costs of mmdet's configs 5 L1 - 2 GIoU.

    Queries have no order that two networks share, hence no position of their own to be compared
    at. A query is best matched with a copy of itself: its own top class and its own box are the
    cheapest for it, so a teacher with the student's weights gives the identity.

    Args:
        student: ``scores``: class logits (S, classes [+ 1]), and ``bboxes``: corners in pixels
            (S, 4).
        teacher: The same, of T queries; and ``labels``: its top class, (T,).
        truth: ``bboxes`` and ``labels`` of the ground truth, corners in pixels.
        meta: The image's, with ``img_shape``.
        assigner: The student's.
        teacher_assigner: The teacher's.

    Returns:
        For each of the student's queries the teacher's, and the ground truth they share; both
        (S,), and -1 where there is none. min(S, T) queries have a partner.

    Reference:
        Chang et al.: DETRDistill: A Universal Knowledge Distillation Framework for DETR-families,
        ICCV 2023 (Hungarian-matching logits distillation: the teacher's positive and negative
        predictions, each matched with the student's). Chen et al.: D3ETR: Decoder Distillation for
        Detection Transformer, 2022 (adaptive matching).

    Example:
        >>> import torch
        >>> from mmengine.structures import InstanceData
        >>> from mmdet.models.task_modules.assigners import HungarianAssigner
        >>> assigner = HungarianAssigner(
        ...     [dict(type="mmdet.FocalLossCost"), dict(type="mmdet.BBoxL1Cost")])
        >>> boxes = torch.tensor([[0., 0, 9, 9], [20, 20, 40, 40], [5, 5, 60, 60]])
        >>> student = InstanceData(scores=torch.zeros(3, 2), bboxes=boxes)
        >>> teacher = InstanceData(
        ...     scores=torch.zeros(3, 2), bboxes=boxes.flip(0), labels=torch.zeros(3).long())
        >>> truth = InstanceData(bboxes=boxes[1:2] + 1, labels=torch.tensor([0]))
        >>> meta = dict(img_shape=(64, 64))
        >>> match_queries(student, teacher, truth, meta, assigner, assigner)
        (tensor([2, 1, 0]), tensor([-1,  0, -1]))
    """

    def assign(by: HungarianAssigner, predictions: InstanceData, to: InstanceData) -> Tensor:
        found = by.assign(pred_instances=predictions, gt_instances=to, img_meta=dict(meta))
        return found.gt_inds - 1  # mmdet counts from 1, and says 0 for none

    ours = assign(assigner, student, truth)
    theirs = assign(teacher_assigner, teacher, truth)
    # The teacher's query of each ground truth; the last entry is that of none.
    holder = theirs.new_full((len(truth) + 1,), -1)
    holder[theirs] = torch.arange(len(theirs), device=theirs.device)
    holder[-1] = -1
    partner = holder[ours]
    via = torch.where(partner >= 0, ours, -1)
    taken = torch.zeros(len(theirs), dtype=torch.bool, device=theirs.device)
    taken[partner[partner >= 0]] = True
    free, left = (partner < 0).nonzero().squeeze(1), (~taken).nonzero().squeeze(1)
    pseudo = InstanceData(bboxes=teacher.bboxes[left], labels=teacher.labels[left])  # type: ignore
    rest = assign(assigner, student[free], pseudo)  # type: ignore[arg-type]
    partner[free[rest >= 0]] = left[rest[rest >= 0]]
    return partner, via


class QueryAdapter(DetectionAdapter):
    """Compare transformer detectors query by query.

    A position is a pair of a student's query and a teacher's (:func:`match_queries`), made in each
    image from the *last* decoder layer of either side, and kept for all layers: a query refines
    one object from layer to layer, and one matching a step is cheap. (D3ETR matches every layer
    anew.) With several teachers, a position is a student's query that has a partner in each.

    ``outputs.cls`` and ``outputs.box`` are one tensor a decoder layer; ``outputs.cls[-1]`` is the
    last alone. Without a selection a term is the mean over the layers, and both sides need as many.

    Features of the encoder need nothing of this: tap ``encoder``.
    """

    outputs = {
        "cls": "class logits of matched queries, (M, classes) a decoder layer",
        "box": "cx, cy, w, h of matched queries in fractions of the image, (M, 4) a decoder layer",
    }
    own_regions = {
        "all": "every pair of queries, each counting 1",
        "main": "the pairs that share a ground truth, each counting 1",
        "teacher_score": "every pair, by the largest top class score of the teachers",
    }
    # The boxes of queries that see nothing mean nothing; their classes say so.
    default_region = {"cls": "teacher_score", "box": "main"}

    @property
    def reads(self) -> list[str]:
        """The head's raw output."""
        return ["bbox_head"]

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse heads whose numbers do not correspond; see the base class."""
        super().check(outputs, regions)
        for pair in self.recipe.pairs:
            if pair.region is not None and pair.is_output != (pair.region in self.own_regions):
                kind = "queries" if pair.region in self.own_regions else "features"
                raise ConfigError(
                    f"Pair {pair.name!r}: region {pair.region!r} is one of {kind}, which "
                    f"{pair.student!r} is not. Regions of queries are {list(self.own_regions)}."
                )
        if not outputs:
            return
        head = _head(self.student, "The student")
        if not isinstance(getattr(head, "assigner", None), HungarianAssigner):
            raise ConfigError(
                "outputs.* of a transformer detector are matched by its HungarianAssigner; the "
                f"student's is {type(getattr(head, 'assigner', None)).__name__}. Set "
                "model.train_cfg.assigner, or match features only."
            )
        for name, teacher in self.teachers.items():
            theirs = _head(teacher, f"Teacher {name!r}")
            check_alike(
                name,
                (
                    ("the number of classes", head.num_classes, theirs.num_classes),
                    ("the activation of the classes", _activation(head), _activation(theirs)),
                ),
                "Their queries cannot be compared; take a teacher trained with the same, or match "
                "features only.",
            )
        self._check_layers()

    def _check_layers(self) -> None:
        """Refuse pairs whose two sides are of different numbers of decoder layers."""
        for pair in (p for p in self.recipe.pairs if p.is_output and self.teachers):
            name = pair.of or next(iter(self.teachers))
            ours, theirs = (
                len(Tap.parse(spec).choose([torch.empty(0)] * _layers(model), spec))
                for spec, model in (
                    (pair.student, self.student),
                    (pair.teacher, self.teachers[name]),
                )
            )
            if ours != theirs:
                raise TeacherError(
                    f"Pair {pair.name!r}: {pair.student!r} is of {ours} decoder layers of the "
                    f"student, {pair.teacher!r} of {theirs} of teacher {name!r}. Select as many on "
                    f"both sides, e.g. student='{pair.student.partition('[')[0]}[-1]'."
                )

    def output_context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Any,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """See the base class."""
        raw = _matching(self.student, seen.calls("bbox_head")[0])
        taught = {name: _matching(self.teachers[name], out) for name, out in asked.items()}
        with torch.no_grad(), torch.autocast(raw[0].device.type, enabled=False):
            pairs = self._pairs(raw, taught, data_samples)
            targets = {"box": _targets(pairs, data_samples)}
            found = {name: self._region(name, pairs, taught) for name in regions}
        return Context(
            _outputs(raw, pairs.image, pairs.student, outputs),
            {
                n: _outputs(out, pairs.image, pairs.teachers[n], outputs)
                for n, out in taught.items()
            },
            found,
            targets,
        )

    def _pairs(
        self, raw: tuple[Tensor, Tensor], taught: Mapping[str, Any], data_samples: Any
    ) -> QueryPairs:
        head = _head(self.student, "The student")
        rows: list[tuple[Tensor, ...]] = []
        for image, sample in enumerate(data_samples):
            meta = sample.metainfo
            truth = InstanceData(
                bboxes=get_box_tensor(sample.gt_instances.bboxes).float(),
                labels=sample.gt_instances.labels,
            )
            ours = _predictions(head, raw, image, meta)
            partners, shared = [], []
            for name, out in taught.items():
                other = _head(self.teachers[name], f"Teacher {name!r}")
                own = getattr(other, "assigner", None)
                partner, via = match_queries(
                    ours,
                    _predictions(other, out, image, meta),
                    truth,
                    meta,
                    head.assigner,
                    # A config for prediction alone has none.
                    own if isinstance(own, HungarianAssigner) else head.assigner,
                )
                partners.append(partner)
                shared.append(via)
            partner, via = torch.stack(partners), torch.stack(shared)
            # All teachers that found the ground truth found the student's query for it.
            via = torch.where((via >= 0).all(0), via[0], -1)
            chosen = (partner >= 0).all(0).nonzero().squeeze(1)
            # Stable: the ground truths in their order, then the rest in the queries' own.
            order = torch.where(via < 0, len(truth), via)[chosen].argsort(stable=True)
            chosen = chosen[order]
            rows.append(
                (torch.full_like(chosen, image), chosen, via[chosen], *partner[:, chosen].unbind())
            )
        image, student, via, *teachers = (torch.cat(part) for part in zip(*rows, strict=True))
        return QueryPairs(image, student, dict(zip(taught, teachers, strict=True)), via)

    def _region(self, name: str, pairs: QueryPairs, taught: Mapping[str, Any]) -> Region:
        if name == "all":
            weight = torch.ones_like(pairs.truth, dtype=torch.float32)
        elif name == "main":
            weight = (pairs.truth >= 0).float()
        else:
            scores = [
                _top_score(
                    _head(self.teachers[n], f"Teacher {n!r}"), out[0][-1], pairs, pairs.teachers[n]
                )
                for n, out in taught.items()
            ]
            weight = torch.stack(scores).amax(0)
        # Averaged over processes, as mmdet does with its number of positives.
        return Region(weight, reduce_mean(weight.sum()))


def _head(model: nn.Module, whose: str) -> Any:
    head = getattr(model, "bbox_head", None)
    # The last two descend from the first; their queries and classes mean something else.
    if not isinstance(head, DETRHead) or isinstance(head, (DDQDETRHead, GroundingDINOHead)):
        raise TeacherError(
            f"{whose}'s head is a {type(head).__name__}; queries of DETR, Conditional DETR, "
            "DAB-DETR, Deformable DETR and DINO can be compared. Features of any detector can be "
            "matched by taps."
        )
    return head


def _layers(model: Any) -> int:
    return model.decoder.num_layers


def _activation(head: Any) -> str:
    return "sigmoid" if head.loss_cls.use_sigmoid else "softmax with a background class"


def _matching(model: nn.Module, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The outputs of all layers without those of DINO's denoising queries, which come first."""
    if not isinstance(model.bbox_head, DINOHead):
        return raw
    cls, box = (part[:, :, -model.num_queries :] for part in raw)  # type: ignore[operator]
    return cls, box


def _predictions(
    head: Any, raw: tuple[Tensor, Tensor], image: int, meta: Mapping[str, Any]
) -> InstanceData:
    """What the last layer says of one image, in the form that mmdet's costs are defined on."""
    scores, boxes = (part[-1, image].detach().float() for part in raw)
    height, width = meta["img_shape"][:2]
    corners = bbox_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
    labels = scores[:, : head.num_classes].argmax(-1)
    return InstanceData(scores=scores, bboxes=corners, labels=labels)


def _outputs(
    raw: tuple[Tensor, Tensor], image: Tensor, query: Tensor, names: Collection[str]
) -> dict[str, list[Tensor]]:
    """One tensor a decoder layer, (M, classes) or (M, 4)."""
    cls, box = raw
    values = {"cls": cls, "box": box}
    return {name: list(values[name][:, image, query].unbind()) for name in names}


def _targets(pairs: QueryPairs, data_samples: Any) -> Tensor:
    """The ground truth of each pair as outputs.box has it, (M, 4); 0 where there is none."""
    targets = torch.zeros(len(pairs.truth), 4, device=pairs.truth.device)
    for image, sample in enumerate(data_samples):
        height, width = sample.metainfo["img_shape"][:2]
        boxes = get_box_tensor(sample.gt_instances.bboxes).float()
        boxes = boxes / boxes.new_tensor([width, height, width, height])
        chosen = ((pairs.image == image) & (pairs.truth >= 0)).nonzero().squeeze(1)
        targets[chosen] = bbox_xyxy_to_cxcywh(boxes)[pairs.truth[chosen]]
    return targets


def _top_score(head: Any, logits: Tensor, pairs: QueryPairs, query: Tensor) -> Tensor:
    logits = logits[pairs.image, query].float()
    if head.loss_cls.use_sigmoid:
        return logits.sigmoid().amax(-1)
    return logits.softmax(-1)[:, : head.num_classes].amax(-1)
