"""Translators whose teacher is remembered: both players, and a once-for-all student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved_runs import assert_equal, curves

from taskdistill.tasks.openmm.teacher import read_mm_checkpoint


@pytest.mark.parametrize("kind", ["thin", "super"])
@pytest.mark.parametrize("order", ["discriminator_first", "generator_first"])
def test_kept_answers_train_both_players_bit_for_bit(
    gan: Any, tmp_path: Path, kind: str, order: str
) -> None:
    """Random crops and flips; of the super-network, another sub-network each step."""
    teacher = dict(gan.teacher(), precision="fp32")
    model = gan.model(generator=getattr(gan, kind), order=order)
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    down = dict(student="generator.model.9", loss="FeatureImitation", name="down")
    if kind == "super":
        down["adapter"] = "sliced"
    image = dict(student="outputs.image", loss="Reconstruction", weight=10.0, name="image")
    for name, options in (("asked", {}), ("kept", {"cache": cache})):
        entry = gan.distill(down, image, teacher=teacher, **options)
        gan.train(gan.config(model, distill=entry), tmp_path / name)
    a, b = (read_mm_checkpoint(str(tmp_path / n / "epoch_2.pth")) for n in ("asked", "kept"))
    assert curves(a) == curves(b)
    for entry in ("state_dict", "optimizer", "distill", "gan"):
        assert_equal(a[entry], b[entry], entry)
