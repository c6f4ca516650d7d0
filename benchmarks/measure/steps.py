"""The table of a benchmark of whole training steps: all variants in turn, ratios to the first."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from . import elapsed, peak_bytes

__all__ = ["compare_steps", "step_arguments"]


def step_arguments(description: str, batch: int) -> argparse.Namespace:
    """Read the command line that these benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="write the table into this Markdown file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def compare_steps(
    title: str, steps: Mapping[str, Callable[[], object]], args: argparse.Namespace
) -> None:
    """Time the steps in turn, print the table, and write it where the user asked for it."""
    on_gpu = args.device != "cpu"
    first = next(iter(steps))
    for step in steps.values():  # allocations of the first step, momentum buffers among them
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds):
        names = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for name in names:
            times[name].append(elapsed(steps[name], on_gpu))
    peaks = {name: peak_bytes(step, on_gpu) for name, step in steps.items()}
    rows = [["variant", "ms a step", "x time", "peak MiB", "x peak"]]
    for name in steps:
        ratios = [t / a for t, a in zip(times[name], times[first], strict=True)]
        rows.append(
            [
                name,
                f"{1000 * statistics.median(times[name]):.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{peaks[name] / 2**20:.0f}",
                f"{peaks[name] / peaks[first]:.2f}",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|:--|" + "--:|" * (len(rows[0]) - 1))
    told = (
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), batch {args.batch}, "
        f"{args.rounds} rounds."
    )
    text = "\n".join([told, "", *lines])
    print(text)
    if args.write:
        script = f"benchmarks/{Path(sys.argv[0]).name}"
        command = f"python {script} --batch {args.batch} --rounds {args.rounds}"
        if args.device != "cpu":
            command += f" --device {args.device}"
        intro = f"# {title}\n\n    {command}\n\n"
        args.write.write_text(f"{intro}{text}\n", encoding="utf-8")
