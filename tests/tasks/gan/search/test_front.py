from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from taskdistill.core.errors import DataError  # noqa: E402
from taskdistill.tasks.gan.search.evolution import Criterion  # noqa: E402
from taskdistill.tasks.gan.search.front import (  # noqa: E402
    Reference,
    pareto_front,
    plot_front,
    read_references,
)
from taskdistill.tasks.gan.search.records import Evaluated  # noqa: E402

points = st.lists(
    st.tuples(st.integers(1, 20), st.integers(-9, 9).map(float) | st.just(math.nan)), max_size=20
)


def entries(values: list[tuple[int, float]]) -> list[Evaluated]:
    return [Evaluated((i + 1,), m, dict(FID=v)) for i, (m, v) in enumerate(values)]


@given(points, st.booleans())
def test_the_front_is_what_brute_force_finds(values: list[tuple[int, float]], higher: bool):
    found = pareto_front(entries(values), Criterion("FID", higher))
    sign = -1 if higher else 1
    finite = {(m, sign * v) for m, v in values if not math.isnan(v)}
    undominated = sorted(
        p for p in finite if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in finite)
    )
    assert [(e.macs, sign * e.metrics["FID"]) for e in found] == undominated


def picture(**options) -> tuple[int, int]:
    found = entries([(2_000_000 * i, 40.0 - i % 7) for i in range(1, 40)])
    png = plot_front(found, Criterion("FID"), **options)
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png), format="png").shape[:2]


def test_the_picture_with_and_without_extras():
    best = Evaluated((7,), 14_000_000, dict(FID=40.0))
    far = [Reference("teacher", 5e9, 30.0), Reference("student alone", 1e7, 41.0)]
    plain = picture()
    assert picture(budget=5e7, best=best, references=far) == plain
    assert plain[0] > 500 and plain[1] > 1000


def test_a_picture_without_a_finite_figure():
    png = plot_front(entries([(1, math.nan)]), Criterion("FID"), budget=3)
    assert png.startswith(b"\x89PNG")


def test_references(tmp_path: Path):
    path = tmp_path / "references.json"
    path.write_text(
        json.dumps({"teacher": {"macs": 5.6e9, "FID": 12}, "untested": {"macs": 1e9, "L1": 0.5}})
    )
    assert read_references(path, Criterion("FID")) == [Reference("teacher", 5.6e9, 12.0)]


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"teacher": 3}', '{"teacher": {"FID": 3}}', '{"teacher": {"macs": "x", "FID": 3}}'],
)
def test_references_that_cannot_be_read(tmp_path: Path, content: str):
    path = tmp_path / "references.json"
    path.write_text(content)
    with pytest.raises(DataError, match="references.json"):
        read_references(path, Criterion("FID"))


def test_references_that_are_not_there(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        read_references(tmp_path / "none.json", Criterion("FID"))
