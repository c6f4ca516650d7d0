"""The course of a demo: data, training jobs, comparison, table and report."""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import shlex
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from torch import nn

from ....core.errors import ConfigError
from ..config import load_config
from . import report as page
from .cost import available_cores, count_macs, count_parameters, median_latency
from .files import exclusive, write_json, write_text
from .jobs import EVALUATION_DIR, IDENTITY_FILE, Job, JobQueue, Result, clock
from .progress import Progress
from .results import Row, Spread, TrainingLog, gap_recovered, read_log

TEACHER_SEED = 0
TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
LABELS = {TEACHER: "teacher", ALONE: "student alone", DISTILLED: "student distilled"}
COLOURS = {
    TEACHER: page.TEACHER_COLOUR,
    ALONE: page.ALONE_COLOUR,
    DISTILLED: page.DISTILLED_COLOUR,
}
REPORT_FILE, TABLE_FILE, FIGURES_FILE = "report.html", "results.md", "results.json"

# Seconds for latency, pictures and report after the last training run.
_CLOSING = 20.0


@dataclass(frozen=True)
class Metric:
    """A validation figure, higher is better.

    Attributes:
        key: Its name in mmengine's log.
        label: Its name in the table.
        digits: Digits after the point.
    """

    key: str
    label: str
    digits: int = 3


