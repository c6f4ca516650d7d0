"""The course of a run as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from taskdistill.tasks.nlp.scalars import (
    FILE,
    ScalarsCallback,
    plain_metrics,
    scalar_rows,
)

HISTORY = [
    {
        "loss": 2.0,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "loss_kd_a": 0.5,
        "epoch": 0.6,
        "step": 3,
    },
    {"eval_loss": 1.5, "eval_accuracy": 0.5, "eval_runtime": 1.0, "epoch": 0.99, "step": 5},
    {"loss": 1.0, "epoch": 1.2, "step": 6},
    {"eval_matched_loss": 1.2, "eval_matched_accuracy": 0.6, "epoch": 2.0, "step": 10},
    {"eval_mismatched_loss": 1.3, "eval_mismatched_accuracy": 0.7, "epoch": 2.0, "step": 10},
    {"train_runtime": 9.0, "train_loss": 1.5, "epoch": 2.0, "step": 10},
    {"eval_matched_loss": 9.0, "eval_later": 1.0, "epoch": 2.0, "step": 10},
]


def test_rows_of_training_and_of_validation():
    assert scalar_rows(HISTORY) == [
        {"step": 3, "epoch": 0.6, "loss": 2.0, "grad_norm": 1.0, "loss_kd_a": 0.5, "lr": 0.1},
        {"step": 1, "val_loss": 1.5, "accuracy": 0.5},
        {"step": 6, "epoch": 1.2, "loss": 1.0},
        {
            "step": 2,
            "matched_val_loss": 1.2,  # the later evaluation, of the best model perhaps, adds only
            "matched_accuracy": 0.6,
            "mismatched_val_loss": 1.3,
            "mismatched_accuracy": 0.7,
            "later": 1.0,
        },
    ]


def test_where_training_counts_steps_so_does_validation():
    assert [row["step"] for row in scalar_rows(HISTORY, by_step=True)] == [3, 5, 6, 10]


def test_speed_is_no_figure_of_the_model():
    kept = plain_metrics({"eval_samples_per_second": 1.0, "eval_f1": 2.0, "epoch": 3.0})
    assert kept == {"f1": 2.0}


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")


def test_the_file_is_written_anew_and_by_one_process(arguments: TrainingArguments, tmp_path: Path):
    callback, control = ScalarsCallback(), TrainerControl()
    callback.on_log(arguments, TrainerState(log_history=HISTORY[:1]), control)
    callback.on_evaluate(arguments, TrainerState(log_history=HISTORY[:2]), control)
    elsewhere = TrainerState(log_history=[], is_world_process_zero=False)
    callback.on_log(arguments, elsewhere, control)
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert rows == scalar_rows(HISTORY[:2])
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
