"""What distillation adds to a training step, in time and memory, and what takes it away again.

    python benchmarks/step.py                        # on the CPU, ten minutes and more
    python benchmarks/step.py --subject resnet --rounds 20
    python benchmarks/step.py --write benchmarks/step.md
    python benchmarks/step.py --device cuda          # larger subjects
    python benchmarks/step.py --subject gfl --size 64 --batch 2   # ... tried out on a CPU

The subjects are the demos' students and teachers on the first batch of their data; ResNet-50 to
ResNet-18 of torchvision on random images; on a GPU, detectors, segmenters and encoders of the
papers' size. Weights are random: a step costs what it costs, whatever it learns. Each way to train
is built as tools/train.py builds it, runner and hooks and all, and takes whole training steps
(preprocessing, forward, backward, optimizer); all of a subject in turn in one process, so that a
busy machine slows all alike. `x time` is the median over the rounds of variant / student alone;
`peak` the highest number of bytes allocated within a step, weights not counted.

`distilled` is the default: the teacher's batch norms folded, in the precision and memory format
that were found to be fastest here (each table says which). `teacher as loaded` has none of that.
Of ResNet, `by the usual loop` is plain code with the teacher run to its end, and torchdistill's
loss and hook manager stand beside it where that package is installed. With `answers held in memory`
the teacher is not run at all, so what is left above the plain step are losses, taps and adapters.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from measure.steps import Measured, measure_steps, setting, step_arguments, write_page
from step_subjects import ON_CPU, ON_GPU, SUBJECTS
from step_subjects.subject import ALONE, HELD, Built, Subject

TITLE = "What distillation adds to a training step"
CACHE = "cache"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--subject", nargs="+", choices=[*SUBJECTS, CACHE], metavar="NAME",
                     help=f"of {', '.join([*SUBJECTS, CACHE])}")  # fmt: skip
    own.add_argument("--size", type=int, help="pixels or tokens, where the subject is not a demo")
    own.add_argument(
        "--leave-out", nargs="+", default=[], metavar="TEXT", help="variants with this in the label"
    )
    args = step_arguments(str(__doc__), batch=None, parents=[own])
    on_gpu = args.device != "cpu"
    if on_gpu != torch.cuda.is_available():
        hint = "hide it by CUDA_VISIBLE_DEVICES=" if not on_gpu else "there is none"
        sys.exit(f"--device {args.device}: training takes a GPU where there is one; {hint}")
    args.subject = args.subject or [*(ON_GPU if on_gpu else ON_CPU), CACHE]
    return args


def build(subject: Subject, args: argparse.Namespace) -> tuple[dict[str, Built], list[str]]:
    """Build the variants asked for; one that fails is told and left out."""
    built, failed = {}, []
    for label, make in subject.variants.items():
        if any(text in label for text in args.leave_out):
            continue
        try:
            with redirect_stdout(io.StringIO()):  # data sets tell how they are read
                ready = make()
            ready.step()
        except Exception as error:  # whatever it is, the others are of interest
            if label == ALONE:
                raise
            traceback.print_exc(limit=-3)
            failed.append(f"{label}: left out, {type(error).__name__}: {str(error)[:300]}")
            continue
        built[label] = ready
    return built, failed


def check_alike(subject: Subject, args: argparse.Namespace) -> None:
    """End the run if variants of one mathematics begin with different losses."""
    for labels in subject.alike:
        chosen = [name for name in labels if not any(text in name for text in args.leave_out)]
        losses = {name: float(subject.variants[name]().step()["loss"]) for name in chosen}
        values = list(losses.values())
        if any(abs(value - values[0]) > 1e-4 * abs(values[0]) for value in values):
            sys.exit(f"These should have one loss, but have {losses}.")


def notes(built: Mapping[str, Built], measured: Measured) -> list[str]:
    """How the teachers ran, and what is left of a step's cost without them."""
    lines = []
    for label, ready in built.items():
        for name, how in ready.teachers.items():
            lines.append(f"{label}: {name} runs as {_words(how)}")
    if HELD in built:
        share = 1 - 1 / measured.ratio(HELD, ALONE)
        lines.append(f"losses, taps and adapters: {100 * share:.1f} % of a step without a teacher")
    return lines


def _words(how: Any) -> str:
    if not isinstance(how, Mapping):
        return str(how)
    return ", ".join(f"{key} {value}" for key, value in how.items())


def section(name: str, args: argparse.Namespace) -> tuple[str, bool]:
    """Measure one subject; returns what is to be written of it, and whether all of it ran."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        module, _, function = SUBJECTS[name].partition(":")
        make: Callable[..., Subject] = getattr(
            importlib.import_module(f"step_subjects.{module}"), function
        )
        subject = make(args, Path(folder))
        print(f"\n{name}: {subject.about}", flush=True)
        check_alike(subject, args)
        built, failed = build(subject, args)
        measured = measure_steps({label: ready.step for label, ready in built.items()}, args)
        shown = argparse.Namespace(**{**vars(args), "batch": subject.batch})
        told = "\n".join(f"- {line}" for line in [*notes(built, measured), *failed])
        parts = [f"{subject.about}.", setting(shown), measured.table(), told]
        text = "\n\n".join(parts)
    print(text, flush=True)
    gc.collect()
    return f"## {name}\n\n{text}", not failed


def cache_section(args: argparse.Namespace) -> str:
    """Measure the store by itself."""
    from step_subjects import cache

    with tempfile.TemporaryDirectory() as folder:
        table = cache.table(args, Path(folder))
    about = f"{cache.SAMPLES} samples, read in shuffled batches of {cache.BATCH}."
    print(f"\n{about}\n\n{table}", flush=True)
    return f"## {CACHE}\n\n{about}\n\n{table}"


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sections, complete = [], True
    for name in args.subject:
        if name == CACHE:
            sections.append(cache_section(args))
        else:
            text, whole = section(name, args)
            sections.append(text)
            complete = complete and whole
        if args.write:  # after each, so that nothing is lost
            flags = [word for word in sys.argv[1:] if word not in ("--write", str(args.write))]
            command = " ".join(["python benchmarks/step.py", *flags])
            write_page(args.write, TITLE, command, "\n\n".join(sections))
    if not complete:
        sys.exit("Some variants were left out; see above.")


if __name__ == "__main__":
    main()
