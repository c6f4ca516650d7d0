"""From a config with a ``distill`` entry to one that mmengine's runner trains."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from ...core.errors import ConfigError

__all__ = ["load_config", "plain_config", "prepare_config"]


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and merge command-line options into it.

    Raises:
        ConfigError: If the file is missing or cannot be read.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"Config {path!r} does not exist (looked from {os.getcwd()!r}).")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        raise ConfigError(f"Config {path!r} cannot be read: {error}") from error
    if options:
        try:
            cfg.merge_from_dict(dict(options))
        except (KeyError, TypeError, AssertionError) as error:
            raise ConfigError(f"--cfg-options does not fit config {path!r}: {error}") from error
    if "model" not in cfg:
        raise ConfigError(f"Config {path!r} has no 'model'; inherit the student's own config.")
    return cfg


def plain_config(cfg: Config) -> Config:
    """Return the student's own config: what is left when distillation is taken out."""
    plain = copy.deepcopy(cfg)
    plain.pop("distill", None)
    imports = plain.get("custom_imports")
    if imports:
        # Reading the config has imported these; the deployed model must not need us.
        names = [imports.imports] if isinstance(imports.imports, str) else list(imports.imports)
        kept = [name for name in names if name.split(".")[0] != "taskdistill"]
        if kept:
            plain.custom_imports.imports = kept
        else:
            plain.pop("custom_imports")
    return plain


def prepare_config(cfg: Config) -> Config:
    """Wrap the student of a config that has ``distill``; leave any other as it is.

    The student's model, optimizer constructor, data and hooks stay what they are; they are wrapped
    so that terms are added, adapters trained, checkpoints kept deployable and runs repeatable.

    Raises:
        ConfigError: If the config cannot be wrapped.
    """
    student_config = plain_config(cfg).pretty_text
    cfg = copy.deepcopy(cfg)
    hooks = cfg.setdefault("default_hooks", ConfigDict())
    checkpoint = hooks.get("checkpoint")
    if checkpoint and checkpoint.get("type") == "CheckpointHook":
        checkpoint.type = "SafeCheckpointHook"
    if cfg.get("distill") is None:
        return cfg
    scope = cfg.get("default_scope")
    if scope is None:
        raise ConfigError("The config has no default_scope; inherit an mm config, which sets it.")
    if "optim_wrapper" not in cfg:
        raise ConfigError("The config has no optim_wrapper; inherit one of mm's schedules.")
    cfg.model = ConfigDict(
        type="DistilledModel", student=cfg.model, distill=cfg.distill, scope=scope
    )
    wrapper = cfg.optim_wrapper
    wrapper.student_constructor = wrapper.get("constructor", "DefaultOptimWrapperConstructor")
    wrapper.constructor = "DistillOptimWrapperConstructor"
    loader = cfg.get("train_dataloader")
    if loader:
        loader.dataset = ConfigDict(type="SeededDataset", dataset=loader.dataset)
        loop = cfg.get("train_cfg") or {}
        if loop.get("type") == "IterBasedTrainLoop" or loop.get("by_epoch") is False:
            loader.sampler = ConfigDict(type="NumberedSampler", sampler=loader.sampler)
    cfg.custom_hooks = [
        *(cfg.get("custom_hooks") or []),
        ConfigDict(type="DistillHook", student_config=student_config),
    ]
    return cfg
