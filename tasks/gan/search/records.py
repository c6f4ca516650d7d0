"""What a search has found so far, on disk: nothing evaluated is lost, nothing is read half."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....core.errors import CheckpointError
from ...common.files import write_json
from .space import Channels, encode

__all__ = ["Evaluated", "Records", "State", "read_evaluations", "set_aside"]

EVALUATIONS_FILE, STATE_FILE = "evaluations.jsonl", "state.json"


@dataclass(frozen=True)
class Evaluated:
    """A configuration, its multiply-accumulates and its figures.

    Args:
        channels: The configuration.
        macs: Its multiply-accumulates.
        metrics: Validation figures by name. One that is not finite is kept as NaN.

    Example:
        >>> Evaluated((16, 24), 10, dict(FID=float("inf"))).as_dict()
        {'channels': '16_24', 'macs': 10, 'metrics': {'FID': None}}
    """

    channels: Channels
    macs: int
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        figures = {name: float(value) for name, value in self.metrics.items()}
        # JSON has no infinity: what is read back must be what was held in memory.
        kept = {name: v if math.isfinite(v) else math.nan for name, v in figures.items()}
        object.__setattr__(self, "metrics", kept)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON; NaN becomes null."""
        metrics = {name: None if math.isnan(v) else v for name, v in self.metrics.items()}
        return dict(channels=encode(self.channels), macs=self.macs, metrics=metrics)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Evaluated:
        """Undo :meth:`as_dict`."""
        metrics = {name: math.nan if v is None else v for name, v in value["metrics"].items()}
        return cls(tuple(map(int, value["channels"].split("_"))), int(value["macs"]), metrics)


def read_evaluations(path: Path) -> tuple[list[Evaluated], int]:
    """Return what a file holds, and how many of its bytes that is.

    A last line that a killed process left unfinished is left out.

    Raises:
        CheckpointError: If a line before the last cannot be read.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    found: list[Evaluated] = []
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            found.append(Evaluated.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise CheckpointError(
                f"{path}, line {number}, is no evaluation ({error}). The file was changed after it "
                "was written: restore it, or begin anew with --fresh, which moves it aside."
            ) from error
        size += len(line)
    return found, size


class Records:
    """The evaluated configurations, each on disk as soon as it is known.

    Args:
        path: File with a line of JSON for each; continued if it exists.

    Raises:
        CheckpointError: If the file is damaged before its last line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "evaluations.jsonl"
        >>> with Records(path) as records:
        ...     records.add(Evaluated((16, 24), 10, dict(FID=3.5)))
        >>> Records(path).entries[(16, 24)].metrics
        {'FID': 3.5}
    """

    def __init__(self, path: Path) -> None:
        found, self._size = read_evaluations(path)
        self.path = path
        self.entries: dict[Channels, Evaluated] = {entry.channels: entry for entry in found}
        self._file: Any = None

    def __enter__(self) -> Records:
        self._file = self.path.open("ab")
        # What was left unfinished would run into the next line.
        self._file.truncate(self._size)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._file = None

    def add(self, entry: Evaluated) -> None:
        """Write one more, and do not return before it is on disk."""
        self._file.write(json.dumps(entry.as_dict()).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries[entry.channels] = entry


@dataclass
class State:
    """Where a search stands between two generations.

    Args:
        identity: Everything that decides its outcome, as plain JSON.
        generation: Generations bred from the first population.
        population: The configurations of the last one; empty before the first.
        rng: State of the source of chance.
    """

    identity: dict[str, Any]
    generation: int = 0
    population: list[Channels] = field(default_factory=list)
    rng: tuple[Any, ...] | None = None

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        value = dict(
            identity=self.identity,
            generation=self.generation,
            population=[encode(channels) for channels in self.population],
            rng=self.rng,
        )
        write_json(path, value)

    @classmethod
    def read(cls, path: Path, identity: Mapping[str, Any]) -> State:
        """Return the state of the search in a folder, or a new one where there is none.

        Args:
            path: File of the state.
            identity: What the search is now.

        Raises:
            CheckpointError: If the folder holds another search, or the file is damaged.
        """
        now = json.loads(json.dumps(identity))
        fresh = "or --fresh, which moves the old files into a folder previous-N beside the new."
        if not path.exists():
            if (path.parent / EVALUATIONS_FILE).exists():
                raise CheckpointError(
                    f"{path.parent} holds {EVALUATIONS_FILE}, but no {STATE_FILE} that says of "
                    f"which search. Use another --work-dir, {fresh}"
                )
            return cls(now)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            before = dict(value["identity"])
            population = [tuple(map(int, text.split("_"))) for text in value["population"]]
            rng = value["rng"]
            state = cls(
                before,
                int(value["generation"]),
                population,
                None if rng is None else (rng[0], tuple(rng[1]), rng[2]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{path} is no state of a search ({error}). It was changed after it was written: "
                f"restore it, {fresh}"
            ) from error
        changed = [
            f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise CheckpointError(
                f"{path.parent} holds another search: {'; '.join(changed)}. To continue it, repeat "
                f"its command. For a new one, use another --work-dir, {fresh}"
            )
        return state


def set_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move files of a folder into a new folder ``previous-N`` in it.

    Args:
        folder: Where they lie.
        names: Those that do not exist are left out.

    Returns:
        The new folder, or None where there was nothing to move.
    """
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        return None
    number = 1
    while (target := folder / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for path in found:
        path.replace(target / path.name)
    return target


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
