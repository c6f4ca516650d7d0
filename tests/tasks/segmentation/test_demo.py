from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from PIL import Image

from taskdistill.core.errors import CheckpointError
from taskdistill.tasks.common.cost import count_macs, count_parameters
from taskdistill.tasks.openmm.config import load_config, plain_config
from taskdistill.tasks.segmentation.demo import (
    CHANGES,
    GAINED,
    LOST,
    OTHER,
    CamVidTable,
    SegmentationDemo,
    blend,
    change_map,
    picture,
    spread_out,
)

CONFIGS = Path(__file__).parents[3] / "configs" / "segmentation"
SIZE = 64  # of the demo's scenes
FOLDERS = {task.folder: task for task in (SegmentationDemo, CamVidTable)}
HEADINGS = ["image", "ground truth", "teacher", "alone", "cwd", "what distillation changed"]


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        scenes = {
            f"{split}_dataloader.dataset.scenes.{part}": count
            for split in ("train", "val")
            for part, count in (("train", 4), ("val", 11))
        }
        yield load_config(str(CONFIGS / "demo" / "student.py"), scenes)


@pytest.fixture(scope="module")
def task(cfg) -> SegmentationDemo:
    task = SegmentationDemo()
    assert task.prepare(cfg) == "Data: 4 images for training, 11 for validation."
    return task


