"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS

from ....core.errors import ConfigError, did_you_mean
from ..transforms import Transform
from .images import ArrayImages

__all__ = ["SklearnDigits"]

_SPLITS = ("train", "val")


@DATASETS.register_module()
class SklearnDigits(ArrayImages):
    """1797 handwritten digits of 8x8 pixels, 10 classes; they come with scikit-learn.

    The last quarter of each class, in scikit-learn's order, is ``val``: always the same images, and
    for the most part by other writers than those of ``train``. Ink of 0 to 16 is scaled to 0 to
    255.

    Args:
        split: ``"train"`` or ``"val"``.
        channels: The image is repeated so often: 3 for networks of colour images.
        size: Height and width in pixels to which images are resized (bilinear); 8 by default.
        transforms: See :func:`~..transforms.build_transforms`.
        subset: The first so many images of each class; all by default.

    Raises:
        ConfigError: If an option is unknown or scikit-learn is not installed.

    Reference:
        Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (CC BY 4.0).

    Example:
        >>> data = SklearnDigits("val", size=16)
        >>> data[0]["inputs"].shape, len(data)
        (torch.Size([3, 16, 16]), 445)
    """

    def __init__(
        self,
        split: str = "train",
        channels: int = 3,
        size: int | None = None,
        transforms: Sequence[Mapping[str, Any] | Transform] | None = None,
        subset: int | None = None,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(
                f"split={split!r} is not 'train' or 'val'.{did_you_mean(split, _SPLITS)}"
            )
        for name, value in (("channels", channels), ("size", 8 if size is None else size)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} of SklearnDigits; expected 1 or more.")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ConfigError(
                f"SklearnDigits needs scikit-learn, which cannot be imported: {error}. Install it "
                "by pip install 'taskdistill[classification]'."
            ) from error
        ink, labels = load_digits(return_X_y=True)
        validates = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            places = np.flatnonzero(labels == label)
            validates[places[len(places) - len(places) // 4 :]] = True
        chosen = validates if split == "val" else ~validates
        images = torch.from_numpy(ink[chosen]).float().view(-1, 1, 8, 8) * (255 / 16)
        if size not in (None, 8):
            images = F.interpolate(images, size, mode="bilinear", antialias=size < 8)
        pixels = images.round().clamp(0, 255).to(torch.uint8)
        super().__init__(
            pixels.expand(-1, channels, -1, -1),
            labels[chosen].tolist(),
            [str(digit) for digit in range(10)],
            transforms,
            subset,
        )