class DemoTask(ABC):
    """What is particular to a task. Its configs are ``configs/<folder>/{teacher,student,
    distilled}.py``; the student in ``distilled.py`` is the network of ``student.py``.

    Attributes:
        name: Name on the command line.
        folder: Folder of its configs under ``configs``.
        title: Heading of the report.
        metrics: The validation figures of the table; the first decides.
        packages: Distributions whose versions the report lists.
        latency_note: What one timed call takes in.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]
    packages: ClassVar[Sequence[str]]
    latency_note: ClassVar[str]

    @abstractmethod
    def prepare(self, cfg: Config) -> str:
        """Make the data that ``cfg`` trains and validates on; describe it in a sentence."""

    @abstractmethod
    def load(self, cfg: Config, checkpoint: Path) -> nn.Module:
        """Build the plain model of ``cfg`` on the CPU and load ``checkpoint`` strictly."""

    @abstractmethod
    def forward_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Return a function that runs the network alone on one validation image."""

    @abstractmethod
    def predict_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Return a function that predicts on one validation image."""

    @abstractmethod
    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> page.Gallery:
        """Return pictures of the truth and of what each model sees on validation images."""


@dataclass(frozen=True)
class DemoOptions:
    """What the user can choose.

    Attributes:
        root: Folder that holds ``configs`` and ``tools``.
        work_dir: Folder for logs, checkpoints and the report.
        seeds: Students trained alone, and distilled.
        jobs: Training processes at once; ``None`` for one a core.
        epochs: Epochs of every run instead of the configs' own; schedules shrink along.
        fresh: Forget earlier runs in ``work_dir``.
        command: The command line, for the report.
    """

    root: Path
    work_dir: Path
    seeds: int = 1
    jobs: int | None = None
    epochs: int | None = None
    fresh: bool = False
    command: str = ""


def training_length(cfg: Config) -> int:
    """Return the epochs of a run, or its iterations where it counts those.

    Raises:
        ConfigError: The config trains nothing.
    """
    train_cfg = cfg.get("train_cfg") or {}
    length = train_cfg.get("max_epochs") or train_cfg.get("max_iters")
    if not length:
        raise ConfigError(
            f"{cfg.filename}: expected train_cfg.max_epochs or train_cfg.max_iters, found "
            f"train_cfg={dict(train_cfg)}."
        )
    return int(length)


def shortened(cfg: Config, epochs: int) -> dict[str, Any]:
    """Return the options that train ``cfg`` for ``epochs``, its schedule scaled in proportion.

    Args:
        cfg: A config that counts epochs.
        epochs: The new length.

    Returns:
        Options as for ``--cfg-options``.

    Raises:
        ConfigError: The config counts iterations, or ``epochs`` is not positive.
    """
    if epochs < 1 or "max_epochs" not in (cfg.get("train_cfg") or {}):
        raise ConfigError(
            f"--epochs {epochs} does not apply to {cfg.filename}: it needs a positive number and "
            "a config that counts epochs (train_cfg.max_epochs)."
        )
    scale = epochs / cfg.train_cfg.max_epochs
    options: dict[str, Any] = {"train_cfg.max_epochs": epochs}
    schedules = cfg.get("param_scheduler") or []
    for index, schedule in enumerate([schedules] if isinstance(schedules, dict) else schedules):
        prefix = "param_scheduler" if isinstance(schedules, dict) else f"param_scheduler.{index}"
        for key in ("begin", "end", "T_max", "total_steps", "step_size", "max_iters"):
            if value := schedule.get(key):
                options[f"{prefix}.{key}"] = max(1, round(value * scale))
        if value := schedule.get("milestones"):
            options[f"{prefix}.milestones"] = [max(1, round(step * scale)) for step in value]
    return options


def option_text(key: str, value: Any) -> str:
    """Return one ``--cfg-options`` argument.

    Example:
        >>> option_text("a.b", [1, 2])
        'a.b=[1,2]'
    """
    if isinstance(value, list):
        return f"{key}=[{','.join(map(str, value))}]"
    return f"{key}={value}"


def signature(cfg: Config, options: Mapping[str, Any]) -> str:
    """Return a hash of everything in a config that decides the outcome of training.

    Args:
        cfg: The config as in its file.
        options: What the command line changes in it.
    """
    changed = cfg.copy()
    changed.merge_from_dict(dict(options))
    content = changed.to_dict()
    content.pop("work_dir", None)
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def plan(configs: Mapping[str, Config], options: DemoOptions, metric: str) -> list[Job]:
    """Return the jobs of a demo: one teacher, and for each seed a student alone and distilled.

    Args:
        configs: The configs by role.
        options: The user's choices.
        metric: Validation figure to show while training.

    Raises:
        ConfigError: No seed is asked for, or a config cannot be shortened.
    """
    if options.seeds < 1:
        raise ConfigError(f"Expected at least one seed, got --seeds {options.seeds}.")
    tools = options.root / "tools"
    jobs: list[Job] = []

    def add(role: str, seed: int, effort: float, needs: tuple[str, ...], links: dict) -> Job:
        cfg = configs[role]
        changes: dict[str, Any] = {"randomness.seed": seed}
        if options.epochs is not None:
            changes |= shortened(cfg, options.epochs)
        length = options.epochs or training_length(cfg)
        unit = "epoch" if "max_epochs" in cfg.train_cfg else "iter"
        name = role if role == TEACHER else f"{role}-{seed}"
        work_dir = options.work_dir / name
        checkpoint = work_dir / f"{unit}_{length}.pth"
        arguments = [option_text(key, value) for key, value in (changes | links).items()]
        plain = configs[ALONE if role == DISTILLED else role]
        job = Job(
            name=name,
            command=(
                sys.executable,
                str(tools / "train.py"),
                str(cfg.filename),
                *("--work-dir", str(work_dir), "--resume", "--cfg-options", *arguments),
            ),
            work_dir=work_dir,
            length=length,
            checkpoint=checkpoint,
            metric=metric,
            signature=signature(cfg, changes),
            needs=needs,
            exclusive=role == TEACHER,
            effort=effort,
            evaluate=(
                sys.executable,
                str(tools / "test.py"),
                str(plain.filename),
                str(checkpoint),
                *("--work-dir", str(work_dir / EVALUATION_DIR)),
            ),
        )
        jobs.append(job)
        return job

    teacher = add(TEACHER, TEACHER_SEED, 2.0, (), {})
    for seed in range(options.seeds):
        add(ALONE, seed, 1.0, (), {})
    # Both in full: the paths in the config hold for one folder to start from.
    link = {
        "distill.teacher.config": str(configs[TEACHER].filename),
        "distill.teacher.checkpoint": str(teacher.checkpoint),
    }
    for seed in range(options.seeds):
        add(DISTILLED, seed, 1.5, (teacher.name,), link)
    return jobs


@dataclass(frozen=True)
class Outcome:
    """Everything measured in a demo, from which table and report are made.

    Attributes:
        scores: For each role, for each metric key, one figure per seed.
        parameters: Parameters by role.
        macs: Multiply-accumulates by role.
        latency: Milliseconds by role.
    """

    scores: Mapping[str, Mapping[str, Sequence[float]]]
    parameters: Mapping[str, int]
    macs: Mapping[str, int]
    latency: Mapping[str, float]

    def mean(self, role: str, metric: Metric) -> float:
        """Return a role's figure, averaged over the seeds."""
        return Spread.of(self.scores[role][metric.key]).mean

    def gap(self, metric: Metric) -> float | None:
        """Return the share of the gap recovered, from the means over the seeds."""
        return gap_recovered(*(self.mean(role, metric) for role in (TEACHER, ALONE, DISTILLED)))


