"""docs/losses.md says what the docstrings say."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from taskdistill.core import losses

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loss_table", ROOT / "tools" / "loss_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tool: ModuleType):
    page = (ROOT / "docs" / "losses.md").read_text()
    assert page == tool.document(), "run python tools/loss_table.py"


def test_every_loss_has_a_row(tool: ModuleType):
    page = tool.document()
    for name in losses.__all__:
        thing = getattr(losses, name)
        if inspect.isfunction(thing) and next(iter(inspect.signature(thing).parameters)) in (
            "student", "real", "fake", "critic",
        ):  # fmt: skip
            assert f"| `{name}`" in page, f"{name} is in no row"


def test_every_row_has_all_its_cells(tool: ModuleType):
    for heading, line in tool.rows():
        assert heading in tool.HEADINGS
        assert line.count(" | ") == 4, line
        assert "|" not in line.replace(r"\|", "").replace(" | ", "").strip("| "), line


def test_sections_and_formulas(tool: ModuleType):
    text = inspect.cleandoc(
        r"""Summary.

        .. math:: L = \sum_i |a_i|
                  + \|b\|^2.

        Text with `code`.

        Lecture:
            Output logits.

        When it helps:
            Often, in
            two lines.
        """
    )
    assert tool.formula(text) == r"L = \sum_i \vert a_i\vert  + \Vert b\Vert ^2"
    assert tool.section(text, "Lecture") == "Output logits."
    assert tool.one_line(tool.section(text, "When it helps")) == "Often, in two lines."
    assert tool.section(text, "Raises") == ""


def test_check_finds_a_page_out_of_date(tool: ModuleType, tmp_path: Path, monkeypatch, capsys):
    page = tmp_path / "losses.md"
    arguments = ["loss_table.py", "--file", str(page)]
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert tool.main() == 1
    assert "out of date" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", arguments)
    assert tool.main() == 0
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert tool.main() == 0
