"""A self-contained HTML report: one file that opens anywhere, with nothing to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from ..files import write_text
from .results import (
    RAW_PREFIX,
    RAW_SUFFIX,
    WEIGHTED_PREFIX,
    Row,
    TrainingLog,
    distillation_terms,
    task_loss,
)

# Okabe and Ito's palette, in which no two colours fall together for the colour-blind.
TEACHER_COLOUR, ALONE_COLOUR, DISTILLED_COLOUR = "#0072b2", "#888888", "#d55e00"
# One for each distilled variant. Yellow is left out: on white it can hardly be seen.
VARIANT_COLOURS = (DISTILLED_COLOUR, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# With more variants than colours, the colours come again in another style.
LINE_STYLES = ("-", "--", ":")
INK, _RULE = "#333333", "#dddddd"


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; ``strong`` is the index of the row to stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None

    def markdown(self) -> str:
        """Return the table in Markdown.

        Example:
            >>> print(Table(["model", "mAP"], [["teacher", "0.4"]]).markdown())
            | model | mAP |
            |:--|--:|
            | teacher | 0.4 |
        """
        lines = [self.columns, *self.rows]
        cells = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]
        cells.insert(1, "|:--|" + "--:|" * (len(self.columns) - 1))
        return "\n".join(cells)


@dataclass(frozen=True)
class Figure:
    """A PNG image with a caption, ``alt`` for those who cannot see it."""

    png: bytes
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The image as a ``data:`` address."""
        return data_uri(self.png)


@dataclass(frozen=True)
class Mark:
    """A labelled rectangle on a picture, in pixels of the picture."""

    x: float
    y: float
    width: float
    height: float
    label: str
    colour: str


@dataclass(frozen=True)
class Picture:
    """An image, with marks that stay sharp however much it is enlarged.

    Attributes:
        png: The image.
        width: Its width in pixels.
        height: Its height in pixels.
        marks: What was found on it, possibly nothing; ``None`` where the image says it all.
        note: Text below it.
        pixelated: Enlarge it in sharp squares, without blur.
    """

    png: bytes
    width: int
    height: int
    marks: Sequence[Mark] | None = None
    note: str = ""
    pixelated: bool = False

    @property
    def uri(self) -> str:
        """The image as a ``data:`` address."""
        return data_uri(self.png)


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures under common headings, to compare along a row.

    Attributes:
        headings: One a column.
        rows: The pictures, as many in a row as there are headings.
        note: Text below.
        legend: What colours stand for: pairs of a CSS colour and a text, shown above.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Picture]]
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Listing:
    """A piece of text set as code, folded away under its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    gallery: Gallery | None = None
    listings: Sequence[Listing] = ()


@dataclass(frozen=True)
class Report:
    """The whole report: what it says first, the table, and the rest in sections."""

    title: str
    summary: str
    table: Table
    notes: Sequence[str]
    sections: Sequence[Section]


def data_uri(png: bytes) -> str:
    """Return a PNG image as an address that carries the image itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def render(report: Report) -> str:
    """Return the report as one HTML page; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(report=report)


def write_report(report: Report, path: Path) -> None:
    """Write the report, whole or not at all."""
    write_text(path, render(report))


@dataclass(frozen=True)
class Curve:
    """One line of a diagram; curves with the same ``label`` share one entry in its legend.

    ``style`` is matplotlib's line style.
    """

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "-"


def plot_curves(curves: Iterable[Curve], x_label: str, y_label: str) -> bytes:
    """Draw curves into one diagram.

    Args:
        curves: The curves; several of one label are drawn thinner.
        x_label: Text under the diagram.
        y_label: Text beside it.

    Returns:
        A PNG image.
    """
    canvas = Canvas(figsize=(7.2, 3.4), layout="constrained")
    axes = canvas.subplots()
    draw_curves(axes, list(curves), x_label, y_label)
    return png_bytes(canvas)


def plot_terms(logs: Sequence[TrainingLog], colour: str = DISTILLED_COLOUR) -> bytes | None:
    """Draw each distillation term as it was computed and as it entered the loss.

    Args:
        logs: Logs of one kind of distilled student, one per seed.
        colour: Colour of the curves.

    Returns:
        A PNG image with a row per term, raw on the left, weighted on the right; ``None`` where
        the logs hold no such term.
    """
    terms = list(dict.fromkeys(term for log in logs for term in distillation_terms(log)))
    if not terms:
        return None
    canvas = Canvas(figsize=(7.2, 2.1 * len(terms) + 0.3), layout="constrained")
    grid = canvas.subplots(len(terms), 2, squeeze=False, sharex=True)
    for term, row in zip(terms, grid, strict=True):
        keys = (f"{RAW_PREFIX}{term}{RAW_SUFFIX}", WEIGHTED_PREFIX + term)
        for axes, key, kind in zip(row, keys, ("raw", "weighted"), strict=True):
            rows = [[r for r in log.train if key in r] for log in logs]
            curves = [
                Curve("", colour, [r["step"] for r in found], [r[key] for r in found])
                for found in rows
            ]
            below = "iteration" if term == terms[-1] else ""
            draw_curves(axes, curves, below, "")
            axes.set_title(f"{term}, {kind}", fontsize=9, color=INK, loc="left")
    return png_bytes(canvas)


def loss_curve(label: str, colour: str, log: TrainingLog, style: str = "-") -> Curve:
    """Return the task loss over the iterations, without distillation terms."""
    rows = [row for row in log.train if "loss" in row]
    steps, losses = [row["step"] for row in rows], [task_loss(row) for row in rows]
    return Curve(label, colour, steps, losses, style)


def metric_curve(
    label: str, colour: str, rows: Sequence[Row], metric: str, style: str = "-"
) -> Curve:
    """Return a validation figure over the steps of validation."""
    rows = [row for row in rows if metric in row]
    steps, figures = [row["step"] for row in rows], [row[metric] for row in rows]
    return Curve(label, colour, steps, figures, style)


def draw_curves(axes: Axes, curves: Sequence[Curve], x_label: str, y_label: str) -> None:
    """Draw curves into a diagram that is there; see :func:`plot_curves`."""
    labels = [curve.label for curve in curves]
    several = len(labels) > len(set(labels))
    shown: set[str] = set()
    for curve in curves:
        axes.plot(
            curve.x,
            curve.y,
            color=curve.colour,
            linestyle=curve.style,
            linewidth=1.0 if several else 1.8,
            marker="." if len(curve.x) < 40 else None,
            label=None if curve.label in shown or not curve.label else curve.label,
        )
        shown.add(curve.label)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    quiet_axes(axes)
    if names := shown - {""}:
        # A long legend would lie on the curves.
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(names) > 3 else {}
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, **beside)


def quiet_axes(axes: Axes) -> None:
    """Give a diagram a faint grid, small figures, and no frame above and on its right."""
    axes.grid(True, color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def png_bytes(canvas: Canvas) -> bytes:
    """Return a diagram as a PNG image."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=180, facecolor="white")
    return buffer.getvalue()
