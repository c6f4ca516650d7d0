"""Every shipped detection config reads, is checked whole, and takes a real step.

Those of COCO are slow: the whole networks of the papers, with random weights for the teachers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from taskdistill.core.recipe import Recipe
from taskdistill.tasks.openmm.config import load_config, plain_config, prepare_config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs" / "detection"
RECIPES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
DISTILLED = [
    path
    for path in RECIPES
    if "distill = dict(" in path.read_text() or path.name.startswith("ld_gfl-r34")  # inherits it
]
LARGE = [path for path in DISTILLED if "coco" in path.name]
SMALL = [path for path in DISTILLED if "coco" not in path.name]
SIDE = 128
# DINO takes the best 900 of all cells; RetinaNet's last level has to have more than one.
LARGER = {"detr/kd_dino-r18_dino-r50_coco": 256, "cwd/cwd_retinanet-r50_retinanet-r101_coco": 256}
CLASSES: tuple[str, ...] = CocoDataset.METAINFO["classes"]


@cache
def _parsed(path: Path) -> Config:
    return load_config(str(path))


def read(path: Path) -> Config:
    return copy.deepcopy(_parsed(path))


@cache
def read_teacher(config: str) -> Config:
    """A teacher's config; a packaged one with the place of its weights, as its metafile says."""
    return get_config(config, pretrained=True) if "::" in config else _parsed(Path(config))


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def teachers_of(cfg: Config) -> dict[str, Any]:
    """The entries of the teachers, by name, with the paths of configs as seen from anywhere."""
    distill = cfg.distill
    found = distill.teachers if "teachers" in distill else {"teacher": distill.teacher}
    for entry in found.values():
        if "::" not in entry.config:
            entry.config = str(ROOT / entry.config)
    return dict(found)


# -- what is written -----------------------------------------------------------------------------


def test_there_are_recipes():
    folders = {path.relative_to(CONFIGS).parts[0] for path in DISTILLED}
    assert len(folders) >= 12 and len(LARGE) >= 35 and len(SMALL) >= 18


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_config_reads_and_its_recipe_is_sound(path):
    cfg = read(path)
    assert cfg.default_scope == "mmdet"
    if "distill" not in cfg:
        return
    recipe = Recipe.from_config(cfg.distill.pairs, may_be_empty="assignment" in cfg.distill)
    assert {pair.of for pair in recipe.pairs if pair.of} <= set(teachers_of(cfg))
    assert "distill" not in plain_config(cfg)


@pytest.mark.parametrize("path", DISTILLED, ids=name)
def test_the_teacher_has_weights_and_knows_the_same_classes(path):
    cfg = read(path)
    for entry in teachers_of(cfg).values():
        found = read_teacher(entry.config)
        assert classes_of(found.model) == classes_of(cfg.model)
        if "::" in entry.config:
            assert found.model_path.endswith(".pth")
            continue
        # Where training the teacher's own config puts them.
        own = Path(entry.config)
        run = own.stem if "coco" in own.stem else f"demo/{demo_of(own)}/teacher"
        epochs = found.train_cfg.max_epochs
        assert entry.checkpoint == f"work_dirs/{run}/epoch_{epochs}.pth"


def demo_of(teacher: Path) -> str:
    """A demo's run is named after its folder; the first was named after the task."""
    folder = teacher.parent.name
    return "detection" if folder == "demo" else folder


def classes_of(model: Any) -> int:
    head = model.roi_head.bbox_head if "roi_head" in model else model.bbox_head
    return head.num_classes


# -- a step --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures in COCO's format, of all 80 classes by name; the third is empty."""
    folder = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        pixels = rng.integers(60, 140, (96, 96, 3), dtype=np.uint8)
        for label in () if i == 2 else (0, 1, 2, 40 + i):
            w, h = (int(v) for v in rng.integers(20, 60, 2))
            x, y = int(rng.integers(0, 96 - w)), int(rng.integers(0, 96 - h))
            pixels[y : y + h, x : x + w] = rng.integers(0, 255, 3)
            entry: dict[str, Any] = dict(
                image_id=i, category_id=label + 1, bbox=[x, y, w, h], area=w * h
            )
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            entry.update(id=len(annotations) + 1, iscrowd=0, segmentation=[outline])
            annotations.append(entry)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append(dict(id=i, file_name=f"{i}.png", width=96, height=96))
    categories = [dict(id=i + 1, name=label) for i, label in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "all.json").write_text(json.dumps(content))
    return folder


