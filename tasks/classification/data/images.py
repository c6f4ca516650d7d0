"""What all data sets of labelled images share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....core.errors import ConfigError, DataError
from ..transforms import Cutout, Transform, build_transforms

__all__ = [
    "DATA_VARIABLE",
    "ArrayImages",
    "LabelledImages",
    "channel_means",
    "first_of_each",
    "located",
]

DATA_VARIABLE = "TASKDISTILL_DATA"
"""Environment variable that may name the folder in which relative paths of data are looked up."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)


class LabelledImages:
    """Images with one label each: ``dict(inputs=uint8 (C, H, W), data_samples=label)``.

    Subclasses implement :meth:`image`.

    Args:
        labels: The class of each image, an index into ``classes``.
        classes: Names of the classes.
        transforms: See :func:`~..transforms.build_transforms`.
        mean: Colour of the data, 0 to 255 a channel, which a ``Cutout`` without ``fill`` takes.

    Attributes:
        labels: The class of each image.
        metainfo: ``classes`` as a tuple of names.

    Raises:
        DataError: If there are no images, or labels beyond the classes.
    """

    def __init__(
        self,
        labels: Sequence[int],
        classes: Sequence[str],
        transforms: Sequence[Mapping[str, Any] | Transform] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
    ) -> None:
        self.labels = [int(label) for label in labels]
        self.metainfo: dict[str, Any] = {"classes": tuple(str(name) for name in classes)}
        if not self.labels:
            raise DataError(f"{type(self).__name__} has no images.")
        if not 0 <= min(self.labels) <= max(self.labels) < len(classes):
            raise DataError(
                f"{type(self).__name__} has labels from {min(self.labels)} to {max(self.labels)}, "
                f"but {len(classes)} classes; expected 0 to {len(classes) - 1}."
            )
        self.transforms = build_transforms(transforms)
        for transform in self.transforms:
            if isinstance(transform, Cutout) and transform.fill is None:
                transform.fill_with(mean)

    def image(self, index: int) -> Tensor:
        """The image as it is stored, uint8 (C, H, W); not to be written to."""
        raise NotImplementedError(type(self).__name__)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.image(index)
        for transform in self.transforms:
            image = transform(image)
        return {"inputs": image, "data_samples": self.labels[index]}


class ArrayImages(LabelledImages):
    """Images of one size, all in memory.

    Args:
        images: uint8 (N, C, H, W).
        labels: See :class:`LabelledImages`.
        classes: Likewise.
        transforms: Likewise.
        subset: The first so many images of each class; all by default.

    Raises:
        DataError: If images and labels do not go together, or a class has too few.

    Example:
        >>> data = ArrayImages(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), [0, 1, 0, 1], ["a", "b"])
        >>> data[1]["inputs"].shape, data[1]["data_samples"], len(data)
        (torch.Size([3, 2, 2]), 1, 4)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        classes: Sequence[str],
        transforms: Sequence[Mapping[str, Any] | Transform] | None = None,
        subset: int | None = None,
    ) -> None:
        name = type(self).__name__
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise DataError(
                f"{name} needs images as uint8 (N, C, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}."
            )
        if len(images) != len(labels):
            raise DataError(f"{name} has {len(images)} images, but {len(labels)} labels.")
        if subset is not None:
            kept = first_of_each(labels, subset, classes)
            images, labels = images[torch.from_numpy(kept)], np.asarray(labels)[kept].tolist()
        self.images = images.contiguous()
        super().__init__(labels, classes, transforms, channel_means(self.images))

    def image(self, index: int) -> Tensor:
        return self.images[index]


def channel_means(images: Tensor) -> list[float]:
    """The mean of each channel of uint8 images (N, C, H, W).

    Example:
        >>> channel_means(torch.tensor([0, 255, 255, 255], dtype=torch.uint8).view(1, 2, 1, 2))
        [127.5, 255.0]
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in images.split(4096):  # exact, and never all images in a wider type
        total += part.sum((0, 2, 3), dtype=torch.float64)
    return (total / max(1, images[:, 0].numel())).tolist()


def first_of_each(labels: Sequence[int], count: Any, classes: Sequence[str]) -> NDArray[np.intp]:
    """Indices of the first ``count`` images of each class, in the order of the images.

    Raises:
        ConfigError: If ``count`` is no whole number above 0.
        DataError: If a class has fewer images.

    Example:
        >>> first_of_each([0, 0, 1, 0, 1], 1, ["a", "b"]).tolist()
        [0, 2]
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"subset={count!r}; expected how many images of each class to take.")
    array = np.asarray(labels)
    found = []
    for index, name in enumerate(classes):
        places = np.flatnonzero(array == index)
        if len(places) < count:
            raise DataError(
                f"subset={count} of each class, but class {name!r} has {len(places)} images."
            )
        found.append(places[:count])
    return np.sort(np.concatenate(found))


def located(path: str, root: str | None) -> Path:
    """Where a file of data is looked for.

    Args:
        path: Its path; an absolute one stays as it is.
        root: Folder of a relative one. Where it is left out, the folder that the environment
            variable ``TASKDISTILL_DATA`` names, or else the current one.

    Example:
        >>> located("mini.npz", "/data").as_posix()
        '/data/mini.npz'
    """
    return Path(root or os.environ.get(DATA_VARIABLE) or "").expanduser() / Path(path).expanduser()
