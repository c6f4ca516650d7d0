"""Time and memory of the losses against the same maths written plainly, and against torchdistill.

    python benchmarks/losses.py                     # every case, a few minutes
    python benchmarks/losses.py --only rkd --rounds 20
    python benchmarks/losses.py --backend compiled  # those with a goal; half a minute a case
    python benchmarks/losses.py --device cuda --write benchmarks/losses_gpu.md

All sides run forward and backward, alternating in one process on one thread, so that a busy
machine slows all of them; on a CPU the process's own time is counted. `x time` is the median over
the rounds of peer / ours: above 1 is in our favour. `peak` is what the allocator handed out at
most, beside the inputs, in multiples of the student's tensors. `floor` is ours / the time of one
pass that reads student and teacher and writes the gradient.

Peers are the plain formula and, where the package is installed (`make bench` sees to that) and has
the method, torchdistill. A value or a gradient that differs from a peer's ends the run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import loss_cases
import torch
from loss_cases.case import Case
from measure import elapsed, peak_bytes
from torch import Tensor

from taskdistill.core import losses

OURS = "ours"
OPTIONAL = ("torchdistill",)


def all_cases() -> list[Case]:
    """The cases of every family, family by family."""
    found: list[Case] = []
    for module in pkgutil.iter_modules(loss_cases.__path__):
        if module.name != "case":
            found += importlib.import_module(f"loss_cases.{module.name}").CASES
    return found


class Side:
    """One implementation with its own copy of the inputs: some of them write into the teacher."""

    def __init__(
        self, loss: Callable[..., Tensor], inputs: Iterable[Tensor], students: int
    ) -> None:
        self.loss = loss
        self.inputs = [tensor.clone() for tensor in inputs]
        self.students = self.inputs[:students]
        for student in self.students:
            student.requires_grad_()

    def step(self) -> Tensor:
        for student in self.students:
            student.grad = None
        value = self.loss(*self.inputs)
        value.backward()
        return value.detach()

    def seconds(self) -> float:
        return elapsed(self.step, self.inputs[0].is_cuda)

    def peak_bytes(self) -> int:
        """Highest number of bytes allocated at one time during a step, the inputs not counted."""
        for student in self.students:
            student.grad = None
        return peak_bytes(self.step, self.inputs[0].is_cuda)


def floor(side: Side) -> Callable[[], None]:
    """One pass over memory: read student and teacher, write the gradient."""
    written = [torch.empty_like(student) for student in side.students]
    read = [t for t in side.inputs[len(written) :] if t.is_floating_point()]

    def run() -> None:
        with torch.no_grad():
            for student, out in zip(side.students, written, strict=True):
                torch.neg(student, out=out)
            for tensor in read:
                tensor.sum()

    return run


def check_equal(case: Case, sides: dict[str, Side]) -> None:
    value = sides[OURS].step()
    grads = [student.grad for student in sides[OURS].students]
    for name, side in sides.items():
        if name == OURS:
            continue
        factor = case.scale.get(name, 1.0)
        other = side.step() * factor
        if not torch.isclose(value, other, rtol=case.rtol, atol=1e-6):
            sys.exit(f"{case.name}: {value.item()}, but {other.item()} by {name}")
        for ours, theirs in zip(grads, (s.grad for s in side.students), strict=True):
            assert ours is not None and theirs is not None
            error = (ours - factor * theirs).norm() / theirs.norm().clamp(min=1e-30) / abs(factor)
            if error > 10 * case.rtol:
                sys.exit(f"{case.name}: the gradient is {error:.1e} away from that of {name}")


@dataclass(frozen=True)
class Row:
    """What was measured of one case."""

    case: Case
    milliseconds: float
    above_floor: float
    ratios: dict[str, float]
    peak: float
    peaks: dict[str, float]

    def cells(self, goal: float | None) -> list[str]:
        against = self.case.against
        others = ", ".join(f"{n} {r:.2f}" for n, r in self.ratios.items() if n != against)
        met = "" if goal is None else "yes" if self.ratios[against] >= goal else "no"
        return [
            self.case.name,
            f"{self.milliseconds:.2f}",
            f"{self.above_floor:.1f}",
            against,
            f"{self.ratios[against]:.2f}",
            "" if goal is None else f"{goal:g}",
            met,
            f"{self.peak:.2f}",
            "" if self.case.peak_goal is None else f"{self.case.peak_goal:g}",
            f"{self.peaks[against] / max(self.peak, 1e-9):.1f}",
            others,
        ]


LEGEND = """\
`x time` and `x peak` are peer / ours: above 1 is in our favour. `floor` is ours / one pass that
reads both sides and writes the gradient; `peak` the most memory beside the inputs, in multiples of
the student's tensors; a `goal` is what was aimed at, met or not.
"""

HEADER = [
    "case", "ours ms", "floor", "against", "x time", "goal", "met", "peak", "goal", "x peak",
    "x time of others",
]  # fmt: skip


def measure(case: Case, rounds: int, device: str) -> Row:
    generator = torch.Generator().manual_seed(0)
    inputs = [tensor.to(device) for tensor in case.inputs(generator)]
    peers = {
        name: peer
        for name, peer in case.peers.items()
        if name not in OPTIONAL or importlib.util.find_spec(name)
    }
    sides = {
        name: Side(loss, inputs, case.students) for name, loss in {OURS: case.ours, **peers}.items()
    }
    check_equal(case, sides)
    names, times = list(sides), {name: [] for name in sides}
    floors: list[float] = []
    lowest = floor(sides[OURS])
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(sides[name].seconds())
        floors.append(elapsed(lowest, device == "cuda"))
    size = sum(student.numel() * student.element_size() for student in sides[OURS].students)
    peaks = {name: side.peak_bytes() / size for name, side in sides.items()}
    ours = times.pop(OURS)
    return Row(
        case,
        1e3 * statistics.median(ours),
        statistics.median(ours) / max(statistics.median(floors), 1e-9),
        {
            name: statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            for name, theirs in times.items()
        },
        peaks.pop(OURS),
        peaks,
    )


def table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|:--" + "|--:" * 2 + "|:--" + "|--:" * 6 + "|:--|"]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs a case (7)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--backend", default="eager", help="eager (default) or compiled")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU (1)")
    parser.add_argument("--write", type=Path, help="write the table into this Markdown file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(arguments.threads)
    losses.set_backend(arguments.backend)
    chosen = [case for case in all_cases() if arguments.only in case.name]
    if arguments.backend == "compiled" and not arguments.only:
        chosen = [case for case in chosen if case.compiled_goal]  # the others change little
    if not chosen:
        parser.error(f"no case has {arguments.only!r} in its name")
    about = (
        f"torch {torch.__version__}, {device_name(arguments.device)}, {arguments.backend} backend, "
        f"{torch.get_num_threads()} thread(s), {arguments.rounds} rounds, forward and backward"
    )
    print(about)
    print(f"{HEADER[0]:44}" + "".join(f"{title:>9}" for title in HEADER[1:-1]) + "  others")
    rows = []
    for case in chosen:
        row = measure(case, arguments.rounds, arguments.device)
        goal = case.compiled_goal if arguments.backend == "compiled" else case.goal
        cells = row.cells(goal)
        rows.append(cells)
        print(f"{cells[0]:44}" + "".join(f"{c:>9}" for c in cells[1:-1]) + f"  {cells[-1]}")
        sys.stdout.flush()
    if arguments.write:
        command = " ".join(["python", "benchmarks/losses.py", *sys.argv[1:]])
        arguments.write.write_text(f"Made by `{command}`: {about}.\n\n{LEGEND}\n{table(rows)}")


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    main()
