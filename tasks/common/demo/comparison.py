"""The comparison a demo ends with: a teacher, the student alone, and distilled variants of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ....core.errors import ConfigError
from . import report as page
from .results import Spread, gap_recovered

__all__ = [
    "ALONE",
    "TEACHER",
    "Metric",
    "Outcome",
    "Role",
    "class_table",
    "make_roles",
    "percent",
    "quantity",
    "results_table",
    "seeds_table",
    "summary_sentence",
]

TEACHER, ALONE = "teacher", "alone"


@dataclass(frozen=True)
class Metric:
    """A validation figure.

    Attributes:
        key: Its name in the training log.
        label: Its name in the table.
        digits: Digits after the point.
        lower_is_better: Whether it is a distance or an error; otherwise higher is better.
    """

    key: str
    label: str
    digits: int = 3
    lower_is_better: bool = False

    def text(self, *values: float) -> str:
        """Return the mean of one figure a seed, with its spread where there are several.

        Example:
            >>> Metric("mIoU", "mIoU", digits=2).text(45.0, 47.0)
            '46.00 ± 1.41'
        """
        return Spread.of(values).text(self.digits)


@dataclass(frozen=True)
class Role:
    """What is compared with the others: the teacher, the student alone, or a distilled variant.

    Attributes:
        name: Its name in files, folders and names of runs.
        label: Its name in tables and diagrams.
        config: Name of its config file; empty where training makes the config.
        colour: Colour of its curves.
        style: Line style of its curves, as matplotlib has them.
    """

    name: str
    label: str
    config: str
    colour: str
    style: str = "-"

    @property
    def distilled(self) -> bool:
        """Whether it has learnt from the teacher."""
        return self.name not in (TEACHER, ALONE)


def make_roles(
    variants: Mapping[str, str], derived: Mapping[str, str] | None = None, suffix: str = ".py"
) -> list[Role]:
    """Return the roles of a comparison, in the order of its tables.

    Args:
        variants: Label of each distilled variant by its name; its config is ``NAME`` with
            the suffix.
        derived: Likewise, of variants whose network and config are made by training others.
        suffix: Of the names of config files.

    Returns:
        The teacher, the student alone, and the variants.

    Raises:
        ConfigError: There is no variant, a name is taken or no identifier, or a label occurs twice.

    Example:
        >>> [role.label for role in make_roles({"distilled": "student distilled"})]
        ['teacher', 'student alone', 'student distilled']
    """
    if not variants:
        raise ConfigError("Expected at least one distilled variant to compare, got none.")
    roles = [
        Role(TEACHER, "teacher", f"teacher{suffix}", page.TEACHER_COLOUR),
        Role(ALONE, "student alone", f"student{suffix}", page.ALONE_COLOUR),
    ]
    derived = derived or {}
    for index, (name, label) in enumerate({**variants, **derived}.items()):
        if name in (TEACHER, ALONE, "student") or not name.isidentifier():
            raise ConfigError(
                f"{name!r} cannot be the name of a distilled variant: expected letters, digits and "
                f"underscores, and not {TEACHER!r}, {ALONE!r} or 'student', which are taken."
            )
        if label in [role.label for role in roles]:
            raise ConfigError(f"The label {label!r} occurs twice; give {name!r} one of its own.")
        turn, colour = divmod(index, len(page.VARIANT_COLOURS))
        style = page.LINE_STYLES[turn % len(page.LINE_STYLES)]
        config = "" if name in derived else f"{name}{suffix}"
        roles.append(Role(name, label, config, page.VARIANT_COLOURS[colour], style))
    return roles


@dataclass(frozen=True)
class Outcome:
    """Everything measured in a demo, from which tables and report are made.

    Attributes:
        roles: What is compared.
        metrics: The validation figures; the first decides.
        scores: By the role's name, for each metric key, one figure per seed.
        parameters: Parameters by role.
        macs: Multiply-accumulates by role.
        latency: Milliseconds by role.
        seconds: Time of training by role, averaged over the seeds.
        class_metrics: Further figures, one a class.
        class_scores: Like ``scores``, for the figures of single classes; ``None`` where a run has
            no such figure.
    """

    roles: Sequence[Role]
    metrics: Sequence[Metric]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    parameters: Mapping[str, int]
    macs: Mapping[str, int]
    latency: Mapping[str, float]
    seconds: Mapping[str, float]
    class_metrics: Sequence[Metric] = ()
    class_scores: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)

    @property
    def variants(self) -> list[Role]:
        """The distilled variants."""
        return [role for role in self.roles if role.distilled]

    def mean(self, role: str, metric: Metric) -> float:
        """Return a role's figure, averaged over the seeds."""
        return Spread.of(self.scores[role][metric.key]).mean

    def gap(self, role: str, metric: Metric) -> float | None:
        """Return the share of the gap a variant recovers, from the means over the seeds."""
        figures = (self.mean(name, metric) for name in (TEACHER, ALONE, role))
        return gap_recovered(*figures, lower_is_better=metric.lower_is_better)

    @property
    def best(self) -> Role:
        """The variant with the best mean of the first metric; of equal ones, the first."""
        metric = self.metrics[0]

        def score(role: Role) -> float:
            mean = self.mean(role.name, metric)
            if math.isnan(mean):
                return -math.inf
            return -mean if metric.lower_is_better else mean

        return max(self.variants, key=score)

    def training_time(self, role: str) -> float:
        """Return the time a student took to train, relative to the student alone."""
        return self.seconds[role] / self.seconds[ALONE]


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