def percent(share: float | None) -> str:
    """Return a share for the table.

    Example:
        >>> percent(0.254), percent(None)
        ('25 %', 'n/a')
    """
    return "n/a" if share is None else f"{100 * share:.0f} %"


def quantity(number: float) -> str:
    """Return a large number with three figures and its unit prefix.

    Example:
        >>> quantity(3_140_000), quantity(220_000), quantity(12)
        ('3.14 M', '220 k', '12')
    """
    number = float(f"{number:.3g}")  # first, so that 999,999 becomes a million
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            value = number / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number:.0f}"


def results_table(outcome: Outcome, metrics: Sequence[Metric]) -> page.Table:
    """Return the table that the demo ends with."""
    columns = [
        "model",
        *(metric.label for metric in metrics),
        "parameters",
        "MACs",
        "CPU latency",
        f"gap recovered ({metrics[0].label})",
    ]
    rows = []
    for role in (TEACHER, ALONE, DISTILLED):
        gap = percent(outcome.gap(metrics[0])) if role == DISTILLED else ""
        rows.append(
            [
                LABELS[role],
                *(Spread.of(outcome.scores[role][m.key]).text(m.digits) for m in metrics),
                quantity(outcome.parameters[role]),
                quantity(outcome.macs[role]),
                f"{outcome.latency[role]:.1f} ms",
                gap,
            ]
        )
    return page.Table(columns, rows, strong=2)


def summary_sentence(outcome: Outcome, metric: Metric, length: str, seeds: int) -> str:
    """Say in one sentence what came out, whichever way it went."""
    teacher, alone, distilled = (
        f"{outcome.mean(role, metric):.{metric.digits}f}" for role in (TEACHER, ALONE, DISTILLED)
    )
    gap = outcome.gap(metric)
    size = quantity(outcome.parameters[ALONE])
    big = quantity(outcome.parameters[TEACHER])
    over = f" (means over {seeds} seeds)" if seeds > 1 else ""
    start = (
        f"Trained for the same {length}, the student with {size} parameters reaches {alone} "
        f"{metric.label} alone and {distilled} with its teacher, which has {big} parameters and "
        f"reaches {teacher}{over}"
    )
    if gap is None:
        return f"{start}; the teacher is no better than the student, so there is no gap to recover."
    if gap <= 0:
        return f"{start}: here distillation did not help."
    return f"{start}: distillation recovers {percent(gap)} of the gap between them."


def run_demo(task: DemoTask, options: DemoOptions, console: Console) -> Path:
    """Run a demo from the data to the report, continuing where an earlier one stopped.

    Args:
        task: What is particular to the task.
        options: The user's choices.
        console: Where progress and the table are printed.

    Returns:
        Path of the report.

    Raises:
        DistillError: A config is missing or cannot be used, the work folder is in use or holds
            foreign files, or a training run failed.
        KeyboardInterrupt: The user stopped it; the training processes have ended.
    """
    begun = time.monotonic()
    configs = load_configs(options.root / "configs" / task.folder)
    jobs = plan(configs, options, task.metrics[0].key)
    cores = available_cores()
    with exclusive(options.work_dir) as lock:
        if options.fresh:
            for job in jobs:
                if (job.work_dir / IDENTITY_FILE).is_file():
                    shutil.rmtree(job.work_dir)
        with Progress(console, task.metrics[0].label) as progress:
            progress.note("Preparing the data.")
            data = task.prepare(configs[ALONE])
            progress.note(data)
            queue = JobQueue(
                jobs,
                slots=options.jobs or min(cores, len(jobs)),
                cores=cores,
                display=progress,
                inherit=[lock],
                closing=_CLOSING,
            )
            results = queue.run()
            progress.note("Comparing the models.")
            first = {TEACHER: TEACHER, ALONE: f"{ALONE}-0", DISTILLED: f"{DISTILLED}-0"}
            plain = {
                TEACHER: configs[TEACHER],
                ALONE: configs[ALONE],
                DISTILLED: configs[ALONE],
            }
            models = {
                role: task.load(plain[role], results[name].checkpoint)
                for role, name in first.items()
            }
            outcome = measure(task, jobs, results, models, plain)
            gallery = task.gallery(
                configs[ALONE], {LABELS[role]: model for role, model in models.items()}
            )
        table = results_table(outcome, task.metrics)
        length = _length_text(jobs[0], configs[TEACHER])
        summary = summary_sentence(outcome, task.metrics[0], length, options.seeds)
        notes = _notes(task, data, length, options)
        elapsed = time.monotonic() - begun
        report = page.Report(
            title=task.title,
            summary=summary,
            table=table,
            notes=notes,
            sections=_sections(task, options, configs, jobs, results, outcome, gallery, elapsed),
        )
        path = options.work_dir / REPORT_FILE
        page.write_report(report, path)
        write_text(
            options.work_dir / TABLE_FILE,
            "\n\n".join([summary, table.markdown(), *notes, f"    {options.command}"]) + "\n",
        )
        write_json(
            options.work_dir / FIGURES_FILE,
            {
                "scores": outcome.scores,
                "parameters": outcome.parameters,
                "macs": outcome.macs,
                "latency_ms": outcome.latency,
                "gap_recovered": {m.key: outcome.gap(m) for m in task.metrics},
                "seconds": {name: result.seconds for name, result in results.items()},
            },
        )
    _print(console, table, summary, path, elapsed)
    return path


