"""Multiply-accumulates of every configuration, and budgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from ....core.errors import ConfigError, ShapeError
from ...common.cost import count_macs
from .space import Channels, ChannelSpace, encode

__all__ = ["MacsTable", "macs_of", "parse_budget", "plain_generator"]

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BUDGET = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?\s*([kMGTx]?)\s*")

# What a plain generator takes over from the super-network that it is cut from.
_SHARED = ("in_channels", "out_channels", "blocks", "norm", "dropout", "padding")


def plain_generator(generator: Mapping[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    """Return the config of the plain generator that a super-network is at one configuration.

    Args:
        generator: Config of a ``SuperMobileResnetGenerator``.
        channels: The configuration.

    Example:
        >>> plain_generator(dict(type="SuperMobileResnetGenerator", space=[], blocks=6), (16, 24))
        {'type': 'MobileResnetGenerator', 'channels': '16_24', 'blocks': 6}
    """
    kept = {key: generator[key] for key in _SHARED if key in generator}
    return dict(type="MobileResnetGenerator", channels=encode(channels), **kept)


def macs_of(generator: Mapping[str, Any], shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of a generator; nothing is computed or allocated.

    Args:
        generator: Config of a registered network that takes (B, C, H, W); C is its
            ``in_channels``, 3 by default.
        shape: Height and width of the image in pixels.

    Raises:
        ConfigError: If the network does not take an image of that size.
    """
    with torch.device("meta"):
        model: nn.Module = MODELS.build(dict(generator)).eval()
        image = torch.empty(1, generator.get("in_channels", 3), *shape)
    try:
        return count_macs(lambda: model(image))
    except (RuntimeError, ShapeError) as error:
        raise ConfigError(
            f"{generator.get('type')} does not take images of {shape[0]}x{shape[1]} pixels: "
            f"{str(error).splitlines()[0]} Give another --shape, height and width in pixels."
        ) from error


class MacsTable:
    """Multiply-accumulates by configuration, without running the network for each.

    A convolution's count is the product of its input and output width, and each of these is a fixed
    multiple of one stage's channels. So the total is a polynomial of degree two in the stages,
    which a few counted configurations determine exactly (45 for eight stages). It is held against
    the counted smallest and largest configuration; a network that is built otherwise is counted
    configuration by configuration.

    Args:
        space: The configurations.
        count: Counts one of any positive widths, also outside the space.

    Example:
        >>> table = MacsTable(ChannelSpace([[4, 2], [8, 6]]), lambda c: 9 * c[0] + 5 * c[0] * c[1])
        >>> table((4, 6))
        156
    """

    def __init__(self, space: ChannelSpace, count: Callable[[Channels], int]) -> None:
        self.space = space
        self._count = count
        self._known: dict[Channels, int] = {}
        self._terms: tuple[int, list[int], list[tuple[int, int, int]]] | None = self._fit()
        for channels in (space.smallest, space.largest, self._mixed()):
            counted = count(channels)
            if self._terms is not None and self._polynomial(channels) != counted:
                self._terms = None
            self._known[channels] = counted

    def __call__(self, channels: Channels) -> int:
        """Return the multiply-accumulates of a configuration.

        Raises:
            ConfigError: If it is not in the space.
        """
        if channels not in self._known:
            found = self.space.check(channels)
            self._known[found] = (
                self._count(found) if self._terms is None else self._polynomial(found)
            )
        return self._known[channels]

    @property
    def exact_formula(self) -> bool:
        """Whether the polynomial holds for this network."""
        return self._terms is not None

    def _mixed(self) -> Channels:
        """Widest and narrowest in turn."""
        return tuple(
            max(stage) if index % 2 else min(stage)
            for index, stage in enumerate(self.space.choices)
        )

    def _fit(self) -> tuple[int, list[int], list[tuple[int, int, int]]] | None:
        """The polynomial in (width - 1), from differences around width 1 in every stage."""
        stages = len(self.space.choices)

        def at(*wider: int) -> int:
            widths = [1] * stages
            for index in wider:
                widths[index] += 1
            return self._count(tuple(widths))

        base = at()
        once = [at(i) - base for i in range(stages)]
        products: list[tuple[int, int, int]] = []
        linear: list[int] = []
        for i in range(stages):
            square, odd = divmod(at(i, i) - base - 2 * once[i], 2)
            if odd:
                return None
            linear.append(once[i] - square)
            products.append((i, i, square))
            for j in range(i):
                products.append((j, i, at(i, j) - base - once[i] - once[j]))
        return base, linear, [term for term in products if term[2]]

    def _polynomial(self, channels: Channels) -> int:
        assert self._terms is not None
        base, linear, products = self._terms
        steps = [width - 1 for width in channels]
        return (
            base
            + sum(factor * step for factor, step in zip(linear, steps, strict=True))
            + sum(factor * steps[i] * steps[j] for i, j, factor in products)
        )


def parse_budget(text: str | float, teacher_macs: Callable[[], int] | None = None) -> int:
    """Return a budget in multiply-accumulates.

    Args:
        text: A number (``5.6e9``), one with k, M, G or T (``"5.6G"``), or a fraction of the
            teacher (``"0.2x"``).
        teacher_macs: Counts the teacher; called only for a fraction.

    Raises:
        ConfigError: If that cannot be read, is not positive, or is a fraction without a teacher.

    Example:
        >>> parse_budget("5.6G"), parse_budget(5.6e9), parse_budget("0.2x", lambda: 50)
        (5600000000, 5600000000, 10)
    """
    match = _BUDGET.fullmatch(str(text))
    if match is None:
        raise ConfigError(
            f"Budget {text!r} cannot be read. Give multiply-accumulates such as 5.6G or 5.6e9, or "
            "a fraction of the teacher's such as 0.2x."
        )
    mantissa, exponent, unit = match.groups()
    number = float(f"{mantissa}e{exponent or 0}")
    if unit != "x":
        budget = number * _UNITS[unit]
    elif teacher_macs is None:
        raise ConfigError(
            f"Budget {text!r} is a fraction of the teacher's multiply-accumulates, but no teacher "
            "is known. Give its config with --teacher, or the budget as a number such as 5.6G."
        )
    else:
        budget = number * teacher_macs()
    if not 1 <= budget < float("inf"):
        raise ConfigError(f"Budget {text!r} must be at least one multiply-accumulate and finite.")
    return round(budget)
