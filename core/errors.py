"""What can go wrong, by kind, so that a caller can tell a typing mistake from a broken file.

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistillError",
    "NonFiniteLossError",
    "ShapeError",
    "TapError",
    "TeacherError",
    "did_you_mean",
]


class DistillError(Exception):
    """Base of every error that taskdistill raises on purpose."""


class ConfigError(DistillError, ValueError):
    """A recipe or config says something that cannot be meant."""


class ShapeError(DistillError, ValueError):
    """Two tensors that must agree in shape do not."""


class TapError(DistillError, LookupError):
    """A tap names no module, or a module that was never called."""


class TeacherError(DistillError, RuntimeError):
    """The teacher cannot be built, loaded, or compared with the student."""


class CheckpointError(DistillError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to something else."""


class CacheError(DistillError, RuntimeError):
    """What a teacher said cannot be kept, or what was kept is damaged or of something else."""


class DataError(DistillError, ValueError):
    """A dataset is absent or malformed."""


class NonFiniteLossError(DistillError, FloatingPointError):
    """A loss term became NaN or infinite."""


def did_you_mean(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Return a hint with the nearest names, or an empty string.

    Args:
        name: What was asked for.
        candidates: What exists.
        limit: How many names to offer at most.

    Example:
        >>> did_you_mean("nekc", ["neck", "backbone", "bbox_head"])
        " Did you mean 'neck'?"
        >>> did_you_mean("zzz", ["neck"])
        ''
    """
    spelt: dict[str, list[str]] = {}  # `kldivergence` is as near to `KLDivergence` as can be
    for candidate in dict.fromkeys(candidates):
        spelt.setdefault(candidate.lower(), []).append(candidate)
    close = difflib.get_close_matches(name.lower(), spelt, n=limit, cutoff=0.5)
    near = [candidate for key in close for candidate in spelt[key]][:limit]
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""
