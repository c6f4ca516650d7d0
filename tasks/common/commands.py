"""What the command lines that start training processes share; light to import."""

from __future__ import annotations

import argparse
import signal
from types import FrameType

from rich.console import Console

__all__ = ["add_cache_options", "make_console", "positive", "stop_as_by_ctrl_c"]

_WIDTH = 120  # of a console that is a file


def positive(text: str) -> int:
    """Read an option that is a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: If it is none.

    Example:
        >>> positive("3")
        3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def stop_as_by_ctrl_c() -> None:
    """Ended by the system or by a closed terminal, stop the training processes as for Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to survive the terminal
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``tools/cache_teacher.py`` may do in place of building."""
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many bytes and minutes it takes, no more"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="see whether all is there and undamaged; build nothing",
    )


def make_console() -> Console:
    """Return the console; of a fixed width where nobody watches."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)
