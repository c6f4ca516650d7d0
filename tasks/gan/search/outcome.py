"""What a search leaves behind: figures, the best sub-network, and a config to fine-tune it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from ....core.errors import ConfigError
from ...common.cost import MAC_CONVENTION, count_parameters
from ...common.files import write_json, write_text
from ...openmm.demo.task import shortened
from ...openmm.teacher import read_mm_checkpoint
from ..generate import build_model
from ..hooks import SIDE_ENTRY
from .evolution import Criterion, SearchResult
from .front import Reference, pareto_front, plot_front
from .macs import plain_generator
from .records import Evaluated, set_aside
from .space import encode

__all__ = ["OUTCOME_FILES", "finetune_config", "subnet_config", "write_outcome"]

SUMMARY, PICTURE = "search.json", "front.png"
WEIGHTS, CONFIG, FINETUNE = "best.pth", "best.py", "finetune.py"
OUTCOME_FILES = (SUMMARY, PICTURE, WEIGHTS, CONFIG, FINETUNE)


def subnet_config(cfg: Config, channels: Iterable[int]) -> Config:
    """Return a super-network's config with its generator at one configuration, by itself.

    Args:
        cfg: The super-network's config.
        channels: The configuration.
    """
    plain = deepcopy(cfg)
    for key in ("search", "distill", "work_dir"):
        plain.pop(key, None)
    # Replaced, not merged: the space is no option of the plain generator.
    plain.model["generator"] = ConfigDict(plain_generator(cfg.model.generator, tuple(channels)))
    plain.load_from, plain.resume = None, False
    return plain


def finetune_config(
    cfg: Config,
    channels: Iterable[int],
    checkpoint: Path,
    *,
    epochs: int | None = None,
    discriminator: bool = False,
) -> Config:
    """Return the config that trains one configuration further, as the super-network was trained.

    Args:
        cfg: The super-network's config, with its ``distill`` entry.
        channels: The configuration.
        checkpoint: Its weights, with which training begins.
        epochs: Length of training; the config's own by default. Schedules shrink along.
        discriminator: Whether the checkpoint holds the super-network's discriminator. A distilled
            run then begins with it too; a plain one has no place to say so.

    Raises:
        ConfigError: If the config counts iterations where ``epochs`` is given.
    """
    tuned = subnet_config(cfg, channels)
    path = str(checkpoint.resolve())
    tuned.load_from = path
    tuned.work_dir = str(checkpoint.resolve().parent / "finetune")
    if cfg.get("distill") is not None:
        tuned.distill = deepcopy(cfg.distill)
        # The super-network began from the teacher; this one begins from the super-network.
        tuned.distill.pop("init", None)
        if discriminator:
            tuned.distill.init = ConfigDict(discriminator=path)
    if epochs is not None:
        _shorten(tuned, epochs)
    return tuned


def _shorten(cfg: Config, epochs: int) -> None:
    """Train for so many epochs, every schedule scaled in proportion."""
    loop = cfg.get("train_cfg") or {}
    if epochs < 1 or not loop.get("max_epochs"):
        raise ConfigError(
            f"--finetune-epochs {epochs} does not apply: it needs a positive number and a config "
            "that counts epochs (train_cfg.max_epochs)."
        )
    schedules = cfg.get("param_scheduler") or []
    # With several optimizers there is a list of schedules for each.
    several = isinstance(schedules, dict) and "type" not in schedules
    parts: dict[str, Any] = dict(schedules) if several else {"all": schedules}  # type: ignore[call-overload]
    for key, part in parts.items():
        piece = Config(dict(train_cfg=deepcopy(loop), param_scheduler=deepcopy(part)))
        piece.merge_from_dict(shortened(piece, epochs))
        parts[key] = piece.param_scheduler
    cfg.param_scheduler = ConfigDict(parts) if several else parts["all"]
    cfg.train_cfg.max_epochs = epochs


def write_outcome(
    folder: Path,
    cfg: Config,
    model: Any,
    result: SearchResult,
    criterion: Criterion,
    *,
    budget: int,
    checkpoint: str,
    summary: Mapping[str, Any],
    references: Iterable[Reference] = (),
    finetune_epochs: int | None = None,
) -> Path | None:
    """Write ``search.json``, ``front.png``, ``best.pth``, ``best.py`` and ``finetune.py``.

    Args:
        folder: Where to.
        cfg: The super-network's config, with its ``distill`` entry.
        model: The super-network on the CPU, its weights loaded.
        result: What was found.
        criterion: What decided.
        budget: The most multiply-accumulates.
        checkpoint: The super-network's weights.
        summary: Further entries of ``search.json``.
        references: Networks to show in the picture.
        finetune_epochs: See :func:`finetune_config`.

    Returns:
        The folder into which the files of an earlier outcome were moved, because this one is
        another; None where there were none, or the same ones.
    """
    best, references = result.best, list(references)
    side = (read_mm_checkpoint(checkpoint).get(SIDE_ENTRY) or {}).get("discriminators")
    texts = {
        CONFIG: subnet_config(cfg, best.channels).pretty_text,
        FINETUNE: finetune_config(
            cfg,
            best.channels,
            folder / WEIGHTS,
            epochs=finetune_epochs,
            discriminator=bool(side),
        ).pretty_text,
    }
    differs = any(
        (folder / name).exists() and (folder / name).read_text(encoding="utf-8") != text
        for name, text in texts.items()
    )
    moved = set_aside(folder, OUTCOME_FILES) if differs else None
    for name, text in texts.items():
        write_text(folder / name, text)
    plain = build_model(Config.fromfile(str(folder / CONFIG)))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("generator.")}
    thin = model.generator.slice(best.channels)
    state |= {f"generator.{key}": value for key, value in thin.state_dict().items()}
    plain.load_state_dict(state, strict=True)  # what is written can be read
    meta = dict(
        channels=encode(best.channels),
        macs=best.macs,
        params=count_parameters(thin),
        metric=criterion.metric,
        value=criterion.of(best.metrics),
        metrics=dict(best.metrics),
    )
    extra = {} if not side else {SIDE_ENTRY: dict(version=1, discriminators=side, pools={})}
    _save(folder / WEIGHTS, dict(meta=meta, state_dict=state, **extra))
    _write_bytes(
        folder / PICTURE,
        plot_front(result.evaluated, criterion, budget=budget, best=best, references=references),
    )
    front = pareto_front(result.evaluated, criterion)
    content = dict(
        **summary,
        metric=criterion.metric,
        higher_is_better=criterion.higher,
        budget=budget,
        mac_convention=MAC_CONVENTION,
        method=result.method,
        generations=result.generations,
        best=dict(best.as_dict(), params=meta["params"]),
        front=_listed(front),
        references={r.label: {"macs": r.macs, criterion.metric: r.value} for r in references},
        evaluated=_listed(result.evaluated),
    )
    write_json(folder / SUMMARY, json.loads(json.dumps(content, default=str)))
    return moved


def _listed(entries: Iterable[Evaluated]) -> list[dict[str, Any]]:
    return [entry.as_dict() for entry in entries]


def _save(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(dict(content), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_bytes(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
