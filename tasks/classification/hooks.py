"""The partners of a classifier in checkpoints, beside the deployed network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS

from ...core.errors import CheckpointError, ConfigError
from ..openmm.model import student_of
from .classifier import ImageClassifier

__all__ = ["SIDE_ENTRY", "PartnersHook", "classifier_of"]

SIDE_ENTRY = "classification"
"""Key of a checkpoint under which the partners lie."""


def classifier_of(model: Any) -> ImageClassifier:
    """Find the classifier in what it is wrapped in (data-parallel training, distillation).

    Raises:
        CheckpointError: If there is none.
    """
    model = student_of(model)
    if not isinstance(model, ImageClassifier):
        raise CheckpointError(f"Expected an image classifier, got {type(model).__name__}.")
    return model


@HOOKS.register_module()
class PartnersHook(Hook):
    """Save a classifier's partners beside its network, and resume with them.

    Partners are what :meth:`.ImageClassifier.partner_state` holds: peers, branches, gates, exits.
    Where weights are averaged (mmengine's ``EMAHook``), the averaged partners are kept too. A
    classifier without partners has no entry.
    """

    priority = "NORMAL"

    def before_train(self, runner: Any) -> None:
        """See that weights are averaged in a way that partners take part in.

        Raises:
            ConfigError: If they are averaged by their state dict, which has no partners.
        """
        if not classifier_of(runner.model).partner_state():
            return
        for hook in _averages(runner):
            if hook.ema_model.update_buffers:
                raise ConfigError(
                    "EMAHook with update_buffers=True averages what a state dict holds, and the "
                    f"partners of {type(classifier_of(runner.model)).__name__} are in none. Leave "
                    "update_buffers out: parameters are averaged and buffers copied then."
                )

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Until averaging begins, let the averaged partners be the partners."""
        for hook in _averages(runner):
            if not hook._ema_started(runner):
                averaged = classifier_of(hook.ema_model.module).partner_state()
                with torch.no_grad():
                    for name, value in classifier_of(runner.model).partner_state().items():
                        averaged[name].copy_(value)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the side entry."""
        states = {
            name: {key: value.cpu() for key, value in classifier.partner_state().items()}
            for name, classifier in _classifiers(runner)
        }
        if any(states.values()):
            checkpoint[SIDE_ENTRY] = {"version": 1, **states}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """On resume, restore the partners.

        Raises:
            CheckpointError: If the file holds none, or those of another config.
        """
        if not runner._resume:
            return
        side = checkpoint.get(SIDE_ENTRY)
        for name, classifier in _classifiers(runner):
            if side is None and classifier.partner_state():
                raise CheckpointError(
                    f"The checkpoint to resume from has no {SIDE_ENTRY!r} entry: it holds a plain "
                    f"network, without the partners that {type(classifier).__name__} trains with "
                    "it. To start from its weights, give it as load_from=... without resume."
                )
            # A run that began without averages goes on with averages that begin here.
            found = (side or {}).get(name, (side or {}).get("partners", {}))
            classifier.load_partner_state(found)


def _classifiers(runner: Any) -> Iterator[tuple[str, ImageClassifier]]:
    yield "partners", classifier_of(runner.model)
    for hook in _averages(runner):
        yield "averaged", classifier_of(hook.ema_model.module)


def _averages(runner: Any) -> Iterator[EMAHook]:
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            yield hook
