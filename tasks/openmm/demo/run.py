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
from statistics import fmean
from typing import Any, ClassVar

from mmengine.config import Config
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from torch import nn

from ....core.errors import ConfigError
from ..config import load_config, plain_config
from ..cost import available_cores, count_macs, count_parameters, median_latency
from . import report as page
from .comparison import (
    ALONE,
    TEACHER,
    Metric,
    Outcome,
    Role,
    class_table,
    make_roles,
    results_table,
    seeds_table,
    summary_sentence,
)
from .files import exclusive, write_json, write_text
from .jobs import EVALUATION_DIR, IDENTITY_FILE, Job, JobQueue, Result, clock
from .progress import Progress
from .results import Row, TrainingLog, read_log

TEACHER_SEED = 0
REPORT_FILE, TABLE_FILE, FIGURES_FILE = "report.html", "results.md", "results.json"

# Seconds for latency, pictures and report after the last training run.
_CLOSING = 20.0


class DemoTask(ABC):
    """What is particular to a task. Its configs are ``teacher.py``, ``student.py`` and one for each
    distilled variant, in ``configs/<folder>``.

    Attributes:
        name: Name on the command line.
        folder: Folder of its configs under ``configs``.
        title: Heading of the report.
        metrics: The validation figures of the table; the first decides.
        packages: Distributions whose versions the report lists.
        latency_note: What one timed call takes in.
        variants: Label of each distilled variant by its name, an identifier; its config is
            ``NAME.py``. With several, the report compares them and names the best.
        derived: Label, by name, of each further variant whose network comes out of other runs (a
            search); :meth:`further_jobs` makes them.
        class_figure: What :meth:`class_metrics` are, for the heading of their table.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]
    packages: ClassVar[Sequence[str]]
    latency_note: ClassVar[str]
    variants: ClassVar[Mapping[str, str]] = {"distilled": "student distilled"}
    derived: ClassVar[Mapping[str, str]] = {}
    class_figure: ClassVar[str] = "Validation figure"

    def further_jobs(
        self, folder: Path, configs: Mapping[str, Config], jobs: Sequence[Job], options: DemoOptions
    ) -> list[Job]:
        """Return the runs behind the derived variants; none by default.

        Args:
            folder: Folder of the configs.
            configs: The configs by role.
            jobs: The runs of teacher, student alone and the distilled variants.
            options: The user's choices.
        """
        return []

    def derived_config(self, role: str, job: Job) -> Config:
        """Return the plain config of the network that a derived variant's run left behind."""
        raise NotImplementedError(f"{type(self).__name__} has no derived variants")

    def class_metrics(self, cfg: Config) -> Sequence[Metric]:
        """Return further validation figures, one a class, labelled with its name; none by default.

        Args:
            cfg: The config of the student alone.
        """
        return ()

    @abstractmethod
    def prepare(self, cfg: Config) -> str:
        """Make the data that ``cfg`` trains and validates on; describe it in a sentence."""

    @abstractmethod
    def load(self, cfg: Config, checkpoint: Path) -> nn.Module:
        """Build the plain model of ``cfg`` on the CPU and load ``checkpoint`` strictly."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """Return the part of a model that is deployed, whose parameters count; by default all."""
        return model

    def further_sections(self, jobs: Sequence[Job]) -> list[page.Section]:
        """Return sections of the report that this task alone has; none by default.

        Args:
            jobs: All runs; they are over.
        """
        return []

    @abstractmethod
    def forward_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Return a function that runs the network alone on one validation image."""

    @abstractmethod
    def predict_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Return a function that predicts on one validation image."""

    @abstractmethod
    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> page.Gallery:
        """Return pictures of the truth and of what each model sees on validation images.

        Args:
            cfg: The config of the student alone.
            models: The models by their labels: teacher, student alone, and the best variant.
        """


@dataclass(frozen=True)
class DemoOptions:
    """What the user can choose.

    Attributes:
        root: Folder that holds ``configs`` and ``tools``.
        work_dir: Folder for logs, checkpoints and the report.
        seeds: Students trained alone, and of each distilled variant.
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
        end = options.get(f"{prefix}.end")
        if end is not None and options.get(f"{prefix}.begin", 0) >= end:
            options[f"{prefix}.begin"] = end - 1  # so short that both round to the same epoch
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
    """Return the jobs of a demo: one teacher, and for each seed one student of every other role.

    Args:
        configs: The configs by role: teacher, student alone, and the distilled variants.
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
                str(cfg.filename),
                str(checkpoint),
                *("--work-dir", str(work_dir / EVALUATION_DIR)),
            ),
            role=role,
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
    for variant in [role for role in configs if role not in (TEACHER, ALONE)]:
        for seed in range(options.seeds):
            add(variant, seed, 1.5, (teacher.name,), link)
    return jobs


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
    roles = make_roles(task.variants, task.derived)
    folder = options.root / "configs" / task.folder
    configs = load_configs(folder, [role for role in roles if role.config])
    main = task.metrics[0]
    jobs = plan(configs, options, main.key)
    jobs += task.further_jobs(folder, configs, jobs, options)
    cores = available_cores()
    with exclusive(options.work_dir) as lock:
        if options.fresh:
            for job in jobs:
                if (job.work_dir / IDENTITY_FILE).is_file():
                    shutil.rmtree(job.work_dir)
        with Progress(console, main.label, digits=main.digits) as progress:
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
            # Seed 0 stands for them all: reversed, it is the one that stays.
            first = {job.role: job for job in reversed(jobs)}
            plain = {name: plain_config(cfg) for name, cfg in configs.items()}
            plain |= {name: task.derived_config(name, first[name]) for name in task.derived}
            models = {
                role.name: task.load(plain[role.name], first[role.name].checkpoint)
                for role in roles
            }
            outcome = measure(task, roles, jobs, results, models, plain)
            shown = [role for role in roles if not role.distilled or role == outcome.best]
            gallery = task.gallery(
                configs[ALONE], {role.label: models[role.name] for role in shown}
            )
        table = results_table(outcome)
        classes = _class_sections(task, outcome)
        length = _common_length(jobs, configs[TEACHER])
        summary = summary_sentence(outcome, length, options.seeds)
        notes = _notes(task, data, length, options)
        elapsed = time.monotonic() - begun
        report = page.Report(
            title=task.title,
            summary=summary,
            table=table,
            notes=notes,
            sections=[
                page.Section("What the models see", gallery=gallery),
                *classes,
                *task.further_sections(jobs),
                *_sections(task, options, configs, jobs, results, outcome, elapsed),
            ],
        )
        path = options.work_dir / REPORT_FILE
        page.write_report(report, path)
        write_text(
            options.work_dir / TABLE_FILE,
            _markdown(summary, table, classes, notes, options.command),
        )
        write_json(options.work_dir / FIGURES_FILE, _figures(outcome, results))
    _print(console, table)
    for section in classes:
        _print(console, *section.tables, title=section.title)
    console.print(Text(summary))
    console.print(Text(f"\nTook {clock(elapsed)}. Report: {path.resolve()}"), soft_wrap=True)
    return path


def load_configs(folder: Path, roles: Sequence[Role]) -> dict[str, Config]:
    """Read the configs of a demo.

    Args:
        folder: Where they are.
        roles: What is compared.

    Returns:
        The configs by name of the role.

    Raises:
        ConfigError: One of the files is absent or cannot be read.
    """
    configs = {}
    for role in roles:
        path = folder / role.config
        if not path.is_file():
            raise ConfigError(
                f"Expected the demo's config {path}, and it is not there. Run the command from a "
                "complete source tree, or install the package again."
            )
        configs[role.name] = load_config(str(path))
    return configs


def measure(
    task: DemoTask,
    roles: Sequence[Role],
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    models: Mapping[str, nn.Module],
    configs: Mapping[str, Config],
) -> Outcome:
    """Collect the validation figures and measure the cost of each model.

    Args:
        task: What is particular to the task.
        roles: What is compared.
        jobs: The training runs.
        results: Their results by name of the run.
        models: One model by name of the role.
        configs: Its plain config by name of the role.

    Raises:
        ConfigError: A run has no such validation figure as the task names, or no run has any of
            the figures of single classes.
    """
    runs = {role.name: [job for job in jobs if job.role == role.name] for role in roles}
    for job in jobs:
        found = results[job.name].metrics
        for metric in task.metrics:
            if metric.key not in found:
                raise ConfigError(
                    f"{job.name}: its validation has no figure {metric.key!r}; it has "
                    f"{sorted(found)}. Check val_evaluator in its config."
                )
    classes = task.class_metrics(configs[ALONE])
    seen = {key for result in results.values() for key in result.metrics}
    if classes and not any(metric.key in seen for metric in classes):
        raise ConfigError(
            f"No validation has the figure {classes[0].key!r}, or that of another class; they have "
            f"{sorted(seen)}. Check val_evaluator in the configs."
        )
    return Outcome(
        roles=roles,
        metrics=task.metrics,
        scores={
            role: {m.key: [results[job.name].metrics[m.key] for job in own] for m in task.metrics}
            for role, own in runs.items()
        },
        parameters={role: count_parameters(task.deployed(model)) for role, model in models.items()},
        macs={
            role: count_macs(task.forward_call(model, configs[role]))
            for role, model in models.items()
        },
        latency=median_latency(
            {role: task.predict_call(model, configs[role]) for role, model in models.items()}
        ),
        seconds={
            role: fmean(sum(results[n].seconds for n in (job.name, *job.after)) for job in own)
            for role, own in runs.items()
        },
        class_metrics=classes,
        class_scores={
            role: {m.key: [results[job.name].metrics.get(m.key) for job in own] for m in classes}
            for role, own in runs.items()
        },
    )


def _figures(outcome: Outcome, results: Mapping[str, Result]) -> dict[str, Any]:
    """Return what results.json holds."""
    gaps = {
        role.name: {metric.key: outcome.gap(role.name, metric) for metric in outcome.metrics}
        for role in outcome.variants
    }
    figures: dict[str, Any] = {
        "scores": outcome.scores,
        "parameters": outcome.parameters,
        "macs": outcome.macs,
        "latency_ms": outcome.latency,
        "gap_recovered": gaps[outcome.best.name],
        "seconds": {name: result.seconds for name, result in results.items()},
    }
    if len(gaps) > 1:
        figures |= {
            "best": outcome.best.name,
            "gap_recovered_by_variant": gaps,
            "training_time": {
                role.name: outcome.training_time(role.name)
                for role in outcome.roles
                if role.name != TEACHER
            },
        }
    if outcome.class_metrics:
        figures["class_scores"] = outcome.class_scores
    return figures


def _markdown(
    summary: str,
    table: page.Table,
    classes: Sequence[page.Section],
    notes: Sequence[str],
    command: str,
) -> str:
    parts = [summary, table.markdown()]
    for section in classes:
        parts += [f"{section.title}:", *(each.markdown() for each in section.tables)]
        parts += [section.text] if section.text else []
    return "\n\n".join([*parts, *notes, f"    {command}"]) + "\n"


def _common_length(jobs: Sequence[Job], cfg: Config) -> str:
    """Say how long all were trained; the teacher's own length beside it where it is another."""
    alone = next(job for job in jobs if job.role == ALONE)
    teacher, student = (_length_text(job, cfg) for job in (jobs[0], alone))
    return student if student == teacher else f"{student} (the teacher {teacher})"


