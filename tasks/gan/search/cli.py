"""The command line of ``tools/search.py``."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ....core.errors import ConfigError, DistillError, did_you_mean
from ...common.cost import available_cores
from ...common.demo.jobs import clock
from ...common.files import exclusive
from ...openmm.config import load_config
from ...openmm.teacher import read_model_config
from .evaluate import SubnetEvaluator, load_supernet, supernet_config
from .evolution import METHODS, Criterion, Search, SearchResult, Standing
from .front import pareto_front, read_references, unit_of
from .macs import MacsTable, macs_of, parse_budget, plain_generator
from .outcome import (
    CONFIG,
    FINETUNE,
    OUTCOME_FILES,
    PICTURE,
    WEIGHTS,
    finetune_config,
    write_outcome,
)
from .pool import EvaluationPool
from .records import EVALUATIONS_FILE, STATE_FILE, set_aside
from .space import ChannelSpace, encode

__all__ = ["main", "parse_args", "settings_of"]

# What can be said in a config's `search` entry too, with defaults. Each process holds a network
# and a set of features, so more than these do not pay on a machine with many cores.
_DEFAULTS: dict[str, Any] = dict(
    budget=None,
    teacher=None,
    metric="SmallFD",
    higher_is_better=None,
    method="auto",
    population=100,
    generations=20,
    seed=0,
    jobs=None,
    limit_images=None,
    shape=(256, 256),
    finetune_epochs=None,
    references=None,
)
_MOST_JOBS = 8
_LINE_SECONDS = 15.0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what was not given is None."""
    parser = argparse.ArgumentParser(
        prog="search.py",
        description="Search a trained once-for-all generator for its best sub-network.",
        epilog="Options but the folder, --device and --fresh can stand in the config as "
        "search=dict(...). Interrupted, the same command continues where it stopped.",
    )
    parser.add_argument("config", help="config that the super-network was trained with")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("--budget", help="most multiply-accumulates: 5.6G, or 0.2x of the teacher")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/CONFIG_search")
    parser.add_argument(
        "--teacher", help="config of the teacher, for a budget in x (default: distill.teacher)"
    )
    parser.add_argument("--metric", help="validation figure that decides (default: SmallFD)")
    parser.add_argument(
        "--higher-is-better",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="default: by the metric's name",
    )
    parser.add_argument(
        "--method", choices=METHODS, help="default: exhaustive up to 512 sub-networks"
    )
    parser.add_argument("--population", type=_positive, help="children a generation (default: 100)")
    parser.add_argument(
        "--generations", type=_not_negative, help="after the first population (default: 20)"
    )
    parser.add_argument("--seed", type=_not_negative, help="default: 0")
    parser.add_argument(
        "--jobs",
        type=_positive,
        help=f"processes (default: one a core up to {_MOST_JOBS}; 1 on a GPU)",
    )
    parser.add_argument(
        "--limit-images", type=_positive, metavar="N", help="validate on N images, spread evenly"
    )
    parser.add_argument(
        "--shape",
        type=_positive,
        nargs=2,
        metavar=("H", "W"),
        help="image that multiply-accumulates are counted for (default: 256 256)",
    )
    parser.add_argument(
        "--finetune-epochs", type=_positive, metavar="N", help="length of finetune.py's training"
    )
    parser.add_argument(
        "--references", metavar="JSON", help='{"teacher": {"macs": ..., "SmallFD": ...}, ...}'
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--fresh", action="store_true", help="move an earlier search into previous-N and begin anew"
    )
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace, cfg: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Return every option: the command line's, else the config's, else the default.

    Args:
        args: From :func:`parse_args`.
        cfg: The super-network's config, which may have a ``search`` entry.

    Raises:
        ConfigError: If that entry has an unknown option, or no budget is given.

    Example:
        >>> args = parse_args(["c.py", "c.pth", "--budget", "2G"])
        >>> found = settings_of(args, dict(search=dict(budget="5G", metric="FID")))
        >>> found["budget"], found["metric"], found["population"]
        ('2G', 'FID', 100)
    """
    entry = dict(cfg.get("search") or {})
    for key in entry:
        if key not in _DEFAULTS:
            raise ConfigError(f"search in the config has no {key!r}.{did_you_mean(key, _DEFAULTS)}")
    given = {key: getattr(args, key) for key in _DEFAULTS if getattr(args, key) is not None}
    settings = {**_DEFAULTS, **entry, **given}
    if settings["budget"] is None:
        raise ConfigError(
            "No budget is given. Say how many multiply-accumulates the sub-network may have, with "
            "--budget 5.6G or --budget 0.2x, or search=dict(budget=...) in the config."
        )
    for key in ("population", "generations", "seed", "jobs", "limit_images", "finetune_epochs"):
        value = settings[key]
        least = 0 if key in ("generations", "seed") else 1
        optional = key in ("jobs", "limit_images", "finetune_epochs")
        if value is None and optional:
            continue
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"search.{key} is a whole number from {least} on, got {value!r}.")
    shape = settings["shape"]
    if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ConfigError(f"search.shape is height and width in pixels, got {shape!r}.")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the search; return the exit status."""
    args = parse_args(argv)
    # Ended by the system or by a closed terminal, end the processes as for Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup asks to survive the terminal
            signal.signal(number, _interrupt)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    words = sys.argv if argv is None else ["tools/search.py", *argv]
    command = shlex.join(["python", *words])
    try:
        _search(args, command, console)
    except DistillError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nStopped. Nothing evaluated is lost; the same command continues:\n  {command}",
            file=sys.stderr,
        )
        return 130
    return 0


