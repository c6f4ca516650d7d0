"""The detection demo: a small GFL detector taught to read handwritten digits in photographs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from PIL import Image
from torch import nn

from ..common.demo import Metric
from ..common.demo.report import Gallery, Mark, Picture
from ..openmm.demo import MmDemoTask

IMAGES = 8
MIN_OBJECTS = 2
MIN_SCORE = 0.3

# One colour a class, dark enough for white letters on it.
_COLOURS = (
    "#1f66a8",
    "#b8540b",
    "#2a7f35",
    "#b42326",
    "#7646a6",
    "#7a4a3e",
    "#b93d8f",
    "#5c5c5c",
    "#77780a",
    "#0c7f8c",
)


def class_colour(index: int) -> str:
    """Return the colour of a class, the same in every picture."""
    return _COLOURS[index % len(_COLOURS)]


class DetectionDemo(MmDemoTask):
    """Teacher, student alone and student distilled on the digit scenes."""

    scope = "mmdet"
    name = "detection"
    folder = "detection/demo"
    title = "Distilling a detector: handwritten digits in photographs"
    metrics = (Metric("coco/bbox_mAP", "mAP"), Metric("coco/bbox_mAP_50", "AP50"))
    packages = ("torch", "onedl-mmengine", "onedl-mmcv", "onedl-mmdetection")
    latency_note = "one validation image, from the tensor to the boxes"

    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> Gallery:
        """Show the truth and each model's boxes on the first images that hold several objects."""
        dataset = self.dataset(cfg, "val_dataloader")
        classes = dataset.metainfo["classes"]
        rows = []
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            objects = [found for found in info["instances"] if not found.get("ignore_flag")]
            if len(objects) < MIN_OBJECTS:
                continue
            png, width, height = _png(Path(info["img_path"]))
            truth = [box_mark(found["bbox"], found["bbox_label"], classes) for found in objects]
            row = [Picture(png, width, height, truth)]
            for model in models.values():
                seen = self._detect(model, cfg, index, classes)
                row.append(Picture(png, width, height, seen))
            rows.append(row)
            if len(rows) == IMAGES:
                break
        return Gallery(
            headings=["ground truth", *models],
            rows=rows,
            note=f"The first {len(rows)} validation images that hold at least {MIN_OBJECTS} "
            f"objects, not a selection. Boxes with a score of at least {MIN_SCORE}, with label and "
            "score; the same colour is the same class.",
        )

    def _detect(
        self, model: nn.Module, cfg: Config, index: int, classes: tuple[str, ...]
    ) -> list[Mark]:
        found = self.predict(model, cfg, index).pred_instances
        found = found[found.scores >= MIN_SCORE]
        return [
            box_mark(box, label, classes, score)
            for box, label, score in zip(
                found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
            )
        ]


class BccdTable(DetectionDemo):
    """The methods compared on real photographs: blood cells, not part of the package."""

    name = "bccd"
    folder = "detection/bccd"
    title = "Distilling a detector: blood cells (BCCD)"
    variants = {
        "imitation": "+ imitation in the boxes",
        "fine_grained": "+ fine-grained imitation",
        "gi": "+ imitation in GI regions",
        "fgd": "+ FGD",
        "pkd": "+ PKD",
        "cwd": "+ CWD",
        "kd": "+ classes",
        "ld": "+ LD, main region",
        "ld_vlr": "+ LD, main region and VLR",
        "lad": "+ LAD",
        "combined": "+ CWD, GI imitation and classes",
    }


class BccdTwoStageTable(DetectionDemo):
    """The same photographs, with Faster R-CNN and the terms of Chen et al. 2017."""

    name = "bccd_two_stage"
    folder = "detection/bccd_two_stage"
    title = "Distilling a two-stage detector: blood cells (BCCD)"
    variants = {
        "hint": "+ hint",
        "soft": "+ soft classes, both stages",
        "bounded": "+ bounded boxes, both stages",
        "chen2017": "+ Chen et al. 2017, whole",
        "fine_grained": "+ fine-grained imitation",
        "fgd": "+ FGD",
    }


class DigitsTwoStageDemo(DetectionDemo):
    """The digit scenes with Faster R-CNN, by the recipe of Chen et al. 2017."""

    name = "digits_two_stage"
    folder = "detection/digits_two_stage"
    title = "Distilling a two-stage detector: handwritten digits in photographs"


class DigitsLadDemo(DetectionDemo):
    """The digit scenes with PAA, whose student learns the teacher's labels (LAD)."""

    name = "digits_lad"
    folder = "detection/digits_lad"
    title = "Label assignment distillation: handwritten digits in photographs"


class DigitsRTMDetDemo(DetectionDemo):
    """The digit scenes with RTMDet."""

    name = "digits_rtmdet"
    folder = "detection/digits_rtmdet"
    title = "Distilling RTMDet: handwritten digits in photographs"


class DigitsDinoDemo(DetectionDemo):
    """The digit scenes with DINO, a transformer detector."""

    name = "digits_dino"
    folder = "detection/digits_dino"
    title = "Distilling a transformer detector: handwritten digits in photographs"


def box_mark(
    box: list[float], label: int, classes: tuple[str, ...], score: float | None = None
) -> Mark:
    """Return the mark of one box.

    Args:
        box: Corners x1, y1, x2, y2 in pixels of the original image.
        label: Index of the class.
        classes: Names of the classes.
        score: Confidence; left out for the ground truth.

    Example:
        >>> box_mark([1.0, 2.0, 4.0, 6.0], 1, ("cat", "dog"), 0.83).label
        'dog 0.83'
    """
    x1, y1, x2, y2 = box
    text = classes[label] if score is None else f"{classes[label]} {score:.2f}"
    return Mark(x1, y1, x2 - x1, y2 - y1, text, class_colour(label))


def _png(path: Path) -> tuple[bytes, int, int]:
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="PNG", optimize=True)
        return buffer.getvalue(), image.width, image.height
