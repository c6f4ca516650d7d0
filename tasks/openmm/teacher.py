"""Build a teacher from a config and a checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...core.errors import ConfigError, TeacherError, did_you_mean
from ...core.teacher import FrozenTeacher, load_weights, read_checkpoint, state_sha256
from .adapter import bare
from .operators import plain_operators
from .preprocess import own_images

__all__ = [
    "SAFE_GLOBALS",
    "build_teacher",
    "forget_our_scope",
    "read_mm_checkpoint",
    "read_model_config",
]


def _scheduler_attribute(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` while a checkpoint is read.

    mmengine's histories and one-cycle schedulers save some of their own functions, which pickle
    writes as attributes of the class; nothing else may be looked up.
    """
    if owner not in (HistoryBuffer, OneCycleParamScheduler):
        raise pickle.UnpicklingError(f"global getattr({owner!r}, {name!r}) is refused")
    return getattr(owner, name)


_numpy: Any = np._core.multiarray  # type: ignore[attr-defined]  # how numpy pickles its arrays

# What mmengine puts into a checkpoint beside tensors: scalar histories and numpy numbers. None of
# these runs code of the file when rebuilt. Older files name numpy's modules by their old path.
SAFE_GLOBALS: list[Any] = [
    HistoryBuffer,
    OneCycleParamScheduler,
    (_scheduler_attribute, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "fdlqiIbB?"),
    _numpy._reconstruct,
    _numpy.scalar,
    (_numpy._reconstruct, "numpy.core.multiarray._reconstruct"),
    (_numpy.scalar, "numpy.core.multiarray.scalar"),
]

_RUNS = ("precision", "memory_format", "fold", "compile", "device")
"""Options of :class:`.FrozenTeacher`."""
_KEYS = ("config", "checkpoint", "strict", "scale", *_RUNS)


def read_mm_checkpoint(path: str) -> Any:
    """Read a checkpoint that mmengine wrote, without letting it run code."""
    return read_checkpoint(path, SAFE_GLOBALS)


def forget_our_scope(node: Any) -> None:
    """Take out, in place, what mmengine notes in a config inherited as ``taskdistill::...``.

    It takes the package's name for a registry's scope, of which ours has none: a note that warns at
    every build, and that functions named by a config cannot be called with.
    """
    if isinstance(node, dict):
        if node.get("_scope_") == "taskdistill":
            node.pop("_scope_")
        for value in node.values():
            forget_our_scope(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            forget_our_scope(value)


def read_model_config(config: str | Mapping[str, Any], what: str) -> Config:
    """Read a config by path, ``package::path`` or as a mapping.

    Raises:
        ConfigError: If it cannot be found or has no model.
    """
    if isinstance(config, Mapping):
        cfg = Config(dict(config))
    elif "::" in config:
        try:
            cfg = get_config(config if config.endswith(".py") else f"{config}.py")
        except Exception as error:
            raise ConfigError(f"{what} config {config!r} cannot be read: {error}") from error
    elif not os.path.isfile(config):
        raise ConfigError(
            f"{what} config {config!r} does not exist (looked from {os.getcwd()!r}). Give a path, "
            "or a packaged one such as 'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'."
        )
    else:
        cfg = Config.fromfile(config)
    if "model" not in cfg:
        raise ConfigError(f"{what} config {config!r} has no 'model'.")
    forget_our_scope(cfg._cfg_dict)
    return cfg


def _local_checkpoint(checkpoint: str) -> str:
    """Return a local path; a URL is downloaded once into torch's hub folder."""
    if urlparse(checkpoint).scheme not in ("http", "https"):
        return os.path.expanduser(checkpoint)
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, os.path.basename(urlparse(checkpoint).path))
    if not os.path.isfile(target):
        try:
            torch.hub.download_url_to_file(checkpoint, target)
        except OSError as error:
            raise TeacherError(
                f"Teacher checkpoint {checkpoint!r} cannot be downloaded: {error}"
            ) from error
    return target


def build_teacher(config: Mapping[str, Any], student: nn.Module, name: str) -> FrozenTeacher:
    """Build a frozen teacher.

    Args:
        config: ``config`` (path, ``package::path`` or mapping), ``checkpoint`` (path or URL;
            may be left out for a packaged config whose metafile names its weights), ``strict``
            (``True``), ``scale`` (1; how many times the student's size the teacher's images have,
            see :class:`.OwnImages`), and how it runs: ``precision``, ``memory_format``, ``fold``,
            ``compile``, ``device``, see :class:`.FrozenTeacher`.
        student: Decides whether the teacher needs its images normalised anew.
        name: For messages.

    Raises:
        ConfigError: If a key is unknown, the scale is no number above 0, or the config cannot be
            read.
        CheckpointError: If the weights are missing, damaged or of another architecture.
    """
    for key in config:
        if key not in _KEYS:
            raise ConfigError(f"Teacher {name!r} has no option {key!r}.{did_you_mean(key, _KEYS)}")
    if "config" not in config:
        raise ConfigError(f"Teacher {name!r} has no 'config' (a path, or 'mmdet::...').")
    path = config["config"]
    cfg = read_model_config(path, f"Teacher {name!r}")
    checkpoint = config.get("checkpoint")
    if checkpoint is None and isinstance(path, str) and "::" in path:
        checkpoint = get_config(path if path.endswith(".py") else f"{path}.py", True).model_path
    # At the top of a config it is what the runner would give the model.
    if (preprocessor := cfg.get("data_preprocessor")) is not None:
        cfg.model.setdefault("data_preprocessor", preprocessor)
    # Without one of its own, the teacher's config is read in the student's scope.
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        model = MODELS.build(cfg.model)
    if checkpoint is not None:
        sha256 = load_weights(
            model,
            _local_checkpoint(checkpoint),
            strict=config.get("strict", True),
            safe_globals=SAFE_GLOBALS,
            names=getattr(model, "checkpoint_names", None),
        )
    elif getattr(model, "is_trained", False):
        sha256 = state_sha256(model)
    else:
        raise ConfigError(
            f"Teacher {name!r} has no 'checkpoint': an untrained teacher teaches nothing. Give the "
            "path of its trained weights."
        )
    teacher = FrozenTeacher(
        bare(model),
        **{key: config[key] for key in _RUNS if key in config},
        preprocess=own_images(student, model, config.get("scale", 1.0)),
        sha256=sha256,
        source=str(checkpoint or (path if isinstance(path, str) else type(bare(model)).__name__)),
    )
    teacher.adjust = plain_operators
    # The runner moves the student there after its teacher was made ready.
    teacher.expected_device = torch.device(get_device())
    return teacher
