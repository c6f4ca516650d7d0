"""mmseg's encoder-decoder networks as the distiller sees them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from mmseg.models.decode_heads import PointHead
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ...core.distiller import Context, Region
from ...core.errors import ConfigError, TeacherError
from ...core.modes import evaluating
from ...core.recipe import OUTPUTS
from ...core.taps import Captured
from ..openmm.adapter import TASK_ADAPTERS, TaskAdapter
from .preflight import check_config_data

__all__ = ["SegmentorAdapter"]

_HEADS = ("decode_head", "auxiliary_head")


@TASK_ADAPTERS.register_module(name="mmseg")
class SegmentorAdapter(TaskAdapter):
    """Compare segmentation networks pixel by pixel, or as whole maps.

    Outputs are logits ``(B, K, h, w)`` as the heads give them, at the student's resolution: a
    teacher of another stride is resized to it (bilinear, with the student's ``align_corners``;
    antialiased where it shrinks), which the log says once. Regions are maps at the resolution of
    the labels and are read at the nearest pixel. Pixels with the ignore label (padding among them)
    are left out of every loss that weighs pixels, unless a pair says ``region="all"``.

    mmseg calls a head's ``forward`` directly in training, so the student's logits are read where
    a module of the head returns them (``conv_seg`` in nearly all heads); which one it is, is found
    out with a zero image before training.
    """

    regions = {
        "labelled": "pixels whose label is not the ignore label, each counting 1 (the default)",
        "all": "every pixel, those with the ignore label and the padding included",
    }
    regions_are_maps = True
    default_region = "labelled"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outputs = {
            name: f"logits of {path}, (B, K, h, w)" for name, path, _ in _all_heads(self.student)
        }
        for teacher in self.teachers.values():
            for name, path, _ in _all_heads(teacher):
                self.outputs.setdefault(name, f"logits of the teacher's {path}, (B, K, h, w)")
        self._logits: dict[str, str] = {}
        self._resized: set[tuple[torch.Size, torch.Size]] = set()

    # -- how to run ----------------------------------------------------------------------------

    @classmethod
    def check_data(cls, cfg: Config) -> None:
        """See :func:`.preflight.check_config_data`."""
        check_config_data(cfg)

    @property
    def reads(self) -> list[str]:
        """The modules that return the student's logits."""
        return list(self._logits.values())

    def forward(self, model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return what computes the logits of the main head and of the auxiliary heads by name.

        Heads that no pair reads are left out: networks whose features alone are matched may have
        any.
        """
        ours = model is self.student
        taps = [pair.student if ours else pair.teacher for pair in self.recipe.pairs]

        def run(images: Tensor) -> dict[str, Tensor]:
            features = model.extract_feat(images)  # type: ignore[operator]
            return {
                name: _first(_run_head(head, features))
                for name, path, head in _all_heads(model)
                if _is_read(name, path, taps)
            }

        return run

    def name_outputs(self, raw: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """See the base class."""
        return raw

    # -- what must agree -----------------------------------------------------------------------

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse networks whose logits cannot be compared; see the base class."""
        _check_kind(self.student, "student")
        self._check_taps()
        if not outputs:
            return
        _check_logits(self.student, "student")
        for name, teacher in self.teachers.items():
            _check_kind(teacher, f"teacher {name!r}")
            _check_logits(teacher, f"teacher {name!r}")
            ours, theirs = (int(model.out_channels) for model in (self.student, teacher))  # type: ignore
            if ours != theirs:
                raise TeacherError(
                    f"Student and teacher {name!r} differ in the classes they score: student "
                    f"{ours}, teacher {theirs}. Their logits cannot be compared pixel by pixel; "
                    "take a teacher trained on the same classes, or match features only."
                )
        for whose, model, needed in self._needed():
            heads = {name: path for name, path, _ in _all_heads(model)}
            for name in needed:
                if name not in heads:
                    raise ConfigError(
                        f"The {whose} has no output {name!r}: its heads give {list(heads)}."
                    )
        self._logits = self._find_logits(next(self._needed())[2])

    def _needed(self) -> Iterator[tuple[str, nn.Module, list[str]]]:
        """Whose outputs are read, and which: the student's first."""
        pairs = [pair for pair in self.recipe.pairs if pair.is_output]
        names = {pair.student.removeprefix(OUTPUTS): None for pair in pairs}
        yield "student", self.student, list(names)
        first = next(iter(self.recipe.by_teacher(self.teachers)), None)
        for name, teacher in self.teachers.items():
            theirs = [p.teacher for p in pairs if (p.of or first) == name]
            yield f"teacher {name!r}", teacher, [t.removeprefix(OUTPUTS) for t in theirs]

    def _check_taps(self) -> None:
        for pair in self.recipe.pairs:
            for path in (pair.student, pair.teacher):
                head = path.split("@")[0].split("[")[0]
                if head in _HEADS:
                    raise ConfigError(
                        f"Pair {pair.name!r} taps {path!r}, but mmseg calls a head's forward "
                        f"directly, where no tap sees it. Tap a layer in it ('{head}.conv_seg' for "
                        f"its logits), or compare '{OUTPUTS}logits'."
                    )

    def _find_logits(self, needed: Collection[str]) -> dict[str, str]:
        """Find the module that returns the logits of each head."""
        called: list[tuple[str, Tensor]] = []
        handles = []
        for path in _HEADS:
            for name, module in getattr(self.student, path, nn.Module()).named_modules(prefix=path):

                def note(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                    if isinstance(output, Tensor):
                        called.append((name, output))

                handles.append(module.register_forward_hook(note))
        try:
            with torch.no_grad(), evaluating(self.student):
                size = self.probe_size
                image = torch.zeros(1, 3, size, size, device=_device(self.student))
                raw = self.forward(self.student)(image)
        finally:
            for handle in handles:
                handle.remove()
        found = {}
        for output in needed:
            sources = [name for name, tensor in called if tensor is raw[output]]
            if not sources:
                raise ConfigError(
                    f"The student's {OUTPUTS}{output} cannot be read: no module of its head "
                    "returns the logits as they are. Features of this network can be matched by "
                    "taps."
                )
            found[output] = sources[-1]
        return found

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
        student = {name: seen.tensors(tap)[0] for name, tap in self._logits.items()}
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples])
        labelled = labels != _main_head(self.student).ignore_index
        found = {
            "labelled": Region(labelled.float(), average=_mean_over_processes),
            "all": Region(torch.ones_like(labelled, dtype=torch.float32)),
        }
        target = labels.masked_fill(~labelled, 0)
        return Context(
            student,
            {name: raw or {} for name, raw in asked.items()},
            found,
            {name: target for name in student},
            match=self._resize,
        )

    def _resize(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
            return teacher
        ours, theirs = student.shape[2:], teacher.shape[2:]
        if (ours, theirs) not in self._resized:
            self._resized.add((ours, theirs))
            print_log(
                f"Distillation: the teacher's logits, {theirs[0]}x{theirs[1]}, are resized to the "
                f"student's {ours[0]}x{ours[1]}.",
                logger="current",
                level=logging.INFO,
            )
        return F.interpolate(
            teacher.float(),
            size=ours,
            mode="bilinear",
            align_corners=bool(self.student.align_corners),
            antialias=theirs[0] > ours[0] or theirs[1] > ours[1],
        )


def _main_head(model: nn.Module) -> Any:
    head: Any = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def _all_heads(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Name of the output, path, and module of every head; a cascade is one head."""
    if not hasattr(model, "decode_head"):
        return
    head = model.decode_head
    path = f"decode_head.{len(head) - 1}" if isinstance(head, nn.ModuleList) else "decode_head"
    yield "logits", path, head
    auxiliary = getattr(model, "auxiliary_head", None)
    if isinstance(auxiliary, nn.ModuleList):
        for index, head in enumerate(auxiliary):
            yield f"aux_{index}", f"auxiliary_head.{index}", head
    elif auxiliary is not None:
        yield "aux", "auxiliary_head", auxiliary


def _run_head(head: Any, features: Any) -> Any:
    # `forward`, as mmseg's own loss has it: what no hook sees there must not be seen here.
    if not isinstance(head, nn.ModuleList):
        return head.forward(features)
    output = head[0].forward(features)
    for stage in list(head)[1:]:
        if isinstance(stage, PointHead):  # refines points, not the map
            return output
        output = stage.forward(features, _first(output))
    return output


def _first(output: Any) -> Any:
    """The logits, where a head gives more beside them."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _is_read(name: str, path: str, taps: Collection[str]) -> bool:
    marks = (path.split(".")[0], "*", "?")  # a pattern may mean a module of any head
    return any(tap == f"{OUTPUTS}{name}" or any(mark in tap for mark in marks) for tap in taps)


def _check_kind(model: nn.Module, whose: str) -> None:
    if not isinstance(model, EncoderDecoder):
        raise TeacherError(
            f"The {whose} is a {type(model).__name__}; expected one of mmseg's EncoderDecoder "
            "networks (a backbone, a decode_head, perhaps a neck and auxiliary heads)."
        )


def _check_logits(model: nn.Module, whose: str) -> None:
    head: Any = model.decode_head
    if not isinstance(head, nn.ModuleList):
        try:
            inspect.signature(head.forward).bind(None)
        except TypeError:
            raise TeacherError(
                f"The {whose}'s {type(head).__name__} computes no logits from features alone, so "
                "there is no map to compare. Take a network that scores every pixel, or match "
                "features only."
            ) from None
    elif any(isinstance(stage, PointHead) for stage in head):
        raise TeacherError(
            f"The {whose} refines its answer at single points (PointRend), where there is no map "
            "to compare. Take a network without a PointHead, or match features only."
        )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _mean_over_processes(number: Tensor) -> Tensor:
    if get_world_size() == 1:
        return number
    mean = number.clone()
    all_reduce(mean, op="mean")
    return mean
