"""tools/cache_teacher.py finds the command line that a config is of."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskdistill.core.errors import ConfigError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "cache_teacher.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("cache_teacher", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("argv", "task"),
    [
        (["a.py"], "openmm"),
        (["--dry-run", "a/b.yaml"], "nlp"),
        (["b.json", "--verify"], "nlp"),
        # The value of an option is no config.
        (["a.py", "--cfg-options", "train_dataloader.dataset.ann_file=train.json"], "openmm"),
        ([], "openmm"),
    ],
)
def test_a_config_is_known_by_its_extension(tool: Any, argv: list[str], task: str) -> None:
    assert tool.command_of(argv) == f"taskdistill.tasks.{task}.cache_cli"


def test_configs_of_two_kinds_are_refused(tool: Any) -> None:
    with pytest.raises(ConfigError, match="Give one config"):
        tool.command_of(["a.py", "b.yaml"])


def test_a_mistake_ends_in_one_message() -> None:
    pytest.importorskip("mmengine")
    command = [sys.executable, str(TOOL), "no_such_config.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "ConfigError: Config 'no_such_config.py' does not exist" in done.stderr
    assert "Traceback" not in done.stderr
