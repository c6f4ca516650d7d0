"""From a pair of pictures to a sample: resize, crop and flip, alike for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ....core.errors import DataError, did_you_mean

__all__ = ["PREPROCESS", "PairTransform", "pack_pair"]

PREPROCESS = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none")

_MULTIPLE = 4  # the generators halve the sides twice


class PairTransform:
    """The augmentation of pix2pix and CycleGAN, with the same random choices for both of a pair.

    =========================  ===============================  ==================================
    preprocess                 in training                      in test mode
    =========================  ===============================  ==================================
    ``resize_and_crop``        to load_size x load_size, then   to crop_size x crop_size
                               a random square of crop_size
    ``crop``                   a random square of crop_size     the middle square of crop_size
    ``scale_width``            width to load_size               width to crop_size
    ``scale_width_and_crop``   width to load_size, then a       width to crop_size, then the
                               random square of crop_size       middle square of crop_size
    ``none``                   as it is                         as it is
    =========================  ===============================  ==================================

    Resizing is bicubic, and after ``scale_width*`` no picture is lower than crop_size. Sides that
    no size fixes are rounded to multiples of 4: both of ``none``, the height of ``scale_width``.
    Randomness comes from torch's global generator.

    Args:
        load_size: Side (or width) that training crops are taken from, in pixels; 286 in pix2pix.
        crop_size: Side of what the networks see, in pixels; 256 in pix2pix.
        preprocess: One of the names above.
        flip: Whether to mirror half of the training samples left to right.
        test_mode: Whether to leave out everything random.
        channels: 1 or 3 of each of the two pictures. Grey is the luma of ITU-R 601.

    Raises:
        DataError: If a size is no whole number from 1, the crop is larger than what it is taken
            from, or the name or a channel count is unknown. In use, if the two pictures of a pair
            differ in size, or one is smaller than the crop.

    Example:
        >>> from PIL import Image
        >>> transform = PairTransform(load_size=20, crop_size=16, channels=(1, 3))
        >>> outline, photo = transform(Image.new("L", (30, 30)), Image.new("RGB", (30, 30)))
        >>> outline.shape, photo.shape, photo.dtype
        (torch.Size([1, 16, 16]), torch.Size([3, 16, 16]), torch.uint8)
    """

    def __init__(
        self,
        load_size: int = 286,
        crop_size: int = 256,
        preprocess: str = "resize_and_crop",
        flip: bool = True,
        test_mode: bool = False,
        channels: Sequence[int] = (3, 3),
    ) -> None:
        for name, size in (("load_size", load_size), ("crop_size", crop_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise DataError(f"{name} must be a whole number of pixels from 1, got {size!r}.")
        if preprocess not in PREPROCESS:
            raise DataError(
                f"preprocess must be one of {', '.join(PREPROCESS)}, got {preprocess!r}."
                f"{did_you_mean(str(preprocess), PREPROCESS)}"
            )
        if len(channels) != 2 or any(count not in (1, 3) for count in channels):
            raise DataError(
                "in_channels and out_channels must each be 1 (grey) or 3 (RGB), "
                f"got {' and '.join(map(repr, channels))}."
            )
        if preprocess.endswith("_and_crop") and not test_mode and crop_size > load_size:
            raise DataError(
                f"crop_size is {crop_size}, but {preprocess} takes the crop from pictures of "
                f"load_size {load_size}. Set crop_size to at most load_size."
            )
        self.load_size = crop_size if test_mode else load_size
        self.crop_size = crop_size
        self.preprocess = preprocess
        self.test_mode = test_mode
        self.channels = tuple(channels)
        self._crop = v2.CenterCrop(crop_size) if test_mode else v2.RandomCrop(crop_size)
        self._flip = v2.RandomHorizontalFlip(0.5) if flip and not test_mode else None

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides, in pixels, that every picture will have; empty if its own decide."""
        if self.preprocess == "none":
            return ()
        return (self.load_size,) if self.preprocess == "scale_width" else (self.crop_size,)

    def __call__(self, first: Image.Image, second: Image.Image) -> tuple[Tensor, Tensor]:
        """Both pictures of a pair as uint8 tensors (C, H, W), cropped and flipped alike."""
        if first.size != second.size:
            raise DataError(
                f"The pictures of a pair must have one size, got {_size(first.size)} and "
                f"{_size(second.size)}. Resize them, or use them unpaired (UnalignedImages)."
            )
        first, second = self._run(
            _as_channels(first, self.channels[0]), _as_channels(second, self.channels[1])
        )
        return functional.pil_to_tensor(first), functional.pil_to_tensor(second)

    def single(self, image: Image.Image, side: int = 0) -> Tensor:
        """One picture as a uint8 tensor (C, H, W), with random choices of its own.

        Args:
            image: The picture.
            side: Whose channel count to take: 0 (the input's) or 1 (the target's).
        """
        return functional.pil_to_tensor(self._run(_as_channels(image, self.channels[side]))[0])

    def check_size(self, width: int, height: int) -> None:
        """Raise :class:`.DataError` if the crop does not fit into a picture of this size."""
        width, height = self._resized(width, height)
        if "crop" in self.preprocess and min(width, height) < self.crop_size:
            raise DataError(
                f"A picture of {_size((width, height))} pixels is smaller than crop_size="
                f"{self.crop_size}. Set a smaller crop_size, or preprocess='resize_and_crop'."
            )

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.preprocess == "crop":
            return width, height
        if self.preprocess == "resize_and_crop":
            return self.load_size, self.load_size
        if self.preprocess == "none":
            return _rounded(width), _rounded(height)
        height = max(round(self.load_size * height / width), self.crop_size)
        return self.load_size, _rounded(height) if self.preprocess == "scale_width" else height

    def _run(self, *images: Image.Image) -> Sequence[Image.Image]:
        self.check_size(*images[0].size)
        width, height = self._resized(*images[0].size)
        images = tuple(
            image.resize((width, height), Image.Resampling.BICUBIC)
            if image.size != (width, height)
            else image
            for image in images
        )
        # Given together, torchvision's transforms draw once for all of them.
        if "crop" in self.preprocess:
            images = tuple(self._crop(list(images)))
        if self._flip is not None:
            images = tuple(self._flip(list(images)))
        return images


def pack_pair(
    inputs: Tensor, target: Tensor, img_path: str, target_path: str, paired: bool
) -> dict[str, Any]:
    """A sample as models of this package take it.

    Args:
        inputs: uint8 (C, H, W).
        target: uint8 (C, H, W).
        img_path: Where the input is from.
        target_path: Where the target is from.
        paired: Whether the target is what the input ought to become.

    Example:
        >>> import torch
        >>> black = torch.zeros(3, 8, 8, dtype=torch.uint8)
        >>> sample = pack_pair(black, black, "a.png", "b.png", paired=False)["data_samples"]
        >>> sample.target.shape, sample.img_path, sample.paired
        (torch.Size([3, 8, 8]), 'a.png', False)
    """
    sample = BaseDataElement(
        metainfo={"img_path": img_path, "target_path": target_path, "paired": paired}
    )
    sample.set_field(target, "target", dtype=torch.Tensor)
    return {"inputs": inputs, "data_samples": sample}


def _as_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _rounded(side: int) -> int:
    return max(_MULTIPLE, round(side / _MULTIPLE) * _MULTIPLE)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
