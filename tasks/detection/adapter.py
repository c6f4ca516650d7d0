"""mmdet's detectors as the distiller sees them: what every kind has, and which kind is which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from mmdet.models.detectors import DetectionTransformer
from mmdet.utils import reduce_mean
from mmengine.config import Config
from torch import Tensor, nn

from ...core.distiller import Context, Region
from ...core.errors import ConfigError, TeacherError
from ...core.recipe import members
from ...core.taps import Captured
from ..openmm.adapter import TASK_ADAPTERS, TaskAdapter
from .preflight import check_config_data
from .regions import box_cells, box_fractions, fine_grained

__all__ = [
    "DetectionAdapter",
    "check_alike",
    "ground_truth",
    "kind_of",
    "level_map",
    "padded_size",
    "refuse_scaled",
]

_FEATURE_REGIONS = {
    "boxes": "of features: the cells that a ground-truth box covers, each counting 1",
    "fine_grained": "of features: the cells whose anchors fit an object nearly as well as the best "
    "(Wang et al. 2019), each counting 1",
}


def kind_of(model: nn.Module) -> str:
    """Which kind of detector it is: ``two_stage``, ``queries``, ``dense`` or ``other``.

    Example:
        >>> kind_of(nn.Linear(2, 2))
        'other'
    """
    if isinstance(model, DetectionTransformer):
        return "queries"
    if hasattr(model, "roi_head") and hasattr(model, "rpn_head"):
        return "two_stage"
    return "dense" if hasattr(model, "bbox_head") else "other"


@TASK_ADAPTERS.register_module(name="mmdet")
class DetectionAdapter(TaskAdapter):
    """What can be compared of any detector: features, everywhere or where the objects are.

    Its subclasses add the outputs of their kind. :meth:`of` chooses among them.
    """

    regions_are_maps = True
    own_regions: Mapping[str, str] = {}
    """Regions of this kind of detector."""

    @property
    def regions(self) -> Mapping[str, str]:  # type: ignore[override]
        """Those of the kind, and those of features that every detector has."""
        return {**self.own_regions, **_FEATURE_REGIONS}

    @classmethod
    def of(cls, student: nn.Module) -> type[TaskAdapter]:
        """The adapter for a student: two-stage, of queries, dense, or of features alone."""
        from .dense import DenseHeadAdapter
        from .queries import QueryAdapter
        from .two_stage import TwoStageAdapter

        kinds = {
            "two_stage": TwoStageAdapter,
            "queries": QueryAdapter,
            "dense": DenseHeadAdapter,
            "other": DetectionAdapter,
        }
        return kinds[kind_of(student)]

    # -- how to run ----------------------------------------------------------------------------

    @classmethod
    def check_data(cls, cfg: Config) -> None:
        """See :func:`.preflight.check_config_data`."""
        check_config_data(cfg)

    def forward(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """Backbone, neck and heads, without assignment or post-processing."""
        return lambda images: self.run(model, images)

    def teacher_forward(
        self, name: str, model: nn.Module, seen: Captured | None, data_samples: Any
    ) -> Callable[[Tensor], Any]:
        """The same, of a teacher on the student's batch; see the base class."""
        return lambda images: self.run(model, images, data_samples)

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        data_samples: Any = None,
        rois: Tensor | None = None,
    ) -> Any:
        """Run a detector of any kind by module calls: taps are hooks, which mmdet's own pass by.

        Args:
            model: A student or a teacher.
            images: ``(B, 3, H, W)``, preprocessed.
            data_samples: The batch's annotations, for kinds that look at the padding.
            rois: Regions of interest for a second stage; see :func:`.two_stage.run_two_stage`.

        Returns:
            What its heads return; of a detector without heads that are known, its features.
        """
        kind = kind_of(model)
        if kind == "queries":
            from .queries import run_queries

            return run_queries(model, images, data_samples)
        if kind == "two_stage":
            from .two_stage import run_two_stage

            return run_two_stage(model, images, proposes=self.names("rpn"), rois=rois)
        features = model.extract_feat(images)  # type: ignore[operator]
        return model.bbox_head(features) if kind == "dense" else features  # type: ignore[operator]

    def names(self, prefix: str) -> bool:
        """Whether some pair has an output, a region or a tap whose name begins so."""
        pairs = self.recipe.pairs
        sides = [side for p in pairs if not p.is_output for side in (p.student, p.teacher)]
        taps = [tap for side in sides for tap in members(side)]
        named = [*self.recipe.outputs, *self.recipe.regions, *taps]
        return any(name.startswith(prefix) for name in named)

    # -- what must agree -----------------------------------------------------------------------

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse what this kind of detector does not have; see the base class."""
        if "fine_grained" in regions:
            generator = getattr(_anchor_head(self.student), "prior_generator", None)
            if not hasattr(generator, "base_anchors"):
                raise ConfigError(
                    "Region fine_grained is made from anchors, of which "
                    f"{type(self.student).__name__} has none; take region='boxes'."
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
        own = [name for name in regions if name not in _FEATURE_REGIONS]
        context = Context()
        if outputs or own:
            context = self.output_context(seen, asked, data_samples, outputs, own)
        boxes, image = ground_truth(data_samples), padded_size(data_samples)
        found = dict(context.regions)
        for name in set(regions) - set(own):
            found[name] = Region(at=self._cells(name, boxes, image), average=reduce_mean)
        context.regions = found
        context.targets = {**context.targets, "boxes": box_fractions(boxes, image)}
        return context

    def output_context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Any,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """Outputs, targets and own regions of one batch; see :meth:`context`."""
        raise NotImplementedError(type(self).__name__)

    def _cells(
        self, name: str, boxes: list[Tensor], image: tuple[int, int]
    ) -> Callable[[tuple[int, int]], Tensor]:
        if name == "boxes":
            return lambda size: box_cells(boxes, image, size)
        head = _anchor_head(self.student)

        @cache  # one batch's levels are made together
        def levels() -> list[Tensor]:
            sizes = _feature_sizes(head, image)
            anchors = head.prior_generator.grid_priors(sizes, device=boxes[0].device)
            return fine_grained(anchors, sizes, boxes)

        return lambda size: level_map(levels(), size)


def ground_truth(data_samples: Any) -> list[Tensor]:
    """The ground-truth boxes of each image, ``(G, 4)`` corners in pixels."""
    boxes = [sample.gt_instances.bboxes for sample in data_samples]
    return [box.tensor if hasattr(box, "tensor") else box for box in boxes]


def padded_size(data_samples: Any) -> tuple[int, int]:
    """Height and width of the batch's images with their padding."""
    meta = data_samples[0].metainfo
    height, width = meta.get("batch_input_shape") or meta["img_shape"][:2]
    return int(height), int(width)


