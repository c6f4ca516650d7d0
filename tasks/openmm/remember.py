"""What teachers said of the training data, read from a cache in place of asking them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.answers import AnswerLayout
from ...core.cache import Field, TeacherCache
from ...core.errors import CacheError, ConfigError, did_you_mean
from ...core.taps import Captured, Taps

__all__ = ["IMAGE", "CacheOptions", "ImageGuard", "Remembered", "Store"]

IMAGE = "image"
"""Field of a record by which the picture is recognised that the teacher saw."""

_DTYPES = ("fp32", "fp16", "bf16")
_NUMBERS = 4  # a picture, of which one alone would pass by chance once in a thousand
_VALUES = 1024
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CacheOptions:
    """The ``cache`` of a ``distill`` entry.

    Args:
        path: Folder of the caches, one in it for each teacher.
        views: How many augmented pictures of each sample are kept; passes through the data take
            them in turn. ``"epochs"`` is one for each pass of the run. ``None`` is one where the
            data are not augmented, and otherwise an error.
        seed: What the augmentation is seeded with.
        dtype: How numbers are stored: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        build: Whether training builds what is missing before its first step; otherwise that is an
            error.
        shard_mb: MiB of a file, about.

    Raises:
        ConfigError: If an option cannot be meant.

    Example:
        >>> CacheOptions.from_config(dict(path="teacher_cache", views=2)).dtype
        'fp16'
    """

    path: str
    views: int | str | None = None
    seed: int = 0
    dtype: str = "fp16"
    build: bool = True
    shard_mb: float = 64.0

    def __post_init__(self) -> None:
        if not (isinstance(self.path, str) and self.path):
            raise ConfigError(f"distill.cache.path is {self.path!r}; expected a folder.")
        whole = _is_whole(self.views) and int(self.views) > 0  # type: ignore[arg-type]
        if not (self.views is None or self.views == "epochs" or whole):
            raise ConfigError(
                f"distill.cache.views is {self.views!r}; expected how many pictures of each sample "
                "are kept (1 or more), or 'epochs'."
            )
        if not _is_whole(self.seed) or self.seed < 0:
            raise ConfigError(f"distill.cache.seed is {self.seed!r}; expected 0 or more.")
        if self.dtype not in _DTYPES:
            raise ConfigError(
                f"distill.cache.dtype is {self.dtype!r}; expected one of {', '.join(_DTYPES)}."
                f"{did_you_mean(str(self.dtype), _DTYPES)}"
            )
        if not isinstance(self.build, bool):
            raise ConfigError(f"distill.cache.build is {self.build!r}; expected True or False.")
        number = isinstance(self.shard_mb, (int, float)) and not isinstance(self.shard_mb, bool)
        if not number or not 0 < self.shard_mb < math.inf:
            raise ConfigError(f"distill.cache.shard_mb is {self.shard_mb!r}; expected above 0.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CacheOptions:
        """Read the entry of a config."""
        if not isinstance(config, Mapping):
            raise ConfigError(f"distill.cache is {config!r}; expected dict(path=..., ...).")
        known = [entry.name for entry in fields(cls)]
        for key in config:
            if key not in known:
                raise ConfigError(f"distill.cache has no {key!r}.{did_you_mean(key, known)}")
        if "path" not in config:
            raise ConfigError("distill.cache needs path=..., the folder of the cache.")
        return cls(**config)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class ImageGuard:
    r"""Tell by four numbers whether a preprocessed image is the one that a teacher saw.

    .. math:: p_k = \sum_i s_{ki} x_{ki}, \qquad k = 1 \dots 4

    over up to 1024 evenly spaced values x of an image, a quarter of them each, with fixed signs s.
    Two images are taken for one where the p differ by less than a thousandth of
    :math:`\lVert x \rVert`, which is more than another device or library changes, and less than an
    augmentation does.

    Args:
        shape: Of one image, (C, H, W).

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> guard = ImageGuard((3, 8, 8))
        >>> guard.differs(images, guard.probe(images)).tolist()
        [False, False]
        >>> guard.differs(images.flip(3), guard.probe(images)).tolist()
        [True, True]
    """

    field = Field(IMAGE, (_NUMBERS,), "float32")

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        count = min(_VALUES, -(-size // _NUMBERS) * _NUMBERS)
        # One after the other into each of the four sums.
        places = np.linspace(0, size - 1, count).round().astype(np.int64)
        places = places.reshape(-1, _NUMBERS).T.reshape(-1)
        # The one generator whose numbers numpy promises never to change.
        signs = np.random.RandomState(0).randint(0, 2, count) * 2 - 1
        self._signs = torch.from_numpy(signs).float()
        self._places = torch.from_numpy(places)
        # Of images whose channels come last in memory, the same values.
        channel, *inside = np.unravel_index(places, self.shape)
        last = np.ravel_multi_index((*inside, channel), (*self.shape[1:], self.shape[0]))
        self._places_last = torch.from_numpy(last)

    def probe(self, images: Tensor) -> Tensor:
        """The numbers of each image, (B, 4) float32."""
        return self._numbers(self._values(images))

    def differs(self, images: Tensor, probe: Tensor) -> Tensor:
        """Whether each image is another than the one of these numbers, (B,) bool.

        Raises:
            CacheError: If the images have another size.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise CacheError(
                f"Training shows images {tuple(images.shape[1:])}, the teacher of the cache saw "
                f"{self.shape}: {_CAUSES}"
            )
        values = self._values(images)
        off = (self._numbers(values) - probe.to(values.device)).abs().amax(1)
        # Not `off > tolerance`, which a NaN would pass.
        return ~(off <= _TOLERANCE * values.norm(dim=1) + 1e-6)

    def _numbers(self, values: Tensor) -> Tensor:
        # No product of matrices, which an autocast or TF32 would round.
        return (values * self._signs).unflatten(1, (_NUMBERS, -1)).sum(2)

    def _values(self, images: Tensor) -> Tensor:
        if self._signs.device != images.device:
            for name in ("_signs", "_places", "_places_last"):
                setattr(self, name, getattr(self, name).to(images.device))
        # Flat without a copy: that of a whole batch would take longer than all the rest.
        images, places = images.detach(), self._places
        if not images.is_contiguous():
            images, places = images.movedim(1, -1), self._places_last
        return images.flatten(1).index_select(1, places).float()


