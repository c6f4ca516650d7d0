"""Two data sets that need no download, drawn from scikit-learn's real handwritten digits.

The 1797 digits are 8x8 grids of ink (UCI, Alpaydin and Kaynak). They are enlarged smoothly and cut
off at a level of ink, which gives crisp strokes, and painted by fixed rules: the same digit always
gives the same pictures, and the shape in the one determines the other.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ....core.errors import DataError
from .folders import check_limit, check_split_name
from .pipeline import pack_pair

__all__ = ["DigitOutlines", "DigitRestyle"]

SPLITS = ("train", "val")

_TRAIN = 1437  # four fifths of the digits
_MARGIN = 1.5  # empty cells around the 8x8 grid
_FINE = 128  # least side that strokes are cut out at, before they are averaged down
_LEVEL = 0.4  # of ink
_CHUNK = 128  # digits drawn at a time; all of them at that side would take gigabytes
_SIZES = (16, 256)

_PAPER = (0.97, 0.96, 0.93)
_OUTLINE = (0.10, 0.11, 0.16)
_SHADOW = (0.55, 0.53, 0.58)
_FILL = ((0.99, 0.72, 0.15), (0.80, 0.12, 0.42))  # at the top, at the bottom
_WHITE = (1.0, 1.0, 1.0)
_NIGHT = (0.07, 0.10, 0.24)
_WEAVE = (0.12, 0.17, 0.36)
_NEON = ((0.35, 0.98, 0.85), (0.98, 0.42, 0.86))
_SLANT = 0.15  # pixels to the side per pixel of height


class _Digits(Dataset):
    """Pictures held in memory, uint8 (N, 3, size, size)."""

    in_channels = 3
    out_channels = 3

    def __init__(self, split: str, size: int, limit: int | None) -> None:
        check_split_name(split, SPLITS)
        low, high = _SIZES
        if isinstance(size, bool) or not isinstance(size, int) or not low <= size <= high:
            raise DataError(
                f"size must be a whole number of pixels from {low} to {high}, got {size!r}."
            )
        check_limit(limit)
        self.split = split
        self.size = size
        train = split == "train"
        grids, numbers = _source()
        chosen = slice(0, _TRAIN) if train else slice(_TRAIN, None)
        self.numbers = numbers[chosen][:limit]  # of the digit in scikit-learn's set
        grids = grids[chosen][:limit]
        drawn = [self._draw(chunk) for chunk in torch.from_numpy(grids).split(_CHUNK)]
        inputs, targets = (torch.cat(pictures) for pictures in zip(*drawn, strict=True))
        self.inputs: Tensor = _to_uint8(inputs)
        self.targets: Tensor = _to_uint8(targets)

    def _draw(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (N, 3, size, size) from 0 to 1, of grids (N, 8, 8)."""
        raise NotImplementedError

    @property
    def metainfo(self) -> dict[str, Any]:
        """Nothing; mmengine asks every dataset."""
        return {}

    @property
    def sides(self) -> tuple[int, ...]:
        """The side, in pixels, that every picture has."""
        return (self.size,)

    def __len__(self) -> int:
        return len(self.inputs)

    def _sample(self, i: int, j: int, paired: bool) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of a dataset of {len(self)}")
        source, goal = (f"digits/{self.split}/{self.numbers[k]:04d}.png" for k in (i, j))
        # Copies: who changes a sample does not change the set, and a worker sends what it must.
        return pack_pair(self.inputs[i].clone(), self.targets[j].clone(), source, goal, paired)


