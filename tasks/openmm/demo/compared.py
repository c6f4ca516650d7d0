"""What ``tools/compare.py`` knows of mmengine's configs."""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mmengine.config import DictAction

from ....core.errors import CheckpointError, ConfigError, TeacherError, did_you_mean
from ...common.compare import Cost
from ...common.cost import count_macs, count_parameters
from ...common.demo.jobs import EVALUATION_DIR, RESULT_FILE, Job, fingerprint
from ..config import load_config, plain_config
from ..profile import prepare_subject
from .task import evaluation_command, option_text, shortened, training_run

__all__ = ["MmContender", "parse_options"]

_ENTRY = "compare"
_KEYS = ("command", "arguments")


class MmContender:
    """A config of ``tools/train.py``.

    A config whose networks another program trains says so in an entry ``compare``::

        compare = dict(command="tools/born_again.py", arguments=["--generations", "3"])

    The program is found from the folder that holds ``tools``, and is called with the config, those
    arguments, ``--work-dir``, ``--seed`` and ``--cfg-options``. Called again it has to go on where
    it stopped. At its end it writes ``result.json`` into the work folder:
    ``{"metrics": {"accuracy/top1": 71.2}}``.

    Args:
        path: The config file.
        root: Folder that holds ``tools``.
        epochs: Epochs instead of the config's own; its schedule is scaled along.
        given: Options as written after ``--cfg-options``.

    Raises:
        ConfigError: The config cannot be read, or its ``compare`` cannot be meant.
    """

    def __init__(
        self, path: Path, root: Path, epochs: int | None = None, given: Sequence[str] = ()
    ) -> None:
        self._path, self._root, self._epochs, self._given = path, root, epochs, tuple(given)
        self._cfg = load_config(str(path), parse_options(given))
        self._tool = self._read_tool()

    @property
    def path(self) -> Path:
        """The config file."""
        return self._path

    def _read_tool(self) -> tuple[str, ...] | None:
        entry = self._cfg.get(_ENTRY)
        if entry is None:
            return None
        where = f"{self._path}: {_ENTRY}"
        for key in entry if isinstance(entry, Mapping) else ():
            if key not in _KEYS:
                raise ConfigError(f"{where} has no {key!r}.{did_you_mean(key, _KEYS)}")
        if not isinstance(entry, Mapping) or not isinstance(entry.get("command"), str):
            raise ConfigError(
                f"{where} is {entry!r}; expected dict(command='tools/...py', arguments=[...])."
            )
        tool = self._root / entry["command"]
        if not tool.is_file():
            raise ConfigError(f"{where}.command {entry['command']!r} does not exist ({tool}).")
        arguments = entry.get("arguments") or []
        if isinstance(arguments, str):
            raise ConfigError(f"{where}.arguments is {arguments!r}; expected a list of words.")
        return (sys.executable, str(tool), str(self._path), *map(str, arguments))

    def training(self, name: str, work_dir: Path, seed: int, metric: str) -> Job:
        """Return the run that trains it; see :class:`taskdistill.tasks.common.compare.Contender`.

        Raises:
            ConfigError: It cannot be trained as asked.
            TeacherError: The checkpoint of its teacher does not exist.
        """
        job = training_run(
            cfg=self._cfg,
            name=name,
            work_dir=work_dir,
            seed=seed,
            root=self._root,
            metric=metric,
            epochs=self._epochs,
            given=self._given,
        )
        if self._tool is None:
            self._check_teachers()
            return job
        options = list(self._given)
        if self._epochs is not None:
            changes = shortened(self._cfg, self._epochs)
            options += [option_text(key, value) for key, value in changes.items()]
        return replace(
            job,
            command=(
                *self._tool,
                *("--work-dir", str(work_dir), "--seed", str(seed)),
                *(("--cfg-options", *options) if options else ()),
            ),
            checkpoint=work_dir / RESULT_FILE,
            evaluate=(),
        )

    def evaluation(self, name: str, work_dir: Path, checkpoint: Path, metric: str) -> Job:
        """Return the run that validates a checkpoint.

        Raises:
            CheckpointError: There is no such file.
        """
        if not checkpoint.is_file():
            raise CheckpointError(f"{name}: checkpoint {str(checkpoint)!r} does not exist.")
        about = checkpoint.stat()
        config = plain_config(self._cfg).to_dict()
        config.pop("work_dir", None)
        return Job(
            name=name,
            command=evaluation_command(
                str(self._path), checkpoint, work_dir / EVALUATION_DIR, self._root, self._given
            ),
            work_dir=work_dir,
            length=1,
            checkpoint=checkpoint,
            metric=metric,
            signature=fingerprint({"config": config, "file": (about.st_size, about.st_mtime_ns)}),
        )

    def caution(self) -> str:
        """Say where a test set is another one than the validation set."""
        ours, theirs = ((self._cfg.get(f"{k}_dataloader") or {}) for k in ("val", "test"))
        if ours.get("dataset") == theirs.get("dataset"):
            return ""
        return (
            "evaluated on the test data of its config, which differ from the validation data that "
            "training looks at."
        )

    def cost(self, checkpoint: Path) -> Cost:
        """Return parameters and multiply-accumulates of the network that the config deploys."""
        try:
            with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
                config = self._path
                if self._given:
                    config = Path(folder) / "config.py"
                    self._cfg.dump(str(config))
                subject = prepare_subject(str(config))
                shape = "x".join(map(str, subject.shape))
                return Cost(
                    count_parameters(subject.network),
                    count_macs(subject.forward),
                    f"one image of {shape}",
                )
        except Exception as error:  # whatever a library raises: the table does without
            return Cost(problem=str(error).strip().partition("\n")[0] or type(error).__name__)

    def _check_teachers(self) -> None:
        for text in _checkpoints(self._cfg.get("distill")):
            if not urlparse(text).scheme and not Path(text).expanduser().is_file():
                raise TeacherError(
                    f"{self._path}: the teacher's checkpoint {text!r} does not exist (looked from "
                    f"{str(Path.cwd())!r}). Train the teacher first."
                )


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Read options as mmengine's ``--cfg-options`` does.

    Raises:
        ConfigError: One of them is no ``key=value``.

    Example:
        >>> parse_options(["model.width=2", "val.names=[a,b]"])
        {'model.width': 2, 'val.names': ['a', 'b']}
    """
    for text in given:
        if "=" not in text:
            raise ConfigError(f"--cfg-options {text!r}: expected key=value.")
    if not given:
        return {}
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=DictAction)
    return parser.parse_args(["--options", *given]).options


def _checkpoints(node: Any) -> Iterator[str]:
    """All entries ``checkpoint`` of a teacher that stand somewhere in a ``distill``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "checkpoint" and isinstance(value, str):
                yield value
            else:
                yield from _checkpoints(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _checkpoints(value)
