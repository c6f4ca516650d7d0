"""Files that are either whole or absent, and a folder that one run uses at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import DataError, DistillError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader never sees half of it.

    Args:
        path: Target file; its folder is made if absent.
        text: Content, written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any | None:
    """Return the content of a JSON file, or ``None`` where there is no such file.

    Raises:
        DataError: The file is there but is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}). It was changed after it was written; "
            "remove it, or start over with --fresh."
        ) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold ``folder`` for this run and its children.

    The lock belongs to the open file, and the children inherit that file: should this process
    be killed, the folder stays locked until the last training process has ended, so that a second
    one cannot write into the same logs.

    Args:
        folder: Work folder; made if absent.

    Yields:
        The file descriptor that child processes must inherit.

    Raises:
        DistillError: Another run, or a process it left behind, uses the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise DistillError(
                f"{folder} is in use by another run (process {owner}) or by a process that it "
                "left behind. Wait for it to end, stop it, or choose another --work-dir."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()
