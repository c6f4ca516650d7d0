"""The output folder of a run: whose it is, where to go on, and what is left there at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import Trainer

from ...core.errors import ConfigError
from ..common.files import write_text
from . import scalars

__all__ = ["MODEL", "RESULTS", "SETTINGS", "check_output", "claim", "last_checkpoint", "save_model"]

MODEL = "model"
"""Folder of the trained student, complete once it is there."""

RESULTS = "all_results.json"
"""The final figures; the last thing that a run writes."""

SETTINGS = "settings.yaml"
"""What the run was asked to do: every key that its config or a flag set."""

_STATE = "trainer_state.json"
_CHECKPOINTS = "checkpoint-*"


def check_output(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """See that a run may write into an output folder; nothing is changed yet.

    Args:
        folder: The output folder. Logs and hidden files in it are nobody's.
        resume: Whether the run that is there may go on.
        overwrite: Whether the run that is there may be deleted.

    Raises:
        ConfigError: If something is there that is not to be overwritten.
    """
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in there if path.name[0] != "." and path.suffix != ".log"]
    written = _written(folder)
    is_run = (folder / SETTINGS).is_file() or any(folder.glob(_CHECKPOINTS))
    if written and not is_run:
        raise ConfigError(
            f"Output folder {str(folder)!r} holds {written[0].name!r}, but no run that wrote it; "
            "choose another --output_dir."
        )
    if files and not (resume or (overwrite and is_run)):
        held = "a run already" if is_run else f"{files[0].name!r} and is no run's"
        how = "go on with --resume, start anew with --overwrite, or " if is_run else ""
        raise ConfigError(
            f"Output folder {str(folder)!r} holds {held}; {how}choose another --output_dir."
        )


def claim(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Take an output folder, just before training, and write the run's settings there.

    Args:
        folder: The output folder; made if absent.
        settings: What the run was asked to do. The file is a config: it repeats the run.
        overwrite: Delete the run that is there: what a run writes, and nothing else.
    """
    for path in _written(folder) if overwrite else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    write_text(folder / SETTINGS, text)


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint of a run that was written to its end, or None.

    Args:
        folder: The run's output folder.
    """
    numbered = [path for path in folder.glob(_CHECKPOINTS) if path.name.split("-")[1].isdigit()]
    by_step = sorted(numbered, key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((str(path) for path in by_step if _complete(path)), None)


def save_model(trainer: Trainer, folder: Path) -> None:
    """Save the student as a folder that ``AutoModel`` opens, whole or not at all.

    Args:
        trainer: Holds the student and its tokenizer.
        folder: Replaced if it is there.
    """
    part = folder.with_name(f".{folder.name}.part")
    if trainer.args.should_save:
        shutil.rmtree(part, ignore_errors=True)
    trainer.save_model(str(part))  # by every process: a sharded model is gathered
    if trainer.args.should_save:
        # A pickle, and of no use to the student.
        (part / "training_args.bin").unlink(missing_ok=True)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)


def _written(folder: Path) -> list[Path]:
    """What a run writes, as far as it is there."""
    names = (SETTINGS, scalars.FILE, RESULTS, MODEL)
    found = [folder / name for name in names if (folder / name).exists()]
    return found + sorted(folder.glob(_CHECKPOINTS))


def _complete(checkpoint: Path) -> bool:
    try:  # the Trainer writes it last
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
