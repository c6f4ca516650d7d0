"""The discriminators and image pools in checkpoints, beside the deployed generators."""

from __future__ import annotations

from typing import Any

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...core.errors import CheckpointError
from ..openmm.model import student_of
from .translation import TranslationModel

__all__ = ["SIDE_ENTRY", "AdversaryHook", "translator_of"]

SIDE_ENTRY = "gan"
"""Key of a checkpoint under which the discriminators and the image pools lie."""


def translator_of(model: Any) -> TranslationModel:
    """Find the translator in what it is wrapped in.

    Raises:
        CheckpointError: If there is none.
    """
    model = student_of(model)
    if not isinstance(model, TranslationModel):
        raise CheckpointError(f"Expected an image translator, got {type(model).__name__}.")
    return model


@HOOKS.register_module()
class AdversaryHook(Hook):
    """Save the discriminators and image pools beside the generators, and resume with them.

    In data-parallel training each process has an image pool of its own; the first one's is saved,
    and all resume with it.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Any) -> None:
        """All processes begin with the discriminators of the first."""
        for module in translator_of(runner.model).adversaries().values():
            for value in module.state_dict().values():
                broadcast(value)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the side entry."""
        state = translator_of(runner.model).adversary_state()
        checkpoint[SIDE_ENTRY] = {"version": 1, **state}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """On resume, restore the discriminators and the pools.

        Raises:
            CheckpointError: If the file holds none, or those of another architecture.
        """
        if not runner._resume:
            return
        state = checkpoint.get(SIDE_ENTRY)
        if state is None:
            raise CheckpointError(
                f"The checkpoint to resume from has no {SIDE_ENTRY!r} entry: it holds a generator "
                "alone, without the discriminator that was trained with it. To start from its "
                "weights, give it as load_from=... without resume."
            )
        try:
            translator_of(runner.model).load_adversary_state(state)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"The discriminators in the checkpoint are not those of this config: {error}"
            ) from error
