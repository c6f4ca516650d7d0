from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.core.errors import ConfigError
from taskdistill.core.plateau import Plateau


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_it_is_reached_after_as_many_looks_without_a_better_one(values: list[float], patience: int):
    plateau = Plateau(patience, min_delta=0.0)
    for count in range(1, len(values) + 1):
        cut = max(0, count - patience)
        before, last = values[:cut], values[cut:count]
        flat = bool(before) and min(last) >= min(before)
        # Once reached it may be left again; what counts is the last looks.
        assert plateau.reached(values[count - 1]) == flat


def test_progress_is_counted_as_a_share_of_the_best():
    plateau = Plateau(1, min_delta=0.1)
    assert not plateau.reached(10.0)
    assert not plateau.reached(8.9)
    assert plateau.reached(8.1)
    assert plateau.best == 8.9


def test_figures_below_zero_may_fall_further():
    plateau = Plateau(1, min_delta=0.1)
    assert [plateau.reached(v) for v in (-1.0, -1.2, -1.25)] == [False, False, True]


def test_a_figure_that_is_no_number_is_no_progress():
    plateau = Plateau(2)
    assert [plateau.reached(v) for v in (1.0, math.nan, math.nan)] == [False, False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (3, r"plateau of stage 'hint' is 3; expected dict\(patience=...\)"),
        (dict(patiense=3), "has no 'patiense'. Did you mean 'patience'"),
        (dict(), "patience=None; expected 1 or more"),
        (dict(patience=0), "patience=0; expected 1 or more"),
        (dict(patience=True), "patience=True"),
        (dict(patience=2, min_delta=1.0), r"min_delta=1.0; expected a share in \[0, 1\)"),
    ],
)
def test_what_cannot_be_meant(config: object, message: str):
    with pytest.raises(ConfigError, match=message):
        Plateau.from_config("hint", config)  # type: ignore[arg-type]
