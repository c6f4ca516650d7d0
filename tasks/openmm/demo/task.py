"""Demos whose networks are trained by ``tools/train.py`` with mmengine's configs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config

from ....core.errors import ConfigError
from ...common.demo import DemoOptions, DemoTask
from ...common.demo.comparison import TEACHER
from ...common.demo.jobs import EVALUATION_DIR, Job, fingerprint
from ...common.demo.task import run_name
from ..config import load_config, plain_config

__all__ = [
    "MmTask",
    "evaluation_command",
    "option_text",
    "shortened",
    "signature",
    "training_length",
    "training_run",
]


class MmTask(DemoTask[Config]):
    """A demo whose configs are mmengine's, on whatever library."""

    evaluation: ClassVar[str] = "val_evaluator"

    def load_config(self, path: Path) -> Config:
        """See the base class."""
        return load_config(str(path))

    def plain(self, cfg: Config) -> Config:
        """See the base class."""
        return plain_config(cfg)

    def sources(self, cfg: Config) -> tuple[str, str]:
        """See the base class."""
        return Path(str(cfg.filename)).read_text(encoding="utf-8"), cfg.pretty_text

    def training_job(
        self,
        role: str,
        seed: int,
        configs: Mapping[str, Config],
        options: DemoOptions,
        teacher: Job | None,
    ) -> Job:
        """See the base class."""
        links = {}
        if teacher is not None:
            # Both in full: the paths in the config hold for one folder to start from.
            links = {
                "distill.teacher.config": str(configs[TEACHER].filename),
                "distill.teacher.checkpoint": str(teacher.checkpoint),
            }
        name = run_name(role, seed)
        return training_run(
            cfg=configs[role],
            name=name,
            work_dir=options.work_dir / name,
            seed=seed,
            root=options.root,
            metric=self.metrics[0].key,
            epochs=options.epochs,
            links=links,
        )


def training_run(
    cfg: Config,
    name: str,
    work_dir: Path,
    seed: int,
    root: Path,
    metric: str = "",
    epochs: int | None = None,
    links: Mapping[str, Any] | None = None,
    given: Sequence[str] = (),
) -> Job:
    """Return one run of ``tools/train.py``.

    Args:
        cfg: What is trained, with the options in ``given`` merged in.
        name: Name of the run.
        work_dir: Its folder.
        seed: Its seed.
        root: Folder that holds ``tools``.
        metric: Validation figure to show; empty for any.
        epochs: Epochs instead of the config's own; its schedule is scaled along.
        links: Options that name what other runs leave; no part of the signature.
        given: Further options, as written after ``--cfg-options``.

    Raises:
        ConfigError: The config cannot be trained as asked.
    """
    changes: dict[str, Any] = {"randomness.seed": seed}
    if epochs is not None:
        changes |= shortened(cfg, epochs)
    length = epochs or training_length(cfg)
    by_epoch = "max_epochs" in cfg.train_cfg
    checkpoint = work_dir / f"{'epoch' if by_epoch else 'iter'}_{length}.pth"
    changed = {**changes, **(links or {})}
    arguments = [*given, *(option_text(key, value) for key, value in changed.items())]
    return Job(
        name=name,
        command=(
            sys.executable,
            str(root / "tools" / "train.py"),
            str(cfg.filename),
            *("--work-dir", str(work_dir), "--resume", "--cfg-options", *arguments),
        ),
        work_dir=work_dir,
        length=length,
        checkpoint=checkpoint,
        metric=metric,
        signature=signature(cfg, changes),
        evaluate=evaluation_command(
            str(cfg.filename), checkpoint, work_dir / EVALUATION_DIR, root, given
        ),
        unit="epoch" if by_epoch else "iteration",
    )


def evaluation_command(
    config: str, checkpoint: Path, work_dir: Path, root: Path, given: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the command line of ``tools/test.py`` that validates a checkpoint.

    Args:
        config: Path of its config.
        checkpoint: The file.
        work_dir: Where the figures go.
        root: Folder that holds ``tools``.
        given: Options, as written after ``--cfg-options``.
    """
    options = ("--cfg-options", *given) if given else ()
    command = (sys.executable, str(root / "tools" / "test.py"), config, str(checkpoint))
    return (*command, "--work-dir", str(work_dir), *options)


def training_length(cfg: Config) -> int:
    """Return the epochs of a run, or its iterations where it counts those.

    Raises:
        ConfigError: The config trains nothing.
    """
    train_cfg = cfg.get("train_cfg") or {}
    length = train_cfg.get("max_epochs") or train_cfg.get("max_iters")
    if not length:
        raise ConfigError(
            f"{cfg.filename}: expected train_cfg.max_epochs or train_cfg.max_iters, found "
            f"train_cfg={dict(train_cfg)}."
        )
    return int(length)


def shortened(cfg: Config, epochs: int) -> dict[str, Any]:
    """Return the options that train ``cfg`` for ``epochs``, its schedule scaled in proportion.

    Args:
        cfg: A config that counts epochs.
        epochs: The new length.

    Returns:
        Options as for ``--cfg-options``.

    Raises:
        ConfigError: The config counts iterations, or ``epochs`` is not positive.
    """
    if epochs < 1 or "max_epochs" not in (cfg.get("train_cfg") or {}):
        raise ConfigError(
            f"--epochs {epochs} does not apply to {cfg.filename}: it needs a positive number and "
            "a config that counts epochs (train_cfg.max_epochs)."
        )
    scale = epochs / cfg.train_cfg.max_epochs
    options: dict[str, Any] = {"train_cfg.max_epochs": epochs}
    schedules = cfg.get("param_scheduler") or []
    for index, schedule in enumerate([schedules] if isinstance(schedules, dict) else schedules):
        prefix = "param_scheduler" if isinstance(schedules, dict) else f"param_scheduler.{index}"
        for key in ("begin", "end", "T_max", "total_steps", "step_size", "max_iters"):
            if value := schedule.get(key):
                options[f"{prefix}.{key}"] = max(1, round(value * scale))
        end = options.get(f"{prefix}.end")
        if end is not None and options.get(f"{prefix}.begin", 0) >= end:
            options[f"{prefix}.begin"] = end - 1  # so short that both round to the same epoch
        if value := schedule.get("milestones"):
            options[f"{prefix}.milestones"] = [max(1, round(step * scale)) for step in value]
    return options


def option_text(key: str, value: Any) -> str:
    """Return one ``--cfg-options`` argument.

    Example:
        >>> option_text("a.b", [1, 2])
        'a.b=[1,2]'
    """
    if isinstance(value, list):
        return f"{key}=[{','.join(map(str, value))}]"
    return f"{key}={value}"


def signature(cfg: Config, options: Mapping[str, Any]) -> str:
    """Return a hash of everything in a config that decides the outcome of training.

    Args:
        cfg: The config as in its file.
        options: What the command line changes in it.
    """
    changed = cfg.copy()
    changed.merge_from_dict(dict(options))
    content = changed.to_dict()
    content.pop("work_dir", None)
    return fingerprint(content)
