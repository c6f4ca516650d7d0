from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.core import errors
from taskdistill.core.errors import DistillError, did_you_mean

BUILTIN = {
    "CacheError": RuntimeError,
    "CheckpointError": RuntimeError,
    "ConfigError": ValueError,
    "DataError": ValueError,
    "NonFiniteLossError": FloatingPointError,
    "ShapeError": ValueError,
    "TapError": LookupError,
    "TeacherError": RuntimeError,
}


@pytest.mark.parametrize("name", BUILTIN)
def test_is_caught_as_ours_and_as_python_s(name: str):
    error = getattr(errors, name)("what to do")
    assert isinstance(error, DistillError)
    assert isinstance(error, BUILTIN[name])
    assert str(error) == "what to do"


def test_the_table_above_knows_every_error():
    classes = {n for n in errors.__all__ if isinstance(getattr(errors, n), type)}
    assert classes - {"DistillError"} == set(BUILTIN)


def test_offers_the_nearest_first_and_not_more_than_asked_for():
    names = ["head.cls", "head.reg", "neck", "head.reg_conv"]
    assert did_you_mean("head.rge", names, limit=1) == " Did you mean 'head.reg'?"
    assert did_you_mean("head.rge", names).startswith(" Did you mean 'head.reg', ")


def test_case_does_not_hide_a_name():
    assert did_you_mean("NECK", ["neck", "Neck"]) == " Did you mean 'neck', 'Neck'?"
    assert "'KLDivergence'" in did_you_mean("kl_divergence", ["Hint", "KLDivergence"])


NAMES = st.text("abAB.", min_size=1, max_size=6)


@given(NAMES, st.lists(NAMES), st.integers(1, 4))
def test_offers_only_what_exists_and_each_once(name: str, candidates: list[str], limit: int):
    offered = re.findall("'([^']*)'", did_you_mean(name, candidates, limit))
    assert set(offered) <= set(candidates)
    assert len(set(offered)) == len(offered) <= limit
    assert offered or name not in candidates
