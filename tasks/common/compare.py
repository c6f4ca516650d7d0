"""Train configs with several seeds, and set what came out side by side: table, figures, diagram.

The queue, its display and the reading of logs are those of the demos. What a config is, and how it
is trained, a :class:`Contender` knows; there is one for each way of training
(``taskdistill.tasks.openmm.demo.compared``, ``taskdistill.tasks.nlp.compared``).
"""

from __future__ import annotations

import glob
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from rich.console import Console
from rich.text import Text

from ...core.errors import ConfigError, did_you_mean
from .cost import MAC_CONVENTION, available_cores
from .demo import report as page
from .demo.comparison import Metric, percent, quantity
from .demo.jobs import IDENTITY_FILE, Display, Job, JobFailed, JobQueue, JobState, Result
from .demo.progress import Progress
from .demo.results import Spread, TrainingLog, gap_recovered, read_log
from .demo.run import print_tables
from .files import exclusive, read_json, write_json, write_text

__all__ = [
    "FIGURES_FILE",
    "PLOT_FILE",
    "TABLE_FILE",
    "CompareOptions",
    "Comparison",
    "Contender",
    "Cost",
    "Entry",
    "Row",
    "find_configs",
    "lower_is_better",
    "name_configs",
    "plot",
    "results_table",
    "run_comparison",
    "split_evaluation",
]

TABLE_FILE, FIGURES_FILE, PLOT_FILE = "comparison.md", "comparison.json", "comparison.png"
RUNS = "runs"
"""Folder of the training runs within that of the comparison."""

_SUFFIXES = (".py", ".yaml", ".yml", ".json")
# What a validation logs beside its figures.
_NO_FIGURES = ("step", "epoch", "iter", "time", "data_time", "memory")
_LOWER = frozenset(
    "cer distance ece err error fd fid kid l1 l2 loss lpips mae mse nll perplexity ppl rmse wer"
    "".split()
)
_LOWER_ENDS = ("error", "fd", "fid", "loss", "perplexity")
_NAME = re.compile(r"[\w+][\w+.-]*")


@dataclass(frozen=True)
class Cost:
    """What a deployed network costs.

    Attributes:
        parameters: How many it has; ``None`` where they cannot be had.
        macs: Multiply-accumulates for one sample; ``None`` likewise.
        sample: What that sample is.
        problem: Why a figure cannot be had.
    """

    parameters: int | None = None
    macs: int | None = None
    sample: str = ""
    problem: str = ""


class Contender(Protocol):
    """A config, as the program that trains it reads it."""

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    def training(self, name: str, work_dir: Path, seed: int, metric: str) -> Job:
        """Return the run that trains it.

        Args:
            name: Name of the run.
            work_dir: Its folder.
            seed: Its seed.
            metric: Validation figure that it must have; empty for any.

        Raises:
            DistillError: It cannot be trained as asked.
        """
        ...

    def evaluation(self, name: str, work_dir: Path, checkpoint: Path, metric: str) -> Job:
        """Return the run that validates a checkpoint of it; the arguments as of a training.

        Raises:
            DistillError: There is no such checkpoint.
        """
        ...

    def caution(self) -> str:
        """Return why the figures of an evaluation may be others than of a training; mostly none."""
        ...

    def cost(self, checkpoint: Path) -> Cost:
        """Return what the network costs; never fails.

        Args:
            checkpoint: A checkpoint of it.
        """
        ...


@dataclass(frozen=True)
class Entry:
    """One row to be.

    Attributes:
        name: Its name in the table, in names of runs and of folders.
        config: What is trained.
        checkpoint: What is evaluated; ``None`` where it is trained.
    """

    name: str
    config: Contender
    checkpoint: Path | None = None


