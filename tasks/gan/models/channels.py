"""Channel configurations: the eight widths that make a thin generator."""

from __future__ import annotations

from collections.abc import Sequence

from ....core.errors import ConfigError
from .layers import check_counts

__all__ = ["STAGES", "check_member", "format_channels", "parse_channels", "parse_space"]

STAGES = ("stem", "down1", "down2", "blocks1", "blocks2", "blocks3", "up1", "up2")
"""What each number is the width of, in the order of a configuration.

Counted in units of the stage: `down1` and `up1` have twice as many channels, `down2` and the inner
width of the blocks four times. The blocks take and give as many channels as `down2`.
"""


def parse_channels(channels: str | Sequence[int]) -> tuple[int, ...]:
    """Return a channel configuration as eight numbers.

    Args:
        channels: As ``"16_16_32_16_32_32_16_16"`` or as a sequence of numbers, in the order of
            :data:`STAGES`. Six numbers (stem, down1, down2, blocks, up1, up2) give all blocks one
            inner width.

    Raises:
        ConfigError: If these are not six or eight whole numbers from 1 on.

    Example:
        >>> parse_channels("24_24_24_32_20_16")
        (24, 24, 24, 32, 32, 32, 20, 16)
    """
    parts: Sequence[object]
    if isinstance(channels, str):
        parts = [int(p) if p.strip().isdecimal() else p for p in channels.split("_")]
    elif isinstance(channels, Sequence):
        parts = channels
    else:
        parts = ()
    if len(parts) not in (6, len(STAGES)):
        raise ConfigError(
            "channels must be 8 whole numbers, one for each of "
            f"{', '.join(STAGES)}, or 6 with one for all blocks, joined by '_' or as a list; got "
            f"{channels!r}."
        )
    if len(parts) == 6:
        parts = [*parts[:3], *[parts[3]] * 3, *parts[4:]]
    check_counts(**{f"channels[{stage}]": p for stage, p in zip(STAGES, parts, strict=True)})
    return tuple(parts)  # type: ignore[arg-type]  # checked above


def format_channels(channels: str | Sequence[int]) -> str:
    """Return a configuration as the string that :func:`parse_channels` reads.

    Raises:
        ConfigError: If it is none.

    Example:
        >>> format_channels((16, 16, 32, 16, 32, 32, 16, 16))
        '16_16_32_16_32_32_16_16'
    """
    return "_".join(map(str, parse_channels(channels)))


def parse_space(space: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return a search space, checked: for each of the eight stages the widths to choose from.

    Raises:
        ConfigError: If there are not eight stages, or one has no width, one twice, or one that is
            not a whole number from 1 on.

    Example:
        >>> parse_space([[32, 16]] * 8)[0]
        (32, 16)
    """
    wrong = isinstance(space, str) or not isinstance(space, Sequence) or len(space) != len(STAGES)
    if wrong or any(isinstance(c, str) or not isinstance(c, Sequence) for c in space):
        raise ConfigError(
            "space must be a list of 8 lists of widths, one for each of "
            f"{', '.join(STAGES)}; got {space!r}."
        )
    for stage, choices in zip(STAGES, space, strict=True):
        if not choices:
            raise ConfigError(f"space has no width for {stage}; give one at least.")
        check_counts(**{f"space[{stage}][{i}]": width for i, width in enumerate(choices)})
        if len(set(choices)) < len(choices):
            raise ConfigError(f"space has a width twice for {stage}: {list(choices)}.")
    return tuple(tuple(choices) for choices in space)


def check_member(channels: str | Sequence[int], space: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return a configuration as eight numbers, if the space has it.

    Raises:
        ConfigError: If it is none, or has a width that the space does not offer at that stage.

    Example:
        >>> check_member("8_8_8_8_8_8", [[8]] * 8)
        (8, 8, 8, 8, 8, 8, 8, 8)
    """
    parsed = parse_channels(channels)
    for stage, width, choices in zip(STAGES, parsed, space, strict=True):
        if width not in choices:
            raise ConfigError(
                f"{format_channels(parsed)} is not in the space: {stage} is {width}, and the "
                f"choices there are {list(choices)}."
            )
    return parsed
