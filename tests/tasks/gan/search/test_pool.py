from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError, DataError, DistillError  # noqa: E402
from taskdistill.tasks.gan.search.pool import EvaluationPool, _work  # noqa: E402

# Processes import what they run by name: a module that they find, too.
MODULE = """
import os
import time
from taskdistill.core.errors import DataError

class Evaluate:
    def __init__(self, scale, broken=False):
        if broken:
            raise DataError("The validation data are absent.")
        self.scale = scale

    def __call__(self, channels):
        kind = channels[0]
        if kind == 991:
            raise DataError("No image 7.")
        if kind == 992:
            raise ZeroDivisionError("by hand")
        if kind == 993:
            os._exit(41)
        time.sleep(0.02 * (kind % 3))
        return {"FID": self.scale / sum(channels)}
"""

CONFIGS = [(a, b) for a in range(1, 6) for b in (3, 4)]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "pool_evaluators.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import pool_evaluators  # type: ignore[import-not-found]

    yield partial(pool_evaluators.Evaluate, 3.0)
    del sys.modules["pool_evaluators"]


def test_in_this_process(made: Any):
    with EvaluationPool(made, 1) as pool:
        assert list(pool(CONFIGS)) == [{"FID": 3.0 / sum(c)} for c in CONFIGS]
        assert list(pool([])) == []
        with pytest.raises(DataError, match="No image 7"):
            list(pool([(991, 1)]))


def test_two_processes_equal_one_and_end_with_the_pool(made: Any):
    with EvaluationPool(made, 1) as one, EvaluationPool(made, 2, threads=1) as two:
        expected = list(one(CONFIGS))
        for _ in range(2):  # the processes stay
            assert list(two(CONFIGS)) == expected
        processes = [process for process, _ in two._workers]
        assert len(processes) == 2 and all(process.is_alive() for process in processes)
        assert os.getpid() not in [process.pid for process in processes]
        # What came before an error is not lost; the error keeps its class and text.
        found = two([(1, 1), (2, 1), (991, 1)])
        assert [next(found), next(found)] == [{"FID": 1.5}, {"FID": 1.0}]
        with pytest.raises(DataError, match=r"^No image 7\.$"):
            next(found)
        assert two._workers == []
    assert not any(process.is_alive() for process in processes)


@pytest.mark.slow
def test_a_process_that_dies(made: Any):
    with EvaluationPool(made, 2, threads=1) as pool:
        with pytest.raises(DistillError, match=r"evaluated 993_1 ended by itself \(exit code 41\)"):
            list(pool([(1, 1), (993, 1)]))
        assert list(pool([(1, 1), (1, 2)])) == [{"FID": 1.5}, {"FID": 1.0}]  # new ones


@contextmanager
def worker(make: Any) -> Iterator[EvaluationPool]:
    """A pool whose only process is a thread of this one."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=_work, args=(theirs, make, 1))
    thread.start()
    pool = EvaluationPool(make, 2)
    pool._workers = [(thread, ours)]  # type: ignore[list-item]
    try:
        yield pool
    finally:
        ours.close()  # which ends it
        thread.join(timeout=10)
        assert not thread.is_alive()


def answer(pool: EvaluationPool, channels: tuple[int, ...]) -> tuple[int, dict[str, float]]:
    connection = pool._workers[0][1]
    pool._send(connection, (7, channels))
    return pool._receive(connection, channels)


def test_what_a_process_answers(made: Any):
    with worker(made) as pool:
        assert answer(pool, (1, 1)) == (7, {"FID": 1.5})
        with pytest.raises(DataError, match=r"^No image 7\.$"):
            answer(pool, (991, 1))
        with pytest.raises(DistillError, match="Evaluating 992_1 failed") as raised:
            answer(pool, (992, 1))
        assert "ZeroDivisionError: by hand" in str(raised.value)
        assert answer(pool, (1, 2)) == (7, {"FID": 1.0})
    with worker(partial(made.func, 3.0, broken=True)) as pool:
        with pytest.raises(DataError, match="absent"):
            answer(pool, (1, 1))


@pytest.mark.parametrize("wrong", [dict(jobs=0), dict(threads=0)])
def test_counts_are_positive(wrong: dict):
    with pytest.raises(ConfigError, match="at least one"):
        EvaluationPool(lambda: lambda channels: {}, **wrong)
