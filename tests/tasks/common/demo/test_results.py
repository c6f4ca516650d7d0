from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.core.errors import DataError
from taskdistill.tasks.common.demo.results import (
    Spread,
    TrainingLog,
    distillation_terms,
    gap_recovered,
    read_log,
    task_loss,
)


def train_row(step: int, epoch: int | None, loss: float) -> dict[str, float]:
    row = {"lr": 0.1, "loss": loss, "iter": step, "step": step}
    return row if epoch is None else {**row, "epoch": epoch}


def write(folder: Path, stamp: str, rows: list[dict[str, float]], tail: str = "") -> None:
    path = folder / stamp / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_absent_folder_is_an_empty_log(tmp_path):
    assert read_log(tmp_path / "nothing") == TrainingLog()


def test_one_run(tmp_path):
    write(tmp_path, "20240101_000000", [train_row(1, 1, 2.0), {"mIoU": 50.0, "step": 1}])
    log = read_log(tmp_path)
    assert [row["loss"] for row in log.train] == [2.0]
    assert log.validation_at(1) == {"mIoU": 50.0, "step": 1}
    assert log.validation_at(2) is None


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    # Killed in epoch 3, after logging step 5 of 2 a epoch; resumed from the end of epoch 1.
    first = [train_row(1, 1, 1.0), train_row(2, 1, 1.0), {"q": 0.1, "step": 1}]
    first += [train_row(3, 2, 1.0), train_row(4, 2, 1.0), {"q": 0.2, "step": 2}]
    write(tmp_path, "20240101_000000", [*first, train_row(5, 3, 1.0)])
    second = [train_row(3, 2, 9.0), train_row(4, 2, 9.0), {"q": 0.9, "step": 2}]
    write(tmp_path, "20240101_000100", second)
    log = read_log(tmp_path)
    assert [(row["step"], row["loss"]) for row in log.train] == [(1, 1), (2, 1), (3, 9), (4, 9)]
    assert [(row["step"], row["q"]) for row in log.val] == [(1, 0.1), (2, 0.9)]


def test_validation_of_the_checkpoint_resumed_from_is_kept(tmp_path):
    write(tmp_path, "20240101_000000", [train_row(2, 1, 1.0), {"q": 0.1, "step": 1}])
    write(tmp_path, "20240101_000100", [train_row(4, 2, 1.0), {"q": 0.2, "step": 2}])
    assert [row["q"] for row in read_log(tmp_path).val] == [0.1, 0.2]


def test_runs_that_count_iterations(tmp_path):
    first = [train_row(50, None, 1.0), train_row(100, None, 1.0), {"q": 0.1, "step": 100}]
    write(tmp_path, "20240101_000000", [*first, train_row(150, None, 1.0)])
    second = [train_row(150, None, 7.0), train_row(200, None, 7.0), {"q": 0.2, "step": 200}]
    write(tmp_path, "20240101_000100", second)
    log = read_log(tmp_path)
    assert [row["loss"] for row in log.train] == [1.0, 1.0, 7.0, 7.0]
    assert [row["step"] for row in log.val] == [100, 200]


def test_a_start_that_logged_nothing_changes_nothing(tmp_path):
    write(tmp_path, "20240101_000000", [train_row(1, 1, 2.0)])
    write(tmp_path, "20240101_000100", [])
    assert len(read_log(tmp_path).train) == 1


@pytest.mark.parametrize("tail", ['{"lr": 0.1, "lo', "[1", "\x00\x00", "12"])
def test_a_line_cut_short_at_the_end_is_ignored(tmp_path, tail):
    write(tmp_path, "20240101_000000", [train_row(1, 1, 2.0)], tail)
    assert len(read_log(tmp_path).train) == 1


def test_a_damaged_line_elsewhere_is_an_error(tmp_path):
    write(tmp_path, "20240101_000000", [], '{"lr": 0.1, "lo\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"scalars.json, line 1: expected .* --fresh"):
        read_log(tmp_path)


def test_a_log_kept_whole_stands_by_itself(tmp_path):
    write(tmp_path, "20240101_000000", [train_row(1, 1, 2.0), {"q": 0.1, "step": 1}])
    rows = [
        {"step": 5, "epoch": 0.5, "loss": 3.0, "loss_kd_logits": 1.0},
        {"step": 10, "epoch": 1.0, "loss": 2.0},
        {"step": 1, "accuracy": 0.5, "val_loss": 0.7},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "scalars.jsonl").write_text(text)
    assert read_log(tmp_path) == TrainingLog(rows[:2], rows[2:])
    (tmp_path / "scalars.jsonl").write_text("nothing\n" + text)
    with pytest.raises(DataError, match=r"scalars.jsonl, line 1: expected"):
        read_log(tmp_path)


def test_non_finite_losses_are_kept(tmp_path):
    write(tmp_path, "20240101_000000", [train_row(1, 1, math.nan)])
    assert math.isnan(read_log(tmp_path).train[0]["loss"])


def test_distillation_terms_and_task_loss():
    rows = [
        {"step": 1, "loss": 6.0, "loss_cls": 3.0, "loss_kd_b": 1.0, "kd_b_raw": 4.0},
        {"step": 2, "loss": 6.0, "loss_cls": 3.0, "loss_kd_b": 1.0, "loss_kd_a": 2.0},
    ]
    assert distillation_terms(TrainingLog(rows)) == ["b", "a"]
    assert [task_loss(row) for row in rows] == [5.0, 3.0]


def test_spread():
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation, spread.text(1)) == (2.0, 1.0, "2.0 ± 1.0")
    assert Spread.of([0.25]).deviation is None
    with pytest.raises(DataError, match="at least one value"):
        Spread.of([])


@pytest.mark.parametrize(
    ("teacher", "alone", "distilled", "share"),
    [
        (0.4, 0.2, 0.2, 0.0),
        (0.4, 0.2, 0.4, 1.0),
        (0.4, 0.2, 0.1, -0.5),
        (0.4, 0.2, 0.5, 1.5),
        (0.2, 0.2, 0.3, None),
        (0.1, 0.2, 0.3, None),
        (math.nan, 0.2, 0.3, None),
    ],
)
def test_gap_recovered(teacher, alone, distilled, share):
    assert gap_recovered(teacher, alone, distilled) == share


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(-2, 2))
def test_gap_is_linear_between_student_and_teacher(alone, gap, share):
    found = gap_recovered(alone + gap, alone, alone + share * gap)
    assert found == pytest.approx(share, abs=1e-5)


def test_a_task_loss_that_is_logged_is_taken():
    assert task_loss({"step": 1, "loss": 1.0, "loss_kd_a": 0.9, "task_loss": 2.0}) == 2.0
