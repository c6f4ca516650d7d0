"""A tiny once-for-all translator with its config and checkpoint, for the tests of the search."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

# In a module of its own, so that other processes find it.
PARTS = """
import random
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import BaseDataElement


@DATASETS.register_module()
class TinyPairs:
    metainfo = dict(name="tiny")

    def __init__(self, count=5):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        a, b = torch.randint(0, 256, (2, 3, 16, 16), generator=generator, dtype=torch.uint8)
        names = dict(img_path=f"{index}.png", target_path=f"{index}.png", paired=True)
        return dict(inputs=a, data_samples=BaseDataElement(metainfo=names, target=b))


@METRICS.register_module()
class TinyDistance(BaseMetric):
    def process(self, data_batch, data_samples):
        assert self.dataset_meta == dict(name="tiny")
        for sample in data_samples:
            error = (sample["fake"].float() - sample["target"].float()).abs().mean()
            self.results.append((error.item(), int(sample["img_path"][:-4])))

    def compute_metrics(self, results):
        errors = [error for error, _ in results]
        return dict(
            SmallFD=sum(errors) / len(errors),
            images=len(results),
            first=min(index for _, index in results),
            last=max(index for _, index in results),
            chance=random.random() + float(np.random.rand()) + torch.rand(()).item(),
            note="no number",
        )
"""

CONFIG = """
task = "gan"
default_scope = "mmengine"
custom_imports = dict(imports=["taskdistill.tasks.gan", "search_parts"], allow_failed_imports=False)
model = dict(
    type="ImageTranslator",
    generator=dict(
        type="SuperMobileResnetGenerator", space=[[8, 4]] + [[4]] * 4 + [[8, 4]] * 3, blocks=3
    ),
    discriminator=dict(width=4, layers=1),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="TinyPairs"),
)
val_evaluator = dict(type="TinyDistance")
val_cfg = dict(type="ValLoop")
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict(type="TestLoop")
train_dataloader = val_dataloader
optim_wrapper = dict(
    constructor="GanOptimWrapperConstructor",
    generator=dict(optimizer=dict(type="Adam", lr=1e-3)),
    discriminator=dict(optimizer=dict(type="Adam", lr=1e-3)),
)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=100)
param_scheduler = [dict(type="LinearLR", begin=50, end=100, by_epoch=True)]
work_dir = "elsewhere"
"""

DISTILL = """
distill = dict(
    teacher=dict(config="{teacher}", checkpoint="{teacher}.pth"),
    init=dict(generator="teacher"),
    pairs=[
        dict(student="outputs.image", loss="Reconstruction", weight=10.0),
        dict(student="generator.model.9", loss="FeatureImitation", adapter="sliced"),
    ],
)
search = dict(budget="0.5x", shape=[16, 16], limit_images=3)
"""

TEACHER = """
model = dict(
    type="ImageTranslator", generator=dict(type="MobileResnetGenerator", width=8, blocks=3)
)
"""


@dataclass(frozen=True)
class Supernet:
    """Where the tiny super-network lies."""

    config: str
    checkpoint: str
    teacher: str

    def with_text(self, name: str, *changes: tuple[str, str], more: str = "") -> str:
        """A copy of the config with other text in it."""
        path = Path(self.config)
        text = path.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path.with_name(name).write_text(text + more)
        return str(path.with_name(name))


@pytest.fixture
def supernet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supernet]:
    from mmengine.config import Config

    from taskdistill.tasks.gan.generate import build_model
    from taskdistill.tasks.gan.search.evaluate import supernet_config

    (tmp_path / "search_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    teacher, config = tmp_path / "teacher.py", tmp_path / "supernet.py"
    teacher.write_text(TEACHER)
    config.write_text(CONFIG + DISTILL.format(teacher=teacher))
    model = build_model(supernet_config(config))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.generator.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    checkpoint: dict[str, Any] = dict(
        state_dict=model.state_dict(),
        gan=dict(version=1, discriminators=model.adversary_state()["discriminators"], pools={}),
    )
    torch.save(checkpoint, tmp_path / "supernet.pth")
    plain = build_model(Config.fromfile(str(teacher)))
    torch.save(dict(state_dict=plain.state_dict()), f"{teacher}.pth")
    yield Supernet(str(config), str(tmp_path / "supernet.pth"), str(teacher))
    _forget()


def _forget() -> None:
    """Every test writes its own parts, and registers them anew."""
    from mmengine.registry import DATASETS, METRICS

    sys.modules.pop("search_parts", None)
    DATASETS.module_dict.pop("TinyPairs", None)
    METRICS.module_dict.pop("TinyDistance", None)
