"""The segmentation demo: a small U-Net taught to find handwritten digits in photographs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ..common.demo import Metric
from ..common.demo.report import Gallery, Picture
from ..openmm.demo import MmDemoTask
from .metrics import PREFIX

__all__ = ["CamVidTable", "SegmentationDemo", "blend", "change_map", "spread_out"]

IMAGES = 8
IGNORED = 255

# Okabe and Ito's green, orange and purple: the colour-blind tell them apart.
GAINED, LOST, OTHER = "#009e73", "#e69f00", "#cc79a7"
CHANGES = (
    (GAINED, "distilled right, alone wrong"),
    (LOST, "alone right, distilled wrong"),
    (OTHER, "both wrong, differently"),
)

_SMALL = 320  # pictures less wide than this are enlarged in sharp squares

Pixels = NDArray[np.uint8]
Labels = NDArray[np.integer]


def spread_out(total: int, count: int) -> list[int]:
    """Return up to ``count`` indices at even distances, from the first on.

    Example:
        >>> spread_out(100, 4), spread_out(3, 8)
        ([0, 25, 50, 75], [0, 1, 2])
    """
    count = min(total, count)
    return [index * total // count for index in range(count)]


def blend(
    image: Pixels, labels: Labels, palette: Sequence[Sequence[int]], strength: float = 0.6
) -> Pixels:
    """Lay the colours of a segmentation over its image.

    Args:
        image: RGB, ``(h, w, 3)``.
        labels: Class of each pixel, ``(h, w)``; pixels outside the palette (the ignore label) keep
            the image, dimmed.
        palette: RGB of each class.
        strength: Share of the colour, from 0 to 1.

    Returns:
        RGB, ``(h, w, 3)``.
    """
    known = (labels >= 0) & (labels < len(palette))
    colours = np.asarray(palette, dtype=np.float32)[np.where(known, labels, 0)]
    colours[~known] = 0
    mixed = (1 - strength) * image.astype(np.float32) + strength * colours
    return mixed.round().astype(np.uint8)


def change_map(
    image: Pixels, truth: Labels, before: Labels, after: Labels
) -> tuple[Pixels, int, int]:
    """Draw where two predictions differ, and which of them is right.

    Args:
        image: RGB, ``(h, w, 3)``.
        truth: Class of each pixel, ``(h, w)``; pixels labelled 255 count as unchanged.
        before: The first prediction, ``(h, w)``.
        after: The second one, ``(h, w)``.

    Returns:
        The picture, RGB ``(h, w, 3)``, grey and dim where nothing changed; the number of pixels
        that only the second prediction has right; and of those that only the first has.
    """
    grey = 0.35 * image.astype(np.float32).mean(2, keepdims=True)
    drawn = np.repeat(grey, 3, axis=2).round().astype(np.uint8)
    changed = (before != after) & (truth != IGNORED)
    gained, lost = changed & (after == truth), changed & (before == truth)
    for colour, where in (
        (GAINED, gained),
        (LOST, lost),
        (OTHER, changed & ~gained & ~lost),
    ):
        drawn[where] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return drawn, int(gained.sum()), int(lost.sum())


class SegmentationDemo(MmDemoTask):
    """Teacher, student alone and student distilled on the digit scenes."""

    scope = "mmseg"
    name = "segmentation"
    folder = "segmentation/demo"
    title = "Distilling a segmenter: the ink of handwritten digits in photographs"
    metrics = (Metric("mIoU", "mIoU", digits=2), Metric("mAcc", "mAcc", digits=2))
    class_figure = "IoU"
    packages = ("torch", "onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation")
    latency_note = "one validation image, from the tensor to the mask"

    def class_metrics(self, cfg: Config) -> Sequence[Metric]:
        """Return the IoU of each class of the validation data."""
        classes = self.dataset(cfg, "val_dataloader").metainfo["classes"]
        return [Metric(f"{PREFIX}{name}", name, digits=2) for name in classes]

    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> Gallery:
        """Show images, the truth, each model's mask, and what distillation changed."""
        dataset = self.dataset(cfg, "val_dataloader")
        palette = dataset.metainfo["palette"]
        rows = []
        indices = spread_out(len(dataset), IMAGES)
        for index in indices:
            sample = dataset[index]["data_samples"]
            with Image.open(sample.img_path) as opened:
                image = np.asarray(opened.convert("RGB"))
            truth = sample.gt_sem_seg.data[0].numpy()
            masks = [self._segment(model, cfg, index) for model in models.values()]
            changes, gained, lost = change_map(image, truth, *masks[-2:])
            labelled = max(1, int((truth != IGNORED).sum()))
            note = f"right {100 * gained / labelled:.1f} %, wrong {100 * lost / labelled:.1f} %"
            rows.append(
                [
                    picture(image),
                    *(picture(blend(image, mask, palette)) for mask in (truth, *masks)),
                    picture(changes, note),
                ]
            )
        classes = [
            ("#" + "".join(f"{part:02x}" for part in colour), name)
            for name, colour in zip(dataset.metainfo["classes"], palette, strict=True)
        ]
        before, after = list(models)[-2:]
        return Gallery(
            headings=["image", "ground truth", *models, "what distillation changed"],
            rows=rows,
            note=f"{len(rows)} validation images at even distances in the list, the first one "
            "among them; not a selection. Classes are laid over the image; dark pixels of the "
            f"ground truth have no label. The last column compares {before} with {after}: grey "
            "where both say the same or there is no label, below it the shares of the labelled "
            "pixels that became right and wrong.",
            legend=[*CHANGES, *classes],
        )

    def _segment(self, model: nn.Module, cfg: Config, index: int) -> Labels:
        return self.predict(model, cfg, index).pred_sem_seg.data[0].cpu().numpy()


class CamVidTable(SegmentationDemo):
    """The methods compared on real photographs of streets, which are not part of the package."""

    name = "camvid"
    folder = "segmentation/camvid"
    title = "Distilling a segmenter: street scenes (CamVid)"
    variants = {
        "pixel": "+ pixel-wise",
        "pixel_pair": "+ pixel- and pair-wise",
        "structured": "+ pixel-, pair-wise, holistic",
        "cwd": "+ channel-wise",
    }


def picture(image: Pixels, note: str = "") -> Picture:
    """Return an RGB array ``(h, w, 3)`` as a picture of the report."""
    height, width = image.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return Picture(buffer.getvalue(), width, height, note=note, pixelated=width < _SMALL)