def _search(args: argparse.Namespace, command: str, console: Console) -> None:
    cfg = load_config(args.config)
    settings = settings_of(args, cfg)
    criterion = Criterion(settings["metric"], settings["higher_is_better"])
    references = (
        read_references(Path(settings["references"]), criterion) if settings["references"] else []
    )
    generator = supernet_config(args.config).model.generator
    space = ChannelSpace(generator.space)
    shape = tuple(settings["shape"])
    budget = parse_budget(settings["budget"], _teacher_counter(settings["teacher"], cfg, shape))
    # Before hours of evaluation: what is written at the end can be written.
    finetune_config(cfg, space.smallest, Path(WEIGHTS), epochs=settings["finetune_epochs"])
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with redirect_stdout(io.StringIO()):
        _, model, sha256 = load_supernet(args.config, args.checkpoint)
    macs = MacsTable(space, lambda channels: macs_of(plain_generator(generator, channels), shape))
    jobs = settings["jobs"] or (1 if device.type == "cuda" else min(available_cores(), _MOST_JOBS))
    folder = args.work_dir or Path("work_dirs") / f"{Path(args.config).stem}_search"
    identity = {
        "checkpoint": sha256,
        "validation": _fingerprint(cfg),
        "images": settings["limit_images"],
        "shape": shape,
    }
    make = partial(SubnetEvaluator, args.config, args.checkpoint, device, settings["limit_images"])
    with exclusive(folder):
        if args.fresh:
            moved = set_aside(folder, (EVALUATIONS_FILE, STATE_FILE, *OUTCOME_FILES))
            if moved is not None:
                console.print(Text(f"The earlier search was moved into {moved}."), soft_wrap=True)
        with EvaluationPool(make, jobs) as pool, _shown(console, criterion) as notify:
            search = Search(
                space,
                evaluate=pool,
                macs=macs,
                criterion=criterion,
                budget=budget,
                folder=folder,
                method=settings["method"],
                population=settings["population"],
                generations=settings["generations"],
                seed=settings["seed"],
                identity=identity,
                notify=notify,
            )
            result = search.run()
        moved = write_outcome(
            folder,
            cfg,
            model,
            result,
            criterion,
            budget=budget,
            checkpoint=args.checkpoint,
            summary=dict(
                command=command,
                config=str(args.config),
                checkpoint=str(args.checkpoint),
                sha256=sha256,
                shape=shape,
                images=settings["limit_images"],
            ),
            references=references,
            finetune_epochs=settings["finetune_epochs"],
        )
    if moved is not None:
        console.print(Text(f"The files of an earlier outcome were moved into {moved}."))
    _report(console, folder, result, criterion, budget, shape)


