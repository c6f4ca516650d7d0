"""Augmentation by config: any transform of torchvision, and Cutout."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import AutoAugmentPolicy
from torchvision.transforms.v2 import functional as tvf

from ...core.errors import ConfigError, did_you_mean
from .regularise import check_number

__all__ = ["Cutout", "Transform", "build_transforms"]

Transform = Callable[[Tensor], Tensor]


class Cutout:
    """A square of one colour at a random place, cut off at the image's borders.

    Its centre is uniform over all pixels. A square of side ``length`` covers ``length // 2`` pixels
    before the centre and as many from it on; so an odd length counts as the even one below, as in
    the code of the authors.

    Args:
        length: Side in pixels. The paper takes 16 on CIFAR-10, 8 on CIFAR-100, 20 on SVHN.
        fill: The colour, from 0 to 255, one number a channel or one for all. Left out, it is the
            data's mean (:meth:`fill_with`, which data sets call), which normalising takes to 0 as
            the paper has it.

    Raises:
        ConfigError: If the length is no whole number of 2 or more; in use, if there is no colour.

    Reference:
        DeVries, Taylor: Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
        section 3 (arXiv 1708.04552).

    Example:
        >>> image = torch.full((1, 4, 4), 9, dtype=torch.uint8)
        >>> bool(Cutout(2, fill=0)(image).eq(0).any()), bool(image.eq(0).any())
        (True, False)
    """

    def __init__(self, length: int, fill: float | Sequence[float] | None = None) -> None:
        check_number(
            "length of Cutout", length, lambda n: n >= 2 and n == int(n), "of pixels, 2 or more"
        )
        self.length = int(length)
        self.fill: list[float] | None = None
        if fill is not None:
            self.fill_with(fill if isinstance(fill, Sequence) else [fill])

    def fill_with(self, colour: Iterable[float]) -> None:
        """Set the colour, one number a channel."""
        self.fill = [float(value) for value in colour]

    def __call__(self, image: Tensor) -> Tensor:
        """Return a copy of an image (C, H, W) with the square."""
        if self.fill is None:
            raise ConfigError("Cutout has no colour. Set fill, e.g. fill=128.")
        height, width = image.shape[-2:]
        half = self.length // 2
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        top, left = max(0, y - half), max(0, x - half)
        bottom, right = min(height, y + half), min(width, x + half)
        colour = torch.tensor(self.fill).round().to(image.dtype).view(-1, 1, 1)
        return tvf.erase(image, top, left, bottom - top, right - left, colour)

    def __repr__(self) -> str:
        return f"Cutout(length={self.length}, fill={self.fill})"


_OURS: Mapping[str, Callable[..., Transform]] = {"Cutout": Cutout}
_THEIRS = {
    name: cls
    for name, cls in vars(v2).items()
    if inspect.isclass(cls) and issubclass(cls, v2.Transform) and cls is not v2.Transform
}
_BATCHES = ("MixUp", "CutMix")
_FLOATS = ("Normalize", "ToTensor")


def build_transforms(configs: Sequence[Mapping[str, Any] | Transform] | None) -> list[Transform]:
    """Build the transforms of uint8 images (C, H, W).

    Args:
        configs: In their order, one dict each: ``type`` is a class of ``torchvision.transforms.v2``
            or ``Cutout``, the rest are its arguments. Names stand for torchvision's enumerations:
            ``policy="CIFAR10"`` of AutoAugment, ``interpolation="bilinear"``. ``transforms`` of
            RandomApply and the like may be such dicts too. A callable is taken as it is.

    Raises:
        ConfigError: If a transform or argument is unknown, or does not fit uint8 pixels.

    Example:
        >>> crop, flip = build_transforms(
        ...     [dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip")]
        ... )
        >>> flip(crop(torch.zeros(3, 32, 32, dtype=torch.uint8))).shape
        torch.Size([3, 32, 32])
    """
    return [_build(config) for config in configs or ()]


def _build(config: Mapping[str, Any] | Transform) -> Transform:
    if not isinstance(config, Mapping):
        if callable(config):
            return config
        raise ConfigError(f"A transform is a dict with 'type' or a callable, got {config!r}.")
    options = dict(config)
    kind = str(options.pop("type", None))
    if kind in _BATCHES:
        raise ConfigError(
            f"{kind} mixes the images of a batch: it is the preprocessor's, "
            f"data_preprocessor=dict(mixing=dict(type={kind!r}))."
        )
    if kind in _FLOATS:
        raise ConfigError(
            f"{kind} takes or gives numbers that are no pixels; images stay uint8 until the "
            "preprocessor normalises them. Leave it out; mean and std are data_preprocessor's."
        )
    cls = _OURS.get(kind) or _THEIRS.get(kind)
    if cls is None:
        known = [*_OURS, *(name for name in _THEIRS if name not in (*_BATCHES, *_FLOATS))]
        raise ConfigError(f"There is no transform {kind!r}.{did_you_mean(kind, known)}")
    if isinstance(options.get("policy"), str):
        options["policy"] = _member(AutoAugmentPolicy, options["policy"], kind, "policy")
    if isinstance(options.get("interpolation"), str):
        name = options["interpolation"]
        options["interpolation"] = _member(InterpolationMode, name, kind, "interpolation")
    inner = options.get("transforms")
    if isinstance(inner, Sequence):
        options["transforms"] = [_build(each) for each in inner]
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Transform {kind} cannot be built with {options}: {error}. Correct its arguments."
        ) from error


def _member(enumeration: Any, name: str, kind: str, option: str) -> Any:
    found = enumeration.__members__.get(name.upper())
    if found is None:
        known = list(enumeration.__members__)
        raise ConfigError(
            f"{option}={name!r} of {kind} is none of {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return found
