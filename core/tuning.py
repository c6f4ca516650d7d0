"""How a frozen network runs fastest here: measured, not guessed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

from .errors import ConfigError, did_you_mean

__all__ = [
    "MEMORY_FORMATS",
    "PRECISIONS",
    "Setting",
    "check_choice",
    "fastest",
    "pinned",
    "settings_for",
]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
_VARIABLE = "TASKDISTILL_TEACHER"
_MARGIN, _HALF_MARGIN = 1.05, 1.2
"""How many times as fast as the plain form another has to be, so that noise decides nothing; half
precision, which costs some digits, more."""
_HOPELESS = 2.0
"""How many times as slow as the best one is not measured again."""
_ROUNDS = 5
_BUDGET = 3.0
"""Seconds after which no further round is begun."""
_Name = TypeVar("_Name", bound="Setting")


class Setting(NamedTuple):
    """How a network is run.

    Attributes:
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        memory_format: ``"contiguous"`` or ``"channels_last"``, of its convolutions.
    """

    precision: str = "fp32"
    memory_format: str = "contiguous"

    def __str__(self) -> str:
        return f"{self.precision}, {self.memory_format.replace('_', '-')}"


def pinned() -> Setting | None:
    """The setting that the environment asks for in place of measuring, if it does.

    ``TASKDISTILL_TEACHER="fp32 contiguous"`` holds for every teacher whose ``precision`` and
    ``memory_format`` are ``"auto"``: for comparisons between machines.

    Raises:
        ConfigError: If it is no setting.
    """
    text = os.environ.get(_VARIABLE)
    if not text:
        return None
    words = text.replace(",", " ").replace("-", "_").split()
    if len(words) != 2 or words[0] not in PRECISIONS or words[1] not in MEMORY_FORMATS:
        raise ConfigError(
            f"The environment's {_VARIABLE}={text!r} is no way to run a teacher; expected a "
            f"precision ({', '.join(PRECISIONS)}) and a memory format "
            f"({', '.join(MEMORY_FORMATS)}), e.g. 'fp32 contiguous'."
        )
    return Setting(*words)


def check_choice(name: str, value: object, known: Sequence[str | None]) -> None:
    """Raise ConfigError unless a teacher's option is one of those known."""
    if value not in known:
        texts = [text for text in known if text is not None]
        raise ConfigError(
            f"teacher {name} {value!r} is not one of {list(known)}."
            f"{did_you_mean(str(value), texts)}"
        )


def settings_for(
    precision: str | None, memory_format: str, device: torch.device, has_maps: bool
) -> list[Setting]:
    """The settings to choose from, the plain one first.

    With ``"auto"`` both precisions and both memory formats are candidates on a CPU. A GPU has what
    it is known to be best at, and nothing is measured: half precision, and channels-last where
    there are convolutions.

    Args:
        precision: ``"auto"`` or one precision; ``None`` (of the surrounding autocast) has no
            choice.
        memory_format: ``"auto"`` or one format.
        device: Where it will run.
        has_maps: Whether it has convolutions of images.

    Example:
        >>> [str(s) for s in settings_for("auto", "auto", torch.device("cpu"), has_maps=True)]
        ['fp32, contiguous', 'fp32, channels-last', 'bf16, contiguous', 'bf16, channels-last']
        >>> [str(s) for s in settings_for("bf16", "auto", torch.device("cpu"), has_maps=False)]
        ['bf16, contiguous']
    """
    precisions = ["fp32", "bf16"] if precision == "auto" else [precision or "fp32"]
    formats = ["contiguous", "channels_last"] if memory_format == "auto" else [memory_format]
    if not has_maps:
        formats = ["contiguous"]
    if device.type == "cuda":
        if precision == "auto":
            precisions = ["bf16" if torch.cuda.is_bf16_supported() else "fp16"]
        formats = formats[-1:]
    return [Setting(p, f) for p in precisions for f in formats]


def fastest(
    runs: Mapping[_Name, Callable[[], object]],
) -> tuple[_Name, dict[_Name, float]]:
    """Time some ways to run the same, in turn, and choose one.

    The first is kept unless another is at least 1.05 times as fast, in half precision 1.2 times.
    One that is hopeless in the first round is not run again: half precision without hardware for it
    can be ten times as slow. Counted is the time of this process, so that others on the machine
    decide nothing.

    Args:
        runs: By setting, what runs it once.

    Returns:
        The choice, and the seconds of the best round of each.

    Example:
        >>> runs = {Setting(): lambda: sum(range(10**6)), Setting("bf16"): lambda: None}
        >>> str(fastest(runs)[0])
        'bf16, contiguous'
    """
    first, start = next(iter(runs)), time.process_time()
    best: dict[_Name, float] = {}
    for name, run in runs.items():
        best[name] = _seconds(run)  # the first run of each also allocates
        if best[name] <= _HOPELESS * min(best.values()):
            best[name] = _seconds(run)
    for _ in range(_ROUNDS):
        if time.process_time() - start > _BUDGET:
            break
        limit = _HOPELESS * min(best.values())
        for name, run in runs.items():
            if best[name] <= limit:
                best[name] = min(best[name], _seconds(run))
    better = [name for name in best if best[name] * _margin(name) <= best[first]]
    return min(better, key=lambda name: best[name], default=first), best


def _margin(setting: Setting) -> float:
    return _MARGIN if setting.precision == "fp32" else _HALF_MARGIN


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start
