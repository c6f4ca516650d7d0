from __future__ import annotations

import io
from pathlib import Path

import pytest

pytest.importorskip("rich")

from rich.console import Console

from taskdistill.tasks.common.demo.jobs import Job, JobState
from taskdistill.tasks.common.demo.progress import Progress


def states() -> list[JobState]:
    job = Job("alone-0", (), Path("x"), 12, Path("y"), "q", "s")
    waiting = JobState(Job("distilled-0", (), Path("x"), 12, Path("y"), "q", "s"))
    running = JobState(
        job, "running", 0.5, seconds=75.0, position="epoch 6/12", loss=1.25, metric=0.125
    )
    return [running, waiting]


def show(terminal: bool, *updates: float | None, interval: float = 0.0) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with Progress(console, "mIoU", interval) as progress:
        progress.note("[brackets] stay")
        for seconds in updates:
            progress.update(states(), seconds)
    return out.getvalue()


def test_plain_lines():
    lines = show(False, None, 90.0).splitlines()
    assert lines[0] == "[00:00] [brackets] stay"
    assert lines[1] == (
        "[00:00] alone-0 50% epoch 6/12 loss 1.250 mIoU 0.125 | 0 of 2 runs finished | "
        "estimating the time left"
    )
    assert lines[2].endswith("| about 1 min 30 s left")


def test_plain_lines_are_rare():
    assert len(show(False, 1.0, 2.0, 3.0, interval=60.0).splitlines()) == 2


def test_live_table():
    text = show(True, 90.0)
    for part in (
        "alone-0",
        "distilled-0",
        "waiting",
        "50%",
        "epoch 6/12",
        "1.250",
        "0.125",
        "left",
    ):
        assert part in text


def test_digits_of_the_figure():
    out = io.StringIO()
    with Progress(Console(file=out, width=120), "mIoU", digits=1) as progress:
        progress.update(states(), None)
    assert "mIoU 0.1 |" in out.getvalue()


def test_a_queue_taller_than_the_terminal_shows_what_runs():
    running, _ = states()
    finished = [
        JobState(Job(f"done-{i}", (), Path("x"), 12, Path("y"), "q", "s"), "finished", 1.0)
        for i in range(9)
    ]
    shown = {}
    for height in (12, 11):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=120, height=height)
        with Progress(console, "mIoU") as progress:
            progress.update([running, *finished], 90.0)
        shown[height] = out.getvalue()
        assert "left" in shown[height]
        assert "alone-0" in shown[height]
    assert "done-8" in shown[12]
    assert "done-0" not in shown[11]
    assert "9 of 10 runs finished" in shown[11]
