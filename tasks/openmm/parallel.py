"""Data-parallel training of a distilled model."""

from __future__ import annotations

from typing import Any

from mmengine.dist import broadcast
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from .model import DistilledModel
from .optim import CRITIC, STUDENT, AlternatingOptimWrapper

__all__ = ["AlternatingDataParallel", "DistilledDataParallel"]


@MODEL_WRAPPERS.register_module()
class AlternatingDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper for a model whose players step in turn (``alternate``).

    The adversaries are outside the buckets; the model averages their gradients by itself.

    Args:
        module: The model.
        **kwargs: As for ``MMDistributedDataParallel``.
    """

    module: Any

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        super().__init__(module=module, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One turn of every player."""
        return self.module.alternate(self, data, optim_wrapper)


@MODEL_WRAPPERS.register_module()
class DistilledDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper, whose step lets the critics learn too.

    The critics are outside the buckets: all processes begin with those of the first, and
    :meth:`.DistilledModel.critic_step` averages their gradients.

    Args:
        module: The distilled model.
        **kwargs: As for ``MMDistributedDataParallel``.
    """

    module: DistilledModel

    def __init__(self, module: DistilledModel, **kwargs: Any) -> None:
        super().__init__(module=module, **kwargs)
        for loss in module.distiller.losses.values():
            if getattr(loss, "adversarial", False):
                for value in loss.state_dict().values():
                    broadcast(value)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One step of the student, then of the critics where the recipe has some."""
        if (alternate := getattr(self.module.student, "alternate", None)) is not None:
            return alternate(self, data, optim_wrapper)
        if not isinstance(optim_wrapper, AlternatingOptimWrapper):
            return super().train_step(data, optim_wrapper)
        figures = super().train_step(data, optim_wrapper[STUDENT])
        figures.update(self.module.critic_step(optim_wrapper[CRITIC], optim_wrapper.critic_steps))
        return figures