@DATASETS.register_module()
class DigitOutlines(_Digits):
    """Pairs: the outline of a handwritten digit, and the digit filled in.

    The outline is a dark line on paper. The fill runs from yellow at the top to crimson at the
    bottom, is darker at its rim, and throws a soft shadow. Which side of a line is the inside is
    for the network to find out.

    Args:
        split: "train" (1437 digits) or "val" (the other 360).
        size: Side of the square pictures, 16 to 256 pixels.
        test_mode: Accepted as by the other data sets; nothing here is random.
        limit: How many digits to use, the first ones; all if None.

    Raises:
        DataError: If an argument is out of range, or scikit-learn is missing.

    Example:
        >>> digits = DigitOutlines("val", size=32, limit=4)
        >>> sample = digits[3]
        >>> len(digits), sample["inputs"].shape, sample["data_samples"].target.dtype
        (4, torch.Size([3, 32, 32]), torch.uint8)
        >>> sample["data_samples"].paired
        True
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 32,
        test_mode: bool = False,
        limit: int | None = None,
    ) -> None:
        super().__init__(split, size, limit)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sample(index, index, True)

    def _draw(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        shape = _shapes(grids, self.size)
        width = 2 * (shape.shape[-1] // 64) + 1
        part = _blurred(shape, width)  # of the pixels around that are inside
        line = _averaged(((part > 1e-3) & (part < 1 - 1e-3)).float(), self.size)
        shape = _averaged(shape, self.size)
        outline = _blend(_colour(_PAPER), _colour(_OUTLINE), line)

        depth = ((_blurred(shape, self.size // 10) - 0.4) * 2).clamp(0, 1)  # 0 at the rim
        fill = _vertical(_FILL, self.size) * (0.62 + 0.38 * depth)
        moved = torch.roll(shape, (self.size // 24, self.size // 32), (-2, -1))
        shadow = _blurred(moved, self.size // 16)
        ground = _blend(_colour(_PAPER), _colour(_SHADOW), 0.6 * shadow)
        return outline, _blend(ground, fill, shape)


@DATASETS.register_module()
class DigitRestyle(_Digits):
    """Two styles of handwritten digits, for training without pairs.

    A: white on black. B: slanted, in neon that runs from green to pink down the
    digit, with a glow, on dark woven cloth. In training the picture of B is of another digit, drawn
    from Python's ``random``. In test mode it is the input's own digit in the other style, so that
    what a network made of it can be compared.

    Args:
        split: "train" (1437 digits) or "val" (the other 360).
        size: Side of the square pictures, 16 to 256 pixels.
        test_mode: Whether to give the pairs; by default of "val" alone.
        limit: How many digits to use, the first ones; all if None.

    Raises:
        DataError: If an argument is out of range, or scikit-learn is missing.

    Example:
        >>> train, val = DigitRestyle("train", limit=4), DigitRestyle("val", limit=4)
        >>> sample = train[0]["data_samples"]
        >>> sample.paired, sample.img_path == sample.target_path
        (False, False)
        >>> sample = val[0]["data_samples"]
        >>> sample.paired, sample.img_path == sample.target_path
        (True, True)
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 32,
        test_mode: bool | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(split, size, limit)
        self.paired = split == "val" if test_mode is None else test_mode
        if not self.paired and len(self) < 2:
            raise DataError("DigitRestyle without pairs needs a limit of at least 2, got 1.")

    def __getitem__(self, index: int) -> dict[str, Any]:
        other = index
        if not self.paired:
            other = random.randrange(len(self) - 1)
            other += other >= index
        return self._sample(index, other, self.paired)

    def _draw(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        shape = _shapes(grids, self.size)
        plain = _averaged(shape, self.size).expand(-1, 3, -1, -1)

        tube = _averaged(_slanted(shape), self.size)
        cloth = _blend(_colour(_NIGHT), _colour(_WEAVE), _weave(self.size))
        neon = _vertical(_NEON, self.size)
        wide = self.size // 8
        glow = _blurred(_blurred(tube, wide), wide)
        core = ((_blurred(tube, self.size // 10) - 0.4) * 2).clamp(0, 1)  # lighter within
        bright = _blend(neon, _colour(_WHITE), 0.5 * core)
        return plain, _blend(_blend(cloth, neon, 0.6 * glow), bright, tube)


@lru_cache(maxsize=1)
def _source() -> tuple[np.ndarray, np.ndarray]:
    """Grids (1797, 8, 8) from 0 to 1 and their numbers in scikit-learn's set, in a fixed mixture.

    Mixed because the set goes writer by writer.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "The digits are those of scikit-learn, which is not installed: "
            "pip install scikit-learn (or install taskdistill with its extra 'gan')."
        ) from error
    flat, _ = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(flat))
    return (flat[order].reshape(-1, 8, 8) / 16).astype(np.float32), order


# -- drawing: pictures are (N, 1 or 3, side, side) from 0 to 1 -------------------------------------


def _shapes(grids: Tensor, size: int) -> Tensor:
    """What is ink (1) and what is not (0), on a square of a whole multiple of ``size``."""
    fine = size * max(2, -(-_FINE // size))
    inner = round(fine * 8 / (8 + 2 * _MARGIN))
    before = (fine - inner) // 2
    rim = round(inner / 8)
    # Padded by a cell first: strokes at the edge of the grid are rounded off beyond it.
    padded = F.pad(grids[:, None], (1, 1, 1, 1))
    ink = F.interpolate(padded, (inner + 2 * rim,) * 2, mode="bicubic", align_corners=False)
    # Evened out over a cell: the ink of a thin stroke comes and goes between two cells.
    shape = (_blurred(ink, rim) > _LEVEL).float()
    after = fine - inner - before
    return F.pad(shape, (before - rim, after - rim, before - rim, after - rim))


def _blurred(picture: Tensor, width: int) -> Tensor:
    half = width // 2  # of an odd window, so that nothing moves
    rows = F.avg_pool2d(picture, (1, 2 * half + 1), 1, (0, half))
    return F.avg_pool2d(rows, (2 * half + 1, 1), 1, (half, 0))


def _slanted(picture: Tensor) -> Tensor:
    side = picture.shape[-1]
    rows = torch.arange(side)[:, None]
    shift = (_SLANT * (side / 2 - rows)).round().long()
    columns = (torch.arange(side)[None] - shift).clamp(0, side - 1)
    return picture[..., rows, columns]


def _weave(size: int) -> Tensor:
    """Cloth with a thread every four pixels, which is what networks of stride 4 can repeat."""
    wave = 0.5 + 0.5 * torch.sin((torch.arange(size) + 0.5) * torch.pi / 2)
    return (wave[:, None] * wave[None, :])[None, None]


def _vertical(colours: tuple[tuple[float, ...], tuple[float, ...]], size: int) -> Tensor:
    """The first colour down to where digits begin, the second from where they end."""
    t = ((torch.linspace(0, 1, size) - 0.2) / 0.6).clamp(0, 1)[None, None, :, None]
    return _blend(_colour(colours[0]), _colour(colours[1]), t)


def _colour(rgb: tuple[float, ...]) -> Tensor:
    return torch.tensor(rgb)[None, :, None, None]


def _blend(below: Tensor, above: Tensor, alpha: Tensor) -> Tensor:
    return below + alpha * (above - below)


def _averaged(picture: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(picture, picture.shape[-1] // size)


def _to_uint8(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)
