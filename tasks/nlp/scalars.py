"""The course of a run as ``scalars.jsonl``: one JSON object a line, always whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..common.files import write_text

__all__ = [
    "FILE",
    "ScalarsCallback",
    "plain_metrics",
    "scalar_rows",
]

FILE = "scalars.jsonl"
"""Name of the file in a run's output folder."""

_PREFIX = "eval_"
# How long an evaluation took says nothing of the model.
_SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class ScalarsCallback(TrainerCallback):
    """Writes ``OUTPUT_DIR/scalars.jsonl`` anew at every log and evaluation.

    The Trainer's own history goes with its checkpoints, so the file of a resumed run is the one of
    a run that was never interrupted.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arguments = TrainingArguments(folder, use_cpu=True, report_to="none")
        ...     state = TrainerState(log_history=[{"loss": 0.5, "step": 1, "epoch": 0.1}])
        ...     ScalarsCallback().on_log(arguments, state, TrainerControl())
        ...     print(Path(folder, FILE).read_text(), end="")
        {"step": 1, "epoch": 0.1, "loss": 0.5}
    """

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._write(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            rows = scalar_rows(state.log_history, by_step=args.eval_strategy == "steps")
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            write_text(Path(args.output_dir) / FILE, text)


def scalar_rows(
    history: Iterable[Mapping[str, Any]], by_step: bool = False
) -> list[dict[str, Any]]:
    """Turn a Trainer's history into rows of training and of validation.

    Args:
        history: ``TrainerState.log_history``.
        by_step: Whether a validation row counts optimizer steps rather than epochs.

    Returns:
        Training rows with ``step``, ``epoch`` (a fraction), ``loss``, ``lr`` and whatever else was
        logged; validation rows with ``step`` (the epoch, rounded) and the figures, the loss as
        ``val_loss``. A second evaluation at a step, as at the end of training, adds what is new.

    Example:
        >>> scalar_rows([{"loss": 0.5, "learning_rate": 1e-4, "epoch": 0.5, "step": 5}])
        [{'step': 5, 'epoch': 0.5, 'loss': 0.5, 'lr': 0.0001}]
        >>> scalar_rows([{"eval_loss": 0.4, "eval_accuracy": 0.9, "epoch": 1.0, "step": 10}])
        [{'step': 1, 'val_loss': 0.4, 'accuracy': 0.9}]
    """
    rows: list[dict[str, Any]] = []
    validated: dict[int, dict[str, Any]] = {}
    for entry in history:
        step, epoch = entry.get("step", 0), entry.get("epoch", 0.0)
        if "loss" in entry:
            rest = {k: v for k, v in entry.items() if k not in ("step", "epoch", "learning_rate")}
            rate = {"lr": entry["learning_rate"]} if "learning_rate" in entry else {}
            rows.append({"step": step, "epoch": epoch, **rest, **rate})
        elif metrics := plain_metrics(entry):
            row = validated.get(step)
            if row is None:
                row = validated[step] = {"step": step if by_step else round(epoch)}
                rows.append(row)
            for key, value in metrics.items():
                row.setdefault(key, value)
    return rows


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an evaluation under plain names, without how long it took.

    Example:
        >>> plain_metrics({"eval_loss": 0.4, "eval_matched_accuracy": 0.8, "eval_runtime": 3.0})
        {'val_loss': 0.4, 'matched_accuracy': 0.8}
    """
    plain: dict[str, Any] = {}
    for key, value in metrics.items():
        name = key.removeprefix(_PREFIX)
        if not key.startswith(_PREFIX) or name.endswith(_SPEED):
            continue
        plain[f"{name.removesuffix('loss')}val_loss" if _is_loss(name) else name] = value
    return plain


def _is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("_loss")
