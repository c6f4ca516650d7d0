"""Read what training wrote, and turn several runs into figures that can be compared."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ....core.errors import DataError

Row = dict[str, float]

__all__ = [
    "RAW_PREFIX",
    "RAW_SUFFIX",
    "WEIGHTED_PREFIX",
    "WHOLE_LOG",
    "Row",
    "Spread",
    "TrainingLog",
    "distillation_terms",
    "gap_recovered",
    "read_log",
    "task_loss",
]

WHOLE_LOG = "scalars.jsonl"
WEIGHTED_PREFIX = "loss_kd_"
RAW_PREFIX, RAW_SUFFIX = "kd_", "_raw"


@dataclass(frozen=True)
class TrainingLog:
    """The scalars of one training run, resumed or not.

    Attributes:
        train: One row per logged iteration, by rising ``step`` (iterations since the start).
        val: One row per validation, by rising ``step`` (epochs, or iterations where training
            counts iterations).
    """

    train: list[Row] = field(default_factory=list)
    val: list[Row] = field(default_factory=list)

    def validation_at(self, step: int) -> Row | None:
        """Return the validation figures at ``step``, or ``None``."""
        return next((row for row in self.val if row["step"] == step), None)


def read_log(work_dir: Path) -> TrainingLog:
    """Read what was logged in a work folder as one run.

    It is in ``<work_dir>/scalars.jsonl``, which a trainer that keeps the whole history writes anew
    each time, or else in mmengine's ``<work_dir>/<timestamp>/vis_data/scalars.json`` files. Both
    hold one JSON object a line. Those of training have a ``loss`` and their iteration as ``step``
    (and, in the single file, the epoch with its fraction); those of a validation have neither
    ``loss`` nor ``lr``, and the epoch as ``step``, or the iteration where training counts those.

    Each start of an mmengine process writes a folder of its own. A process that resumed from a
    checkpoint repeats what its predecessor did after that checkpoint, so everything the
    predecessor logged from there on is dropped. The last line of a file may be cut short (the
    process was killed, or is writing just now) and is then ignored.

    Args:
        work_dir: Work folder of one training run. An absent folder gives an empty log.

    Returns:
        The merged log.

    Raises:
        DataError: A line other than the last is not a JSON object with a ``step``.
    """
    whole = work_dir / WHOLE_LOG
    if whole.is_file():
        return _read_one(whole)
    log = TrainingLog()
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        part = _read_one(path)
        if part.train:
            first = part.train[0]
            log = TrainingLog(
                [row for row in log.train if row["step"] < first["step"]],
                [row for row in log.val if row["step"] < first.get("epoch", first["step"])],
            )
        redone = {row["step"] for row in part.val}
        kept = [row for row in log.val if row["step"] not in redone]
        val = sorted(kept + part.val, key=lambda row: row["step"])
        log = TrainingLog(log.train + part.train, val)
    return log


def _read_one(path: Path) -> TrainingLog:
    log = TrainingLog()
    for row in _read_rows(path):
        # Training lines carry the loss or the learning rate, validation lines neither.
        (log.train if "lr" in row or "loss" in row else log.val).append(row)
    return log


def _read_rows(path: Path) -> Iterable[Row]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("no 'step' in it")
        except ValueError as error:
            if number == len(lines):
                return
            raise DataError(
                f"{path}, line {number}: expected a JSON object with a 'step', got "
                f"{line[:60]!r} ({error}). The log is damaged; start that run over with --fresh."
            ) from error
        yield {key: float(value) for key, value in row.items() if isinstance(value, int | float)}


def distillation_terms(log: TrainingLog) -> list[str]:
    """Return the names of the distillation terms in a log, in the order of their appearance.

    Example:
        >>> distillation_terms(TrainingLog([{"step": 1, "loss": 3.0, "loss_kd_feature": 1.0}]))
        ['feature']
    """
    names: dict[str, None] = {}
    for row in log.train:
        for key in row:
            if key.startswith(WEIGHTED_PREFIX):
                names[key.removeprefix(WEIGHTED_PREFIX)] = None
    return list(names)


def task_loss(row: Row) -> float:
    """Return the loss of a training line without its distillation terms.

    ``task_loss`` where the line has it: the loss before a weight that it may enter the sum with.

    Example:
        >>> task_loss({"step": 1, "loss": 3.0, "loss_kd_feature": 1.0})
        2.0
    """
    if "task_loss" in row:
        return row["task_loss"]
    weighted = (value for key, value in row.items() if key.startswith(WEIGHTED_PREFIX))
    return row["loss"] - sum(weighted)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds.

    Attributes:
        values: One figure per seed.
        mean: Arithmetic mean.
        deviation: Standard deviation with ``n - 1`` below the line; ``None`` for a single seed.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise ``values``.

        Raises:
            DataError: There is nothing to summarise.

        Example:
            >>> Spread.of([0.1, 0.3]).text(2)
            '0.20 ± 0.14'
            >>> Spread.of([0.1]).text(2)
            '0.10'
        """
        if not values:
            raise DataError("Expected at least one value to average, got none.")
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(tuple(values), statistics.fmean(values), deviation)

    def text(self, digits: int = 3) -> str:
        """Return the mean, with ``± deviation`` where there are several seeds."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


def gap_recovered(
    teacher: float, alone: float, distilled: float, lower_is_better: bool = False
) -> float | None:
    """Return the share of the distance from student to teacher that distillation covers.

    ``(distilled - alone) / (teacher - alone)``: 0 is no gain, 1 is as good as the teacher; below 0
    distillation did harm.

    Args:
        teacher: Figure of the teacher.
        alone: Figure of the student trained without the teacher.
        distilled: Figure of the student trained with it.
        lower_is_better: Whether the figure is a distance or an error.

    Returns:
        The share, or ``None`` where it has no meaning: the teacher is no better than the student
        alone, or a figure is not finite.

    Example:
        >>> gap_recovered(0.4, 0.2, 0.25)
        0.25
        >>> gap_recovered(0.2, 0.2, 0.3) is None
        True
        >>> gap_recovered(20.0, 60.0, 30.0, lower_is_better=True)
        0.75
    """
    finite = all(map(math.isfinite, (teacher, alone, distilled)))
    if not finite or (teacher >= alone if lower_is_better else teacher <= alone):
        return None
    # Rounded, because figures with three digits leave noise in the sixteenth.
    return round((distilled - alone) / (teacher - alone), 6)