def save(cfg, path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.save({"meta": {}, "state_dict": MODELS.build(cfg.model).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(cfg, task, tmp_path_factory) -> Path:
    return save(cfg, tmp_path_factory.mktemp("run") / "epoch_1.pth", 0)


@pytest.fixture(scope="module")
def model(cfg, task, checkpoint):
    return task.load(cfg, checkpoint)


def test_load_is_strict(cfg, task, checkpoint, tmp_path, model):
    assert not model.training
    saved = torch.load(checkpoint, weights_only=True)
    lost = next(iter(saved["state_dict"]))
    del saved["state_dict"][lost]
    torch.save(saved, tmp_path / "lost.pth")
    with pytest.raises(CheckpointError, match=lost):
        task.load(cfg, tmp_path / "lost.pth")


def test_load_asks_for_no_pretrained_weights(cfg, task, checkpoint, model):
    asking = copy.deepcopy(cfg)
    asking.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="none://of.these")
    asking.model.pretrained = "none://of.these"
    loaded = task.load(asking, checkpoint)
    assert "none://of.these" not in str(loaded.backbone.init_cfg)
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_cost_of_a_segmenter(cfg, task, model):
    macs = count_macs(task.forward_call(model, cfg))
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    # The first layer alone.
    least = (SIZE // first.stride[0]) ** 2 * first.weight.numel()
    assert least < macs < 1000 * least
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_predict_call_gives_a_mask(cfg, task, model):
    with torch.no_grad():
        samples = task.predict_call(model, cfg)()
    assert samples[0].pred_sem_seg.data.shape == (1, SIZE, SIZE)


def test_one_figure_a_class_as_the_metric_logs_it(cfg, task):
    figures = task.class_metrics(cfg)
    assert [(figure.key, figure.label) for figure in figures[:2]] == [
        ("IoU.background", "background"),
        ("IoU.0", "0"),
    ]
    assert len(figures) == 11


def test_gallery(cfg, task, model, tmp_path):
    other = task.load(cfg, save(cfg, tmp_path / "other.pth", 1))
    gallery = task.gallery(cfg, {"teacher": model, "alone": model, "cwd": other})
    assert list(gallery.headings) == HEADINGS
    assert len(gallery.rows) == 8
    assert list(gallery.legend[:3]) == list(CHANGES)
    assert [label for _, label in gallery.legend[3:]] == ["background", *"0123456789"]
    for image, truth, teacher, alone, distilled, changes in gallery.rows:
        assert Image.open(io.BytesIO(image.png)).size == (image.width, image.height) == (SIZE, SIZE)
        assert image.pixelated
        assert truth.png != teacher.png
        assert teacher.png == alone.png
        assert alone.png != distilled.png
        drawn = np.asarray(Image.open(io.BytesIO(changes.png)))
        assert (drawn.max(2) != drawn.min(2)).any()
        assert changes.note.startswith("right ")
    shown = {row[0].png for row in gallery.rows}
    assert len(shown) == 8


def test_gallery_says_when_nothing_changed(cfg, task, model):
    gallery = task.gallery(cfg, {"teacher": model, "alone": model, "cwd": model})
    for *_, changes in gallery.rows:
        drawn = np.asarray(Image.open(io.BytesIO(changes.png)))
        assert (drawn == drawn[..., :1]).all()
        assert changes.note == "right 0.0 %, wrong 0.0 %"


def test_blend_mixes_the_colour_of_the_class():
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    labels = np.array([[0, 1, 255]])
    mixed = blend(image, labels, [[200, 0, 100], [0, 50, 250]], strength=0.25)
    assert mixed.tolist() == [[[125, 75, 100], [75, 88, 138], [75, 75, 75]]]
    assert mixed.dtype == np.uint8


def test_blend_at_the_ends_gives_image_or_colour():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    labels = np.array([[0, 1], [1, 0]])
    palette = [[9, 8, 7], [250, 251, 252]]
    assert (blend(image, labels, palette, strength=0) == image).all()
    assert (blend(image, labels, palette, strength=1) == np.array(palette)[labels]).all()


def test_change_map_tells_the_four_cases_and_the_unlabelled_apart():
    image = np.full((1, 6, 3), 100, dtype=np.uint8)
    truth = np.array([[0, 0, 0, 0, 255, 0]])
    before = np.array([[1, 0, 1, 1, 1, 0]])
    after = np.array([[0, 1, 2, 1, 0, 0]])
    drawn, gained, lost = change_map(image, truth, before, after)
    colours = ["#" + "".join(f"{part:02x}" for part in pixel) for pixel in drawn[0]]
    dim = "#232323"
    assert colours == [GAINED, LOST, OTHER, dim, dim, dim]
    assert (gained, lost) == (1, 1)


def test_change_map_keeps_the_unchanged_image_as_dim_grey():
    image = np.array([[[0, 100, 200]]], dtype=np.uint8)
    same = np.zeros((1, 1), dtype=np.int64)
    drawn, *_ = change_map(image, same, same, same)
    assert drawn.tolist() == [[[35, 35, 35]]]


def test_indices_are_spread_over_all_and_never_repeat():
    assert spread_out(101, 8) == [0, 12, 25, 37, 50, 63, 75, 88]
    assert spread_out(5, 8) == [0, 1, 2, 3, 4]
    assert spread_out(0, 8) == []


def test_large_pictures_are_not_drawn_in_squares():
    assert not picture(np.zeros((2, 640, 3), dtype=np.uint8)).pixelated


@pytest.mark.parametrize("folder", FOLDERS)
def test_configs_build(folder):
    task = FOLDERS[folder]
    student = load_config(str(CONFIGS.parent / folder / "student.py"))
    teacher = load_config(str(CONFIGS.parent / folder / "teacher.py"))
    small, large = (
        sum(p.numel() for p in MODELS.build(cfg.model).parameters()) for cfg in (student, teacher)
    )
    assert small < 300_000
    assert large > 10 * small
    for name in task.variants:
        cfg = load_config(str(CONFIGS.parent / folder / f"{name}.py"))
        assert cfg.distill.teacher.config == f"configs/{folder}/teacher.py"
        length = teacher.train_cfg.max_epochs
        assert cfg.distill.teacher.checkpoint.endswith(f"/{task.name}/teacher/epoch_{length}.pth")
        assert plain_config(cfg).model == student.model
        assert cfg.train_cfg == student.train_cfg


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_learning_rate_cycle_is_as_long_as_training(folder, role):
    cfg = load_config(str(CONFIGS.parent / folder / f"{role}.py"))
    (cycle,) = cfg.param_scheduler
    assert cycle.end == cycle.total_steps == cfg.train_cfg.max_epochs
    assert cfg.train_cfg.max_epochs % cfg.train_cfg.val_interval == 0


def test_camvid_compares_the_terms():
    pairs = {
        name: [
            pair["loss"]
            for pair in load_config(str(CONFIGS / "camvid" / f"{name}.py")).distill.pairs
        ]
        for name in CamVidTable.variants
    }
    assert pairs == {
        "pixel": ["PixelWise"],
        "pixel_pair": ["PixelWise", "PairWise"],
        "structured": ["PixelWise", "PairWise", "Holistic"],
        "cwd": ["ChannelWiseDistillation"],
    }
