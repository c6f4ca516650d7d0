"""Show a queue of jobs: a live table on a terminal, plain lines where output goes to a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .jobs import JobState, clock

_STYLES = {"running": "bold", "finished": "green", "failed": "red", "stopped": "yellow"}


class Progress:
    """Progress of a queue on a console; use as a context manager around the run.

    Args:
        console: Where to write. What is not a terminal gets plain lines instead of a live table.
        metric_label: Name of the validation figure.
        interval: Seconds between two plain lines.
        digits: Digits of the figure after the point.
    """

    def __init__(
        self, console: Console, metric_label: str, interval: float = 15.0, digits: int = 3
    ) -> None:
        self._console = console
        self._label = metric_label
        self._interval = interval
        self._digits = digits
        self._last_line = float("-inf")
        self._started = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print one line that stays."""
        self._console.print(Text(f"[{self._elapsed()}] {text}"), soft_wrap=True)

    def update(self, states: Sequence[JobState], seconds_left: float | None) -> None:
        """Show where the jobs stand.

        Args:
            states: All jobs of the queue.
            seconds_left: Estimate for the whole demo, ``None`` where there is none yet.
        """
        if self._live:
            self._live.update(self._table(states, seconds_left))
            return
        now = time.monotonic()
        if now - self._last_line < self._interval:
            return
        self._last_line = now
        parts = [self._line(state) for state in states if state.status == "running"]
        parts += [_finished(states), _left(seconds_left)]
        self._console.print(Text(f"[{self._elapsed()}] " + " | ".join(parts)), soft_wrap=True)

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"

    def _line(self, state: JobState) -> str:
        text = f"{state.job.name} {state.fraction:.0%}"
        if state.position:
            text += f" {state.position}"
        if state.loss is not None:
            text += f" loss {state.loss:.3f}"
        if state.metric is not None:
            text += f" {self._label} {state.metric:.{self._digits}f}"
        return text

    def _table(self, states: Sequence[JobState], seconds_left: float | None) -> Group:
        table = Table(box=None, pad_edge=False)
        table.add_column("run")
        table.add_column("")
        table.add_column("done", justify="right")
        table.add_column("position")
        table.add_column("loss", justify="right")
        table.add_column(self._label, justify="right")
        table.add_column("time", justify="right")
        # Heading and footer take a line each; a live display that is too tall would lose its end.
        fits = len(states) + 2 <= self._console.height
        for state in states:
            if not fits and state.status in ("finished", "waiting"):
                continue
            table.add_row(
                Text(state.job.name, style=_STYLES.get(state.status, "dim")),
                ProgressBar(total=1.0, completed=state.fraction, width=24),
                f"{state.fraction:.0%}",
                state.position if state.status == "running" else state.status,
                "" if state.loss is None else f"{state.loss:.3f}",
                "" if state.metric is None else f"{state.metric:.{self._digits}f}",
                clock(state.seconds) if state.seconds else "",
            )
        footer = f"running for {clock(time.monotonic() - self._started)}, {_left(seconds_left)}"
        if not fits:
            footer = f"{_finished(states)}, {footer}"
        return Group(table, Text(footer, style="dim"))


def _finished(states: Sequence[JobState]) -> str:
    finished = sum(state.status == "finished" for state in states)
    return f"{finished} of {len(states)} runs finished"


def _left(seconds: float | None) -> str:
    return "estimating the time left" if seconds is None else f"about {clock(seconds)} left"
