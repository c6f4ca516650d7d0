"""The course of a demo: data, training jobs, comparison, table and report."""

from __future__ import annotations

import importlib
import platform
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from torch import nn

from ....core.errors import ConfigError
from ..cost import available_cores, count_macs, count_parameters, median_latency
from ..files import exclusive, write_json, write_text
from . import report as page
from .comparison import (
    ALONE,
    TEACHER,
    Outcome,
    Role,
    class_table,
    results_table,
    seeds_table,
    summary_sentence,
)
from .jobs import IDENTITY_FILE, Job, JobQueue, Result, clock
from .progress import Progress
from .results import Row, TrainingLog, read_log
from .task import DemoOptions, DemoTask

__all__ = ["measure", "print_tables", "run_demo"]

REPORT_FILE, TABLE_FILE, FIGURES_FILE = "report.html", "results.md", "results.json"

# Seconds for latency, pictures and report after the last training run.
_CLOSING = 20.0

C = TypeVar("C")


def run_demo(task: DemoTask[C], options: DemoOptions, console: Console) -> Path:
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
    roles = task.roles()
    folder = options.root / "configs" / task.folder
    configs = task.load_configs(folder)
    main = task.metrics[0]
    jobs = task.plan(configs, options)
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
            plain = {name: task.plain(cfg) for name, cfg in configs.items()}
            plain |= {name: task.derived_config(name, first[name]) for name in task.derived}
            models = {
                role.name: task.load(plain[role.name], first[role.name].checkpoint)
                for role in roles
            }
            outcome = measure(task, roles, jobs, results, models, plain)
            shown = [role for role in roles if not role.distilled or role == outcome.best]
            labelled = {role.label: models[role.name] for role in shown}
            gallery = task.gallery(configs[ALONE], labelled)
            further = task.further_sections(jobs, labelled)
        table = results_table(outcome)
        classes = _class_sections(task, outcome)
        length = _common_length(jobs)
        summary = summary_sentence(outcome, length, options.seeds)
        notes = _notes(task, data, length, options)
        elapsed = time.monotonic() - begun
        report = page.Report(
            title=task.title,
            summary=summary,
            table=table,
            notes=notes,
            sections=[
                *([page.Section("What the models see", gallery=gallery)] if gallery else []),
                *classes,
                *further,
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
    print_tables(console, table)
    for section in classes:
        print_tables(console, *section.tables, title=section.title)
    console.print(Text(summary))
    console.print(Text(f"\nTook {clock(elapsed)}. Report: {path.resolve()}"), soft_wrap=True)
    return path


def measure(
    task: DemoTask[C],
    roles: Sequence[Role],
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    models: Mapping[str, nn.Module],
    configs: Mapping[str, C],
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
        ConfigError: A run that is compared has no such validation figure as the task names, or no
            run has any of the figures of single classes.
    """
    runs = {role.name: [job for job in jobs if job.role == role.name] for role in roles}
    for job in (job for own in runs.values() for job in own):
        found = results[job.name].metrics
        for metric in task.metrics:
            if metric.key not in found:
                raise ConfigError(
                    f"{job.name}: its validation has no figure {metric.key!r}; it has "
                    f"{sorted(found)}. Check {task.evaluation} in its config."
                )
    classes = task.class_metrics(configs[ALONE])
    seen = {key for result in results.values() for key in result.metrics}
    if classes and not any(metric.key in seen for metric in classes):
        raise ConfigError(
            f"No validation has the figure {classes[0].key!r}, or that of another class; they have "
            f"{sorted(seen)}. Check {task.evaluation} in the configs."
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


def _common_length(jobs: Sequence[Job]) -> str:
    """Say how long all were trained; the teacher's own length beside it where it is another."""
    teacher, student = (_length_text(_run_of(role, jobs)) for role in (TEACHER, ALONE))
    return student if student == teacher else f"{student} (the teacher {teacher})"


def _run_of(role: str, jobs: Sequence[Job]) -> Job:
    return next(job for job in jobs if job.role == role)


def _length_text(job: Job) -> str:
    return f"{job.length} {job.unit}{'s' if job.length != 1 else ''}"


def _class_sections(task: DemoTask[C], outcome: Outcome) -> list[page.Section]:
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


def _notes(task: DemoTask[C], data: str, length: str, options: DemoOptions) -> list[str]:
    main = task.metrics[0].label
    notes = [
        data,
        f"Figures are those of the validation after the last of {length}, for every model; no "
        "checkpoint is selected by its score.",
        f"Gap recovered: (distilled - alone) / (teacher - alone), in {main}.",
        "MACs: multiply-accumulates of convolutions and matrix products, for one validation "
        f"{task.sample}. CPU latency: {task.latency_note}; median of 30 runs in turn, on all "
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
            f"The best variant is the one with the best mean {main} on these validation "
            f"{task.sample}s: picked afterwards among {len(task.variants)}, so its lead is "
            "somewhat flattered.",
            "Time: that of training, relative to the student alone, means over the seeds. Runs "
            "went side by side and shared the cores, so it is rough.",
        ]
    return notes


def _sections(
    task: DemoTask[C],
    options: DemoOptions,
    configs: Mapping[str, C],
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    outcome: Outcome,
    elapsed: float,
) -> list[page.Section]:
    logs = {job.name: read_log(job.work_dir) for job in jobs}
    roles = {role.name: role for role in outcome.roles}
    compared = [(job, roles[job.role]) for job in jobs if job.role in roles]
    sections = [
        _validation_section(task, compared, results, logs),
        _loss_section(task, compared, logs),
        _terms_section(jobs, outcome, logs),
    ]
    if options.seeds > 1:
        sections.append(page.Section("Each seed", tables=[seeds_table(outcome)]))
    runs = [[job.name, _length_text(job), clock(results[job.name].seconds)] for job in jobs]
    versions = [["taskdistill", _own_version()], ["Python", platform.python_version()]]
    versions += [[name, package_version(name)] for name in task.packages]
    versions.append(["system", f"{platform.system()} {platform.machine()}"])
    versions.append(["CPU cores", str(available_cores())])
    texts = [
        (f"Config {role.config}", *task.sources(configs[name]))
        for name, role in roles.items()
        if role.config
    ]
    listings = [page.Listing(title, text) for title, text, _ in texts]
    listings += [
        page.Listing(f"{title}, with all it inherits", whole) for title, _, whole in texts if whole
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
    task: DemoTask[C],
    runs: Sequence[tuple[Job, Role]],
    results: Mapping[str, Result],
    logs: Mapping[str, TrainingLog],
) -> page.Section:
    unit = _run_of(TEACHER, [job for job, _ in runs]).unit
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
                f"{metric.label} on the validation {task.sample}s over training, for each model.",
            )
        )
    return page.Section("Validation during training", figures=figures)


def _loss_section(
    task: DemoTask[C], runs: Sequence[tuple[Job, Role]], logs: Mapping[str, TrainingLog]
) -> page.Section:
    curves = [
        page.loss_curve(role.label, role.colour, logs[job.name], role.style) for job, role in runs
    ]
    return page.Section(
        "Task loss",
        text="The loss of the task itself, without the distillation terms, on training "
        f"{task.sample}s.",
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


def _own_version() -> str:
    return importlib.import_module(__name__.partition(".")[0]).__version__


def print_tables(console: Console, *tables: page.Table, title: str | None = None) -> None:
    """Print tables so that figures stay whole and headings wrap, if anything has to."""
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
