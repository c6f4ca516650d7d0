"""Hooks: the side entry of a checkpoint, repeatable randomness, and saving that loses nothing."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, get_world_size, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...core.errors import CheckpointError, ConfigError, did_you_mean
from ...core.plateau import Plateau
from .caching import ensure
from .model import DistilledModel
from .runner import latest_checkpoint
from .seeded import POSITION, SeededDataset
from .steps import STAGES_ENDED, training_progress

__all__ = ["SIDE_ENTRY", "DistillHook", "RepeatableHook", "SafeCheckpointHook"]

SIDE_ENTRY = "distill"
"""Key of a checkpoint under which everything lies that the deployable student does not need."""


_PLATEAU = "distill_plateau_of_"


def _mean_over_epoch(runner: Any, monitor: str, stage: str) -> float:
    """Average a logged figure over the epoch that is over, and over processes."""
    histories = runner.message_hub.log_scalars
    name = f"train/{monitor}"
    if name not in histories:
        known = [key.removeprefix("train/") for key in histories if key.startswith("train/")]
        raise ConfigError(
            f"Stage {stage!r} watches {monitor!r}, which training does not log."
            f"{did_you_mean(monitor, known)} It logs: {', '.join(sorted(known))}."
        )
    mean = torch.tensor(float(histories[name].mean(len(runner.train_dataloader))))
    if get_world_size() > 1:
        mean = mean.to(get_device())
        all_reduce(mean, op="mean")
    return float(mean)


def _distilled(runner: Any) -> DistilledModel:
    return getattr(runner.model, "module", runner.model)


@HOOKS.register_module()
class RepeatableHook(Hook):
    """Make a run repeat itself: every step and every sample begins from a seed of its own."""

    priority = "VERY_HIGH"

    def before_train(self, runner: Any) -> None:
        """Tell the model how long an epoch is, and seed the data."""
        loader = runner.train_dataloader
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            runner.message_hub.update_info("distill_epoch_length", len(loader))
        if isinstance(loader.dataset, SeededDataset):
            loader.dataset.seed = runner.seed

    def before_train_epoch(self, runner: Any) -> None:
        """Tell the data which epoch it is."""
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, SeededDataset):
            dataset.epoch = runner.epoch

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start every step from a random state that depends on the seed and its number alone.

        So it makes no difference whether the run came here in one go or was resumed, nor what
        validation drew in between.
        """
        sequence = np.random.SeedSequence([runner.seed, runner.iter, runner.rank])
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:
            # The other also notes seeds for devices that may come, longer than a small layer takes.
            torch.default_generator.manual_seed(seed)


