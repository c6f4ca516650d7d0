"""Where sentences end."""

from __future__ import annotations

import re

__all__ = ["sentences"]

# Behind a mark, or a mark and what closes; in front of what may begin a sentence.
_BORDER = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+(?=[\"'(]?[A-Z0-9])")


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line's end is a sentence's end.

    Example:
        >>> sentences("It rains. It pours.\\nThe old man snores")
        ['It rains.', 'It pours.', 'The old man snores']
    """
    lines = (line.strip() for line in text.split("\n"))
    return [part for line in lines if line for part in _BORDER.split(line)]
