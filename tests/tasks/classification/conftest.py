"""Tiny classifiers on tiny pictures: everything real, seconds to train."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("torchvision")

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import taskdistill.tasks.classification.classifier  # noqa: E402
import taskdistill.tasks.classification.data  # noqa: E402
import taskdistill.tasks.classification.hooks  # noqa: E402
import taskdistill.tasks.classification.metrics  # noqa: E402
import taskdistill.tasks.classification.preprocessor  # noqa: E402, F401
from taskdistill.tasks.openmm import prepare_config  # noqa: E402
from taskdistill.tasks.openmm.runner import build_runner  # noqa: E402

CLASSES = ("red", "green", "blue")
SIZE = 8


class TinyNetwork(nn.Module):
    """Three layers of 8x8 images, with batch norm; what a user of plain torch writes."""

    def __init__(self, width: int = 4, num_classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1))
        self.layer2 = nn.Sequential(nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 3, 2, 1))
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(x))))
        return self.fc(x.relu().mean((2, 3)))


class TinyClassifiers:
    """A file of coloured noise, and configs over it.

    Attributes:
        folder: Where it lies.
        npz: The file: 24 training and 12 test images of 3x8x8, the classes told by colour.
    """

    classes, size = CLASSES, SIZE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.npz = folder / "tiny.npz"
        generator = np.random.default_rng(0)
        arrays: dict[str, Any] = {"classes": np.array(CLASSES)}
        for split, count in (("train", 24), ("test", 12)):
            labels = np.arange(count) % 3
            images = generator.integers(0, 120, (count, SIZE, SIZE, 3), dtype=np.uint8)
            images[np.arange(count), :, :, labels] += 100
            arrays |= {f"x_{split}": images, f"y_{split}": labels.astype(np.uint8)}
        np.savez(self.npz, **arrays)

    def network(self, **options: Any) -> dict[str, Any]:
        return dict(type=TinyNetwork, **options)

    def model(self, kind: str = "ImageClassifier", **options: Any) -> dict[str, Any]:
        preprocessor = dict(
            type="ClassifierPreprocessor", mean=[110.0, 100.0, 90.0], std=[60.0, 50.0, 40.0]
        )
        given = dict(network=self.network(), num_classes=3, data_preprocessor=preprocessor)
        return dict(type=kind, **{**given, **options})

    def build(self, model: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return MODELS.build(copy.deepcopy(dict(model or self.model())))

    def batch(self, count: int = 6) -> dict[str, Any]:
        """A batch as the default collate makes it."""
        pixels = torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8)
        return {"inputs": pixels, "data_samples": torch.arange(count) % 3}

    def config(self, model: Mapping[str, Any] | None = None, **entries: Any) -> dict[str, Any]:
        """Two epochs of three batches of eight."""
        loader = dict(
            batch_size=8,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="default_collate"),
        )
        data = dict(type="NpzImages", path=str(self.npz))
        flip = dict(type="RandomHorizontalFlip")
        config = dict(
            default_scope="mmengine",
            model=dict(model or self.model()),
            train_dataloader={**loader, "dataset": dict(data, transforms=[flip])},
            val_dataloader={
                **loader,
                "sampler": dict(type="DefaultSampler", shuffle=False),
                "dataset": dict(data, split="test"),
            },
            val_evaluator=dict(type="Accuracy"),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1),
            val_cfg=dict(type="ValLoop"),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="CheckpointHook", interval=1),
                param_scheduler=dict(type="ParamSchedulerHook"),
                timer=dict(type="IterTimerHook"),
                sampler_seed=dict(type="DistSamplerSeedHook"),
            ),
            custom_hooks=[dict(type="PartnersHook"), dict(type="RepeatableHook")],
            randomness=dict(seed=3),
        )
        config.update(entries)
        return copy.deepcopy(config)

    def runner(self, config: Mapping[str, Any], work_dir: Path) -> Any:
        # mmengine's own task name, so that the data and hooks are exactly those given above.
        cfg = Config(copy.deepcopy(dict(config)))
        cfg.work_dir, cfg.launcher = str(work_dir), "none"
        cfg.experiment_name = uuid.uuid4().hex
        prepared = cfg
        if cfg.get("task"):
            prepared = prepare_config(cfg)
        elif cfg.train_dataloader.dataset.type != "SeededDataset":
            inner = cfg.train_dataloader.dataset
            prepared.train_dataloader.dataset = ConfigDict(type="SeededDataset", dataset=inner)
        return build_runner(prepared)

    def train(self, config: Mapping[str, Any], work_dir: Path) -> Any:
        runner = self.runner(config, work_dir)
        runner.train()
        return runner


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyClassifiers:
    return TinyClassifiers(tmp_path_factory.mktemp("classification"))


@pytest.fixture
def tiny_network() -> TinyNetwork:
    return TinyNetwork()


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """In place of the one above: nothing here is in an mm library's registries."""
    with DefaultScope.overwrite_default_scope("mmengine"):
        yield