def load_configs(folder: Path) -> dict[str, Config]:
    """Read the three configs of a demo.

    Raises:
        ConfigError: One of the files is absent or cannot be read.
    """
    files = {TEACHER: "teacher.py", ALONE: "student.py", DISTILLED: "distilled.py"}
    configs = {}
    for role, name in files.items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(
                f"Expected the demo's config {path}, and it is not there. Run the command from a "
                "complete source tree, or install the package again."
            )
        configs[role] = load_config(str(path))
    return configs


def measure(
    task: DemoTask,
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    models: Mapping[str, nn.Module],
    configs: Mapping[str, Config],
) -> Outcome:
    """Collect the validation figures and measure the cost of each model."""
    scores: dict[str, dict[str, list[float]]] = {role: {} for role in models}
    for job in jobs:
        role = job.name.partition("-")[0]
        for metric in task.metrics:
            if metric.key not in results[job.name].metrics:
                raise ConfigError(
                    f"{job.name}: its validation has no figure {metric.key!r}; it has "
                    f"{sorted(results[job.name].metrics)}. Check val_evaluator in its config."
                )
            scores[role].setdefault(metric.key, []).append(results[job.name].metrics[metric.key])
    return Outcome(
        scores=scores,
        parameters={role: count_parameters(model) for role, model in models.items()},
        macs={
            role: count_macs(task.forward_call(model, configs[role]))
            for role, model in models.items()
        },
        latency=median_latency(
            {role: task.predict_call(model, configs[role]) for role, model in models.items()}
        ),
    )


def _length_text(job: Job, cfg: Config) -> str:
    unit = "epoch" if "max_epochs" in cfg.train_cfg else "iteration"
    return f"{job.length} {unit}{'s' if job.length != 1 else ''}"


def _notes(task: DemoTask, data: str, length: str, options: DemoOptions) -> list[str]:
    main = task.metrics[0].label
    notes = [
        data,
        f"Figures are those of the validation after the last of {length}, for every model; no "
        "checkpoint is selected by its score.",
        f"Gap recovered: (distilled - alone) / (teacher - alone), in {main}.",
        "MACs: multiply-accumulates of convolutions and matrix products, for one validation image. "
        f"CPU latency: {task.latency_note}; median of 30 runs in turn, on all "
        f"{available_cores()} cores.",
    ]
    if options.seeds > 1:
        notes.insert(
            2,
            f"Mean ± standard deviation over {options.seeds} seeds of the student; one teacher "
            "serves them all.",
        )
    return notes


def _sections(
    task: DemoTask,
    options: DemoOptions,
    configs: Mapping[str, Config],
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    outcome: Outcome,
    gallery: page.Gallery,
    elapsed: float,
) -> list[page.Section]:
    logs = {job.name: read_log(job.work_dir) for job in jobs}
    sections = [
        page.Section("What the models see", gallery=gallery),
        _validation_section(task, jobs, configs, results, logs),
        _loss_section(jobs, logs),
        _terms_section(jobs, logs),
    ]
    if options.seeds > 1:
        sections.append(_seeds_section(task, outcome))
    runs = [
        [job.name, _length_text(job, configs[TEACHER]), clock(results[job.name].seconds)]
        for job in jobs
    ]
    versions = [["taskdistill", _own_version()], ["Python", platform.python_version()]]
    versions += [[name, package_version(name)] for name in task.packages]
    versions.append(["system", f"{platform.system()} {platform.machine()}"])
    versions.append(["CPU cores", str(available_cores())])
    names = {TEACHER: "teacher.py", ALONE: "student.py", DISTILLED: "distilled.py"}
    listings = [
        page.Listing(f"Config {names[role]}", _source(cfg)) for role, cfg in configs.items()
    ]
    listings += [
        page.Listing(f"Config {names[role]}, with all it inherits", cfg.pretty_text)
        for role, cfg in configs.items()
    ]
    commands = "\n\n".join(shlex.join(job.command) for job in jobs)
    sections.append(
        page.Section(
            "How it was made",
            text=f"This run of the demo took {clock(elapsed)}; below, what each training run took "
            "over all its continuations, beside the others.",
            tables=[
                page.Table(["run", "length", "time"], runs),
                page.Table(["software", "version"], versions),
            ],
            listings=[
                page.Listing("The command", options.command),
                page.Listing("The training commands", commands),
                *listings,
            ],
        )
    )
    return sections


