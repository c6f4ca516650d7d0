"""Steps of mmengine's runner, taken one by one."""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import LOOPS, MODELS
from mmengine.registry.utils import init_default_scope
from mmengine.runner import EpochBasedTrainLoop

from taskdistill.tasks.openmm import load_config, prepare_config
from taskdistill.tasks.openmm.model import DistilledModel
from taskdistill.tasks.openmm.runner import build_runner

from .subject import Built, Way, hold_answers, runs_as

__all__ = ["Training", "random_checkpoint", "without_downloads"]

_NUMBERS = itertools.count()
_ABSENT = ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg")
_ABSENT += ("test_evaluator", "param_scheduler", "auto_scale_lr", "load_from")
# They write, or wait for figures that others make.
_HOOKS = ("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed")


@LOOPS.register_module()
class HeldLoop(EpochBasedTrainLoop):
    """Everything that comes before the first step; the steps are taken by the benchmark."""

    def run(self) -> torch.nn.Module:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        return self.runner.model

    def take(self, batch: Mapping[str, Any]) -> Any:
        """One step, with all hooks, as in a run."""
        data = {k: v if k == "inputs" else copy.deepcopy(v) for k, v in batch.items()}
        self.runner.call_hook("before_train_iter", batch_idx=0, data_batch=data)
        figures = self.runner.model.train_step(data, optim_wrapper=self.runner.optim_wrapper)
        self.runner.call_hook("after_train_iter", batch_idx=0, data_batch=data, outputs=figures)
        self._iter += 1
        return figures


@dataclass(frozen=True)
class Training:
    """A student's training, which can be had in several ways.

    Attributes:
        config: The student's, with its `distill`; the teacher's entry is complete.
        args: The command line.
        scratch: Folder for work dirs and the cache.
        cache: Further entries of `distill.cache`.
    """

    config: Config
    args: argparse.Namespace
    scratch: Path
    cache: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, way: Way, **model: Any) -> Built:
        """Everything up to the first step; `model` are further entries for the student's."""
        cfg, number = copy.deepcopy(self.config), next(_NUMBERS)
        if way.distilled:
            cfg.distill.teacher.update(way.teacher or {})
            if way.cache:
                folder = str(self.scratch / f"cache{number}")
                cfg.distill.cache = dict(path=folder, views=1, dtype="fp16", **self.cache)
        else:
            cfg.pop("distill")
        for key, value in (way.switches or {}).items():
            cfg[key] = value
        cfg.model.update(model)
        for key in _ABSENT:
            cfg.pop(key, None)
        cfg.default_hooks = dict.fromkeys(_HOOKS)
        cfg.train_cfg = dict(type="HeldLoop", max_epochs=1000)
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        # By name, mmengine keeps loggers and message hubs apart.
        cfg.experiment_name = f"step{number}"
        cfg.visualizer = dict(type="mmengine.Visualizer", name=f"step{number}", vis_backends=[])
        cfg.work_dir, cfg.log_level = str(self.scratch / f"run{number}"), "ERROR"
        cfg.randomness = dict(seed=0)
        runner = build_runner(prepare_config(cfg))
        runner.train()
        torch.set_num_threads(self.args.threads)
        loop: Any = runner.train_loop
        batch = next(iter(runner.train_dataloader))
        net: Any = runner.model
        distiller = net.distiller if isinstance(net, DistilledModel) else None
        if way.held:
            hold_answers(distiller)
        teachers = {} if distiller is None else distiller.teachers
        return Built(lambda: loop.take(batch), runs_as(teachers))


def random_checkpoint(config: str, scratch: Path) -> dict[str, str]:
    """The entry of a teacher with random weights, which are written as a checkpoint."""
    cfg = load_config(config)
    without_downloads(cfg)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    torch.manual_seed(1)
    checkpoint = scratch / "teacher.pth"
    torch.save(MODELS.build(cfg.model).state_dict(), checkpoint)
    return dict(config=config, checkpoint=str(checkpoint))


def without_downloads(node: Any) -> None:
    """Take out of a config, in place, what fetches weights or needs several processes."""
    if isinstance(node, (dict, Config)):
        for key, value in list(node.items()):
            pretrained = isinstance(value, Mapping) and value.get("type") == "Pretrained"
            if key == "pretrained" or (key == "init_cfg" and pretrained):
                node[key] = None
            elif key == "type" and value == "SyncBN":
                node[key] = "BN"
            else:
                without_downloads(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            without_downloads(value)
