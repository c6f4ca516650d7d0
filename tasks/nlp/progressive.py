"""Progressive knowledge transfer: one layer a stage (MobileBERT, Sun et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...core.errors import ConfigError
from .layers import encoder_layers

__all__ = ["LayerStages", "ProgressiveTraining"]


@dataclass(frozen=True)
class LayerStages:
    """The schedule: layer 1 for some steps, then layer 2, ...; afterwards everything.

    Args:
        layers: Number of layers.
        steps: Optimizer steps a layer.
        lower: Learning-rate factor of the layers below the one in turn; 0 freezes them, and no
            gradient is computed for them.
        warmup: Share of a stage in which the learning rate rises linearly from 0, on top of the
            schedule of the whole training.

    Raises:
        ConfigError: If a number cannot be meant.

    Reference:
        Sun et al.: MobileBERT, ACL 2020, section 3.4 and table 8 (arXiv 2004.02984).

    Example:
        >>> stages = LayerStages(layers=2, steps=10, warmup=0.0)
        >>> [stages.layer(step) for step in (0, 9, 10, 19, 20)]
        [0, 0, 1, 1, None]
    """

    layers: int
    steps: int
    lower: float = 0.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        for name in ("layers", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} of progressive transfer is no integer >= 1.")
        for name in ("lower", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1 or math.isnan(value):
                raise ConfigError(f"{name}={value!r} of progressive transfer is not in 0 to 1.")

    def layer(self, step: int) -> int | None:
        """The layer in turn at a step, from 0; ``None`` after the last stage."""
        layer = step // self.steps
        return layer if layer < self.layers else None

    def factor(self, step: int) -> float:
        """The learning rate's factor within the stage."""
        if self.layer(step) is None or self.warmup == 0:
            return 1.0
        return min(1.0, (step % self.steps + 1) / (self.warmup * self.steps))


class ProgressiveTraining:
    """Holds all but one layer of a student in training.

    A frozen parameter gets no gradient at all, so that neither weight decay nor momentum moves
    it; the hidden states that enter the layer in turn are cut off from what lies below.

    Args:
        student: The network in training.
        stages: The schedule.

    Raises:
        ConfigError: If the student has another number of layers.
    """

    def __init__(self, student: nn.Module, stages: LayerStages) -> None:
        name, layers = encoder_layers(student)
        if len(layers) != stages.layers:
            raise ConfigError(
                f"Progressive transfer is set up for {stages.layers} layers, the student has "
                f"{len(layers)}."
            )
        self.stages = stages
        self._layers = layers
        self._layer_of = {
            id(parameter): index
            for index, layer in enumerate(layers)
            for parameter in layer.parameters()
        }
        self._student = student
        self._step = 0
        self._handles: list[RemovableHandle] = []
        self._rates: list[float] = []

    def start(self) -> None:
        """Begin to cut the layers off, at each forward in training."""
        for index, layer in enumerate(self._layers):
            self._handles.append(
                layer.register_forward_pre_hook(self._cut(index), with_kwargs=True)
            )

    def stop(self) -> None:
        """Leave the student as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def at(self, step: int) -> None:
        """Say which optimizer step comes next."""
        self._step = step

    def _cut(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            in_turn = self.stages.layer(self._step) == index and self.stages.lower == 0
            if not (module.training and in_turn):
                return None
            if args:
                return (args[0].detach(), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}

        return before

    def rate(self, layer: int | None) -> float:
        """The learning-rate factor of a layer (``None``: embeddings, head) at this step."""
        turn = self.stages.layer(self._step)
        if turn is None:
            return 1.0
        if layer is None or layer > turn:
            return 0.0
        return self.stages.factor(self._step) * (1.0 if layer == turn else self.stages.lower)

    def split_groups(self, optimizer: Optimizer) -> None:
        """Split an optimizer's groups by layer, so that each has a learning rate of its own."""
        split: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            by_layer: dict[int | None, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_layer.setdefault(self._layer_of.get(id(parameter)), []).append(parameter)
            split += [{**group, "params": found} for found in by_layer.values()]
        optimizer.param_groups[:] = split

    def before_step(self, optimizer: Any, partners: Iterable[nn.Parameter] = ()) -> None:
        """Take the gradients of what is held, and scale the learning rates.

        Args:
            optimizer: The optimizer about to step.
            partners: Parameters that train beside the student (adapters): never held.
        """
        free = {id(parameter) for parameter in partners}
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            rates = {
                id(p): 1.0 if id(p) in free else self.rate(self._layer_of.get(id(p)))
                for p in group["params"]
            }
            for parameter in group["params"]:
                if rates[id(parameter)] == 0.0:
                    parameter.grad = None
            # Of one layer, after split_groups: any of its rates is that of all.
            group["lr"] *= max(rates.values(), default=1.0)

    def after_step(self, optimizer: Any) -> None:
        """Put the learning rates back, for the scheduler."""
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
