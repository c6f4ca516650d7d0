"""Runs the examples in the docstrings of every module of core and tasks."""

import doctest
import importlib
from pathlib import Path

import pytest

import taskdistill.core
import taskdistill.tasks

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    # The files are read, not imported: collecting must not fail on a module that does.
    names = []
    for package in (taskdistill.core, taskdistill.tasks):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            if ">>> " in file.read_text():
                parts = file.relative_to(folder).with_suffix("").parts
                if parts[-1] == "__init__":
                    parts = parts[:-1]
                names.append(".".join([package.__name__, *parts]))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name.startswith("taskdistill.core") or (error.name or "").startswith("taskdistill"):
            raise
        pytest.skip(f"{error.name} is not installed")
    failed, tried = doctest.testmod(module, optionflags=FLAGS)
    # None tried: the examples are where doctest does not look, and check nothing.
    assert tried > 0
    assert failed == 0