_CAUSES = (
    "the training pipeline was changed while training, or draws from a generator that neither "
    "Python's, numpy's nor torch's seed sets, or the data preprocessor resizes or changes images "
    "at random. Mend that, or train without distill.cache."
)


@dataclass(frozen=True)
class Store:
    """What is kept of one teacher.

    Args:
        cache: The records.
        layout: How an answer is made of one.
        taps: The teacher's.
        guard: Knows the pictures.
    """

    cache: TeacherCache
    layout: AnswerLayout
    taps: Taps
    guard: ImageGuard


@dataclass
class Remembered:
    """The answers of teachers to the batch in training.

    A copy of the model (an EMA) shares it, as it shares the teachers.

    Args:
        stores: By the teacher's name.
        samples: How many samples the data set has.
    """

    stores: Mapping[str, Store]
    samples: int
    positions: Tensor | None = None
    """Of the batch in training; None outside of a training step, where teachers are asked."""
    _suspects: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return self

    def show(self, positions: Any) -> None:
        """Say which samples the next batch holds, in their order; None for none of the cache's."""
        self.positions = None if positions is None else torch.as_tensor(positions).cpu()
        self._suspects.clear()

    def knows(self, name: str) -> bool:
        """Whether a teacher's answer to the batch is at hand."""
        return self.positions is not None and name in self.stores

    def answer(self, name: str, images: Tensor) -> tuple[Captured, Any]:
        """What a teacher's taps saw and what it answered, as :meth:`.Distiller.ask` gives it.

        Whether the images are those that the teacher saw is told by :meth:`verify`.

        Args:
            name: The teacher's.
            images: The batch as the student sees it.

        Raises:
            CacheError: If a record is missing or damaged, or the images have another number or
                size.
        """
        store, positions = self.stores[name], self.positions
        assert positions is not None
        if len(positions) != len(images):
            raise CacheError(
                f"The batch has {len(images)} images, but its loader gave {len(positions)} samples."
                " A cache needs one image a sample; train without distill.cache."
            )
        rows = store.cache.read(positions)
        differs = store.guard.differs(images, rows.pop(IMAGE))
        self._suspects.append((name, positions, differs))
        return store.layout.put_together(rows, store.taps, images.device)

    def verify(self) -> None:
        """Stop where an image since :meth:`show` is not the one that its teacher saw.

        Apart from :meth:`answer`, so that a device is waited for once a step, at its end.

        Raises:
            CacheError: Names the samples.
        """
        while self._suspects:
            name, positions, differs = self._suspects.pop()
            wrong = positions[differs.cpu()].tolist()
            if wrong:
                named = [f"sample {p % self.samples} in view {p // self.samples}" for p in wrong]
                more = f" and {len(named) - 3} more of the batch" if named[3:] else ""
                raise CacheError(
                    f"Not what teacher {name!r} saw: {', '.join(named[:3])}{more}. Causes are that "
                    f"{_CAUSES} Where the files of the data were changed, remove the folder "
                    f"{str(self.stores[name].cache.folder)!r} to have the cache built anew."
                )