class Checkpoints:
    """Random weights of the teachers, the last two kept: they are a hundred megabytes each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, Path] = {}

    def of(self, config: str) -> str:
        if config not in self.kept:
            if len(self.kept) == 2:
                self.kept.pop(next(iter(self.kept))).unlink()
            torch.manual_seed(1)
            teacher = MODELS.build(without_downloads(copy.deepcopy(read_teacher(config).model)))
            teacher.init_weights()
            settle(teacher)
            path = self.folder / f"{uuid4().hex}.pth"
            torch.save({"state_dict": teacher.state_dict()}, path)
            self.kept[config] = path
        return str(self.kept[config])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoints]:
    made = Checkpoints(tmp_path_factory.mktemp("teachers"))
    yield made
    for path in made.kept.values():
        path.unlink()


def without_downloads(model: Any) -> Any:
    """Take out of a model's config what would fetch ImageNet weights."""
    if isinstance(model, dict):
        if model.get("init_cfg") and dict(model["init_cfg"]).get("type") == "Pretrained":
            model["init_cfg"] = None
        for value in model.values():
            without_downloads(value)
    return model


def settle(model: Any) -> None:
    """Give the backbone's norms statistics, without which a hundred random layers explode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model.extract_feat(torch.randn(2, 3, SIDE, SIDE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def fewer_proposals(model: Any) -> None:
    """The region heads read 16 proposals: hundreds would say no more and take a minute."""
    for settings in (model.get("train_cfg"), model.get("test_cfg")):
        if settings and "rcnn" in settings and "sampler" in settings.rcnn:
            settings.rcnn.sampler.num = 16
            settings.rpn_proposal.max_per_img = 64


def every_box(pairs: Any) -> None:
    """Bound no box by a teacher whose random ones may all be worse."""
    for pair in pairs:
        if pair.loss == "BoundedRegression":
            pair.margin = 1e6


def dataset_of(cfg: Config, pictures: Path, side: int) -> ConfigDict:
    """What takes the place of the config's images: small ones, without its augmentation."""
    masks = "mask_head" in cfg.model.get("roi_head", {})
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=masks),
        dict(type="Resize", scale=(side, side), keep_ratio=True),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PackDetInputs"),
    ]
    return ConfigDict(
        type="CocoDataset",
        data_root=str(pictures),
        ann_file="all.json",
        data_prefix=dict(img=""),
        metainfo=dict(classes=CLASSES[: classes_of(cfg.model)]),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=pipeline,
    )


def take_a_step(path: Path, pictures: Path, checkpoints: Checkpoints) -> None:
    cfg = read(path)
    for entry in teachers_of(cfg).values():
        entry.checkpoint = checkpoints.of(entry.config)
    without_downloads(cfg.model)
    fewer_proposals(cfg.model)
    every_box(cfg.distill.pairs)
    cfg.train_dataloader.dataset = dataset_of(cfg, pictures, LARGER.get(name(path), SIDE))
    student = cfg.model
    cfg = prepare_config(cfg)
    assert cfg.model.student == student
    torch.manual_seed(0)
    model: Any = MODELS.build(cfg.model)
    model.init_weights()
    settle(model.student)
    model.train()
    wrapper: Any = build_optim_wrapper(model, {**cfg.optim_wrapper, "type": "OptimWrapper"})
    data = DATASETS.build(cfg.train_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([data[i] for i in (0, 2)]), True)
    before = copy.deepcopy(model.student.state_dict())
    losses = model(**batch, mode="loss")
    total, logged = model.parse_losses(losses)
    assert all(value.isfinite() for value in logged.values())
    for pair in model.distiller.recipe.pairs:
        assert logged[f"kd_{pair.name}_raw"] > 0, pair.name
        assert losses[f"loss_kd_{pair.name}"].requires_grad, pair.name
    wrapper.backward(total)
    # Every pair's way back leads into the backbone, all adapters learn, no teacher does.
    gradients = [p.grad for p in model.student.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(p.grad.any() for p in model.student.backbone.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.distiller.parameters())
    for teacher in model.distiller.teachers.values():
        assert all(p.grad is None for p in teacher.model.parameters())
    wrapper.step()
    after = model.student.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def by_teacher(path: Path) -> tuple[str, str]:
    return str(sorted(e.config for e in teachers_of(read(path)).values())), name(path)


@pytest.mark.parametrize("path", SMALL, ids=name)
def test_small_config_takes_a_step(path, pictures, checkpoints):
    take_a_step(path, pictures, checkpoints)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LARGE, key=by_teacher), ids=name)
def test_coco_config_takes_a_step_with_the_whole_networks(path, pictures, checkpoints):
    take_a_step(path, pictures, checkpoints)