def results_table(outcome: Outcome) -> page.Table:
    """Return the table that the demo ends with; the best variant by the first metric stands out.

    Several variants are compared by what their training costs too.
    """
    main = outcome.metrics[0]
    timed = len(outcome.variants) > 1
    columns = [
        "model",
        *(metric.label for metric in outcome.metrics),
        "parameters",
        "MACs",
        "CPU latency",
        *(["time (alone = 1)"] if timed else []),
        f"gap recovered ({main.label})",
    ]
    rows = []
    for role in outcome.roles:
        scores = outcome.scores[role.name]
        # The teacher trains on all cores by itself: its time compares with nothing.
        time = "" if role.name == TEACHER else f"{outcome.training_time(role.name):.2f}"
        rows.append(
            [
                role.label,
                *(metric.text(*scores[metric.key]) for metric in outcome.metrics),
                quantity(outcome.parameters[role.name]),
                quantity(outcome.macs[role.name]),
                f"{outcome.latency[role.name]:.1f} ms",
                *([time] if timed else []),
                percent(outcome.gap(role.name, main)) if role.distilled else "",
            ]
        )
    return page.Table(columns, rows, strong=outcome.roles.index(outcome.best))


def class_table(outcome: Outcome) -> page.Table:
    """Return the figures of each class, one row a class and one column a model.

    Where a figure is missing in a run (a class that occurs neither in the truth nor in the answers
    has no IoU), the mean is over the other seeds.
    """
    rows = []
    for metric in outcome.class_metrics:
        row = [metric.label]
        for role in outcome.roles:
            found = [v for v in outcome.class_scores[role.name][metric.key] if v is not None]
            row.append(metric.text(*found) if found else "n/a")
        rows.append(row)
    return page.Table(["class", *(role.label for role in outcome.roles)], rows)


def seeds_table(outcome: Outcome) -> page.Table:
    """Return the first metric of each student by seed; with one variant, its gap recovered too."""
    metric = outcome.metrics[0]
    students = [role for role in outcome.roles if role.name != TEACHER]
    columns = [f"{role.label.removeprefix('student ')}, {metric.label}" for role in students]
    figures = [outcome.scores[role.name][metric.key] for role in students]
    rows = [
        [str(seed), *map(metric.text, values)]
        for seed, values in enumerate(zip(*figures, strict=True))
    ]
    if len(outcome.variants) == 1:
        columns.append("gap recovered")
        teacher = outcome.mean(TEACHER, metric)
        for row, alone, distilled in zip(rows, *figures, strict=True):
            gap = gap_recovered(teacher, alone, distilled, metric.lower_is_better)
            row.append(percent(gap))
    return page.Table(["seed", *columns], rows)


def summary_sentence(outcome: Outcome, length: str, seeds: int) -> str:
    """Say in one sentence what came out, whichever way it went.

    Args:
        outcome: What was measured.
        length: How long every model was trained, such as "10 epochs".
        seeds: Number of seeds.
    """
    metric, best = outcome.metrics[0], outcome.best
    teacher, alone, distilled = (
        metric.text(outcome.mean(name, metric)) for name in (TEACHER, ALONE, best.name)
    )
    gap = outcome.gap(best.name, metric)
    size, big = (quantity(outcome.parameters[name]) for name in (ALONE, TEACHER))
    over = f" (means over {seeds} seeds)" if seeds > 1 else ""
    several = len(outcome.variants) > 1
    start = (
        f"Trained for the same {length}, the student with {size} parameters reaches {alone} "
        f"{metric.label} alone"
    )
    if several:
        start += (
            f"; the best of {len(outcome.variants)} distilled variants, “{best.label}”, reaches "
            f"{distilled}, and the teacher, which has {big} parameters, reaches {teacher}{over}"
        )
    else:
        start += (
            f" and {distilled} with its teacher, which has {big} parameters and reaches "
            f"{teacher}{over}"
        )
    if gap is None:
        return f"{start}; the teacher is no better than the student, so there is no gap to recover."
    if gap <= 0:
        return f"{start}: here {'no variant helped' if several else 'distillation did not help'}."
    between = "student alone and teacher" if several else "them"
    return f"{start}: distillation recovers {percent(gap)} of the gap between {between}."