@HOOKS.register_module()
class DistillHook(RepeatableHook):
    """Keep what distillation adds to a run: in the checkpoint, beside the student.

    The side entry ``distill`` holds the adapters' weights and each teacher's source and SHA-256.
    The config stored in the checkpoint (``meta.cfg``) is the student's plain
    one, which is also written as ``student_config.py``, so that ``init_detector`` and the like
    work from the file alone.

    Args:
        student_config: The student's plain config as text.
    """

    def __init__(self, student_config: str) -> None:
        self.student_config = student_config

    def before_run(self, runner: Any) -> None:
        """Write the student's own config beside the run's."""
        self._write_student_config(runner)

    def before_train(self, runner: Any) -> None:
        """See that stages which end at a plateau can be watched, and that what is to be remembered
        of the teachers is there.

        Raises:
            ConfigError: If training counts no epochs, or the recipe counts steps; or the data do
                not go with a cache.
            CacheError: See :func:`.caching.ensure`.
        """
        super().before_train(runner)
        recipe = _distilled(runner).distiller.recipe
        watched = [stage.name for stage in recipe.stages if stage.plateau is not None]
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if watched and not (by_epoch and recipe.unit == "epoch"):
            raise ConfigError(
                f"Stage {watched[0]!r} ends at a plateau, which is looked for once an epoch: "
                "train by epochs (train_cfg.by_epoch=True), with the recipe's unit='epoch'."
            )
        if _distilled(runner).cache_options is not None:
            ensure(runner)
        for name, teacher in _distilled(runner).distiller.teachers.items():
            runner.logger.info(f"Teacher {name!r} {teacher.how}")

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Tell what is remembered of the teachers which samples the batch holds."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if (remembered := _distilled(runner).remembered) is not None:
            remembered.show(data_batch.pop(POSITION))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Outside of training steps, teachers are asked."""
        if (remembered := _distilled(runner).remembered) is not None:
            remembered.show(None)

    def after_train_epoch(self, runner: Any) -> None:
        """End a stage whose monitored figure has come to a plateau."""
        recipe = _distilled(runner).distiller.recipe
        # The counter still shows the epoch that is over.
        now = runner.epoch + 1
        stage = recipe.stage(replace(training_progress(), step=runner.iter, epoch=runner.epoch))
        if stage is None or stage.plateau is None:
            return
        plateau = Plateau.from_config(stage.name, stage.plateau)
        hub, key = runner.message_hub, f"{_PLATEAU}{stage.name}"
        seen = list(hub.get_info(key) or [])
        seen.append(_mean_over_epoch(runner, plateau.monitor, stage.name))
        hub.update_info(key, seen)
        if any([plateau.reached(value) for value in seen]):
            ended = dict(hub.get_info(STAGES_ENDED) or {})
            hub.update_info(STAGES_ENDED, {**ended, stage.name: float(now)})
            runner.logger.info(
                f"Stage {stage.name!r} ends after epoch {now}: {plateau.monitor} has not fallen "
                f"for {plateau.patience} epochs (best {plateau.best:.4g})."
            )

    @master_only
    def _write_student_config(self, runner: Any) -> None:
        path = os.path.join(runner.work_dir, "student_config.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.student_config)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the side entry."""
        distiller = _distilled(runner).distiller
        checkpoint["meta"]["cfg"] = self.student_config
        checkpoint[SIDE_ENTRY] = {
            "version": 1,
            "adapters": {k: v.cpu() for k, v in distiller.state_dict().items()},
            "teachers": {
                name: {
                    "source": teacher.source,
                    "sha256": teacher.sha256,
                    "runs_as": teacher.runs_as,
                }
                for name, teacher in distiller.teachers.items()
            },
        }

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """On resume, restore the adapters and see that the teachers are the same.

        Raises:
            CheckpointError: If the run to be resumed was not this distillation.
        """
        if not runner._resume:
            return
        side = checkpoint.get(SIDE_ENTRY)
        if side is None:
            raise CheckpointError(
                "The checkpoint to resume from was written by plain training: it has no "
                f"{SIDE_ENTRY!r} entry. To start distilling from its weights, give it as "
                "load_from=... without resume."
            )
        distiller = _distilled(runner).distiller
        for name, teacher in distiller.teachers.items():
            was = side["teachers"].get(name, {})
            if was.get("sha256") != teacher.sha256:
                raise CheckpointError(
                    f"Teacher {name!r} is not the one this run began with: then "
                    f"{was.get('source')!r} (sha256 {str(was.get('sha256'))[:12]}), now "
                    f"{teacher.source!r} (sha256 {str(teacher.sha256)[:12]}). Resume with the same "
                    "teacher, or start anew with load_from=..."
                )
            teacher.adopt(was.get("runs_as", {}))
        try:
            distiller.load_state_dict(side["adapters"], strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"The adapters in the checkpoint are not those of this recipe: {error}"
            ) from error


class _KeepUntilSaved:
    """A file backend that puts deletions off."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.pending: list[tuple[Any, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.pending.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.pending.append((self._backend.rmtree, path))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, deleting an old file only once the new one is written.

    Takes the same arguments. mmengine deletes first, so a full disk could leave nothing.
    """

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        with self._old_files_kept(runner):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        with self._old_files_kept(runner):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _old_files_kept(self, runner: Any) -> Iterator[None]:
        if isinstance(self.file_backend, _KeepUntilSaved):  # the best one saves the last one too
            yield
            return
        backend, before = self.file_backend, latest_checkpoint(runner.work_dir)
        self.file_backend = kept = _KeepUntilSaved(backend)  # type: ignore[assignment]
        try:
            yield
        except OSError as error:
            intact = f"{before!r} is intact" if before else "no earlier one exists"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            why = "the disk is full" if full else str(error)
            raise CheckpointError(
                f"The checkpoint of step {runner.iter} cannot be saved in {self.out_dir!r}: {why}. "
                f"Of earlier checkpoints, {intact}. Make room and continue with --resume."
            ) from error
        finally:
            self.file_backend = backend
        for delete, path in kept.pending:
            delete(path)