def _teacher_counter(teacher: Any, cfg: Config, shape: Sequence[int]) -> Any:
    """What counts the teacher, or None where there is none."""
    if teacher is None:
        entry = (cfg.get("distill") or {}).get("teacher") or {}
        teacher = entry.get("config")
    if teacher is None:
        return None

    def count() -> int:
        generator = read_model_config(teacher, "Teacher").model.get("generator")
        if generator is None:
            raise ConfigError(f"Teacher config {teacher!r} has no model.generator to count.")
        return macs_of(generator, shape)

    return count


def _fingerprint(cfg: Config) -> str:
    """A hash of what decides a configuration's figures, beside the weights."""
    parts = {
        key: cfg.get(key)
        for key in ("model", "data_preprocessor", "val_dataloader", "val_evaluator")
    }
    text = json.dumps(Config(parts).to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class _Shown:
    """Shows how far a search is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, criterion: Criterion) -> None:
        self._console, self._criterion = console, criterion
        self._begun = time.monotonic()
        self._last = float("-inf")
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self.bar.add_task("starting", total=1.0, state="")

    def __call__(self, now: Standing) -> None:
        state = f"{now.evaluated} evaluated"
        if now.best is not None:
            value = self._criterion.of(now.best.metrics)
            state += f", best {self._criterion.metric} {value:.4g} ({encode(now.best.channels)})"
        what = "all" if now.generations == 0 else f"generation {now.generation}/{now.generations}"
        done = (now.generation + now.done / now.total) / (now.generations + 1)
        if self.bar is not None:
            self.bar.update(self._task, description=what, completed=done, state=state)
            return
        moment = time.monotonic()
        last = now.done == now.total and now.generation == now.generations
        if last or moment - self._last >= _LINE_SECONDS:
            self._last = moment
            line = f"[{clock(moment - self._begun)}] {what} {done:.0%}, {state}"
            self._console.print(Text(line), soft_wrap=True)


@contextmanager
def _shown(console: Console, criterion: Criterion) -> Iterator[_Shown]:
    shown = _Shown(console, criterion)
    if shown.bar is None:
        yield shown
        return
    with shown.bar:
        yield shown


def _report(
    console: Console,
    folder: Path,
    result: SearchResult,
    criterion: Criterion,
    budget: int,
    shape: Sequence[int],
) -> None:
    """Print the front's best few, and what to do next."""
    front = pareto_front(result.evaluated, criterion)[::-1][:8]
    # The one that decides, and beside it so many that the channels stay readable.
    others = [name for name in result.best.metrics if name != criterion.metric]
    names = [criterion.metric, *others[:3]]
    table = Table(title=f"Best of {len(result.evaluated)} sub-networks ({result.method} search)")
    table.add_column("channels", no_wrap=True)
    unit, name = unit_of(budget)
    table.add_column(f"{name} at {shape[0]}x{shape[1]}", justify="right")
    table.add_column("of the budget", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for entry in front:
        figures = [f"{entry.metrics.get(name, float('nan')):.4g}" for name in names]
        table.add_row(
            encode(entry.channels),
            f"{entry.macs / unit:.4g}",
            f"{entry.macs / budget:.1%}",
            *figures,
            style="bold" if entry == result.best else "",
        )
    console.print(table)
    lines = (
        f"Picture: {folder / PICTURE}",
        f"Validate: python tools/test.py {folder / CONFIG} {folder / WEIGHTS}",
        f"Fine-tune: python tools/train.py {folder / FINETUNE}",
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return int(text)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
