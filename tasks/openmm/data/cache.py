"""Where what is made from other data is kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root"]


def cache_root() -> Path:
    """``$TASKDISTILL_CACHE``, or else ``~/.cache/taskdistill``."""
    return Path(os.environ.get("TASKDISTILL_CACHE") or "~/.cache/taskdistill").expanduser()