def level_map(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Choose among the maps ``(B, h, w)`` of a pyramid the one for features of a size.

    Levels of equal size are taken together; of another size, the nearest in height is given.
    """
    fitting = [level for level in levels if tuple(level.shape[1:]) == tuple(size)]
    if fitting:
        return torch.stack(fitting).amax(0)
    return min(levels, key=lambda level: abs(level.shape[1] - size[0]))


def check_alike(teacher: str, properties: Iterable[tuple[str, Any, Any]], advice: str) -> None:
    """Refuse a teacher that differs from the student in something that has to be equal.

    Args:
        teacher: Its name.
        properties: What it is, the student's value, the teacher's.
        advice: What follows from a difference, and what to do.

    Raises:
        TeacherError: Names the first difference with both values.
    """
    for what, ours, theirs in properties:
        if ours != theirs:
            raise TeacherError(
                f"Student and teacher {teacher!r} differ in {what}: student {ours}, teacher "
                f"{theirs}. {advice}"
            )


def refuse_scaled(preprocess: Mapping[str, Any], teachers: Collection[str], what: str) -> None:
    """Refuse teachers that see the image at another size, where positions must correspond.

    Raises:
        TeacherError: Names the teacher.
    """
    for name in teachers:
        scale = getattr(preprocess.get(name), "scale", 1.0)
        if scale != 1.0:
            raise TeacherError(
                f"Teacher {name!r} sees the image scale={scale} times as large; {what} cannot be "
                "compared position by position. Match features, or leave scale out."
            )


def _anchor_head(model: nn.Module) -> Any:
    return getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)


def _feature_sizes(head: Any, image: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes of the levels of a padded image: convolutions of stride 2 round up."""
    steps = [s if isinstance(s, (tuple, list)) else (s, s) for s in head.prior_generator.strides]
    return [(-(-image[0] // y), -(-image[1] // x)) for x, y in steps]
