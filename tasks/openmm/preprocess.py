"""What a teacher sees in place of the student's images: its own normalisation, its own scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError

__all__ = ["OwnImages", "own_images"]

_DIVISOR = 32  # what most pyramids need, where no preprocessor says


class OwnImages:
    """Make of the student's images what the teacher's own preprocessing makes of pictures.

    Undoes the student's normalisation and applies the teacher's (mean, std, order of the colours,
    value of the padding). Where the teacher has a ``scale``, the result is then resized,
    bilinearly, to that many times its height and width, each rounded to the nearest multiple of
    the teacher's ``pad_size_divisor``; so a teacher of large images can teach a student of small
    ones, as in Chen et al. 2017.

    mm pads after normalising. So does this where it is told, by the argument ``inside`` (bool, of
    the images' shape without channels), which pixels are the picture's; otherwise the padding is
    treated as part of it.

    Args:
        student: The student's data preprocessor, or None where it has none.
        teacher: The teacher's.
        scale: How many times the height and width of the student's images the teacher's have; 1
            leaves them as they are.

    Raises:
        ConfigError: If the scale is no number above 0.

    Example:
        >>> own = OwnImages(None, None, scale=1.5)
        >>> (images,), _ = own((torch.zeros(1, 3, 64, 80),), {})
        >>> tuple(images.shape), own.factors((64, 80))
        ((1, 3, 96, 128), (1.5, 1.6))
    """

    def __init__(
        self, student: nn.Module | None, teacher: nn.Module | None, scale: float = 1.0
    ) -> None:
        _check_scale(scale)
        self.student, self.teacher = student, teacher
        self.scale = float(scale)
        self.converts = student is not None and teacher is not None and not _alike(student, teacher)

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the teacher's images, in pixels.

        Args:
            shape: The student's; its last two numbers are height and width.
        """
        height, width = shape[-2:]
        return self._length(height), self._length(width)

    def factors(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return by what y and x in the student's images are multiplied to be the teacher's.

        Args:
            shape: The student's; its last two numbers are height and width.
        """
        (new_height, new_width), (height, width) = self.size(shape), shape[-2:]
        return new_height / height, new_width / width

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Exchange the images, the first of a forward's arguments, and take ``inside`` out."""
        images, *rest = args
        kwargs = dict(kwargs)
        inside: Tensor | None = kwargs.pop("inside", None)
        if self.converts:
            images = self._pad(self._convert(images), inside)
        old, new = tuple(images.shape[-2:]), self.size(images.shape)
        if new != old:
            shrinks = new[0] < old[0] or new[1] < old[1]
            images = F.interpolate(images, new, mode="bilinear", antialias=shrinks)
            if inside is not None:
                inside = F.interpolate(inside[:, None].float(), new, mode="nearest-exact")[:, 0] > 0
                # Along the picture's edge the padding has taken some of its colour.
                images = self._pad(images, inside)
        return (images, *rest), kwargs

    def _convert(self, images: Tensor) -> Tensor:
        ours, theirs = _statistics(self.student, images), _statistics(self.teacher, images)
        pixels = images * ours[1] + ours[0]
        if ours[2] != theirs[2]:
            pixels = pixels.flip(1)
        return (pixels - theirs[0]) / theirs[1]

    def _pad(self, images: Tensor, inside: Tensor | None) -> Tensor:
        if inside is None:
            return images
        return images.masked_fill(~inside[:, None], _pad_value(self.teacher))

    def _length(self, length: int) -> int:
        if self.scale == 1.0:
            return length
        divisor = getattr(self.teacher, "pad_size_divisor", _DIVISOR)
        # Not round(), which takes 2.5 down and 3.5 up.
        return max(1, math.floor(length * self.scale / divisor + 0.5)) * divisor


def own_images(student: nn.Module, teacher: nn.Module, scale: float = 1.0) -> OwnImages | None:
    """Return what makes a teacher's images of a student's, or None where they are the same.

    Args:
        student: The student, with its ``data_preprocessor`` if it has one.
        teacher: Likewise.
        scale: See :class:`OwnImages`.

    Raises:
        ConfigError: If the scale is no number above 0.

    Example:
        >>> own_images(nn.Identity(), nn.Identity()) is None
        True
    """
    ours, theirs = (getattr(model, "data_preprocessor", None) for model in (student, teacher))
    images = OwnImages(ours, theirs, scale)
    return images if images.converts or images.scale != 1.0 else None


def _check_scale(scale: Any) -> None:
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not (number and 0 < scale < math.inf):
        raise ConfigError(
            f"A teacher's scale is {scale!r}; expected a number above 0, e.g. 2 for images of "
            "twice the student's height and width."
        )


def _statistics(preprocessor: nn.Module | None, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    mean = getattr(preprocessor, "mean", like.new_zeros(1, 1, 1))
    std = getattr(preprocessor, "std", like.new_ones(1, 1, 1))
    return mean.to(like), std.to(like), bool(getattr(preprocessor, "_channel_conversion", False))


def _pad_value(preprocessor: nn.Module | None) -> float:
    return float(getattr(preprocessor, "pad_value", 0))


def _alike(student: nn.Module, teacher: nn.Module) -> bool:
    probe = torch.zeros(1)
    ours, theirs = _statistics(student, probe), _statistics(teacher, probe)
    return (
        bool((ours[0] == theirs[0]).all() and (ours[1] == theirs[1]).all())
        and ours[2] == theirs[2]
        and _pad_value(student) == _pad_value(teacher)
    )