def _length_text(job: Job, cfg: Config) -> str:
    unit = "epoch" if "max_epochs" in cfg.train_cfg else "iteration"
    return f"{job.length} {unit}{'s' if job.length != 1 else ''}"


def _class_sections(task: DemoTask, outcome: Outcome) -> list[page.Section]:
    if not outcome.class_metrics:
        return []
    title = f"{task.class_figure} of each class"
    missing = any(
        figure is None
        for scores in outcome.class_scores.values()
        for figures in scores.values()
        for figure in figures
    )
    text = "n/a: the validation has no such figure; means are over the seeds that have it."
    return [page.Section(title, text if missing else "", tables=[class_table(outcome)])]


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
    if len(task.variants) > 1:
        notes += [
            f"The best variant is the one with the best mean {main} on these validation images: "
            f"picked afterwards among {len(task.variants)}, so its lead is somewhat flattered.",
            "Time: that of training, relative to the student alone, means over the seeds. Runs "
            "went side by side and shared the cores, so it is rough.",
        ]
    return notes


def _sections(
    task: DemoTask,
    options: DemoOptions,
    configs: Mapping[str, Config],
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    outcome: Outcome,
    elapsed: float,
) -> list[page.Section]:
    logs = {job.name: read_log(job.work_dir) for job in jobs}
    roles = {role.name: role for role in outcome.roles}
    compared = [(job, roles[job.role]) for job in jobs if job.role in roles]
    sections = [
        _validation_section(task, compared, configs, results, logs),
        _loss_section(compared, logs),
        _terms_section(jobs, outcome, logs),
    ]
    if options.seeds > 1:
        sections.append(page.Section("Each seed", tables=[seeds_table(outcome)]))
    runs = [
        [job.name, _length_text(job, configs[TEACHER]), clock(results[job.name].seconds)]
        for job in jobs
    ]
    versions = [["taskdistill", _own_version()], ["Python", platform.python_version()]]
    versions += [[name, package_version(name)] for name in task.packages]
    versions.append(["system", f"{platform.system()} {platform.machine()}"])
    versions.append(["CPU cores", str(available_cores())])
    listings = [
        page.Listing(f"Config {role.config}", _source(configs[name]))
        for name, role in roles.items()
        if role.config
    ]
    listings += [
        page.Listing(f"Config {role.config}, with all it inherits", configs[name].pretty_text)
        for name, role in roles.items()
        if role.config
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


def _validation_section(
    task: DemoTask,
    runs: Sequence[tuple[Job, Role]],
    configs: Mapping[str, Config],
    results: Mapping[str, Result],
    logs: Mapping[str, TrainingLog],
) -> page.Section:
    unit = "epoch" if "max_epochs" in configs[TEACHER].train_cfg else "iteration"
    figures = []
    for metric in task.metrics:
        curves = []
        for job, role in runs:
            rows: list[Row] = list(logs[job.name].val)
            if logs[job.name].validation_at(job.length) is None:
                # Evaluated separately, after an interruption.
                rows.append({**results[job.name].metrics, "step": float(job.length)})
            curve = page.metric_curve(role.label, role.colour, rows, metric.key, role.style)
            curves.append(curve)
        figures.append(
            page.Figure(
                page.plot_curves(curves, unit, metric.label),
                f"{metric.label} on the validation images over training, for each model.",
            )
        )
    return page.Section("Validation during training", figures=figures)


def _loss_section(
    runs: Sequence[tuple[Job, Role]], logs: Mapping[str, TrainingLog]
) -> page.Section:
    curves = [
        page.loss_curve(role.label, role.colour, logs[job.name], role.style) for job, role in runs
    ]
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


def _terms_section(
    jobs: Sequence[Job], outcome: Outcome, logs: Mapping[str, TrainingLog]
) -> page.Section:
    figures = []
    for role in outcome.variants:
        png = page.plot_terms(
            [logs[job.name] for job in jobs if job.role == role.name], role.colour
        )
        if png is not None:
            alt, label = "Raw and weighted distillation terms over training", ""
            if len(outcome.variants) > 1:
                label = role.label
                alt += f": {label}"
            figures.append(page.Figure(png, f"{alt}.", label))
    if not figures:
        return page.Section(
            "Distillation terms", text="The logs of the distilled student hold no such term."
        )
    return page.Section(
        "Distillation terms",
        text="Each term as computed (raw) and as it entered the loss: times its weight and its "
        "schedule (weighted).",
        figures=figures,
    )


def _source(cfg: Config) -> str:
    return Path(str(cfg.filename)).read_text(encoding="utf-8")


def _own_version() -> str:
    return importlib.import_module(__name__.partition(".")[0]).__version__


def _print(console: Console, *tables: page.Table, title: str | None = None) -> None:
    for table in tables:
        shown = RichTable(title=title, title_justify="left")
        widths = _column_widths(table, console.width)
        for index, (column, width) in enumerate(zip(table.columns, widths, strict=True)):
            shown.add_column(
                column, justify="left" if index == 0 else "right", width=width, no_wrap=index == 0
            )
        for index, row in enumerate(table.rows):
            shown.add_row(*map(Text, row), style="bold" if index == table.strong else None)
        console.print()
        console.print(shown)


def _column_widths(table: page.Table, width: int) -> list[int | None]:
    """Return widths that wrap headings and keep figures whole; ``None`` leaves a width to rich.

    Rich by itself would break figures in two before it wraps a heading.
    """
    cells = [max((len(row[i]) for row in table.rows), default=0) for i in range(len(table.columns))]
    words = [max(map(len, column.split())) for column in table.columns]
    room = width - 3 * len(cells) - 1  # what the frame leaves
    tight = list(map(max, cells, words))
    if sum(map(max, cells, map(len, table.columns))) <= room or sum(tight) > room:
        return [None] * len(cells)
    return [*tight]
