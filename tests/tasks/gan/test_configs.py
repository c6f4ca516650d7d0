"""Every shipped GAN config reads, is checked whole, and takes a real step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from taskdistill.core.recipe import Recipe
from taskdistill.tasks.common.cost import count_macs
from taskdistill.tasks.gan.models import SuperMobileResnetGenerator
from taskdistill.tasks.gan.translation import TranslationModel
from taskdistill.tasks.openmm.config import load_config, plain_config, prepare_config
from taskdistill.tasks.openmm.teacher import read_model_config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted(p for p in (ROOT / "configs/gan").rglob("*.py") if "_base_" not in p.parts)
DISTILLED = [path for path in CONFIGS if "distill = dict(" in path.read_text()]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs/gan"))


def test_there_are_configs():
    assert len(CONFIGS) >= 15 and len(DISTILLED) >= 7


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_reads_and_its_recipe_is_sound(path):
    cfg = load_config(str(path))
    assert (cfg.task, cfg.default_scope) == ("gan", "mmengine")
    with torch.device("meta"):
        model = MODELS.build(plain_config(cfg).model)
    assert isinstance(model, TranslationModel)
    prepared = prepare_config(cfg)
    hooks = [hook.type for hook in prepared.custom_hooks]
    assert hooks[0] == "AdversaryHook"
    assert prepared.train_dataloader.dataset.type == "SeededDataset"
    if "distill" not in cfg:
        assert hooks == ["AdversaryHook", "RepeatableHook"]
        return
    assert hooks == ["AdversaryHook", "DistillHook"]
    Recipe.from_config(cfg.distill.pairs)
    teacher = ROOT / cfg.distill.teacher.config
    # The checkpoint is where training that config without options leaves it, or a demo does.
    checkpoint = Path(cfg.distill.teacher.checkpoint)
    assert checkpoint.parent.name in (teacher.stem, "teacher")
    epochs = load_config(str(teacher)).train_cfg.max_epochs
    assert checkpoint.name == f"epoch_{epochs}.pth"
    # The networks compared are those of one task, and the student's is the smaller one.
    ours, theirs = (each.model.generator for each in (cfg, read_model_config(str(teacher), "t")))
    assert (ours.get("blocks"), ours.get("in_channels")) == (
        theirs.get("blocks"),
        theirs.get("in_channels"),
    )
    macs = []
    for generator in (ours, theirs):
        with torch.device("meta"):
            network = MODELS.build(copy.deepcopy(generator))
            macs.append(count_macs(lambda n=network: n(torch.zeros(1, 3, 128, 128))))
    assert macs[0] < macs[1]


@pytest.mark.parametrize("path", DISTILLED, ids=name)
def test_config_takes_a_real_step(path, tmp_path):
    """The whole networks of the paper's settings, with random weights for the teacher."""
    cfg = load_config(str(path))
    teacher = MODELS.build(read_model_config(str(ROOT / cfg.distill.teacher.config), "t").model)
    teacher.init_weights()
    state = {"state_dict": teacher.state_dict(), "gan": teacher.adversary_state()}
    torch.save(state, tmp_path / "teacher.pth")
    cfg.distill.teacher.config = str(ROOT / cfg.distill.teacher.config)
    cfg.distill.teacher.checkpoint = str(tmp_path / "teacher.pth")
    for key, value in cfg.distill.init.items():
        if value != "teacher":  # of a student distilled before
            cfg.distill.init[key] = None
    cfg.distill.probe_size = 32
    model = MODELS.build(prepare_config(cfg).model)
    model.init_weights()
    sample = BaseDataElement(real=torch.randn(3, 32, 32).clamp(-1, 1))
    losses = model(torch.randn(1, 3, 32, 32).clamp(-1, 1), [sample], mode="loss")
    total, logged = model.parse_losses(losses)
    total.backward()
    for pair in model.distiller.recipe.pairs:
        assert logged[f"kd_{pair.name}_raw"] > 0
    assert all(p.grad is not None for p in model.distiller.parameters())
    assert all(p.grad is not None for p in model.student.generator.parameters())
    assert all(p.grad is None for p in teacher_parameters(model))


def teacher_parameters(model):
    return [p for t in model.distiller.teachers.values() for p in t.model.parameters()]


def test_the_papers_super_networks_span_what_it_says():
    """methods: channels-32 has 3^8 configurations, 137,347 to 514,307 parameters."""
    path = ROOT / "configs/gan/gan_compression/supernet32_mobile64_horse2zebra.py"
    network = MODELS.build(load_config(str(path)).model.generator)
    assert isinstance(network, SuperMobileResnetGenerator)
    assert [len(stage) for stage in network.space] == [3] * 8
    counts = [
        sum(p.numel() for p in network.slice(c).parameters())
        for c in (network.smallest, network.largest)
    ]
    assert counts == [137_347, 514_307]


def test_a_shipped_config_is_inherited_by_the_packages_name(tmp_path):
    """mmengine notes the package as a scope, which no registry of ours has."""
    (tmp_path / "mine.py").write_text('_base_ = "taskdistill::gan/demo/student.py"\n')
    mine = load_config(str(tmp_path / "mine.py"))
    shipped = load_config(str(ROOT / "configs/gan/demo/student.py"))
    assert mine.to_dict() == shipped.to_dict()
    teacher = read_model_config("taskdistill::gan/demo/teacher.py", "teacher")
    assert "_scope_" not in str(teacher.to_dict())
