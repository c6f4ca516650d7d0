"""The switches amp, channels_last and compile with every sort of translator."""

from __future__ import annotations

from typing import Any

import pytest
from switched_runs import SwitchedRuns, combinations

KINDS = ("pix2pix", "cyclegan", "distilled", "supernet")


def config(gan: Any, kind: str) -> dict[str, Any]:
    if kind == "cyclegan":
        return gan.config(gan.model("CycleGAN", pool=5), unpaired=True)
    if kind == "pix2pix":
        return gan.config(gan.model(objective="hinge", pool=3))
    if kind == "distilled":
        model = gan.model("ImageTranslator", pool=3)
        teacher = gan.teacher("CycleGAN")
        return gan.config(model, unpaired=True, distill=gan.distill(teacher=teacher))
    model = gan.model(generator=gan.super, objective="hinge")
    pair = dict(student="generator.model.9", loss="FeatureImitation", adapter="sliced", name="nine")
    return gan.config(model, distill=gan.distill(pair))


@pytest.fixture(scope="module")
def runs(gan: Any, tmp_path_factory: pytest.TempPathFactory) -> SwitchedRuns:
    return SwitchedRuns(gan, tmp_path_factory.mktemp("switches"))


@pytest.fixture(scope="module")
def configs(gan: Any) -> dict[str, Any]:
    return {kind: config(gan, kind) for kind in KINDS}


@pytest.mark.parametrize(("kind", "switch"), combinations(KINDS, whole="distilled"))
def test_a_run(runs: SwitchedRuns, configs: dict[str, Any], kind: str, switch: str):
    # Adversarial losses come near zero: they are compared as if they were at least 0.1.
    runs.check(kind, configs[kind], switch, floor=0.1)
