"""The switches amp, channels_last and compile with segmentation networks, critics among them."""

from __future__ import annotations

from typing import Any

import pytest
from switched_runs import SwitchedRuns, combinations

KINDS = ("plain", "structured")


def config(seg: Any, kind: str) -> dict[str, Any]:
    if kind == "plain":
        return seg.config()
    return seg.config(distill=seg.distill(probe_size=64))


@pytest.fixture(scope="module")
def runs(seg: Any, tmp_path_factory: pytest.TempPathFactory) -> SwitchedRuns:
    return SwitchedRuns(seg, tmp_path_factory.mktemp("switches"))


@pytest.mark.parametrize(("kind", "switch"), combinations(KINDS))
def test_a_run(seg: Any, runs: SwitchedRuns, kind: str, switch: str):
    runs.check(kind, config(seg, kind), switch)
