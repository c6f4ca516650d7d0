"""The table of a benchmark of whole training steps: all variants in turn, ratios to the first."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import elapsed, peak_bytes

__all__ = ["Measured", "compare_steps", "measure_steps", "setting", "step_arguments", "write_page"]


def step_arguments(
    description: str,
    batch: int | None,
    parents: Sequence[argparse.ArgumentParser] = (),
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Read the command line that these benchmarks share, and what `parents` add to it."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=list(parents),
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="write the table into this Markdown file")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(args.threads)
    return args


@dataclass(frozen=True)
class Measured:
    """What was measured of steps taken in turn.

    Attributes:
        times: Seconds of each round, by the variant's name.
        peaks: The highest number of bytes allocated within a step.
    """

    times: Mapping[str, Sequence[float]]
    peaks: Mapping[str, int]

    def ratio(self, name: str, to: str) -> float:
        """Median over the rounds of the time of one variant / that of another."""
        pairs = zip(self.times[name], self.times[to], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def table(self) -> str:
        """All variants against the first, as Markdown."""
        first = next(iter(self.times))
        rows = [["variant", "ms a step", "x time", "peak MiB", "x peak"]]
        for name, times in self.times.items():
            rows.append(
                [
                    name,
                    _milliseconds(statistics.median(times)),
                    f"{self.ratio(name, first):.2f}",
                    _mebibytes(self.peaks[name]),
                    f"{self.peaks[name] / max(1, self.peaks[first]):.2f}",
                ]
            )
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|:--|" + "--:|" * (len(rows[0]) - 1))
        return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.{1 if count < 10 * 2**20 else 0}f}"


def measure_steps(steps: Mapping[str, Callable[[], object]], args: argparse.Namespace) -> Measured:
    """Take the steps in turn, as often as the command line says."""
    on_gpu = args.device != "cpu"
    for step in steps.values():  # allocations of the first step, momentum buffers among them
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds):
        names = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for name in names:
            times[name].append(elapsed(steps[name], on_gpu))
    peaks = {name: peak_bytes(step, on_gpu) for name, step in steps.items()}
    return Measured(times, peaks)


def setting(args: argparse.Namespace) -> str:
    """What a table was measured with, in a line."""
    device = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    return (
        f"torch {torch.__version__}, {device}, {args.threads} thread(s), batch {args.batch}, "
        f"{args.rounds} rounds."
    )


def write_page(path: Path, title: str, command: str, text: str) -> None:
    """Write a page: a title, the command that made it, and what it found."""
    path.write_text(f"# {title}\n\n    {command}\n\n{text}\n", encoding="utf-8")


def compare_steps(
    title: str, steps: Mapping[str, Callable[[], object]], args: argparse.Namespace
) -> None:
    """Time the steps in turn, print the table, and write it where the user asked for it."""
    measured = measure_steps(steps, args)
    text = f"{setting(args)}\n\n{measured.table()}"
    print(text)
    if args.write:
        script = f"benchmarks/{Path(sys.argv[0]).name}"
        command = f"python {script} --batch {args.batch} --rounds {args.rounds}"
        if args.device != "cpu":
            command += f" --device {args.device}"
        write_page(args.write, title, command, text)
