"""Numbers of bytes and lengths of time as one reads them."""

from __future__ import annotations

__all__ = ["size_text", "time_text"]


def size_text(size: float) -> str:
    """A number of bytes.

    Example:
        >>> size_text(512), size_text(3 << 20)
        ('512 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def time_text(seconds: float) -> str:
    """A duration.

    Example:
        >>> time_text(5), time_text(300), time_text(9000)
        ('5 s', '5 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
