"""mmengine's metrics of generated images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ....core.errors import ConfigError, DataError, ShapeError
from .frechet import RunningStatistics, frechet_distance, kernel_distance
from .network import build_network, features_of, pick_device

__all__ = ["ImageSetDistance", "LabelMapIoU", "PairedError"]


@METRICS.register_module()
class ImageSetDistance(BaseMetric):
    """Distance between all generated and all target images of a validation.

    Figures: ``SmallFD`` (network ``"small"``) or ``FID``; with ``kid`` also ``SmallKD`` or ``KID``.
    Every sample leaves its features alone, so that memory does not grow with the image size; and
    one image counts once: where an unpaired data set shows a target (or an input) again to fill an
    epoch, the repetition is left out.

    Args:
        network: ``"small"`` needs no weights and is no FID; ``"inception"``.
        weights: Weights file of ``"inception"``; see :func:`load_inception`.
        kid: Whether to compute the kernel distance too.
        dims: Which features of ``"inception"``: 64, 192, 768 or 2048.
        device: Where the network runs: ``"auto"`` (the GPU where there is one), ``"cpu"``, ...
        prefix: In front of the figures' names, as everywhere in mmengine.
        collect_device: As everywhere in mmengine.

    Raises:
        ConfigError: If there is no such network, no such features, or no such device.
        CheckpointError: If the Inception weights are absent or damaged.
        DataError: In use, if a sample has no ``fake`` or ``target``, or there are fewer than two.

    Example:
        >>> import torch
        >>> metric = ImageSetDistance(prefix="val")
        >>> images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
        >>> metric.process({}, [dict(fake=image, target=image) for image in images])
        >>> figures = metric.evaluate(size=8)
        >>> list(figures), abs(figures["val/SmallFD"]) < 1e-3
        (['val/SmallFD'], True)
    """

    def __init__(
        self,
        network: str = "small",
        weights: str | None = None,
        kid: bool = False,
        dims: int = 2048,
        device: str = "auto",
        prefix: str | None = None,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.network = build_network(network, weights, dims).to(pick_device(device))
        self.kid = kid

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the features of a batch's images.

        Args:
            data_batch: Not used.
            data_samples: With ``fake`` and ``target``, uint8, (C, H, W).
        """
        fakes = [_image(sample, "fake") for sample in data_samples]
        targets = [_image(sample, "target") for sample in data_samples]
        features = features_of(self.network, [*fakes, *targets])
        for index, sample in enumerate(data_samples):
            self.results.append(
                {
                    "fake": features[index].numpy(),
                    "target": features[len(fakes) + index].numpy(),
                    "fake_key": _key(sample.get("img_path"), fakes[index]),
                    "target_key": _key(sample.get("target_path"), targets[index]),
                }
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the figures.

        Args:
            results: What :meth:`process` kept, one entry a sample.
        """
        sets = []
        for name in ("target", "fake"):
            # Without a path nothing tells a repetition from an image that just looks the same.
            kept = {entry[f"{name}_key"] or index: entry for index, entry in enumerate(results)}
            sets.append(np.stack([entry[name] for entry in kept.values()]) if kept else [])
        if min(map(len, sets)) < 2:
            raise DataError(
                "A distance between image sets needs at least 2 different images of each, got "
                f"{len(sets[0])} targets and {len(sets[1])} generated ones. Validate on more."
            )
        statistics = []
        for features in sets:
            running = RunningStatistics(self.network.dims)
            running.add(features.reshape(-1, self.network.dims))
            statistics.append(running.result(len(features)))
        figures = {self.network.figure: frechet_distance(*statistics)}
        if self.kid:
            flat = [features.reshape(len(features), -1) for features in sets]
            gamma = self.network.kernel_gamma
            figures[self.network.kernel_figure] = kernel_distance(*flat, gamma=gamma)[0]
        return figures


@METRICS.register_module()
class PairedError(BaseMetric):
    """How far generated images are from the targets of the same inputs.

    ``L1`` is the mean absolute error over all pixels and channels, on a scale where black is 0 and
    white 1. ``PSNR`` is the peak signal-to-noise ratio of the mean squared error over all pixels,
    in dB; infinite where every image is exact. Samples whose metainfo does not say
    ``paired=True`` do not count.

    Args:
        prefix: In front of the figures' names, as everywhere in mmengine.
        collect_device: As everywhere in mmengine.

    Raises:
        DataError: In use, if a sample has no ``fake`` or ``target``, or none is paired.
        ShapeError: In use, if both differ in shape.

    Example:
        >>> import torch
        >>> metric = PairedError(prefix="val")
        >>> image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        >>> metric.process({}, [dict(fake=image + 51, target=image, paired=True)])
        >>> {name: round(value, 3) for name, value in metric.evaluate(size=1).items()}
        {'val/L1': 0.2, 'val/PSNR': 13.979}
    """

    def __init__(self, prefix: str | None = None, collect_device: str = "cpu") -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the errors of a batch's images.

        Args:
            data_batch: Not used.
            data_samples: With ``fake`` and ``target``, uint8, (C, H, W), and ``paired``.
        """
        for sample in data_samples:
            if not sample.get("paired", False):
                self.results.append(None)  # an entry a sample, or collecting would cut others off
                continue
            error = (_image(sample, "fake").long() - _target_like(sample).long()).abs()
            total, squared = int(error.sum()), int(error.square().sum())
            self.results.append((total, squared, error.numel()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the figures.

        Args:
            results: What :meth:`process` kept, one entry a sample.
        """
        paired = [entry for entry in results if entry is not None]
        if not paired:
            raise DataError(
                f"None of {len(results)} samples has paired=True in its metainfo, so there is "
                "nothing to compare pixel by pixel. Take PairedError out of the evaluator of "
                "unpaired data; ImageSetDistance compares the sets."
            )
        total, squared, count = (sum(column) for column in zip(*paired, strict=True))
        mean_squared = squared / count
        psnr = 10 * math.log10(255**2 / mean_squared) if mean_squared else math.inf
        return {"L1": total / count / 255, "PSNR": psnr}


@METRICS.register_module()
class LabelMapIoU(BaseMetric):
    """Agreement of generated label maps with the targets, class by class.

    Every pixel, of the generated image and of the target, belongs to the class whose colour in the
    palette is nearest (Euclidean in RGB; the first one of equally near ones). ``mIoU`` is the mean
    over the classes that occur, ``accuracy`` the share of pixels whose classes agree, over all
    images together; both in per cent, as is ``IoU.<class>`` where there are names.

    Args:
        palette: RGB of each class, 0 to 255.
        classes: Names of the classes.
        prefix: In front of the figures' names, as everywhere in mmengine.
        collect_device: As everywhere in mmengine.

    Raises:
        ConfigError: If the palette has fewer than two colours, equal ones, or something else than
            colours; or if there is not a name for each.
        DataError: In use, if a sample has no ``fake`` or ``target``, or there are none.
        ShapeError: In use, if both differ in shape.

    Example:
        >>> import torch
        >>> metric = LabelMapIoU([(0, 0, 0), (255, 255, 255)], ["ground", "sky"], prefix="val")
        >>> target = torch.tensor([[[0, 0, 250, 255]]], dtype=torch.uint8)
        >>> fake = torch.tensor([[[0, 9, 20, 200]]], dtype=torch.uint8)
        >>> metric.process({}, [dict(fake=fake, target=target)])
        >>> for name, value in metric.evaluate(size=1).items():
        ...     print(f"{name} {value:.2f}")
        val/mIoU 58.33
        val/accuracy 75.00
        val/IoU.ground 66.67
        val/IoU.sky 50.00
    """

    def __init__(
        self,
        palette: Sequence[Sequence[int]],
        classes: Sequence[str] | None = None,
        prefix: str | None = None,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        colours = [tuple(colour) for colour in palette]
        if len(colours) < 2 or len(set(colours)) < len(colours):
            raise ConfigError(
                f"palette must hold at least two colours, all different, got {colours}."
            )
        if any(len(c) != 3 or not all(0 <= value <= 255 for value in c) for c in colours):
            raise ConfigError(f"palette must hold colours (R, G, B) of 0 to 255, got {colours}.")
        if classes is not None and len(set(classes)) != len(colours):
            raise ConfigError(
                f"{len(colours)} colours need as many different classes, got {list(classes)}."
            )
        self.palette = torch.tensor(colours, dtype=torch.int32)
        self.classes = classes

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the confusion matrix of each of a batch's images.

        Args:
            data_batch: Not used.
            data_samples: With ``fake`` and ``target``, uint8, (C, H, W).
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        for sample in data_samples:
            fake, target = self.labels(_image(sample, "fake")), self.labels(_target_like(sample))
            confusion = multiclass_confusion_matrix(fake, target, num_classes=len(self.palette))
            self.results.append(confusion.numpy())

    def labels(self, image: Tensor) -> Tensor:
        """Return the class of each pixel, int64, (H, W), of a uint8 image (C, H, W)."""
        pixels = image.expand(3, -1, -1).to(torch.int32)
        # Colour by colour: all distances at once would take as many images as there are classes.
        distances = [
            (pixels - colour[:, None, None]).square_().sum(0, dtype=torch.int32)
            for colour in self.palette.to(image.device)
        ]
        return torch.stack(distances).argmin(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the figures.

        Args:
            results: What :meth:`process` kept, one entry a sample.
        """
        if not results:
            raise DataError("There is no label map to compare. Validate on at least one image.")
        confusion = np.stack(results).sum(axis=0)
        both = confusion.diagonal()
        either = confusion.sum(0) + confusion.sum(1) - both
        occurs = either > 0
        iou = 100 * both[occurs] / either[occurs]
        figures = {
            "mIoU": float(iou.mean()),
            "accuracy": 100 * float(both.sum() / confusion.sum()),
        }
        if self.classes is not None:
            names = np.asarray(self.classes)[occurs]
            figures |= {f"IoU.{name}": float(x) for name, x in zip(names, iou, strict=True)}
        return figures


def _image(sample: Mapping[str, Any], field: str) -> Tensor:
    image = sample.get(field)
    if not isinstance(image, Tensor):
        raise DataError(
            f"A sample has no image {field!r}; it has {sorted(sample)}. The model's 'predict' mode "
            "must give 'fake' and keep the data set's 'target'."
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.uint8:
        raise ShapeError(
            f"{field!r} must be a uint8 image (C, H, W) of 1 or 3 channels, got {image.dtype} "
            f"{tuple(image.shape)}."
        )
    return image.detach().cpu()


def _target_like(sample: Mapping[str, Any]) -> Tensor:
    fake, target = _image(sample, "fake"), _image(sample, "target")
    if fake.shape != target.shape:
        raise ShapeError(
            f"the generated image is {tuple(fake.shape)} and its target {tuple(target.shape)}. "
            "Bring both to one size and number of channels in the data set."
        )
    return target


def _key(path: Any, image: Tensor) -> str | None:
    """What tells an image from others: where it is from, and what it shows."""
    if not path:
        return None
    return f"{path} {hashlib.sha256(image.numpy().tobytes()).hexdigest()}"
