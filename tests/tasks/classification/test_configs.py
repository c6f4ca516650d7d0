"""Every packaged config: it reads, its recipe is sound, its classifier is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core.recipe import Recipe
from taskdistill.core.stages import held_modules
from taskdistill.core.taps import Tap
from taskdistill.tasks.classification import ImageClassifier
from taskdistill.tasks.classification.teachers import full_entry
from taskdistill.tasks.openmm import load_config

ROOT = Path(__file__).parents[3] / "configs" / "classification"
CONFIGS = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if path.parent.name != "_base_"
)


def test_they_are_found():
    assert len(CONFIGS) > 60


@pytest.mark.parametrize("name", CONFIGS)
def test_config_reads_and_its_recipe_is_sound(name: str):
    cfg = load_config(str(ROOT / name))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    assert isinstance(model, ImageClassifier)
    for key in ("train_dataloader", "val_dataloader", "val_evaluator", "optim_wrapper"):
        assert cfg.get(key), key
    assert cfg.task == "classification" and cfg.train_cfg.max_epochs >= 2
    distill = cfg.get("distill")
    if distill is None:
        return
    recipe = Recipe.from_config(
        distill.pairs, distill.get("unit", "epoch"), distill.get("stages", ())
    )
    # Taps and stages name modules that are there; adapters know nothing of the task.
    for pair in recipe.pairs:
        for tap in [] if pair.is_output else pair.student.split("+"):
            assert Tap.parse(tap.strip()).modules(model.bare)
    for stage in recipe.stages:
        held_modules(model.bare, stage)
    entries = distill.get("teachers") or (
        {"teacher": distill.teacher} if "teacher" in distill else {}
    )
    recipe.by_teacher(entries or {"the generation before": {}})
    for teacher, entry in entries.items():
        assert full_entry(entry, teacher, model)["config"]
    # A schedule ends when training does.
    for pair in recipe.pairs:
        assert pair.start < cfg.train_cfg.max_epochs
        assert pair.stop is None or pair.stop <= cfg.train_cfg.max_epochs
