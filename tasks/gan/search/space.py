"""The channel configurations that a once-for-all super-network holds."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ....core.errors import ConfigError

__all__ = ["Channels", "ChannelSpace", "encode"]

Channels = tuple[int, ...]


def encode(channels: Sequence[int]) -> str:
    """Return a configuration as generators take it in a config.

    Example:
        >>> encode((16, 16, 32))
        '16_16_32'
    """
    return "_".join(map(str, channels))


@dataclass(frozen=True)
class ChannelSpace:
    """Every combination of one width a stage.

    Args:
        choices: For each stage the widths to choose from, in any order.

    Raises:
        ConfigError: If there is no stage, or one without choice, with a choice twice, or with what
            is no positive integer.

    Example:
        >>> import random
        >>> space = ChannelSpace([[32, 24, 16], [32, 16]])
        >>> len(space), space.smallest, space.largest
        (6, (16, 16), (32, 32))
        >>> space.sample(random.Random(0)) in space
        True
    """

    choices: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        stages = tuple(tuple(stage) for stage in self.choices)
        if not stages:
            raise ConfigError(
                "A channel space needs at least one stage; give a list of widths for each, such as "
                "[[32, 24, 16]] * 8."
            )
        for index, stage in enumerate(stages):
            wrong = [width for width in stage if not _is_width(width)]
            if not stage or wrong or len(set(stage)) != len(stage):
                raise ConfigError(
                    f"Stage {index} of a channel space takes different positive integers, at least "
                    f"one, got {list(stage)}."
                )
        object.__setattr__(self, "choices", stages)

    def __len__(self) -> int:
        return math.prod(len(stage) for stage in self.choices)

    def __iter__(self) -> Iterator[Channels]:
        return itertools.product(*self.choices)

    def __contains__(self, channels: object) -> bool:
        return (
            isinstance(channels, tuple)
            and len(channels) == len(self.choices)
            and all(width in stage for width, stage in zip(channels, self.choices, strict=True))
        )

    @property
    def smallest(self) -> Channels:
        """The narrowest choice of every stage."""
        return tuple(min(stage) for stage in self.choices)

    @property
    def largest(self) -> Channels:
        """The widest choice of every stage."""
        return tuple(max(stage) for stage in self.choices)

    def check(self, channels: Sequence[int]) -> Channels:
        """Return ``channels`` as a tuple.

        Raises:
            ConfigError: If it is no configuration of this space.
        """
        found = tuple(channels)
        if len(found) != len(self.choices):
            raise ConfigError(
                f"A configuration of this space has {len(self.choices)} stages, got {len(found)}: "
                f"{encode(found)}."
            )
        for index, (width, stage) in enumerate(zip(found, self.choices, strict=True)):
            if width not in stage:
                near = min(stage, key=lambda choice: abs(choice - width))
                raise ConfigError(
                    f"Stage {index} of {encode(found)} has {width} channels, but the choices are "
                    f"{list(stage)}; the nearest is {near}."
                )
        return found

    def sample(self, rng: random.Random) -> Channels:
        """Return a configuration, each equally likely."""
        return tuple(rng.choice(stage) for stage in self.choices)

    def mutate(self, channels: Channels, rng: random.Random, probability: float) -> Channels:
        """Return ``channels`` with each stage drawn anew with a probability.

        Args:
            channels: A configuration of this space.
            rng: Source of chance.
            probability: For each stage. A new draw may give the old width again.
        """
        return tuple(
            rng.choice(stage) if rng.random() < probability else width
            for width, stage in zip(channels, self.choices, strict=True)
        )

    def crossover(self, first: Channels, second: Channels, rng: random.Random) -> Channels:
        """Return a configuration that takes each stage from either of two, equally likely."""
        return tuple(rng.choice(pair) for pair in zip(first, second, strict=True))

    def narrow(self, channels: Channels, rng: random.Random) -> Channels:
        """Return ``channels`` with one stage, drawn at random, one choice narrower.

        The smallest configuration comes back as it is.
        """
        wider = [
            index
            for index, (width, stage) in enumerate(zip(channels, self.choices, strict=True))
            if width > min(stage)
        ]
        if not wider:
            return channels
        index = rng.choice(wider)
        below = max(width for width in self.choices[index] if width < channels[index])
        return (*channels[:index], below, *channels[index + 1 :])


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
