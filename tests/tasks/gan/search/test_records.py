from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from taskdistill.core.errors import CheckpointError  # noqa: E402
from taskdistill.tasks.gan.search.records import (  # noqa: E402
    Evaluated,
    Records,
    State,
    read_evaluations,
    set_aside,
)

ENTRIES = [Evaluated((i, 2 * i), 100 * i, dict(FID=1 / i, L1=0.1 * i)) for i in (1, 2, 3)]


def written(folder: Path) -> Path:
    path = folder / "evaluations.jsonl"
    with Records(path) as records:
        for entry in ENTRIES:
            records.add(entry)
    return path


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_figures_come_back_bit_for_bit(value: float):
    entry = Evaluated((16, 24), 10, dict(FID=value))
    assert Evaluated.from_dict(json.loads(json.dumps(entry.as_dict()))) == entry


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_nan_before_and_after(value: float):
    entry = Evaluated((16, 24), 10, dict(FID=value))
    text = json.dumps(entry.as_dict(), allow_nan=False)
    for found in (entry, Evaluated.from_dict(json.loads(text))):
        assert math.isnan(found.metrics["FID"])


def test_what_was_added_is_on_disk_at_once(tmp_path: Path):
    path = tmp_path / "evaluations.jsonl"
    with Records(path) as records:
        for number, entry in enumerate(ENTRIES, 1):
            records.add(entry)
            assert read_evaluations(path)[0] == ENTRIES[:number]
    assert list(Records(path).entries.values()) == ENTRIES


def test_a_file_cut_anywhere_goes_on(tmp_path: Path):
    whole = written(tmp_path).read_bytes()
    path = tmp_path / "cut.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        with Records(path) as records:
            assert list(records.entries.values()) == ENTRIES[:kept]
            for entry in ENTRIES[kept:]:
                records.add(entry)
        assert path.read_bytes() == whole


def test_a_damaged_last_line_is_left_out(tmp_path: Path):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0\0\0\n")
    with Records(path) as records:
        assert list(records.entries.values()) == ENTRIES
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["rubbish", "[]", "{}", '{"channels": "a_b", "macs": 1}'])
def test_a_damaged_line_before_the_last_is_told(tmp_path: Path, line: str):
    path = written(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2], ""]))
    with pytest.raises(CheckpointError, match="line 2.*--fresh"):
        Records(path)


def test_no_file_is_no_entry(tmp_path: Path):
    assert read_evaluations(tmp_path / "none") == ([], 0)


# -- state -----------------------------------------------------------------------------------------


def test_a_state_comes_back(tmp_path: Path):
    path = tmp_path / "state.json"
    identity = dict(space=((1, 2), (3,)), budget=5)
    state = State.read(path, identity)
    assert (state.generation, state.population, state.rng) == (0, [], None)
    state.generation, state.population, state.rng = 3, [(1, 2)], (3, (1, 2, 3), None)
    state.write(path)
    assert State.read(path, identity) == state


def test_another_search_is_refused_by_what_differs(tmp_path: Path):
    path = tmp_path / "state.json"
    State.read(path, dict(budget=5, metric="FID")).write(path)
    with pytest.raises(CheckpointError) as raised:
        State.read(path, dict(budget=6, metric="FID", seed=1))
    assert "budget was 5 and is 6; seed was null and is 1." in str(raised.value)
    assert "metric" not in str(raised.value) and "--fresh" in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"identity": {"budget": 5}}'])
def test_a_damaged_state_is_told(tmp_path: Path, text: str):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="--fresh"):
        State.read(tmp_path / "state.json", dict(budget=5))


def test_evaluations_without_a_state_belong_to_nobody(tmp_path: Path):
    written(tmp_path)
    with pytest.raises(CheckpointError, match="no state.json"):
        State.read(tmp_path / "state.json", {})


# -- aside -----------------------------------------------------------------------------------------


def test_files_are_moved_and_never_lost(tmp_path: Path):
    for number in (1, 2):
        (tmp_path / "a").write_text(str(number))
        (tmp_path / "other").write_text("mine")
        assert set_aside(tmp_path, ["a", "b"]) == tmp_path / f"previous-{number}"
        assert not (tmp_path / "a").exists() and (tmp_path / "other").read_text() == "mine"
    assert set_aside(tmp_path, ["a", "b"]) is None
    assert [(tmp_path / f"previous-{n}" / "a").read_text() for n in (1, 2)] == ["1", "2"]