@dataclass(frozen=True)
class CompareOptions:
    """What the user can choose.

    Attributes:
        out: Folder for the runs and for what comes out.
        seeds: Runs of each config.
        jobs: Training processes at once; ``None`` for one a core.
        metrics: Validation figures, the first decides; none for the first one that all runs have.
        lower: Of these, lower is better, whatever their names say.
        higher: Likewise, higher.
        baseline: Name of the row that the others are compared with; ``None`` for the first that is
            trained.
        gap: Name of the teacher's row, for the share of the gap that each recovers.
        title: Heading.
        fresh: Forget earlier runs.
        command: The command line, for the record.
    """

    out: Path
    seeds: int = 3
    jobs: int | None = None
    metrics: Sequence[str] = ()
    lower: Sequence[str] = ()
    higher: Sequence[str] = ()
    baseline: str | None = None
    gap: str | None = None
    title: str = "Comparison"
    fresh: bool = False
    command: str = ""


@dataclass(frozen=True)
class Row:
    """What came out of one config.

    Attributes:
        name: Its name.
        config: Path of its config.
        trained: Whether it was trained; else a checkpoint was evaluated.
        scores: For each metric key, one figure by seed; of an evaluation, with 0 for its seed.
        failed: The runs that failed, with why.
        seconds: Mean time of training; ``None`` for an evaluation, or where no run finished.
        cost: What its network costs.
        curves: Validation figures over training, by seed.
        unit: What the steps of the curves count.
    """

    name: str
    config: str
    trained: bool
    scores: Mapping[str, Mapping[int, float]]
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    cost: Cost = field(default_factory=Cost)
    curves: Mapping[int, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    unit: str = "epoch"

    def spread(self, metric: Metric) -> Spread | None:
        """Return mean and deviation over the seeds that finished; ``None`` where none did."""
        values = list(self.scores.get(metric.key, {}).values())
        return Spread.of(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """All rows side by side.

    Attributes:
        rows: In the order of the table.
        metrics: The validation figures; the first decides.
        baseline: Name of the row that the others are compared with.
        seeds: Seeds that each config was to be trained with.
        gap: Name of the teacher's row, if the share of the gap is asked for.
    """

    rows: Sequence[Row]
    metrics: Sequence[Metric]
    baseline: str
    seeds: int
    gap: str | None = None

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def failed(self) -> dict[str, str]:
        """All runs that failed, with why."""
        return {name: why for row in self.rows for name, why in row.failed.items()}

    def difference(self, row: Row, metric: Metric) -> Spread | None:
        """Return how far a row is from the baseline, with its spread.

        Of two configs that were trained, the runs of one seed are subtracted from one another, and
        the differences averaged: what the seed does to both is not in their spread. A figure of an
        evaluation, there being only one, is subtracted from each run.

        Returns:
            Mean and deviation; ``None`` for the baseline itself and where figures are missing.
            Where no seed finished in both, the difference of the means, without a deviation.
        """
        base = self.row(self.baseline)
        ours, theirs = row.scores.get(metric.key, {}), base.scores.get(metric.key, {})
        if row.name == base.name or not ours or not theirs:
            return None
        if row.trained and base.trained:
            common = [seed for seed in ours if seed in theirs]
            if not common:
                mean = fmean(ours.values()) - fmean(theirs.values())
                return Spread((mean,), mean, None)
            return Spread.of([ours[seed] - theirs[seed] for seed in common])
        return Spread.of([a - b for a in ours.values() for b in theirs.values()])

    def share(self, row: Row, metric: Metric) -> float | None:
        """Return the share of the gap between baseline and teacher that a row recovers."""
        if self.gap is None or row.name in (self.gap, self.baseline):
            return None
        found = [self.row(name).spread(metric) for name in (self.gap, self.baseline, row.name)]
        means = [spread.mean for spread in found if spread is not None]
        if len(means) < len(found):
            return None
        return gap_recovered(*means, lower_is_better=metric.lower_is_better)

    def time(self, row: Row) -> float | None:
        """Return the time of training relative to the baseline's."""
        base = self.row(self.baseline).seconds
        return None if row.seconds is None or not base else row.seconds / base

    @property
    def best(self) -> Row | None:
        """The row with the best mean of the first metric, among those that were trained."""
        metric = self.metrics[0]
        sign = -1.0 if metric.lower_is_better else 1.0
        found = [
            (sign * spread.mean, row)
            for row in self.rows
            if row.trained and (spread := row.spread(metric)) is not None
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None


# -- what the command line says --------------------------------------------------------------------


def find_configs(given: Sequence[str]) -> list[Path]:
    """Return the config files that paths, patterns and folders stand for, each once.

    Args:
        given: Files; patterns as in a shell (``**`` too); folders, of which every config directly
            in them counts whose name does not begin with an underscore.

    Raises:
        ConfigError: Nothing is there under one of them, or it is no config.
    """
    found: dict[Path, Path] = {}
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            own = sorted(p for p in path.iterdir() if _is_config(p) and p.name[0] != "_")
            if not own:
                raise ConfigError(
                    f"The folder {text!r} holds no config ({', '.join(_SUFFIXES)}); configs in "
                    f"folders below it are meant by {str(path / '**' / '*.py')!r}."
                )
        elif path.is_file():
            if not _is_config(path):
                raise ConfigError(f"{text!r} is no config; expected {', '.join(_SUFFIXES)}.")
            own = [path]
        else:
            own = sorted(map(Path, glob.glob(str(path), recursive=True)))
            own = [p for p in own if p.is_file() and _is_config(p) and p.name[0] != "_"]
            if not own:
                there = path.parent.iterdir() if path.parent.is_dir() else ()
                names = (p.name for p in there if _is_config(p) or p.is_dir())
                near = did_you_mean(path.name, names)
                raise ConfigError(f"There is no config {text!r}.{near}")
        for file in own:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _is_config(path: Path) -> bool:
    return path.suffix in _SUFFIXES


def name_configs(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[str]:
    """Return a name for each config: those given, or else the names of the files.

    Where two files are called alike, the folders they lie in come before their names.

    Args:
        paths: The configs.
        names: As many names, in the same order.

    Raises:
        ConfigError: The numbers differ.

    Example:
        >>> name_configs([Path("kd.py"), Path("a/student.py"), Path("b/student.py")])
        ['kd', 'a-student', 'b-student']
    """
    if names is not None:
        if len(names) != len(paths):
            raise ConfigError(
                f"--names gives {len(names)} names for {len(paths)} configs: "
                f"{', '.join(map(str, paths))}. Give one for each, in this order."
            )
        return list(names)
    parts = [path.resolve().with_suffix("").parts for path in paths]
    made = []
    for own in parts:
        length = 1
        while length < len(own) and sum(o[-length:] == own[-length:] for o in parts) > 1:
            length += 1
        made.append(re.sub(r"[^\w+.-]", "_", "-".join(own[-length:]).strip("/")))
    return made


def split_evaluation(text: str) -> tuple[str, Path, Path]:
    """Take ``NAME=CONFIG,CHECKPOINT`` apart.

    Raises:
        ConfigError: It is not of that form, or the config is not there.

    Example:
        >>> split_evaluation("teacher=configs,teacher.pth")
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.ConfigError: --evaluate teacher: config 'configs' does not exist.
    """
    name, equals, rest = text.partition("=")
    config, comma, checkpoint = rest.partition(",")
    if not (equals and comma and name and config and checkpoint):
        raise ConfigError(f"--evaluate {text!r}: expected NAME=CONFIG,CHECKPOINT.")
    path = Path(config).expanduser()
    if not path.is_file():
        raise ConfigError(f"--evaluate {name}: config {config!r} does not exist.")
    return name, path, Path(checkpoint).expanduser()


def lower_is_better(key: str) -> bool:
    """Return whether a figure is a loss, a distance or an error, as far as its name says.

    Example:
        >>> [lower_is_better(key) for key in ("val_loss", "test/FID", "val/SmallFD", "top1_error")]
        [True, True, True, True]
        >>> [lower_is_better(key) for key in ("accuracy/top1", "mIoU", "val/PSNR", "confidence")]
        [False, False, False, False]
    """
    words = [word for word in re.split(r"[^a-z0-9]+", key.lower()) if word]
    return any(word in _LOWER or word.endswith(_LOWER_ENDS) for word in words)


# -- the course ------------------------------------------------------------------------------------


def run_comparison(
    entries: Sequence[Entry], options: CompareOptions, console: Console
) -> Comparison:
    """Train and evaluate what is not done yet; write and print what came out.

    Every run has a folder of its own in ``OUT/runs``. One that finished is not repeated, and one
    that was interrupted goes on from its last checkpoint. One whose config has changed since is set
    aside (``NAME.before-1``), and begins anew. One that fails does not keep the others from ending;
    the table is made of those.

    Args:
        entries: What is compared, in the order of the table.
        options: The user's choices.
        console: Where progress and the table are printed.

    Returns:
        What is in ``OUT/comparison.md``, ``.json`` and ``.png``.

    Raises:
        ConfigError: A name, a number or a metric cannot be meant. A metric that a validation does
            not have is told after the first validation.
        JobFailed: Not one run finished.
        DistillError: The folder is in use or holds foreign files.
        KeyboardInterrupt: The user stopped it; the training processes have ended.
    """
    baseline = _check(entries, options)
    first = options.metrics[0] if options.metrics else ""
    jobs = _plan(entries, options, first)
    cores = available_cores()
    with exclusive(options.out) as lock, Progress(console, first) as progress:
        for job in jobs:
            if options.fresh and (job.work_dir / IDENTITY_FILE).is_file():
                shutil.rmtree(job.work_dir)
            else:
                _set_aside(job, progress)
        queue = JobQueue(
            jobs,
            slots=options.jobs or min(cores, len(jobs)),
            cores=cores,
            display=_Watch(progress, options.metrics),
            inherit=[lock],
            keep_going=True,
            # Longer than the queue of a tool that trains several networks gives its own children.
            grace=20.0,
        )
        results = queue.run()
        failed = {name: str(error) for name, error in queue.failures.items()}
        logs = {name: read_log(job.work_dir) for name, job in _by_name(jobs, results).items()}
        failed |= _diverged(jobs, results, logs)
        sound = {name: result for name, result in results.items() if name not in failed}
        metrics = _choose(sound, options) if sound else []
        for name, result in list(sound.items()):
            for metric in metrics:
                if not math.isfinite(value := result.metrics[metric.key]):
                    failed[name] = f"{name}: its validation ends with {metric.key} = {value}."
                    sound.pop(name, None)
        if not sound:
            raise JobFailed("No run finished.\n\n" + "\n\n".join(failed.values()))
        progress.note("Measuring the networks.")
        rows = [_row(entry, jobs, sound, logs, failed, metrics) for entry in entries]
        comparison = Comparison(rows, metrics, baseline, options.seeds, options.gap)
        table, notes = results_table(comparison), _notes(comparison, entries, options)
        write_json(options.out / FIGURES_FILE, _figures(comparison, options))
        (options.out / PLOT_FILE).write_bytes(plot(comparison, options.title))
        write_text(options.out / TABLE_FILE, _markdown(comparison, table, notes, options))
    print_tables(console, table, title=options.title)
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    for why in comparison.failed.values():
        console.print(Text(f"\n{why}", style="red"), soft_wrap=True)
    paths = ", ".join(str(options.out / name) for name in (TABLE_FILE, FIGURES_FILE, PLOT_FILE))
    console.print(Text(f"\nWritten: {paths}"), soft_wrap=True)
    return comparison


def _check(entries: Sequence[Entry], options: CompareOptions) -> str:
    """See that what is asked for can be meant; return the name of the baseline."""
    if not entries:
        raise ConfigError("Expected at least one config to compare, got none.")
    if options.seeds < 1:
        raise ConfigError(f"Expected at least one seed, got --seeds {options.seeds}.")
    names = [entry.name for entry in entries]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name {name!r} is no name of a folder; expected letters, digits and any of "
                "_ + . - (the last two not at the start)."
            )
        if names.count(name) > 1:
            raise ConfigError(f"Two rows are called {name!r}; give other names by --names.")
    for flag, name in (("--baseline", options.baseline), ("--gap", options.gap)):
        if name is not None and name not in names:
            raise ConfigError(
                f"{flag} {name!r} is none of {', '.join(names)}.{did_you_mean(name, names)}"
            )
    trained = [entry.name for entry in entries if entry.checkpoint is None]
    baseline = options.baseline or (trained or names)[0]
    if options.gap == baseline:
        raise ConfigError(
            f"--gap {options.gap!r} is the baseline itself; the gap is that between the two."
        )
    both = set(options.lower) & set(options.higher)
    if both:
        raise ConfigError(f"{sorted(both)} cannot be better both lower and higher.")
    for name in (*options.lower, *options.higher):
        if options.metrics and name not in options.metrics:
            raise ConfigError(
                f"{name!r} of --lower-is-better or --higher-is-better is none of the metrics "
                f"{', '.join(options.metrics)}.{did_you_mean(name, options.metrics)}"
            )
    return baseline


def _plan(entries: Sequence[Entry], options: CompareOptions, metric: str) -> list[Job]:
    jobs = []
    for entry in entries:
        if entry.checkpoint is not None:
            folder = options.out / RUNS / entry.name
            job = entry.config.evaluation(entry.name, folder, entry.checkpoint, metric)
            jobs.append(replace(job, role=entry.name, effort=0.1))
            continue
        for seed in range(options.seeds):
            name = _run_name(entry.name, seed)
            job = entry.config.training(name, options.out / RUNS / name, seed, metric)
            jobs.append(replace(job, role=entry.name))
    return jobs


def _run_name(entry: str, seed: int) -> str:
    return f"{entry}-{seed}"


def _by_name(jobs: Iterable[Job], names: Iterable[str]) -> dict[str, Job]:
    wanted = set(names)
    return {job.name: job for job in jobs if job.name in wanted}


def _set_aside(job: Job, display: Display) -> None:
    """Keep a run whose config was another one, where nothing is in its way."""
    identity = read_json(job.work_dir / IDENTITY_FILE)
    if identity is None or identity["signature"] == job.signature:
        return
    number = 1
    while (target := job.work_dir.with_name(f"{job.work_dir.name}.before-{number}")).exists():
        number += 1
    job.work_dir.rename(target)
    display.note(f"{job.name}: its config has changed; it starts afresh. Kept: {target}")


class _Watch:
    """A display that ends the runs when a validation has not the figures asked for."""

    def __init__(self, display: Display, metrics: Sequence[str]) -> None:
        self._display = display
        self._metrics = metrics

    def update(self, states: Sequence[JobState], seconds_left: float | None) -> None:
        self._display.update(states, seconds_left)
        for state in states:
            if state.figures:
                _require(self._metrics, state.job.name, state.figures)

    def note(self, text: str) -> None:
        self._display.note(text)


def _require(metrics: Sequence[str], name: str, figures: Iterable[str]) -> None:
    there = [key for key in figures if key not in _NO_FIGURES]
    for metric in metrics:
        if metric not in there:
            raise ConfigError(
                f"The validation of {name} has no figure {metric!r}; it has "
                f"{', '.join(there)}.{did_you_mean(metric, there)}"
            )


def _diverged(
    jobs: Sequence[Job], results: Mapping[str, Result], logs: Mapping[str, TrainingLog]
) -> dict[str, str]:
    """The runs that came to their end with a loss that is no number."""
    found = {}
    for name, job in _by_name(jobs, results).items():
        rows = [row for row in logs[name].train if _losses(row)]
        # The last row alone: in mixed precision, a step that is skipped may have had no finite one.
        last = _losses(rows[-1]) if rows else {}
        bad = [key for key, value in last.items() if not math.isfinite(value)]
        if bad:
            since = next(row["step"] for row in rows if not math.isfinite(row.get(bad[0], 0.0)))
            found[name] = (
                f"{name} ended with {bad[0]} = {last[bad[0]]}, not finite first at iteration "
                f"{since:.0f}. To train it anew, remove {job.work_dir}."
            )
    return found


def _losses(row: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if "loss" in key}


def _choose(results: Mapping[str, Result], options: CompareOptions) -> list[Metric]:
    """The metrics asked for; where none is, the first figure that all have."""
    keys = list(options.metrics)
    for name, result in results.items():
        _require(keys, name, result.metrics)
    if not keys:
        first = next(iter(results.values())).metrics
        common = [
            key
            for key in first
            if key not in _NO_FIGURES and all(key in r.metrics for r in results.values())
        ]
        if not common:
            each = "; ".join(
                f"{name}: {', '.join(k for k in result.metrics if k not in _NO_FIGURES)}"
                for name, result in results.items()
            )
            raise ConfigError(f"There is no validation figure that all runs have ({each}).")
        keys = common[:1]
    metrics = []
    for key in keys:
        lower = key in options.lower or (key not in options.higher and lower_is_better(key))
        largest = max(abs(result.metrics[key]) for result in results.values())
        # Per cent and distances with two digits, shares of one with three.
        digits = 2 if math.isfinite(largest) and largest >= 2 else 3
        metrics.append(Metric(key, key, digits, lower))
    return metrics


def _row(
    entry: Entry,
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    logs: Mapping[str, TrainingLog],
    failed: Mapping[str, str],
    metrics: Sequence[Metric],
) -> Row:
    own = [job for job in jobs if job.role == entry.name]
    # In the order of the seeds, which the runs were planned in.
    done = {seed: job for seed, job in enumerate(own) if job.name in results}
    trained = entry.checkpoint is None
    curves = {}
    for seed, job in done.items() if trained else ():
        rows = list(logs[job.name].val)
        if rows and logs[job.name].validation_at(job.length) is None:
            # Evaluated separately, after an interruption.
            rows.append({**results[job.name].metrics, "step": float(job.length)})
        curves[seed] = rows
    checkpoint = entry.checkpoint or next((job.checkpoint for job in done.values()), None)
    return Row(
        name=entry.name,
        config=str(entry.config.path),
        trained=trained,
        scores={
            metric.key: {seed: results[job.name].metrics[metric.key] for seed, job in done.items()}
            for metric in metrics
        },
        failed={job.name: failed[job.name] for job in own if job.name in failed},
        seconds=fmean(results[job.name].seconds for job in done.values())
        if trained and done
        else None,
        cost=entry.config.cost(checkpoint) if checkpoint is not None else Cost(),
        curves=curves,
        unit=own[0].unit,
    )


# -- what comes out --------------------------------------------------------------------------------


def results_table(comparison: Comparison) -> page.Table:
    """Return the table of a comparison; what was trained best, by the first metric, stands out."""
    metrics, rows = comparison.metrics, []
    counted = comparison.seeds > 1 or bool(comparison.failed)
    sized = any(row.cost.parameters is not None for row in comparison.rows)
    computed = any(row.cost.macs is not None for row in comparison.rows)
    timed = any(comparison.time(row) is not None for row in comparison.rows)
    columns = ["config", *(["seeds"] if counted else [])]
    for metric in metrics:
        columns += [f"{metric.label} {'↓' if metric.lower_is_better else '↑'}", "difference"]
    columns += ["parameters"] if sized else []
    columns += ["MACs"] if computed else []
    columns += [f"time ({comparison.baseline} = 1)"] if timed else []
    columns += [f"gap recovered ({metrics[0].label})"] if comparison.gap is not None else []
    for row in comparison.rows:
        cells = [row.name]
        if counted:
            cells.append(_count_text(row, comparison))
        for metric in metrics:
            spread, difference = row.spread(metric), comparison.difference(row, metric)
            cells.append("failed" if spread is None else spread.text(metric.digits))
            cells.append("" if difference is None else _signed(difference, metric.digits))
        cost, time = row.cost, comparison.time(row)
        cells += [_amount(cost.parameters)] if sized else []
        cells += [_amount(cost.macs)] if computed else []
        cells += ["" if time is None else f"{time:.2f}"] if timed else []
        if comparison.gap is not None:
            plain = row.name in (comparison.gap, comparison.baseline)
            cells.append("" if plain else percent(comparison.share(row, metrics[0])))
        rows.append(cells)
    best = comparison.best
    return page.Table(columns, rows, None if best is None else list(comparison.rows).index(best))


def _count_text(row: Row, comparison: Comparison) -> str:
    if not row.trained:
        return "evaluated"
    left = comparison.seeds - len(row.failed)
    return str(left) if not row.failed else f"{left} of {comparison.seeds}"


def _signed(spread: Spread, digits: int) -> str:
    mean = f"{spread.mean:+.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{digits}f}"


def _amount(number: int | None) -> str:
    return "n/a" if number is None else quantity(number)


def _notes(comparison: Comparison, entries: Sequence[Entry], options: CompareOptions) -> list[str]:
    first = comparison.metrics[0]
    notes = []
    if not options.metrics:
        notes.append(f"Compared by {first.key}, the first validation figure that all runs have.")
    notes.append(
        "Figures are those of the validation after the last epoch (or iteration) of a run; no "
        "checkpoint is selected by its score."
    )
    if comparison.seeds > 1:
        notes.append(
            f"± is the standard deviation over the seeds. Difference: from {comparison.baseline}, "
            "seed by seed, with the deviation of these differences."
        )
    else:
        notes.append(
            f"Difference: from {comparison.baseline}. With one seed there is no telling it from "
            "chance."
        )
    if any(comparison.time(row) is not None for row in comparison.rows):
        notes.append(
            "Time: that of training, mean over the seeds. Runs went side by side and shared the "
            "machine, so it is rough."
        )
    samples = list(dict.fromkeys(row.cost.sample for row in comparison.rows if row.cost.sample))
    if samples:
        notes.append(f"MACs: for {' or '.join(samples)}; {MAC_CONVENTION}.")
    if comparison.gap is not None:
        notes.append(
            f"Gap recovered: (config - {comparison.baseline}) / ({comparison.gap} - "
            f"{comparison.baseline}), in {first.key}. n/a: {comparison.gap} is no better."
        )
    for row, entry in zip(comparison.rows, entries, strict=True):
        if row.cost.problem:
            notes.append(f"{row.name}: parameters or MACs cannot be had ({row.cost.problem}).")
        if entry.checkpoint is not None and (caution := entry.config.caution()):
            notes.append(f"{row.name}: {caution}")
    if comparison.failed:
        notes.append(f"Failed: {', '.join(comparison.failed)}. The table is made from the rest.")
    return notes


def _figures(comparison: Comparison, options: CompareOptions) -> dict[str, Any]:
    """Return what the JSON file holds."""
    rows = []
    for row in comparison.rows:
        figures: dict[str, Any] = {}
        for metric in comparison.metrics:
            spread, difference = row.spread(metric), comparison.difference(row, metric)
            figures[metric.key] = {
                "by_seed": row.scores.get(metric.key, {}),
                "mean": spread and spread.mean,
                "deviation": spread and spread.deviation,
                "difference": difference and difference.mean,
                "difference_deviation": difference and difference.deviation,
            }
            if comparison.gap is not None:
                figures[metric.key]["gap_recovered"] = comparison.share(row, metric)
        rows.append(
            {
                "name": row.name,
                "config": row.config,
                "trained": row.trained,
                "metrics": figures,
                "parameters": row.cost.parameters,
                "macs": row.cost.macs,
                "macs_sample": row.cost.sample,
                "seconds": row.seconds,
                "relative_time": comparison.time(row),
                "failed": dict(row.failed),
            }
        )
    return {
        "title": options.title,
        "command": options.command,
        "baseline": comparison.baseline,
        "gap": comparison.gap,
        "seeds": comparison.seeds,
        "lower_is_better": {metric.key: metric.lower_is_better for metric in comparison.metrics},
        "rows": rows,
    }


def _markdown(
    comparison: Comparison, table: page.Table, notes: Sequence[str], options: CompareOptions
) -> str:
    parts = [f"# {options.title}", table.markdown(), *notes]
    parts.append(f"![Differences from {comparison.baseline}, and validation]({PLOT_FILE})")
    for name, why in comparison.failed.items():
        text = "\n".join(f"    {line}" for line in why.splitlines())
        parts += [f"{name} failed:", text]
    return "\n\n".join([*parts, f"    {options.command}"] if options.command else parts) + "\n"


def plot(comparison: Comparison, title: str = "") -> bytes:
    """Draw the differences from the baseline, and the validation over training.

    Args:
        comparison: What came out.
        title: Heading.

    Returns:
        A PNG image, a row for each metric: on the left every run as a small dot and every config's
        mean with its deviation, as differences from the baseline; on the right one curve a run,
        and a level for what was evaluated.
    """
    metrics, count = comparison.metrics, len(comparison.rows)
    height = max(2.8, 1.2 + 0.34 * count)
    canvas = Canvas(figsize=(11.0, height * len(metrics) + 0.3), layout="constrained")
    grid = canvas.subplots(len(metrics), 2, squeeze=False)
    for metric, (left, right) in zip(metrics, grid, strict=True):
        _draw_differences(left, comparison, metric)
        _draw_validation(right, comparison, metric)
    if title:
        canvas.suptitle(title, fontsize=11, color=page.INK)
    return page.png_bytes(canvas)


def _colours(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and line style by row; the baseline is grey, the teacher blue."""
    fixed = {comparison.baseline: (page.ALONE_COLOUR, "-")}
    if comparison.gap is not None:
        fixed[comparison.gap] = (page.TEACHER_COLOUR, "-")
    others = [row.name for row in comparison.rows if row.name not in fixed]
    for index, name in enumerate(others):
        turn, colour = divmod(index, len(page.VARIANT_COLOURS))
        style = page.LINE_STYLES[turn % len(page.LINE_STYLES)]
        fixed[name] = (page.VARIANT_COLOURS[colour], style)
    return fixed


def _draw_differences(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    colours = _colours(comparison)
    origin = comparison.row(comparison.baseline).spread(metric)
    axes.axvline(0.0, color=page.ALONE_COLOUR, linewidth=0.8)
    for place, row in enumerate(comparison.rows):
        spread = comparison.difference(row, metric)
        if row.name == comparison.baseline and origin is not None:
            spread = Spread.of([value - origin.mean for value in origin.values])
        if spread is None:
            continue
        colour = colours[row.name][0]
        many = len(spread.values) > 1
        if many:
            below = [place + 0.22] * len(spread.values)
            axes.plot(spread.values, below, ".", color=colour, alpha=0.5)
        axes.errorbar(
            [spread.mean],
            [place],
            xerr=None if spread.deviation is None else [spread.deviation],
            marker="o" if many else "D",
            markersize=6,
            capsize=3,
            color=colour,
        )
    page.quiet_axes(axes)
    names = [
        row.name if row.spread(metric) is not None else f"{row.name} (failed)"
        for row in comparison.rows
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(comparison.rows) - 0.5, -0.5)  # in the order of the table
    better = "lower" if metric.lower_is_better else "higher"
    label = f"{metric.label} relative to {comparison.baseline} ({better} is better)"
    axes.set_xlabel(label, color=page.INK)


def _draw_validation(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    colours = _colours(comparison)
    curves, units = [], dict[str, None]()
    for row in comparison.rows:
        colour, style = colours[row.name]
        for rows in row.curves.values():
            curve = page.metric_curve(row.name, colour, [dict(r) for r in rows], metric.key, style)
            if curve.x:
                curves.append(curve)
                units[row.unit] = None
    if not curves:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no validation during training", ha="center", color=page.INK)
        return
    for row in comparison.rows:
        spread = row.spread(metric)
        if not row.trained and spread is not None:
            ends = [min(min(c.x) for c in curves), max(max(c.x) for c in curves)]
            level = [spread.mean, spread.mean]
            curves.append(page.Curve(row.name, colours[row.name][0], ends, level, "--"))
    page.draw_curves(axes, curves, " or ".join(units), metric.label)
