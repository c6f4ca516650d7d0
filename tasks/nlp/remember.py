"""A teacher's answers, asked once a text and read from a cache in training.

A text is known by what the teacher is given of it (:mod:`.text_ids`), so that another text can
never be answered with it. Of each teacher ``NAME`` the cache's folder holds::

    NAME/               the answers, one record a text (core/cache.py)
    NAME.texts.npy      which text is which record

Answers hold real tokens alone. Read for a batch they are padded with zeros, which every loss leaves
out; so with ``dtype="fp32"`` terms are those of a teacher that was asked, up to the rounding of
another order of summation, and bit for bit in batches of the texts that were asked together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.answers import AnswerLayout
from ...core.cache import TeacherCache
from ...core.distiller import Outputs
from ...core.errors import CacheError, ConfigError, did_you_mean
from ...core.taps import Captured, Taps
from .outputs import Reader
from .text_ids import TextTable, text_ids

__all__ = ["CacheOptions", "RememberedTeacher"]

_DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class CacheOptions:
    """Where and how a teacher's answers are kept.

    Args:
        path: Folder; made where it is not there.
        dtype: Of numbers as stored: ``"fp16"``, ``"bf16"`` or ``"fp32"``.
        build: Whether training writes what is missing before its first step. Otherwise it is an
            error, and ``tools/cache_teacher.py`` writes it.
        shard_mb: Size of a file, about, in MiB.

    Raises:
        ConfigError: If a value is none of these.

    Example:
        >>> CacheOptions.of("work_dirs/cache").dtype
        'fp16'
    """

    path: str
    dtype: str = "fp16"
    build: bool = True
    shard_mb: float = 64

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ConfigError(f"cache needs a path, the folder of the answers; got {self.path!r}.")
        if Path(self.path).expanduser().is_file():
            raise ConfigError(f"cache.path {self.path!r} is a file; give a folder.")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"cache.dtype {self.dtype!r} is not one of {', '.join(_DTYPES)}.")
        if not isinstance(self.build, bool):
            raise ConfigError(f"cache.build is true or false, not {self.build!r}.")
        number = isinstance(self.shard_mb, (int, float)) and not isinstance(self.shard_mb, bool)
        if not number or not self.shard_mb > 0:
            raise ConfigError(f"cache.shard_mb must be a number above 0, got {self.shard_mb!r}.")

    @classmethod
    def of(cls, value: CacheOptions | str | Path | Mapping[str, Any] | None) -> CacheOptions | None:
        """Read what a config or caller gives: a folder, or a mapping; None keeps nothing."""
        if value is None or isinstance(value, CacheOptions):
            return value
        if isinstance(value, (str, Path)):
            return cls(str(value))
        if not isinstance(value, Mapping):
            raise ConfigError(f"cache is a folder, or a mapping with a path; got {value!r}.")
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise ConfigError(
                    f"cache has no {key!r}.{did_you_mean(str(key), known)} It has: "
                    f"{', '.join(known)}."
                )
        if "path" not in value:
            raise ConfigError(f"cache {dict(value)} has no path: the folder of the answers.")
        return cls(**{**value, "path": str(value["path"])})

    def folder(self, teacher: str) -> Path:
        """Where the answers of one teacher are."""
        return Path(self.path).expanduser() / teacher

    def table(self, teacher: str) -> Path:
        """Where it says which text is which."""
        return Path(self.path).expanduser() / f"{teacher}.texts.npy"


class RememberedTeacher:
    """Answers of one teacher, by text.

    Args:
        reader: Knows what the teacher is given.
        taps: What pairs read beside its outputs.
        layout: How an answer becomes a record.
        table: Which text is which record.
        cache: The records.
    """

    def __init__(
        self,
        reader: Reader,
        taps: Taps,
        layout: AnswerLayout,
        table: TextTable,
        cache: TeacherCache,
    ) -> None:
        self.reader, self.taps = reader, taps
        self.layout, self.table, self.cache = layout, table, cache

    def answer(
        self, batch: Mapping[str, Any], positions: np.ndarray | None = None
    ) -> tuple[Captured, Outputs]:
        """Look up what the teacher says of a batch.

        Args:
            batch: As the teacher would be given it.
            positions: Of the batch's texts, where known.

        Returns:
            As :meth:`.Distillation.ask` does.

        Raises:
            CacheError: If a text is not there, or its file is damaged.
        """
        inputs = self.reader.inputs(batch)
        if positions is None:
            positions = self.table.positions(text_ids(inputs)[0])
        if (positions < 0).any():
            unknown = int((positions < 0).sum())
            raise CacheError(
                f"{unknown} of the {len(positions)} texts of a batch are not in cache "
                f"{str(self.cache.folder)!r}, though the training data were when training began: "
                "the batches are not what the data collator makes of the training data, or it "
                "makes something else of them each time. Make them the same, or leave cache out."
            )
        sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
        assert sequence is not None
        rows = self.cache.read(
            torch.from_numpy(positions), sequence.shape[1] if self.cache.spec.ragged else None
        )
        return self.layout.put_together(rows, self.taps, sequence.device)
