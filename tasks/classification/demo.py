"""The classification demo: a very small network taught to read handwritten digits."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from ...core.teacher import load_weights
from ..common.demo import Metric
from ..common.demo.report import Gallery, Picture
from ..openmm.demo import MmTask
from ..openmm.teacher import SAFE_GLOBALS

__all__ = ["ClassificationDemo", "draw_probabilities"]

IMAGES = 8
RIGHT, WRONG, REST = "#009e73", "#d55e00", "#bbbbbb"
BAR, HEIGHT = 12, 96


class ClassificationDemo(MmTask):
    """Teacher, student alone and student distilled on the digits of scikit-learn."""

    name: ClassVar[str] = "classification"
    folder: ClassVar[str] = "classification/demo"
    title: ClassVar[str] = "Distilling a classifier: handwritten digits"
    metrics: ClassVar[Sequence[Metric]] = (Metric("accuracy/top1", "top-1 accuracy", digits=2),)
    packages: ClassVar[Sequence[str]] = ("torch", "torchvision", "onedl-mmengine", "scikit-learn")
    latency_note: ClassVar[str] = "one validation image, from the tensor to the probabilities"

    def __init__(self) -> None:
        self._datasets: dict[str, Any] = {}

    def prepare(self, cfg: Config) -> str:
        """See the base class."""
        train, val = (len(self._dataset(cfg, f"{split}_dataloader")) for split in ("train", "val"))
        return f"Data: {train} images for training, {val} for validation."

    def load(self, cfg: Config, checkpoint: Path) -> nn.Module:
        """See the base class."""
        model = MODELS.build(copy.deepcopy(cfg.model))
        load_weights(model, checkpoint, safe_globals=SAFE_GLOBALS)
        return model.eval()

    def deployed(self, model: nn.Module) -> nn.Module:
        """The plain network."""
        return model.bare  # type: ignore[return-value]

    def forward_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Run the network on the first validation image."""
        images = self._batch(model, cfg, [0])["inputs"]
        return lambda: model(images)

    def predict_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Classify the first validation image."""
        images = self._batch(model, cfg, [0])["inputs"]
        return lambda: model(images).softmax(1)

    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> Gallery:
        """Show images on which the students disagree, and how sure each model is of what."""
        dataset = self._dataset(cfg, "val_dataloader")
        labels = torch.tensor([dataset[index]["data_samples"] for index in range(len(dataset))])
        scores = {}
        for name, model in models.items():
            images = self._batch(model, cfg, range(len(dataset)))["inputs"]
            with torch.no_grad():
                scores[name] = model(images).softmax(1)
        alone, distilled = (scores[name].argmax(1) for name in list(models)[-2:])
        apart = (alone != distilled).nonzero().flatten().tolist()
        chosen = apart[:IMAGES]
        classes = dataset.metainfo["classes"]
        rows = []
        for index in chosen:
            pixels = dataset[index]["inputs"].permute(1, 2, 0).numpy()
            row = [_picture(pixels, f"a {classes[int(labels[index])]}")]
            for each in scores.values():
                label = int(labels[index])
                row.append(_picture(*draw_probabilities(each[index].numpy(), label, classes)))
            rows.append(row)
        gained = int(((distilled == labels) & (alone != labels)).sum())
        lost = int(((distilled != labels) & (alone == labels)).sum())
        return Gallery(
            headings=["image", *models],
            rows=rows,
            note=f"The first {len(chosen)} of {len(apart)} validation images on which "
            f"{list(models)[-2]} and {list(models)[-1]} disagree, chosen for that: of all "
            f"{len(labels)}, distillation made {gained} right and {lost} wrong. Bars are the "
            "probabilities of the classes, from the first to the last.",
            legend=[(RIGHT, "the true class"), (WRONG, "the surest, where wrong"), (REST, "rest")],
        )

    def _dataset(self, cfg: Config, loader: str) -> Any:
        settings = copy.deepcopy(cfg[loader].dataset)
        key = str(settings)
        if key not in self._datasets:
            self._datasets[key] = DATASETS.build(settings)
        return self._datasets[key]

    def _batch(self, model: nn.Module, cfg: Config, indices: Sequence[int]) -> dict[str, Any]:
        dataset, preprocess = self._dataset(cfg, "val_dataloader"), model.data_preprocessor
        return preprocess(pseudo_collate([dataset[index] for index in indices]), False)  # type: ignore


def draw_probabilities(
    scores: NDArray[np.floating], label: int, classes: Sequence[str]
) -> tuple[NDArray[np.uint8], str]:
    """Draw the probabilities of the classes as bars.

    Args:
        scores: (K,).
        label: The true class.
        classes: Their names.

    Returns:
        The picture, RGB (h, w, 3), and what is written under it.

    Example:
        >>> pixels, note = draw_probabilities(np.array([0.25, 0.75]), 0, ["cat", "dog"])
        >>> pixels.shape, note
        ((96, 24, 3), 'dog, 75 %')
    """
    canvas = Image.new("RGB", (BAR * len(scores), HEIGHT), "white")
    draw, best = ImageDraw.Draw(canvas), int(scores.argmax())
    for index, score in enumerate(scores):
        colour = RIGHT if index == label else WRONG if index == best else REST
        top = HEIGHT - 1 - round(float(score) * (HEIGHT - 2))
        draw.rectangle((BAR * index + 1, top, BAR * (index + 1) - 2, HEIGHT - 1), fill=colour)
    return np.asarray(canvas), f"{classes[best]}, {100 * float(scores[best]):.0f} %"


def _picture(pixels: NDArray[np.uint8], note: str) -> Picture:
    height, width = pixels.shape[:2]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    scale = max(1, HEIGHT // height)
    return Picture(buffer.getvalue(), scale * width, scale * height, note=note, pixelated=scale > 1)
