"""The tool itself: a process, its exit status and what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "eval_fid.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_two_folders_and_a_message_for_a_third_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for name, brightest in (("real", 256), ("fake", 100)):
        (tmp_path / name).mkdir()
        for index in range(6):
            pixels = random.integers(brightest, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    small = ("--network", "small")
    # With the default number of workers.
    done = run(tmp_path / "real", tmp_path / "fake", *small)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("SmallFD:  ") and float(first.split()[1]) > 10
    assert second == "Images:  6 real, 6 fake"
    wrong = run(tmp_path / "real", tmp_path / "absent", *small)
    assert wrong.returncode == 2
    assert "DataError:" in wrong.stderr and "Traceback" not in wrong.stderr
