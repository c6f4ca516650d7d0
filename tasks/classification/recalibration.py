"""Batch-norm statistics for what is evaluated and saved, without touching training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ...core.errors import CheckpointError, ConfigError
from ...core.recalibration import batch_norms, recalibrate, statistics
from .classifier import ImageClassifier
from .hooks import classifier_of

__all__ = ["RECALIBRATION_ENTRY", "RecalibrateHook"]

RECALIBRATION_ENTRY = "recalibration"
"""Key of a checkpoint under which the running statistics of training lie."""


@HOOKS.register_module()
class RecalibrateHook(Hook):
    """Compute the classifier's batch-norm statistics anew for every validation and checkpoint.

    The same training images every time, augmented as in training, not mixed. See
    :func:`~taskdistill.core.recalibration.recalibrate`. A checkpoint's ``state_dict`` has the new
    statistics, and the entry ``recalibration`` those of training, with which a resumed run goes on.
    Random numbers, the sampler and training's own statistics are as if nothing had happened.

    In data-parallel training each process takes its share of the images, and the statistics are
    averaged over processes.

    Args:
        batches: How many batches of the training loader's size, over all processes; or, as a float
            from 0 to 1, which share of the training images. 125 are the 16,000 images of NetAug's
            authors. No more are taken than there are.
        seed: Of which images are taken.

    Raises:
        ConfigError: If ``batches`` is neither, or the run has no classifier, a data set without a
            length, or an average of weights (EMAHook), whose statistics would be others.
    """

    # After the hooks that change what is evaluated, before the one that saves.
    priority = "LOW"

    def __init__(self, batches: int | float = 125, seed: int = 0) -> None:
        share = isinstance(batches, float) and 0 < batches <= 1
        number = isinstance(batches, int) and not isinstance(batches, bool) and batches >= 1
        if not share and not number:
            raise ConfigError(
                f"batches is {batches!r}; expected a whole number from 1 on, or a share of the "
                "training images as a float above 0, up to 1."
            )
        self.batches = batches
        self.seed = seed
        self._training = False
        self._new: dict[str, Tensor] | None = None
        self._own: dict[str, Tensor] | None = None

    def before_train(self, runner: Any) -> None:
        """See that it can be done."""
        classifier_of(runner.model)
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ConfigError(
                "RecalibrateHook and EMAHook do not go together: the averaged weights would get "
                "the statistics of the others. Leave one out."
            )
        if isinstance(runner.train_dataloader.dataset, IterableDataset):
            raise ConfigError("RecalibrateHook needs a data set with a length and an index.")
        self._training = True
        self._new = None

    def after_train(self, runner: Any) -> None:
        """Later evaluations are of a checkpoint's own statistics."""
        self._training = False

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """The weights are about to change."""
        self._new = None

    def before_val_epoch(self, runner: Any) -> None:
        """Evaluate with new statistics."""
        if self._training:
            network = classifier_of(runner.model).network
            self._own = statistics(network)
            _install(network, self._computed(runner))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Train on with those of training."""
        if self._own is not None:
            _install(classifier_of(runner.model).network, self._own)
            self._own = None

    def before_checkpoint(self, runner: Any) -> None:
        """On every process: the main one, which saves, cannot average alone."""
        if self._training:
            self._computed(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Save new statistics, and those of training beside them."""
        if not self._training:
            return
        own = self._own or statistics(classifier_of(runner.model).network)
        state = checkpoint["state_dict"]
        kept = {}
        for name, value in self._computed(runner).items():
            # Of an augmented network, the base's.
            base = tuple(slice(size) for size in state[name].shape)
            kept[name] = own[name][base].to(state[name].device, copy=True)
            state[name] = value[base].to(state[name].device, copy=True)
        checkpoint[RECALIBRATION_ENTRY] = {"version": 1, "statistics": kept}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """On resume, go on with the statistics of training.

        Raises:
            CheckpointError: If the file's are not those of its network.
        """
        entry = checkpoint.get(RECALIBRATION_ENTRY)
        if not runner._resume or entry is None:
            return
        state = checkpoint["state_dict"]  # which is loaded hereafter
        for name, value in entry["statistics"].items():
            if name not in state or state[name].shape != value.shape:
                raise CheckpointError(
                    f"{name} in the {RECALIBRATION_ENTRY!r} entry of the checkpoint is not that of "
                    "its network: the file was put together from two. Resume from a whole one."
                )
            state[name] = value

    # -- the statistics ------------------------------------------------------------------------

    def _computed(self, runner: Any) -> dict[str, Tensor]:
        """The new statistics for the present weights, computed once."""
        if self._new is None:
            model = classifier_of(runner.model)
            own = statistics(model.network)
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()
            try:
                recalibrate(
                    model.network, self._images(runner, model), lambda images: model(images)
                )
                self._new = statistics(model.network)
            finally:
                _install(model.network, own)
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])
            for name, value in self._new.items():
                if name.endswith("num_batches_tracked"):  # of training, which counts them
                    value.copy_(own[name])
                elif get_world_size() > 1:
                    all_reduce(value, op="mean")
        return self._new

    def _images(self, runner: Any, model: ImageClassifier) -> Iterator[Tensor]:
        """This process's batches, normalised as in evaluation: never mixed."""
        loader = runner.train_dataloader
        size = loader.batch_size or loader.batch_sampler.batch_size
        total, world = len(loader.dataset), get_world_size()
        wanted = self.batches
        if isinstance(wanted, float):
            wanted = wanted * total / size
        count = min(math.ceil(wanted / world), max(1, total // (size * world)))
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(total, generator=generator)[: count * size * world]
        mine = DataLoader(
            loader.dataset,
            batch_size=size,
            sampler=order[get_rank() :: world].tolist(),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
        )
        for batch in mine:
            yield model.data_preprocessor(batch, False)["inputs"]


def _install(network: torch.nn.Module, values: dict[str, Tensor]) -> None:
    for name, norm in batch_norms(network).items():
        for key, buffer in norm.named_buffers(recurse=False):
            buffer.copy_(values[f"{name}.{key}" if name else key])
