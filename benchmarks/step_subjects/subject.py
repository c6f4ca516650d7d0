"""A student, and the ways of training it that are compared."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ALONE",
    "AS_LOADED",
    "DEFAULT",
    "HELD",
    "WAYS",
    "Built",
    "Subject",
    "Way",
    "choose",
    "hold_answers",
]


@dataclass(frozen=True)
class Built:
    """A training that is ready for its first step.

    Attributes:
        step: Takes one step; gives its figures, `loss` among them, where `Subject.alike` names it.
        teachers: How each teacher runs, by its name.
        kept: What must live as long as the step.
    """

    step: Callable[[], Any]
    teachers: Mapping[str, Any]
    kept: Any = None


@dataclass(frozen=True)
class Subject:
    """What one table is about.

    Attributes:
        about: A line for the reader.
        batch: Samples a step.
        variants: What builds each way of training, by its label; the plain student's first.
        alike: Labels of variants whose first loss must be the same: one mathematics.
    """

    about: str
    batch: int
    variants: Mapping[str, Callable[[], Built]]
    alike: Sequence[Collection[str]] = ()


@dataclass(frozen=True)
class Way:
    """How a student is distilled.

    Attributes:
        teacher: Entries for the teacher: precision, memory_format, fold, compile.
        distilled: Whether it is at all.
        cache: Whether the teacher's answers come from a cache.
        held: Whether the teacher is asked once and its answer held in memory.
        switches: The student's own: amp, channels_last.
    """

    teacher: Mapping[str, Any] | None = None
    distilled: bool = True
    cache: bool = False
    held: bool = False
    switches: Mapping[str, Any] | None = None


ALONE = "student alone"
AS_LOADED = "distilled, teacher as loaded: float32, contiguous"
DEFAULT = "distilled"
HELD = "distilled, answers held in memory"

_BF16, _LAST = dict(amp="bf16"), dict(channels_last=True)
WAYS = {
    ALONE: Way(distilled=False),
    AS_LOADED: Way(
        teacher=dict(precision="fp32", memory_format="contiguous", fold=False, compile=False)
    ),
    DEFAULT: Way(),
    "distilled, teacher in bfloat16": Way(teacher=dict(precision="bf16")),
    "distilled, teacher compiled": Way(teacher=dict(compile=True)),
    HELD: Way(held=True),
    "distilled, cache": Way(cache=True),
    "distilled, cache, channels last": Way(cache=True, switches=_LAST),
    "student alone, channels last": Way(distilled=False, switches=_LAST),
    "distilled, cache, bfloat16": Way(cache=True, switches=_BF16),
    "distilled, cache, bfloat16, channels last": Way(cache=True, switches={**_BF16, **_LAST}),
    "student alone, bfloat16": Way(distilled=False, switches=_BF16),
}
"""Ways to train any student. The teacher as loaded is what this package did at first."""


def choose(
    make: Callable[[Way], Built], ways: Mapping[str, Way] = WAYS
) -> dict[str, Callable[[], Built]]:
    """What builds each of the ways, not called yet."""
    return {label: lambda way=way: make(way) for label, way in ways.items()}


def hold_answers(distiller: Any) -> None:
    """Ask each teacher once, and answer with that from then on."""
    ask, kept = distiller.ask, {}

    def answer(name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in kept:
            kept[name] = ask(name, *args, **kwargs)
        return kept[name]

    distiller.ask = answer


def runs_as(teachers: Mapping[str, Any]) -> dict[str, Any]:
    """How teachers run, as they say themselves."""
    return {name: getattr(teacher, "runs_as", None) for name, teacher in teachers.items()}


def side_of(args: argparse.Namespace, default: int) -> int:
    """Pixels or tokens: those asked for, or the subject's own."""
    return args.size or default
