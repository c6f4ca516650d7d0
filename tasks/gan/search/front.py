"""The Pareto front of a search, and its picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ....core.errors import DataError
from .evolution import Criterion
from .records import Evaluated
from .space import encode

__all__ = ["Reference", "pareto_front", "plot_front", "read_references", "unit_of"]

# Okabe and Ito's palette, in which no two colours fall together for the colour-blind.
_ALL, _FRONT, _BEST, _REFERENCE = "#888888", "#0072b2", "#d55e00", "#009e73"
_INK, _RULE = "#333333", "#dddddd"


@dataclass(frozen=True)
class Reference:
    """A network to compare with.

    Attributes:
        label: Its name in the picture.
        macs: Its multiply-accumulates.
        value: Its validation figure.
    """

    label: str
    macs: float
    value: float


def pareto_front(evaluated: Iterable[Evaluated], criterion: Criterion) -> list[Evaluated]:
    """Return the configurations that no other beats in both cost and figure.

    Args:
        evaluated: The configurations; those without a finite figure are left out.
        criterion: The figure, and which way.

    Returns:
        By rising multiply-accumulates, each better than the one before. Of equal ones the first.

    Example:
        >>> points = [(1, 9.0), (2, 9.5), (3, 4.0), (3, 5.0)]
        >>> found = [Evaluated((i + 1,), m, dict(FID=v)) for i, (m, v) in enumerate(points)]
        >>> [entry.channels for entry in pareto_front(found, Criterion("FID"))]
        [(1,), (3,)]
    """
    finite = [entry for entry in evaluated if math.isfinite(criterion.of(entry.metrics))]
    front: list[Evaluated] = []
    for entry in sorted(finite, key=lambda e: (e.macs, criterion.order(e)[0])):
        if not front or criterion.order(entry)[0] < criterion.order(front[-1])[0]:
            front.append(entry)
    return front


def read_references(path: Path, criterion: Criterion) -> list[Reference]:
    """Read networks to compare with from a JSON file.

    Args:
        path: An object of ``{"label": {"macs": 5.6e9, "SmallFD": 12.3}, ...}``. Entries without
            the criterion's figure are left out.
        criterion: The figure.

    Raises:
        DataError: If the file is missing or looks otherwise.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"The file of references {str(path)!r} does not exist.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"The file of references {str(path)!r} is no JSON: {error}") from error
    form = '{"teacher": {"macs": 5.6e9, "' + criterion.metric + '": 12.3}, ...}'
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise DataError(f"{str(path)!r} has to be an object of networks by name: {form}.")
    found: list[Reference] = []
    for label, figures in content.items():
        numbers = [figures.get("macs"), figures.get(criterion.metric)]
        if numbers[1] is None and numbers[0] is not None:
            continue
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise DataError(
                f"{label!r} in {str(path)!r} needs finite numbers for macs and "
                f"{criterion.metric}, got {figures}. Expected {form}."
            )
        found.append(Reference(label, *map(float, numbers)))
    return found


def plot_front(
    evaluated: Sequence[Evaluated],
    criterion: Criterion,
    *,
    budget: float | None = None,
    best: Evaluated | None = None,
    references: Sequence[Reference] = (),
) -> bytes:
    """Draw all evaluated configurations over their cost.

    Args:
        evaluated: The configurations.
        criterion: The figure to draw.
        budget: Drawn as a line.
        best: The chosen configuration, which is named.
        references: Networks to compare with. The axis of costs becomes logarithmic where they are
            far off.

    Returns:
        A PNG image.
    """
    costs = [entry.macs for entry in evaluated]
    top = max([*costs, *([budget] if budget is not None else []), *(r.macs for r in references)])
    unit, name = unit_of(top)
    canvas = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = canvas.subplots()
    axes.scatter(
        [cost / unit for cost in costs],
        [criterion.of(entry.metrics) for entry in evaluated],
        s=14,
        color=_ALL,
        alpha=0.45,
        linewidths=0,
        label=f"evaluated ({len(evaluated)})",
    )
    front = pareto_front(evaluated, criterion)
    axes.plot(
        [entry.macs / unit for entry in front],
        [criterion.of(entry.metrics) for entry in front],
        color=_FRONT,
        linewidth=1.6,
        marker="o",
        markersize=4,
        drawstyle="steps-post",
        label="Pareto front",
    )
    if budget is not None:
        axes.axvline(
            budget / unit,
            color=_INK,
            linewidth=1.0,
            linestyle="--",
            label=f"budget {_number(budget / unit)} {name}",
        )
    if references:
        axes.scatter(
            [reference.macs / unit for reference in references],
            [reference.value for reference in references],
            s=42,
            marker="D",
            color=_REFERENCE,
            zorder=3,
            label="to compare with",
        )
        for reference in references:
            _name(axes, reference.label, reference.macs / unit, reference.value, _REFERENCE)
    if best is not None:
        value = criterion.of(best.metrics)
        axes.scatter(
            [best.macs / unit],
            [value],
            s=150,
            marker="*",
            color=_BEST,
            edgecolors="white",
            linewidths=0.6,
            zorder=4,
            label=f"chosen: {encode(best.channels)}\n{_number(best.macs / unit)} {name}, "
            f"{criterion.metric} {_number(value)}",
        )
    if references and max(r.macs for r in references) > 4 * max(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"cost of one image ({name})", color=_INK)
    better = "higher" if criterion.higher else "lower"
    axes.set_ylabel(f"{criterion.metric} ({better} is better)", color=_INK)
    axes.grid(True, color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.06, y=0.08)
    axes.tick_params(colors=_INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=_INK, fontsize=8)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=180, facecolor="white")
    return buffer.getvalue()


def _name(axes: Axes, label: str, x: float, y: float, colour: str) -> None:
    axes.annotate(
        label,
        (x, y),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=5,
    )


def unit_of(macs: Any) -> tuple[float, str]:
    """Return the unit to write multiply-accumulates in, and its name."""
    for unit, name in ((1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs")):
        if macs >= unit:
            return unit, name
    return 1.0, "MACs"


def _number(value: float) -> str:
    return f"{value:.4g}"
