from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

from mmdet.registry import MODELS
from PIL import Image

from taskdistill.core.errors import CheckpointError
from taskdistill.tasks.common.cost import count_macs, count_parameters
from taskdistill.tasks.common.demo.report import Mark
from taskdistill.tasks.detection import demo
from taskdistill.tasks.detection.demo import DetectionDemo, box_mark, class_colour
from taskdistill.tasks.openmm.config import load_config

CONFIGS = Path(__file__).parents[3] / "configs" / "detection" / "demo"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        scenes = {
            f"{split}_dataloader.dataset.scenes.{part}": count
            for split in ("train", "val")
            for part, count in (("train", 4), ("val", 14))
        }
        yield load_config(str(CONFIGS / "student.py"), scenes)


@pytest.fixture(scope="module")
def task(cfg) -> DetectionDemo:
    task = DetectionDemo()
    assert task.prepare(cfg) == "Data: 4 images for training, 14 for validation."
    return task


@pytest.fixture(scope="module")
def checkpoint(cfg, task, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "epoch_1.pth"
    torch.manual_seed(0)
    torch.save({"meta": {}, "state_dict": MODELS.build(cfg.model).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def model(cfg, task, checkpoint):
    return task.load(cfg, checkpoint)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(demo).values() if isinstance(kind, type) and "name" in vars(kind)],
)
def test_every_demo_has_the_configs_it_names(kind):
    task = kind()
    configs = task.load_configs(CONFIGS.parents[1] / task.folder)
    assert {"teacher", "alone", *task.variants} == configs.keys()
    teacher, students = configs.pop("teacher"), list(configs.values())
    assert all(cfg.model == students[0].model for cfg in students)
    assert all(cfg.train_cfg.max_epochs == students[0].train_cfg.max_epochs for cfg in students)
    assert teacher.model != students[0].model


def test_load_is_strict(cfg, task, checkpoint, tmp_path, model):
    assert not model.training
    saved = torch.load(checkpoint, weights_only=True)
    lost = next(iter(saved["state_dict"]))
    del saved["state_dict"][lost]
    torch.save(saved, tmp_path / "lost.pth")
    with pytest.raises(CheckpointError, match=lost):
        task.load(cfg, tmp_path / "lost.pth")


def test_cost_of_a_detector(cfg, task, model):
    macs = count_macs(task.forward_call(model, cfg))
    stem = model.backbone.conv1
    # The stem alone: 7x7 convolution with stride 2 on the 128x128 image.
    least = 64 * 64 * stem.out_channels * 3 * 49
    assert least < macs < 100 * least
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())


def test_predict_call_gives_boxes(cfg, task, model):
    with torch.no_grad():
        samples = task.predict_call(model, cfg)()
    assert samples[0].pred_instances.bboxes.shape[1] == 4


def test_gallery(cfg, task, model, monkeypatch):
    monkeypatch.setattr("taskdistill.tasks.detection.demo.MIN_SCORE", 0.0)
    gallery = task.gallery(cfg, {"teacher": model, "student": model})
    assert gallery.headings == ["ground truth", "teacher", "student"]
    assert len(gallery.rows) == 8
    for truth, teacher, student in gallery.rows:
        assert Image.open(io.BytesIO(truth.png)).size == (truth.width, truth.height) == (128, 128)
        assert len(truth.marks) >= 2
        assert all(mark.label in "0123456789" for mark in truth.marks)
        assert all(0 <= mark.x <= mark.x + mark.width <= 128.5 for mark in truth.marks)
        assert teacher.marks == student.marks
        assert teacher.marks


def test_gallery_hides_weak_boxes(cfg, task, model, monkeypatch):
    monkeypatch.setattr("taskdistill.tasks.detection.demo.MIN_SCORE", 1.1)
    gallery = task.gallery(cfg, {"student": model})
    assert not any(row[1].marks for row in gallery.rows)


def test_box_mark():
    assert box_mark([1, 2, 4, 8], 3, ("a", "b", "c", "d")) == Mark(1, 2, 3, 6, "d", class_colour(3))
    assert box_mark([0, 0, 1, 1], 0, ("a",), 0.305).label.startswith("a 0.3")


def test_each_of_ten_classes_has_a_colour_that_carries_white_letters():
    colours = [class_colour(i) for i in range(10)]
    assert len(set(colours)) == 10
    assert class_colour(10) == colours[0]
    for colour in colours:
        linear = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) > 4.2
