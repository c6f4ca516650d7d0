"""What each lever does to a teacher's forward: ResNet-50 of torchvision, random weights.

    python benchmarks/teacher.py                       # on the CPU, two or three minutes
    python benchmarks/teacher.py --rounds 20 --write benchmarks/teacher.md
    python benchmarks/teacher.py --device cuda --batch 256 --size 224

`x time` is the median over the rounds of variant / the usual form: eval mode, `no_grad`,
contiguous, float32. All variants run in turn in one process, so that a busy machine slows all
alike. `peak` is the highest number of bytes allocated within a forward; `GFLOPs` are counted, a
multiplication and an addition as two, by torch's own counter on the images of one forward. `error`
is the root mean square of the difference to the usual form, relative to that of its output.

Two mistakes stand below the usual form. An early exit is what a recipe gets that reads no further
than a layer; half precision without hardware for it is slow, which is why `auto` measures.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from measure.steps import Measured, measure_steps, setting, step_arguments, write_page
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from taskdistill.core.teacher import FrozenTeacher

TITLE = "A teacher's forward"
USUAL = "eval mode, no_grad, contiguous, float32"
OPTIONS = dict(precision="fp32", memory_format="contiguous", fold=False)
LEVERS: dict[str, dict[str, Any]] = {
    "+ inference mode": {},
    "+ channels last": dict(memory_format="channels_last"),
    "+ batch norms folded": dict(memory_format="channels_last", fold=True),
    "+ compiled": dict(memory_format="channels_last", fold=True, compile=True),
    "bfloat16, channels last, folded": dict(
        precision="bf16", memory_format="channels_last", fold=True
    ),
    "bfloat16, compiled": dict(
        precision="bf16", memory_format="channels_last", fold=True, compile=True
    ),
    "auto (the default)": dict(precision="auto", memory_format="auto", fold=True),
    "auto, compiled": dict(precision="auto", memory_format="auto", fold=True, compile=True),
}
EXITS = ("layer3", "layer2")


@dataclass(frozen=True)
class Lever:
    """A way to run the forward.

    Attributes:
        run: Runs it; gives what is read.
        against: What it should give.
        teacher: Where it is one of this package's.
    """

    run: Callable[[], Tensor]
    against: Tensor | None = None
    teacher: FrozenTeacher | None = None


def usual(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


@contextmanager
def reading(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """What a layer gives out while the block runs."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


def lever(model: nn.Module, images: Tensor, layer: str | None, options: dict[str, Any]) -> Lever:
    """A teacher that is left after a layer, or run to its end."""
    teacher = FrozenTeacher(model, **{**OPTIONS, **options})
    specs = [layer] if layer else []
    stop = {(layer, "output"): 1} if layer else None
    teacher.prepare(lambda: teacher.network, specs, images, stop_after=stop)

    def run() -> Tensor:
        captured, output = teacher.observe(specs, images, stop_after=stop)
        return captured.tensors(layer)[0] if layer else output

    with reading(model, layer or "fc") as seen:
        usual(model, images)
    return Lever(run, seen[0], teacher)


def levers(model: nn.Module, images: Tensor, left_out: list[str]) -> dict[str, Lever]:
    """All variants, the usual form first."""
    training = resnet50()
    training.load_state_dict(model.state_dict())
    training = training.to(images.device).train()
    found = {
        USUAL: Lever(lambda: usual(model, images)),
        "in training mode, no_grad forgotten": Lever(lambda: training(images)),
        "no_grad forgotten": Lever(lambda: model(images)),
    }
    wanted = {label: (None, options) for label, options in LEVERS.items()}
    for layer in EXITS:
        for label in ("+ batch norms folded", "bfloat16, channels last, folded"):
            kind = label.split(",")[0] if label[0] != "+" else "float32"
            wanted[f"left after {layer}: {kind}, channels last, folded"] = (layer, LEVERS[label])
        wanted[f"left after {layer}: auto"] = (layer, LEVERS["auto (the default)"])
    for label, (layer, options) in wanted.items():
        if not any(text in label for text in left_out):
            found[label] = lever(model, images, layer, options)
    return found


def gflops(model: nn.Module, images: Tensor, layer: str | None) -> float:
    """Of one forward, up to a layer."""
    teacher = FrozenTeacher(model, **OPTIONS)
    specs = [layer] if layer else []
    with FlopCounterMode(display=False) as counter:
        teacher.observe(specs, images, stop_after={(layer, "output"): 1} if layer else None)
    return counter.get_total_flops() / 1e9


def error(found: Lever) -> str:
    """How far a variant is from what it should give."""
    if found.against is None:
        return ""
    gap = (found.run() - found.against).square().mean().sqrt()
    return f"{float(gap / found.against.square().mean().sqrt()):.0e}"


def table(found: dict[str, Lever], measured: Measured, counts: dict[str | None, float]) -> str:
    """Time and memory as for steps, and what is counted beside them."""
    head, rule, *rows = measured.table().splitlines()
    head = head.replace("ms a step", "ms")
    lines = [f"{head} GFLOPs | error |", f"{rule}--:|--:|"]
    for (label, each), row in zip(found.items(), rows, strict=True):
        layer = next((name for name in EXITS if name in label), None)
        lines.append(f"{row} {counts[layer]:.1f} | {error(each)} |")
    return "\n".join(lines)


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    own.add_argument(
        "--leave-out", nargs="+", default=[], metavar="TEXT", help="variants with this in the label"
    )
    args = step_arguments(str(__doc__), batch=8, parents=[own])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    model = resnet50().to(args.device).eval()
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    counts = {layer: gflops(model, images, layer) for layer in (None, *EXITS)}
    found = levers(model, images, args.leave_out)
    # A forgotten no_grad is one only where there are parameters to train.
    model.requires_grad_()
    measured = measure_steps({label: each.run for label, each in found.items()}, args)
    chosen = [
        f"- {label}: {each.teacher.runs_as}"
        for label, each in found.items()
        if each.teacher is not None and "auto" in label
    ]
    about = f"{setting(args)} {args.size}x{args.size} pixels."
    text = "\n\n".join([about, table(found, measured, counts), "\n".join(chosen)])
    print(text)
    if args.write:
        flags = [word for word in sys.argv[1:] if word not in ("--write", str(args.write))]
        write_page(args.write, TITLE, " ".join(["python benchmarks/teacher.py", *flags]), text)


if __name__ == "__main__":
    main()
