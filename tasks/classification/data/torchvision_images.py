"""torchvision's data sets of labelled images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from mmengine.registry import DATASETS
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tvf

from ....core.errors import ConfigError, DataError, did_you_mean
from ..transforms import Transform
from .images import IMAGENET_MEAN, LabelledImages, channel_means, first_of_each, located

__all__ = ["TorchvisionImages"]

_DECODED = (".jpg", ".jpeg", ".png")
_LABELS = ("targets", "labels", "_labels", "y")


@DATASETS.register_module()
class TorchvisionImages(LabelledImages):
    """A data set of ``torchvision.datasets``: CIFAR10, CIFAR100, SVHN, ImageNet, ImageFolder, ...

    Those that torchvision holds in memory as arrays stay there; JPEG and PNG files are decoded
    straight to tensors; anything else goes by way of PIL.

    Args:
        name: Name of the class in ``torchvision.datasets``.
        root: Folder of the data, laid out as torchvision has it. A relative path is looked up in
            the folder that the environment variable ``TASKDISTILL_DATA`` names, or in the current
            one.
        transforms: See :func:`~..transforms.build_transforms`. Photographs of several sizes need
            one that gives all the same size.
        subset: The first so many images of each class; all by default.
        channels: 3 (grey images are repeated) or 1 (colour images are made grey).
        **options: The class's own: ``train=True``, ``split="val"``, ``download=True``, ...

    Raises:
        ConfigError: If there is no such data set, or an option is unknown.
        DataError: If the data is not there.
    """

    def __init__(
        self,
        name: str,
        root: str,
        transforms: Sequence[Mapping[str, Any] | Transform] | None = None,
        subset: int | None = None,
        channels: int = 3,
        **options: Any,
    ) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels={channels!r} of TorchvisionImages; expected 1 or 3.")
        self.name, self.channels = name, channels
        data = _open(name, located(root, None), options)
        labels, classes = _labels(name, data)
        self._indices = None
        if subset is not None:
            self._indices = first_of_each(labels, subset, classes)
            labels = [labels[index] for index in self._indices]
        self._pixels = _in_memory(data)
        self._data: Any = None if self._pixels is not None else data
        files = getattr(data, "samples", None) or getattr(data, "_samples", None)
        self._files = [str(file[0]) for file in files] if files and _are_files(files) else None
        mean: Sequence[float] = IMAGENET_MEAN
        if self._pixels is not None:
            if self._indices is not None:
                self._pixels = self._pixels[torch.from_numpy(self._indices)]
                self._indices = None
            mean = channel_means(self._pixels)
        # One number serves all channels.
        mean = [sum(mean) / len(mean)] if channels == 1 or len(mean) == 1 else mean
        super().__init__(labels, classes, transforms, mean)

    def image(self, index: int) -> Tensor:
        """See the base class.

        Raises:
            DataError: If a file cannot be decoded; names it.
        """
        if self._pixels is not None:
            return _with_channels(self._pixels[index], self.channels)
        if self._indices is not None:
            index = int(self._indices[index])
        if self._files is not None:
            path = self._files[index]
            if path.lower().endswith(_DECODED):
                mode = ImageReadMode.RGB if self.channels == 3 else ImageReadMode.GRAY
                try:
                    return decode_image(path, mode)
                except RuntimeError:
                    pass  # CMYK and the like, or no image: PIL tells
        try:
            image, _ = self._data[index]
        except (OSError, ValueError) as error:
            what = self._files[index] if self._files else f"image {index} of {self.name}"
            raise DataError(f"{what} cannot be read: {error}. Restore or remove it.") from error
        return _with_channels(tvf.pil_to_tensor(image), self.channels)


def _open(name: str, root: Path, options: dict[str, Any]) -> Any:
    known = torchvision.datasets.__all__
    if name not in known:
        raise ConfigError(f"torchvision has no data set {name!r}.{did_you_mean(name, known)}")
    cls: Callable[..., Any] = getattr(torchvision.datasets, name)
    accepted = [n for n in inspect.signature(cls).parameters if n != "root"]
    for option in options:
        if option not in accepted or option in ("transform", "target_transform", "transforms"):
            raise ConfigError(
                f"{name} has no option {option!r}.{did_you_mean(option, accepted)} It has: "
                f"{', '.join(n for n in accepted if 'transform' not in n)}."
            )
    try:
        return cls(str(root), **options)
    except (RuntimeError, OSError) as error:
        load = (
            ", or download=True to fetch it (which needs a connection)"
            if "download" in accepted and not options.get("download")
            else ""
        )
        raise DataError(
            f"{name} cannot be opened in {str(root)!r}: {error} Set root to the folder that holds "
            f"it{load}."
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be opened with {options}: {error}") from error


def _labels(name: str, data: Any) -> tuple[list[int], list[str]]:
    found = next((getattr(data, key) for key in _LABELS if hasattr(data, key)), None)
    if found is None and (samples := getattr(data, "_samples", None)):
        found = [sample[1] for sample in samples]
    try:
        labels = [int(label) for label in found]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise ConfigError(
            f"torchvision's {name} has not one label for each image that could be listed. Take "
            "another data set, or lay the images out as ImageFolder wants them."
        ) from None
    classes = getattr(data, "classes", None) or [str(i) for i in range(max(labels, default=-1) + 1)]
    # ImageNet has several words for a class.
    return labels, [str(c[0] if isinstance(c, (tuple, list)) else c) for c in classes]


def _in_memory(data: Any) -> Tensor | None:
    """The images as uint8 (N, C, H, W), where the data set holds them in one array."""
    array = getattr(data, "data", None)
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(array)
    if not isinstance(array, Tensor) or array.dtype != torch.uint8:
        return None
    if array.dim() == 3:
        return array[:, None].contiguous()
    if array.dim() == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        return array.permute(0, 3, 1, 2).contiguous()
    return array.contiguous() if array.dim() == 4 else None


def _are_files(samples: Any) -> bool:
    if not isinstance(samples, Sequence) or not samples:
        return False
    first = samples[0]
    return isinstance(first, (tuple, list)) and isinstance(first[0], (str, Path))


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if image.shape[0] == channels:
        return image
    if channels == 1:
        return tvf.rgb_to_grayscale(image[:3])
    return image[:3] if image.shape[0] > 3 else image[:1].expand(3, -1, -1)
