"""Which text is which: an id made of what a teacher is given of it, and a table of all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import CacheError
from .outputs import Reader

__all__ = ["POSITIONS", "PositionsCollator", "TextTable", "text_ids"]

POSITIONS = "remembered_positions"
"""Key of a batch under which the positions of its texts travel, by the teacher's name."""

_MASK = "attention_mask"


def text_ids(inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Tell the texts of a batch apart by all that a teacher is given of them.

    An id is the 8-byte BLAKE2b hash of a text's own part of every input: of inputs with one entry a
    token those of its real tokens, so that it does not depend on how far the batch is padded. The
    mask enters as the number of tokens.

    Args:
        inputs: What the teacher is given: tensors with the samples on the first axis.

    Returns:
        Ids (B,) as ``uint64``, and numbers of tokens (B,).

    Raises:
        CacheError: If there is no sequence, an input is no tensor with an axis of samples, or the
            mask is not ones followed by zeros.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> padded, lengths = text_ids({"input_ids": ids, "attention_mask": mask})
        >>> alone, _ = text_ids({"input_ids": ids[:1, :2], "attention_mask": mask[:1, :2]})
        >>> bool(padded[0] == alone[0]), bool(padded[0] == padded[1]), lengths.tolist()
        (True, False, [2, 3])
    """
    sequence = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(sequence, Tensor) or sequence.ndim < 2:
        raise CacheError(
            "Texts are remembered by their input_ids or inputs_embeds, of which the teacher is "
            f"given none; it is given: {', '.join(inputs) or 'nothing'}."
        )
    samples, longest = sequence.shape[:2]
    lengths = _lengths(inputs.get(_MASK), samples, longest)
    columns: list[tuple[np.ndarray, bool]] = []
    names: list[str] = []
    for name, value in sorted(inputs.items()):
        if name == _MASK or value is None:
            continue
        if not isinstance(value, Tensor) or value.ndim < 1 or value.shape[0] != samples:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CacheError(
                f"A teacher that is given {name!r} ({what}) cannot be remembered: expected a "
                f"tensor with the {samples} samples of the batch on its first axis."
            )
        names.append(name)
        columns.append((_plain(value), value.ndim > 1 and value.shape[1] == longest))
    start = hashlib.blake2b("|".join(names).encode(), digest_size=8)
    found = np.empty(samples, dtype="<u8")
    for row, length in enumerate(lengths.tolist()):
        digest = start.copy()
        digest.update(length.to_bytes(8, "little"))
        for column, per_token in columns:
            part = column[row, :length] if per_token else column[row]
            digest.update(part.tobytes())
        found[row] = int.from_bytes(digest.digest(), "little")
    return found, lengths


def _plain(value: Tensor) -> np.ndarray:
    """The numbers in one format, whatever a collator gives."""
    value = value.detach().cpu()
    return value.to(torch.float64 if value.is_floating_point() else torch.int64).numpy()


def _lengths(mask: Any, samples: int, longest: int) -> np.ndarray:
    if mask is None:
        return np.full(samples, longest, dtype=np.int64)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (samples, longest):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise CacheError(
            f"To remember a teacher, attention_mask must be (B, T) = {(samples, longest)}, got "
            f"{shape}."
        )
    held = mask.detach().cpu().numpy()
    lengths = (held != 0).sum(1)
    if not np.array_equal(held, np.arange(longest) < lengths[:, None]):
        row = int((held != (np.arange(longest) < lengths[:, None])).any(1).argmax())
        raise CacheError(
            "To remember a teacher, padding must be on the right and attention_mask 1 for tokens "
            f"and 0 for padding; row {row} of a batch has {held[row].tolist()}. Set the "
            "tokenizer's padding_side='right', or leave cache out."
        )
    return lengths.astype(np.int64)


class TextTable:
    """The texts that a cache holds, by position.

    Args:
        ids: From :func:`text_ids`, each once.
        lengths: The numbers of tokens.

    Example:
        >>> table = TextTable.of(np.array([7, 3, 7], dtype="<u8"), np.array([2, 5, 2]))
        >>> len(table), table.positions(np.array([3, 7, 9], dtype="<u8")).tolist()
        (2, [1, 0, -1])
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids = np.ascontiguousarray(ids, dtype="<u8")
        self.lengths = np.ascontiguousarray(lengths, dtype="<i8")
        self._order = self.ids.argsort(kind="stable")
        self._sorted = self.ids[self._order]

    @classmethod
    def of(cls, ids: np.ndarray, lengths: np.ndarray) -> TextTable:
        """Make it of the rows of a data set; a text that comes again counts once."""
        first = _first_rows(ids)
        return cls(ids[first], lengths[first])

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Where texts are; -1 for one that is not there."""
        at = np.searchsorted(self._sorted, ids)
        at = np.minimum(at, len(self) - 1)
        return np.where(self._sorted[at] == ids, self._order[at], -1)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """For every position, a row of a data set with that text; -1 where it has none."""
        found = np.full(len(self), -1, dtype=np.int64)
        positions = self.positions(ids)
        rows = np.flatnonzero(positions >= 0)[::-1]  # the first of several stays
        found[positions[rows]] = rows
        return found

    @cached_property
    def sha256(self) -> str:
        """Tells tables apart."""
        return hashlib.sha256(self._array().tobytes()).hexdigest()

    def _array(self) -> np.ndarray:
        return np.stack([self.ids, self.lengths.astype("<u8")], axis=1)

    def save(self, path: Path) -> None:
        """Write it as a ``.npy`` file, whole or not at all."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.save(file, self._array(), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            raise CacheError(
                f"{str(path)!r} cannot be written: {error.strerror or error}. Make room, or change "
                "the permissions."
            ) from error
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> TextTable | None:
        """Read it; None where it is absent or no table."""
        try:
            held = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if held.dtype != np.dtype("<u8") or held.ndim != 2 or held.shape[1] != 2 or not len(held):
            return None
        return cls(held[:, 0], held[:, 1])


def _first_rows(ids: np.ndarray) -> np.ndarray:
    """The rows at which an id comes first, in their order."""
    return np.sort(np.unique(ids, return_index=True)[1])


class PositionsCollator:
    """Gives a batch the positions of its texts on the way, in the process that makes it.

    Args:
        collator: Makes the batch.
        tables: By the teacher's name, what it is given and the texts that are remembered.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any],
        tables: Mapping[str, tuple[Reader, TextTable]],
    ) -> None:
        self.collator = collator
        self.tables = dict(tables)

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collator(list(rows))
        # Arrays, which stay on the CPU where tensors would be moved.
        batch[POSITIONS] = {
            name: table.positions(text_ids(reader.inputs(batch))[0])
            for name, (reader, table) in self.tables.items()
        }
        return batch
