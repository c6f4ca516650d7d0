"""Dropping activations in training: by hooks, so that a network's weights keep their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import drop_block2d

from ...core.errors import ConfigError, ShapeError, TapError, did_you_mean
from ...core.taps import Tap
from ..openmm.steps import training_progress

__all__ = ["DROPS", "add_drops", "check_number"]


def check_number(name: str, value: Any, holds: Callable[[float], bool], expected: str) -> None:
    """Refuse what is no number, or one out of range.

    Args:
        name: What it is called in the config.
        value: What came.
        holds: Whether a number is in range.
        expected: The range in words, after "expected a number".

    Raises:
        ConfigError: If it is not.

    Example:
        >>> check_number("p", 0.5, lambda p: 0 <= p < 1, "from 0 to below 1")
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not holds(value):
        raise ConfigError(f"{name}={value!r}; expected a number {expected}.")


@dataclass
class _Drop:
    """What is dropped of a tensor while the module that it belongs to is in training mode."""

    p: float = 0.5
    ramp: float = 0.0
    rank: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_number("p", self.p, lambda p: 0 <= p < 1, "from 0 to below 1")
        check_number("ramp", self.ramp, lambda r: r >= 0, "of epochs, 0 or more")

    def drop(self, values: Tensor, p: float) -> Tensor:
        raise NotImplementedError

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook on what goes into a module."""
        if not module.training:
            return None
        return (self._dropped(module, args[0] if args else None), *args[1:])

    def after(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        """Hook on what comes out of a module."""
        return self._dropped(module, output) if module.training else None

    def _dropped(self, module: nn.Module, values: Any) -> Tensor:
        if not isinstance(values, Tensor) or self.rank not in (None, values.dim()):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            wanted = "maps (B, C, H, W)" if self.rank else "one tensor"
            raise ShapeError(
                f"{type(self).__name__} needs {wanted} where it drops, but at a "
                f"{type(module).__name__} it got {got}. Name other modules in its 'at'."
            )
        p = self.p
        if self.ramp:
            p *= min(1.0, training_progress().epoch / self.ramp)
        return self.drop(values, p)


@dataclass
class Dropout(_Drop):
    """Single activations are set to 0, the others scaled by 1 / (1 - p)."""

    def drop(self, values: Tensor, p: float) -> Tensor:
        return F.dropout(values, p)


@dataclass
class SpatialDropout(_Drop):
    """Whole maps, drawn for each image and channel by itself (torch's ``dropout2d``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank = 4

    def drop(self, values: Tensor, p: float) -> Tensor:
        return F.dropout2d(values, p)


@dataclass
class DropBlock(_Drop):
    """Squares of ``block_size`` pixels, drawn for each image and channel by itself."""

    p: float = 0.1
    block_size: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank = 4
        check_number("block_size", self.block_size, lambda b: b in range(1, 1000, 2), "1, 3, 5, ..")

    def drop(self, values: Tensor, p: float) -> Tensor:
        # On a map smaller than the block, the largest odd block that fits: the square around a
        # centre has an odd side.
        side = min(self.block_size, *values.shape[-2:])
        # It counts what is left in the maps' own type, in which half precision has no such numbers.
        return drop_block2d(values.float(), p, side - 1 + side % 2).to(values.dtype)


DROPS: Mapping[str, type[_Drop]] = {c.__name__: c for c in (Dropout, SpatialDropout, DropBlock)}
"""What can be dropped, by the name that a config gives as ``type``."""


def add_drops(network: nn.Module, drops: Sequence[Mapping[str, Any]]) -> None:
    """Drop activations of a network in training, where a config says so.

    ``state_dict``, the parameters and the network in eval mode stay as they are. A copy of the
    network drops by itself.

    Args:
        network: The network; hooks are added to its modules.
        drops: One dict each: ``type`` is ``Dropout``, ``SpatialDropout`` or ``DropBlock``; ``p``
            the share that is dropped (0.5, DropBlock 0.1), from 0 to below 1; ``at`` a name or list
            of names of modules (globs as in taps; ``name@input`` drops of what goes in). Dropout
            without ``at`` is put before the last ``nn.Linear``, as classifiers have it.
            ``block_size`` is DropBlock's, an odd number of pixels (7, as in its paper; cut to the
            map where that is smaller). ``ramp``: epochs over which p rises linearly from 0, as the
            paper of DropBlock schedules it; at once by default.

    Raises:
        ConfigError: If a type, option or module name is unknown, or a number is out of range.
        ShapeError: In use, if a module named there does not give one tensor (maps, for the latter
            two).

    Reference:
        Srivastava et al.: Dropout, JMLR 2014. Tompson et al.: Efficient Object Localization Using
        Convolutional Networks, CVPR 2015 (arXiv 1411.4280; spatial dropout). Ghiasi, Lin, Le:
        DropBlock, NeurIPS 2018 (arXiv 1810.12890).

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> add_drops(network, [dict(type="Dropout", p=0.999999)])
        >>> network(torch.ones(1, 4)).abs().sum().item(), list(network.state_dict())
        (0.0, ['1.weight'])
        >>> network.eval()(torch.ones(1, 4)).abs().sum().item() > 0
        True
    """
    # All are read before any is added: a mistake in one leaves the network as it was.
    planned: list[tuple[_Drop, str, nn.Module]] = []
    for config in drops:
        options = dict(config)
        kind = str(options.pop("type", None))
        if kind not in DROPS:
            raise ConfigError(
                f"drops has type={kind!r}, which is none of {', '.join(DROPS)}."
                f"{did_you_mean(kind, DROPS)}"
            )
        at = options.pop("at", None)
        known = [n for n, f in DROPS[kind].__dataclass_fields__.items() if f.init]
        for name in options:
            if name not in known:
                raise ConfigError(f"{kind} has no {name!r}.{did_you_mean(name, [*known, 'at'])}")
        drop = DROPS[kind](**options)
        planned += [(drop, side, module) for side, module in _places(network, kind, at)]
    for drop, side, module in planned:
        if side == "input":
            module.register_forward_pre_hook(drop.before)
        else:
            module.register_forward_hook(drop.after)


def _places(
    network: nn.Module, kind: str, at: str | Sequence[str] | None
) -> list[tuple[str, nn.Module]]:
    if not at:
        linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
        if kind != "Dropout" or not linear:
            raise ConfigError(
                f"{kind} in drops needs 'at', the names of modules whose output it drops of, e.g. "
                "at=['layer3', 'layer4']."
            )
        return [("input", linear[-1])]
    found = []
    for spec in [at] if isinstance(at, str) else at:
        try:
            tap = Tap.parse(spec)
            modules = tap.modules(network)
        except TapError as error:
            raise ConfigError(f"{kind} in drops, at={spec!r}: {error}") from error
        if tap.select is not None:
            raise ConfigError(f"{kind} in drops, at={spec!r}: name a module, without [...].")
        found += [(tap.side, module) for module in modules.values()]
    return found
