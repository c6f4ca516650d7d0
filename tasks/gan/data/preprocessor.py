"""Between pixels of 0 to 255 and what the networks take and give: numbers from -1 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from ....core.errors import DataError, ShapeError

__all__ = ["TranslationPreprocessor", "from_pixels", "to_pixels"]


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 from -1 (0) to 1 (255).

    Args:
        pixels: uint8 of any shape.

    Raises:
        DataError: If it is of another type: what its numbers mean would be a guess.

    Example:
        >>> import torch
        >>> from_pixels(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"expected pixels of torch.uint8 (0 to 255), got {pixels.dtype}. Convert images to "
            "uint8 before they are batched."
        )
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """The inverse of :func:`from_pixels`, exact for each of its 256 values.

    Args:
        images: Numbers of any float type and shape. Beyond -1 and 1 they are black and white.

    Returns:
        uint8 of the same shape, rounded to the nearest.

    Example:
        >>> import torch
        >>> to_pixels(torch.tensor([-1.0, 0.0, 1.0, 1.1]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@MODELS.register_module()
class TranslationPreprocessor(BaseDataPreprocessor):
    """Make a batch of samples: move them to the device, stack the inputs, scale to [-1, 1].

    Takes what a loader collates: ``inputs``, uint8 images (C, H, W) as a list or stacked, and
    ``data_samples``. Returns the same dict with ``inputs`` as a float32 tensor (B, C, H, W) in
    [-1, 1]. Each sample that has a ``target`` (uint8) gets ``real`` too, the target as float32 in
    [-1, 1]; the samples that came in are left as they are.

    Args:
        non_blocking: Whether copies to the device run beside the host's work; for pinned memory.

    Raises:
        ShapeError: In use, if the inputs of a batch, or its targets, differ in shape.
        DataError: In use, if images are not uint8.

    Example:
        >>> import torch
        >>> white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
        >>> batch = TranslationPreprocessor()({"inputs": [white, white]})
        >>> batch["inputs"].shape, batch["inputs"].max()
        (torch.Size([2, 3, 8, 8]), tensor(1.))
    """

    def __init__(self, non_blocking: bool = False) -> None:
        super().__init__(non_blocking=non_blocking)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        batch: dict[str, Any] = {key: self.cast_data(value) for key, value in data.items()}
        inputs = batch["inputs"]
        _check_alike(inputs, "inputs")
        # Scaled after the copy: a quarter of the bytes travel.
        stacked = inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))
        batch["inputs"] = from_pixels(stacked)
        samples = batch.setdefault("data_samples", None)
        targets = [s.target for s in samples or () if "target" in s]
        _check_alike(targets, "targets")
        for sample in samples or ():
            if "target" in sample:
                sample.set_field(from_pixels(sample.target), "real", dtype=Tensor)
        return batch


def _check_alike(images: Tensor | Sequence[Tensor], what: str) -> None:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ShapeError(
            f"the {what} of one batch must have one shape (C, H, W), got "
            f"{', '.join(map(str, shapes[:3]))}{', ...' if len(shapes) > 3 else ''}. Set "
            "batch_size=1 of the dataloader, or a preprocess of the dataset that crops."
        )
