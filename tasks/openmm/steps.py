"""What training steps with several players share: where training stands, gradients, optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from ...core.recipe import Progress

__all__ = [
    "STAGES_ENDED",
    "TurnOptimWrapper",
    "average_gradients",
    "gradient_norm",
    "training_progress",
]


STAGES_ENDED = "distill_stages_ended"
"""Key of mmengine's message hub, which checkpoints keep, for :attr:`.Progress.ended`."""


def training_progress() -> Progress:
    """Where training stands, from what mmengine's RuntimeInfoHook keeps."""
    hub = MessageHub.get_current_instance()
    step = int(hub.get_info("iter", 0) or 0)
    epoch = float(hub.get_info("epoch", 0) or 0)
    length = hub.get_info("distill_epoch_length")
    if length:
        epoch = step / length
    return Progress(step, epoch, hub.get_info(STAGES_ENDED) or {})


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Take the mean of gradients over processes, for players outside the data-parallel buckets."""
    if get_world_size() > 1:
        for parameter in parameters:  # few, so one by one
            if parameter.grad is not None:
                all_reduce(parameter.grad, op="mean")


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients, as one number."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


class TurnOptimWrapper(OptimWrapperDict):
    """Several optimizers, stepped in turn by the model's ``train_step``.

    The log calls the learning rate of the main player what it is called in plain training.

    Args:
        main: Name of the player that is deployed; adapters are trained with it.
        wrappers: The optimizer wrappers by player.
        times: How often a player steps for each step of the main one; once by default.
    """

    def __init__(
        self,
        main: str,
        wrappers: Mapping[str, OptimWrapper],
        times: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(**wrappers)
        self.main = main
        self.times = dict(times or {})

    def initialize_count_status(self, model: nn.Module, cur_iter: int, max_iters: int) -> None:
        """Tell all where training stands: accumulated gradients are counted by each."""
        for name in self.keys():
            times = self.times.get(name, 1)
            self[name].initialize_count_status(model, times * cur_iter, times * max_iters)

    def get_lr(self) -> dict[str, list[float]]:
        """The learning rates: ``lr`` and ``base_lr`` of the main player, ``NAME.lr`` of others."""
        found = super().get_lr()
        return {name.removeprefix(f"{self.main}."): value for name, value in found.items()}
