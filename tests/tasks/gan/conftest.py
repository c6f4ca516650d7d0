"""Tiny translators on tiny pictures: everything real, seconds to train."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.registry import DATASETS, MODELS, DefaultScope  # noqa: E402
from PIL import Image  # noqa: E402

import taskdistill.tasks.gan  # noqa: E402, F401
from taskdistill.tasks.openmm import prepare_config  # noqa: E402
from taskdistill.tasks.openmm.runner import build_runner  # noqa: E402

# What a user's own package might add; it never imports taskdistill.
PARTS = '''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Kill this process after the step that STOP_AFTER names, counted from 1 over the whole run."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(os.environ.get("STOP_AFTER", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
'''
SIZE = 16
WIDE = dict(type="MobileResnetGenerator", width=8, blocks=3)
THIN = dict(type="MobileResnetGenerator", width=4, blocks=3)
SUPER = dict(type="SuperMobileResnetGenerator", space=[[6, 4]] * 8, blocks=3)
JUDGE = dict(type="PatchDiscriminator", width=4, layers=1, norm="instance")


class TinyGan:
    """A folder of pictures, and configs over it."""

    thin, wide, super = THIN, WIDE, SUPER

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = np.random.default_rng(0)
        for split, count in (("train", 12), ("val", 4)):
            (folder / "pairs" / split).mkdir(parents=True)
            for index in range(count):
                noise = generator.integers(0, 255, (3, 4, 3), dtype=np.uint8)
                small = Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
                pair = np.concatenate([np.asarray(small), 255 - np.asarray(small)], 1)
                Image.fromarray(pair).save(folder / "pairs" / split / f"{index}.png")
        (folder / "gan_parts.py").write_text(PARTS)
        self.env = {
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }

    def model(self, kind: str = "Pix2Pix", generator: Mapping = THIN, **options: Any) -> dict:
        return dict(type=kind, generator=dict(generator), discriminator=dict(JUDGE), **options)

    def config(self, model: Mapping | None = None, unpaired: bool = False, **entries: Any) -> dict:
        """Two epochs of three batches of four."""
        model = dict(model or self.model())
        kind = "UnalignedImages" if unpaired else "AlignedImages"
        data = dict(type=kind, data_root=str(self.folder / "pairs"), load_size=20, crop_size=SIZE)
        if unpaired:
            data["aligned"] = True
        loader = dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="pseudo_collate"),
        )
        val = dict(type="AlignedImages", data_root=data["data_root"], crop_size=SIZE)
        adam = dict(type="Adam", lr=2e-3, betas=(0.5, 0.999))
        config = dict(
            task="gan",
            default_scope="mmengine",
            custom_imports=dict(
                imports=["taskdistill.tasks.gan", "gan_parts"], allow_failed_imports=False
            ),
            model=model,
            train_dataloader={**loader, "dataset": dict(data, split="train")},
            val_dataloader={
                **loader,
                "sampler": dict(type="DefaultSampler", shuffle=False),
                "dataset": dict(val, split="val", test_mode=True),
            },
            val_evaluator=[dict(type="ImageSetDistance"), dict(type="PairedError")],
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=2),
            val_cfg=dict(type="ValLoop"),
            optim_wrapper=dict(
                constructor="GanOptimWrapperConstructor",
                generator=dict(optimizer=adam),
                discriminator=dict(optimizer=adam),
            ),
            param_scheduler=[
                dict(type="LinearLR", start_factor=1.0, end_factor=0.1, begin=0, end=2)
            ],
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(type="CheckpointHook", interval=1),
                param_scheduler=dict(type="ParamSchedulerHook"),
                timer=dict(type="IterTimerHook"),
                sampler_seed=dict(type="DistSamplerSeedHook"),
            ),
            log_processor=dict(type="LogProcessor", window_size=1, by_epoch=True),
            custom_hooks=[dict(type="KillHook")],
            randomness=dict(seed=3),
        )
        config["test_dataloader"] = config["val_dataloader"]
        config["test_evaluator"] = config["val_evaluator"]
        config["test_cfg"] = dict(type="TestLoop")
        config.update(entries)
        return copy.deepcopy(config)

    def write(self, config: Mapping, path: Path | None = None) -> str:
        path = path or self.folder / f"config_{uuid.uuid4().hex[:8]}.py"
        path.write_text(Config(copy.deepcopy(dict(config))).pretty_text)
        return str(path)

    def build(self, model: Mapping, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        built = MODELS.build(ConfigDict(copy.deepcopy(dict(model))))
        built.init_weights()
        return built

    def teacher(self, kind: str = "Pix2Pix", seed: int = 7, **options: Any) -> dict[str, str]:
        """Config and checkpoint of a wide teacher, as training leaves them."""
        model = self.model(kind, WIDE, **options)
        built = self.build(model, seed)
        state = {name: value * 8 for name, value in built.state_dict().items()}
        checkpoint = self.folder / f"teacher_{uuid.uuid4().hex[:8]}.pth"
        torch.save({"meta": {}, "state_dict": state, "gan": built.adversary_state()}, checkpoint)
        return dict(config=self.write(self.config(model)), checkpoint=str(checkpoint))

    def distill(self, *pairs: Mapping, teacher: Mapping | None = None, **options: Any) -> dict:
        given = [dict(p) for p in pairs] or [
            dict(student="generator.model.9", loss="FeatureImitation", name="down"),
            dict(student="outputs.image", loss="Reconstruction", weight=10.0, name="image"),
        ]
        return dict(
            teacher=dict(teacher or self.teacher()), pairs=given, probe_size=SIZE, **options
        )

    def wrap(self, config: Mapping, work_dir: Path) -> Config:
        cfg = Config(copy.deepcopy(dict(config)))
        cfg.work_dir, cfg.launcher = str(work_dir), "none"
        cfg.experiment_name = uuid.uuid4().hex
        return prepare_config(cfg)

    def runner(self, config: Mapping, work_dir: Path) -> Any:
        return build_runner(self.wrap(config, work_dir))

    def train(self, config: Mapping, work_dir: Path) -> Any:
        runner = self.runner(config, work_dir)
        runner.train()
        return runner

    def data(self, count: int = 4, **options: Any) -> dict[str, Any]:
        """A batch as the loader gives it."""
        entry = dict(
            type="AlignedImages",
            data_root=str(self.folder / "pairs"),
            split="train",
            crop_size=SIZE,
            test_mode=True,
        )
        dataset = DATASETS.build({**entry, **options})
        return pseudo_collate([dataset[i] for i in range(count)])


@pytest.fixture(scope="session")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyGan]:
    folder = tmp_path_factory.mktemp("gan")
    made = TinyGan(folder)
    sys.path.insert(0, str(folder))
    importlib.import_module("gan_parts")
    yield made
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """In place of the one above: nothing here is in an mm library's registries."""
    with DefaultScope.overwrite_default_scope("mmengine"):
        yield
