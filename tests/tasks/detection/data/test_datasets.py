from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("sklearn")

from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from taskdistill.core.errors import DataError
from taskdistill.tasks.detection.data import bccd
from taskdistill.tasks.detection.data.datasets import BCCD, DigitScenes
from taskdistill.tasks.openmm.data.digit_scenes import SceneOptions, compose_scene

CONFIGS = Path(__file__).parents[4] / "configs" / "detection" / "_base_"


@pytest.fixture(autouse=True)
def mmdet_scope(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "cache"))
    if not DefaultScope.check_instance_created("mmdet"):
        register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture
def digits() -> Config:
    cfg = Config.fromfile(CONFIGS / "digit_scenes.py")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.scenes = {"train": 8, "val": 6, "size": 64, "options": {"empty": 0.5}}
    return cfg


def evaluate(cfg: Config, loader: dict, ann_file: str | None) -> dict[str, float]:
    """Evaluate the ground truth, shifted and partly mislabelled, as if it were predicted."""
    data = Runner.build_dataloader(loader)
    metric = METRICS.build({**cfg.val_evaluator, "ann_file": ann_file})
    metric.dataset_meta = data.dataset.metainfo
    generator = torch.Generator().manual_seed(0)
    for batch in data:
        samples = []
        for sample in batch["data_samples"]:
            truth = sample.gt_instances
            n = len(truth.labels)
            wrong = torch.rand(n, generator=generator) < 0.2
            predicted = {
                "bboxes": truth.bboxes.tensor + torch.randn(n, 4, generator=generator),
                "labels": torch.where(wrong, 0, truth.labels),
                "scores": torch.rand(n, generator=generator),
            }
            samples.append({**sample.to_dict(), "pred_instances": predicted})
        metric.process(batch, samples)
    return metric.evaluate(len(data.dataset))


def test_digit_scenes_config_gives_the_composed_scenes(digits):
    dataset = DATASETS.build(digits.train_dataloader.dataset)
    assert isinstance(dataset, DigitScenes) and len(dataset) == 8
    assert dataset.metainfo["classes"] == tuple("0123456789")
    assert len(dataset.metainfo["palette"]) == 10
    for i in range(8):
        sample = dataset[i]
        scene = compose_scene("train", i, 64, options=SceneOptions(empty=0.5))
        truth = sample["data_samples"].gt_instances
        boxes = [(x, y, x + w, y + h) for _, (x, y, w, h) in scene.digits]
        assert truth.labels.tolist() == [label for label, _ in scene.digits]
        assert truth.bboxes.tensor.tolist() == [list(box) for box in boxes]
        # BGR as mmcv reads it, and lossy.
        pixels = sample["inputs"].numpy()[::-1].transpose(1, 2, 0).astype(float)
        assert np.abs(pixels - np.asarray(scene.image)).mean() < 4


def test_both_splits_share_one_folder(digits):
    train = DATASETS.build(digits.train_dataloader.dataset)
    val = DATASETS.build(digits.val_dataloader.dataset)
    assert train.data_root == val.data_root and len(val) == 6
    assert train.ann_file != val.ann_file


def test_plain_coco_metric_needs_no_path(digits):
    """mmdet's conversion of the dataset's ground truth gives the figures of the json file."""
    dataset = DATASETS.build(digits.val_dataloader.dataset)
    assert dataset.ann_file.endswith("val.json")
    with_file = evaluate(digits, digits.val_dataloader, dataset.ann_file)
    without = evaluate(digits, digits.val_dataloader, None)
    assert with_file == without
    assert 0 < without["coco/bbox_mAP"] < 1


def test_empty_scenes_are_kept_and_train(digits):
    """A dense head learns from scenes without digits, and from a batch of nothing else."""
    dataset = DATASETS.build(digits.train_dataloader.dataset)
    samples = [dataset[i] for i in range(len(dataset))]
    empty = [s for s in samples if len(s["data_samples"].gt_instances) == 0]
    assert 0 < len(empty) < len(samples) == 8
    model = MODELS.build(
        {
            "type": "GFL",
            "data_preprocessor": {"type": "DetDataPreprocessor", "pad_size_divisor": 32},
            "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8},
            "neck": {
                "type": "FPN",
                "in_channels": [8, 16, 32, 64],
                "out_channels": 16,
                "start_level": 1,
                "num_outs": 3,
            },
            "bbox_head": {
                "type": "GFLHead",
                "num_classes": 10,
                "in_channels": 16,
                "feat_channels": 16,
                "stacked_convs": 1,
                "norm_cfg": {"type": "BN"},
                "anchor_generator": {
                    "type": "AnchorGenerator",
                    "ratios": [1.0],
                    "octave_base_scale": 4,
                    "scales_per_octave": 1,
                    "strides": [8, 16, 32],
                },
                "loss_cls": {"type": "QualityFocalLoss"},
                "loss_dfl": {"type": "DistributionFocalLoss"},
                "loss_bbox": {"type": "GIoULoss"},
            },
            "train_cfg": {
                "assigner": {"type": "ATSSAssigner", "topk": 9},
                "allowed_border": -1,
                "pos_weight": -1,
            },
        }
    )
    for batch in (samples, empty):
        data = model.data_preprocessor(pseudo_collate(batch), training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_unknown_split_and_option(digits):
    with pytest.raises(DataError, match="splits train and val, not 'test'"):
        DATASETS.build({**digits.val_dataloader.dataset, "split": "test"})
    with pytest.raises(DataError, match="Did you mean 'size'"):
        DATASETS.build({**digits.val_dataloader.dataset, "scenes": {"sise": 3}})


@pytest.mark.data
def test_bccd_config():
    cfg = Config.fromfile(CONFIGS / "bccd.py")
    loader = copy.deepcopy(cfg.val_dataloader)
    loader.update(num_workers=0, persistent_workers=False)
    dataset = DATASETS.build(loader.dataset)
    assert isinstance(dataset, BCCD) and len(dataset) == 87
    assert tuple(dataset[0]["inputs"].shape) == (3, 240, 320)
    assert Path(dataset[0]["data_samples"].img_path).is_file()
    ann_file = str(bccd.prepare(os.path.join(os.environ["TASKDISTILL_DATA"], "bccd"), "val"))
    assert evaluate(cfg, loader, None) == evaluate(cfg, loader, ann_file)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    truth = [train[i]["data_samples"].gt_instances.bboxes.tensor for i in range(20)]
    boxes = torch.cat(truth)
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 320 and boxes[:, 3].max() <= 240


def test_bccd_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("TASKDISTILL_DATA", str(tmp_path))
    cfg = Config.fromfile(CONFIGS / "bccd.py")
    assert cfg.data_root == f"{tmp_path}/bccd"
    with pytest.raises(DataError, match=r"bccd is not a Pascal VOC dataset.*TASKDISTILL_DATA"):
        DATASETS.build(cfg.train_dataloader.dataset)
    monkeypatch.delenv("TASKDISTILL_DATA")
    assert Config.fromfile(CONFIGS / "bccd.py").data_root == "data/bccd"


def test_bccd_with_a_photo_missing(tmp_path):
    root = tmp_path / "bccd"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("x")
    (root / "Annotations/x.xml").write_text(
        "<annotation><size><width>9</width><height>9</height></size></annotation>"
    )
    with pytest.raises(DataError, match=r"1 of the 1 images .*: x\.jpg"):
        BCCD(split="train", data_root=str(root))
