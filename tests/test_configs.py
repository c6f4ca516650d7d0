"""Every shipped detection config reads, is checked whole, and (slow) takes a real step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from taskdistill.core.recipe import Recipe
from taskdistill.tasks.detection import DenseHeadAdapter
from taskdistill.tasks.openmm.config import load_config, plain_config, prepare_config
from taskdistill.tasks.openmm.teacher import read_model_config

ROOT = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(
    path
    for path in (ROOT / "detection").rglob("*.py")  # other tasks test their own
    if "_base_" not in path.parts and path.name[0] != "_"
)
DISTILLED = [path for path in RECIPES if "distill = dict(" in path.read_text()]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_recipes():
    assert len(DISTILLED) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_config_reads_and_its_recipe_is_sound(path):
    cfg = load_config(str(path))
    assert cfg.default_scope == "mmdet"
    if "distill" not in cfg:
        return
    recipe = Recipe.from_config(cfg.distill.pairs)
    outputs = {p.student.removeprefix("outputs.") for p in recipe.pairs if p.is_output}
    regions = {p.region for p in recipe.pairs if p.region}
    assert outputs <= set(DenseHeadAdapter.outputs)
    assert regions <= set(DenseHeadAdapter.regions)
    teacher = cfg.distill.teacher.config
    if "::" not in teacher:
        teacher = str(ROOT.parent / teacher)
    assert read_model_config(teacher, "teacher").model.type == cfg.model.type
    assert "distill" not in plain_config(cfg)
    assert prepare_config(cfg).model.student == plain_config(cfg).model


def _without_downloads(model: Config) -> Config:
    model.backbone.init_cfg = None
    return model


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in DISTILLED if "coco" in p.name], ids=name)
def test_coco_config_takes_a_real_step(path, tmp_path):
    """The whole networks of the paper's setting, with random weights for the teacher."""
    init_default_scope("mmdet")
    cfg = load_config(str(path))
    teacher = read_model_config(cfg.distill.teacher.config, "teacher")
    checkpoint = tmp_path / "teacher.pth"
    torch.save(
        {"state_dict": MODELS.build(_without_downloads(teacher.model)).state_dict()}, checkpoint
    )
    cfg.distill.teacher.checkpoint = str(checkpoint)
    _without_downloads(cfg.model)
    model = MODELS.build(prepare_config(cfg).model)
    model.init_weights()
    model.train()
    sample = DetDataSample(
        metainfo=dict(img_shape=(128, 160), pad_shape=(128, 160), batch_input_shape=(128, 160))
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 20.0, 90.0, 100.0], [60.0, 10.0, 150.0, 60.0]]),
        labels=torch.tensor([3, 17]),
    )
    losses = model(torch.randn(1, 3, 128, 160), [sample], mode="loss")
    total, logged = model.parse_losses(losses)
    total.backward()
    for pair in model.distiller.recipe.pairs:
        assert logged[f"kd_{pair.name}_raw"] > 0
    assert all(p.grad is not None for p in model.distiller.parameters())
    assert all(
        p.grad is None for t in model.distiller.teachers.values() for p in t.model.parameters()
    )
