"""Files of a deployed network: written whole or not at all, and never over others unasked."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, DistillError

__all__ = [
    "add_targets",
    "bare_state",
    "checked_by_onnxruntime",
    "export_first",
    "need_onnx",
    "onnx_call",
    "read_targets",
    "save_state",
    "write_onnx",
    "write_program",
]

Choice = TypeVar("Choice")


def add_targets(parser: argparse.ArgumentParser, state: str) -> None:
    """Add the options that name files.

    Args:
        parser: Of a command line that has a ``checkpoint`` too.
        state: What the bare state dict is of.
    """
    parser.add_argument("--out", help=f"bare state dict (.pth){state}")
    parser.add_argument("--onnx", help="ONNX file")
    parser.add_argument("--program", help="torch.export program (.pt2)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def read_targets(args: argparse.Namespace) -> None:
    """See that the files named by :func:`add_targets` may be written.

    Raises:
        ConfigError: If none is named, two are one, or one exists and ``--force`` is not given.
    """
    named = {"--out": args.out, "--onnx": args.onnx, "--program": args.program}
    targets = {option: path for option, path in named.items() if path}
    if not targets:
        raise ConfigError("Nothing to write: give --out, --onnx or --program.")
    if len({os.path.abspath(path) for path in targets.values()}) < len(targets):
        raise ConfigError(f"{', '.join(targets)} name the same file.")
    for option, path in targets.items():
        if os.path.isdir(path):
            raise ConfigError(f"{option} {path!r} is a folder; give a file in it.")
        if not os.path.exists(path):
            continue
        if not args.force:
            raise ConfigError(f"{option} {path!r} exists; choose another name, or add --force.")
        if os.path.exists(args.checkpoint) and os.path.samefile(path, args.checkpoint):
            raise ConfigError(f"{option} {path!r} is the checkpoint itself; choose another name.")


def bare_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a state dict on the CPU, a copy.

    Example:
        >>> list(bare_state(nn.Linear(2, 3)))
        ['weight', 'bias']
    """
    state = network.state_dict()
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def save_state(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict; the file is there when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(state, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def export_first(
    write: Callable[[Choice, Path], None], choices: Sequence[Choice], path: Path
) -> Choice:
    """Write a file in the first way that works, beside its place; then put it there.

    Args:
        write: Writes in one way, and checks what it wrote.
        choices: The ways, the best first.
        path: The file.

    Returns:
        The way that worked.

    Raises:
        ConfigError: If torch can write it in none of them.
        DistillError: If what the last one wrote did not pass its check.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        for index, choice in enumerate(choices):
            last = index == len(choices) - 1
            try:
                write(choice, part)
            except DistillError:
                if last:
                    raise
            except Exception as error:  # tracing fails in many ways
                if last:
                    reason = str(error).strip().splitlines()[:1]
                    raise ConfigError(
                        f"torch cannot export this network to {str(path)!r}: "
                        f"{''.join(reason) or type(error).__name__}"
                    ) from error
            else:
                os.replace(part, path)
                return choice
    finally:
        part.unlink(missing_ok=True)
    raise ConfigError(f"There is no way to write {str(path)!r}.")


def need_onnx(extra: str) -> None:
    """See that ONNX files can be written.

    Raises:
        ConfigError: Names the package that is missing, and the extra that has it.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise ConfigError(
                f"ONNX export needs {package}, which is not installed: "
                f"pip install 'taskdistill[{extra}]'."
            )


def checked_by_onnxruntime() -> bool:
    """Whether an ONNX file can be run here."""
    return find_spec("onnxruntime") is not None


def write_onnx(
    network: nn.Module,
    images: Tensor,
    target: Path,
    names: tuple[Sequence[str], Sequence[str]],
    free: Iterable[int],
) -> None:
    """Write a network as one ONNX file.

    Args:
        network: In eval mode.
        images: What it is traced with.
        target: The file.
        names: Of its inputs, and of its outputs.
        free: Dimensions of the images that may vary.
    """
    with _quiet_exporters():
        torch.onnx.export(
            network,
            (images,),
            str(target),
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=[_dynamic(free)],
            dynamo=True,
            external_data=False,
        )


def write_program(
    network: nn.Module, images: Tensor, target: Path, free: Iterable[int]
) -> nn.Module:
    """Write a network as a ``torch.export`` program, and return what is read back from the file.

    Args:
        network: In eval mode.
        images: What it is traced with.
        target: The file.
        free: Dimensions of the images that may vary.
    """
    with _quiet_exporters():
        program = torch.export.export(network, (images,), dynamic_shapes=(_dynamic(free),))
        torch.export.save(program, str(target))
        return torch.export.load(str(target)).module()


def _dynamic(free: Iterable[int]) -> dict[int, Any]:
    return dict.fromkeys(free, torch.export.Dim.DYNAMIC)


def onnx_call(path: Path, name: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return what runs an ONNX file on the CPU.

    Args:
        path: The file.
        name: Of its input.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: tuple(
        torch.from_numpy(found) for found in session.run(None, {name: images.numpy()})
    )


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Without the exporters' progress and advice, which speak to those who write exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