def _roles(jobs: Sequence[Job]) -> list[tuple[Job, str, str]]:
    found = []
    for job in jobs:
        role = job.name.partition("-")[0]
        found.append((job, LABELS[role], COLOURS[role]))
    return found


def _validation_section(
    task: DemoTask,
    jobs: Sequence[Job],
    configs: Mapping[str, Config],
    results: Mapping[str, Result],
    logs: Mapping[str, TrainingLog],
) -> page.Section:
    unit = "epoch" if "max_epochs" in configs[TEACHER].train_cfg else "iteration"
    figures = []
    for metric in task.metrics:
        curves = []
        for job, label, colour in _roles(jobs):
            rows: list[Row] = list(logs[job.name].val)
            if logs[job.name].validation_at(job.length) is None:
                # Evaluated separately, after an interruption.
                rows.append({**results[job.name].metrics, "step": float(job.length)})
            curves.append(page.metric_curve(label, colour, rows, metric.key))
        figures.append(
            page.Figure(
                page.plot_curves(curves, unit, metric.label),
                f"{metric.label} on the validation images over training, for each model.",
            )
        )
    return page.Section("Validation during training", figures=figures)


def _loss_section(jobs: Sequence[Job], logs: Mapping[str, TrainingLog]) -> page.Section:
    curves = [page.loss_curve(label, colour, logs[job.name]) for job, label, colour in _roles(jobs)]
    return page.Section(
        "Task loss",
        text="The loss of the task itself, without the distillation terms, on training images.",
        figures=[
            page.Figure(
                page.plot_curves(curves, "iteration", "task loss"),
                "Task loss over training, for each model.",
            )
        ],
    )


def _terms_section(jobs: Sequence[Job], logs: Mapping[str, TrainingLog]) -> page.Section:
    png = page.plot_terms([logs[job.name] for job in jobs if job.needs])
    if png is None:
        return page.Section(
            "Distillation terms", text="The logs of the distilled student hold no such term."
        )
    return page.Section(
        "Distillation terms",
        text="Each term as computed (raw) and as it entered the loss: times its weight and its "
        "schedule (weighted).",
        figures=[page.Figure(png, "Raw and weighted distillation terms over training.")],
    )


def _seeds_section(task: DemoTask, outcome: Outcome) -> page.Section:
    metric = task.metrics[0]
    teacher = outcome.mean(TEACHER, metric)
    rows = []
    alone_scores, distilled_scores = (
        outcome.scores[role][metric.key] for role in (ALONE, DISTILLED)
    )
    pairs = zip(alone_scores, distilled_scores, strict=True)
    for seed, (alone, distilled) in enumerate(pairs):
        rows.append(
            [
                str(seed),
                f"{alone:.{metric.digits}f}",
                f"{distilled:.{metric.digits}f}",
                percent(gap_recovered(teacher, alone, distilled)),
            ]
        )
    columns = ["seed", f"alone, {metric.label}", f"distilled, {metric.label}", "gap recovered"]
    return page.Section("Each seed", tables=[page.Table(columns, rows)])


def _source(cfg: Config) -> str:
    return Path(str(cfg.filename)).read_text(encoding="utf-8")


def _own_version() -> str:
    return importlib.import_module(__name__.partition(".")[0]).__version__


def _print(console: Console, table: page.Table, summary: str, path: Path, elapsed: float) -> None:
    shown = RichTable(title=None)
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for index, row in enumerate(table.rows):
        shown.add_row(*map(Text, row), style="bold" if index == table.strong else None)
    console.print()
    console.print(shown)
    console.print(Text(summary))
    console.print(Text(f"\nTook {clock(elapsed)}. Report: {path.resolve()}"), soft_wrap=True)
