"""Write docs/losses.md, the table of all losses, from their docstrings.

python tools/loss_table.py          # writes
python tools/loss_table.py --check  # exits with 1 where the file is out of date
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from torch import nn

from taskdistill.core import losses

# The headings under which the MIT lecture on distillation has what can be matched, then its tasks.
HEADINGS = (
    "Output logits",
    "Intermediate weights",
    "Intermediate features",
    "Gradients",
    "Sparsity patterns",
    "Relational information",
    "Object detection",
    "Semantic segmentation",
    "Generative adversarial networks",
    "Language models",
)

INTRO = """\
# Losses

Every loss of `taskdistill.core.losses`, under the heading of the MIT lecture on knowledge
distillation (TinyML, lecture 10) that it belongs to. s is the student's, t the teacher's; the full
definitions, with shapes, defaults, sources and where paper and common code disagree, are in the
docstrings: `help(losses.kl_div)`.

Made by `python tools/loss_table.py` from the docstrings; a test fails when the two differ.

"""


def section(text: str, title: str) -> str:
    """The indented text under `title:` of a docstring, '' if there is none."""
    found = re.search(rf"^{re.escape(title)}:\n((?:[ ]+.*\n|\n)+)", text + "\n", re.MULTILINE)
    return textwrap.dedent(found[1]).strip() if found else ""


def formula(text: str) -> str:
    """The first formula of a docstring on one line, fit for a cell of a table."""
    found = re.search(r"^\.\. math::[ ]*(.*(?:\n(?:[ ]+.*)?)*?)(?=\n\S|\Z)", text, re.MULTILINE)
    if not found:
        return ""
    line = " ".join(found[1].split()).rstrip(".,")
    return line.replace(r"\|", r"\Vert ").replace("|", r"\vert ")


def one_line(text: str) -> str:
    """Markdown from reStructuredText: roles and double backquotes."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|")


def module_of(function: Callable[..., object]) -> str:
    """The name of the function's module class, '' where it has none."""
    file = function.__module__
    classes = [
        name
        for name in losses.__all__
        if inspect.isclass(thing := getattr(losses, name))
        and issubclass(thing, nn.Module)
        and thing.__module__ == file
    ]
    # A file holds the module of its method first, and maybe the networks of the method.
    named = [name for name in classes if name.lower() == function.__name__.replace("_", "")]
    own = file.rpartition(".")[2] == function.__name__
    return (named or (classes if own else []) or [""])[0]


def rows() -> list[tuple[str, str]]:
    """(heading, line of the table) of every public function that names its heading."""
    found = []
    for name in losses.__all__:
        function = getattr(losses, name)
        if not inspect.isfunction(function):
            continue
        text = inspect.getdoc(function) or ""
        heading = one_line(section(text, "Lecture")).rstrip(".")
        if not heading:
            continue
        if heading not in HEADINGS:
            raise SystemExit(f"{name}: 'Lecture: {heading}' is none of {', '.join(HEADINGS)}.")
        summary = one_line(text.partition("\n\n")[0]).rstrip(".")
        source = re.split(r"(?<!et al)\.(?: |$)", one_line(section(text, "Reference")))[0]
        names = f"`{name}`" + (f", `{module}`" if (module := module_of(function)) else "")
        cells = [summary, names, f"$`{formula(text)}`$", one_line(section(text, "When it helps"))]
        if not all(cells) or cells[2] == "$``$":
            raise SystemExit(f"{name}: the docstring lacks a formula or 'When it helps'.")
        cells.append(source)
        found.append((heading, "| " + " | ".join(cells) + " |"))
    return found


def document() -> str:
    """The whole page."""
    parts = [INTRO]
    lines = rows()
    for heading in HEADINGS:
        own = [line for where, line in lines if where == heading]
        if own:
            parts.append(f"## {heading}\n\n")
            parts.append("| method | function, module | formula | when it helps | source |\n")
            parts.append("|:--|:--|:--|:--|:--|\n" + "\n".join(own) + "\n\n")
    return "".join(parts).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    here = Path(__file__).resolve().parent.parent / "docs" / "losses.md"
    parser.add_argument("--file", type=Path, default=here, help="docs/losses.md")
    arguments = parser.parse_args()
    text = document()
    if arguments.check:
        if not arguments.file.is_file() or arguments.file.read_text() != text:
            print(f"{arguments.file} is out of date: run python tools/loss_table.py")
            return 1
        return 0
    arguments.file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
