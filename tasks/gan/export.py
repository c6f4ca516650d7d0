"""Deploy a trained generator: a bare state dict, an ONNX file, a ``torch.export`` program."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError, DistillError, ShapeError
from ...core.modes import evaluating
from ...core.teacher import load_weights
from ..common.export import (
    add_targets,
    bare_state,
    checked_by_onnxruntime,
    export_first,
    need_onnx,
    onnx_call,
    read_targets,
    save_state,
    write_onnx,
    write_program,
)
from ..openmm.config import load_config, plain_config
from ..openmm.profile import input_shape
from ..openmm.teacher import SAFE_GLOBALS
from .models import SuperMobileResnetGenerator
from .models.release import release_names

__all__ = [
    "build_generator",
    "export_onnx",
    "export_program",
    "export_state",
    "load_generator",
    "main",
]

WHICH = ("generator", "generator_back")

# How far an exported network may be from torch's, in the range [-1, 1] of its outputs; a step of an
# 8-bit image is 0.008.
_TOLERANCE = 1e-4

# What may vary; a U-Net's sizes may not.
_WAYS: Sequence[Mapping[int, str]] = ({0: "batch", 2: "height", 3: "width"}, {0: "batch"})


def build_generator(
    cfg: Config,
    checkpoint: str | None = None,
    which: str = "generator",
    channels: Sequence[int] | str | None = None,
) -> nn.Module:
    """Build one generator of a config, without discriminators, in eval mode on the CPU.

    Args:
        cfg: A config of task ``"gan"``; a ``distill`` entry is left out.
        checkpoint: One of our checkpoints, a bare state dict, or a file of the original releases;
            loaded strictly. Random weights without.
        which: ``"generator"``, or of a CycleGAN ``"generator_back"``.
        channels: Of a super-network, the configuration to cut out, such as
            ``"16_16_32_16_32_32_16_16"``.

    Raises:
        ConfigError: If the config has no such generator, or `channels` is no configuration of it.
        CheckpointError: If the checkpoint is unreadable or does not fit.

    Example:
        >>> tiny = dict(type="ResnetGenerator", width=4, blocks=1)
        >>> generator = build_generator(Config(dict(task="gan", model=dict(generator=tiny))))
        >>> generator(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """
    settings = _settings(plain_config(cfg), which)
    try:
        generator: nn.Module = MODELS.build(settings)
    except DistillError:
        raise
    except Exception as error:
        raise ConfigError(f"The generator of {_name(cfg)} cannot be built: {error}") from error

    def names(state: Mapping[str, Any]) -> Mapping[str, Any]:
        return release_names(_cut(state, which, str(checkpoint)), generator)

    if checkpoint is not None:
        load_weights(generator, checkpoint, safe_globals=SAFE_GLOBALS, names=names)
    if channels is not None:
        if not isinstance(generator, SuperMobileResnetGenerator):
            raise ConfigError(
                f"Channels can be chosen of a super-network only, and {_name(cfg)} has a "
                f"{type(generator).__name__}. Leave --channels out."
            )
        generator = generator.slice(channels)
    return generator.eval()


def load_generator(config_path: str, checkpoint: str | None, which: str = "generator") -> nn.Module:
    """Read a config and build its generator; see :func:`build_generator`.

    Raises:
        ConfigError: If the config cannot be read or has no such generator.
        CheckpointError: If the checkpoint is unreadable or does not fit.
    """
    return build_generator(load_config(config_path), checkpoint, which)


def _name(cfg: Config) -> str:
    return f"config {cfg.filename!r}" if cfg.filename else "the config"


def _settings(cfg: Config, which: str) -> dict[str, Any]:
    if which not in WHICH:
        raise ConfigError(f"which={which!r} is not one of {list(WHICH)}.")
    if cfg.get("task") != "gan" or "generator" not in cfg.get("model", {}):
        raise ConfigError(
            f"{_name(cfg)} is not of an image-to-image GAN: expected task='gan' and "
            "model.generator."
        )
    settings = dict(cfg.model.generator)
    if which == "generator":
        return settings
    if cfg.model.get("type") != "CycleGAN":
        raise ConfigError(
            f"The {cfg.model.get('type')} of {_name(cfg)} has no {which!r}; a CycleGAN has."
        )
    inputs, outputs = settings.get("in_channels", 3), settings.get("out_channels", 3)
    return {**settings, "in_channels": outputs, "out_channels": inputs}


def _cut(state: Mapping[str, Any], which: str, path: str) -> Mapping[str, Any]:
    """The entries of one part of a model, by their own names; a bare state dict as it is."""
    prefix = f"{which}."
    found = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    parts = sorted({key.partition(".")[0] for key in state})
    if not found and any(part.startswith(("generator", "discriminator")) for part in parts):
        raise CheckpointError(
            f"Checkpoint {path!r} holds no {which!r}, but {', '.join(parts)}. Take the checkpoint "
            "of this config, or another --which."
        )
    return found or state


def export_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a generator's bare state dict, on the CPU, under the original releases' names.

    Args:
        model: A generator, or a translator whose ``generator`` is taken.

    Example:
        >>> export_state(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)))["0.weight"].shape
        torch.Size([3, 3, 1, 1])
    """
    return bare_state(getattr(model, "generator", model))


def export_onnx(
    generator: nn.Module, path: str | Path, shape: Sequence[int] = (3, 256, 256)
) -> tuple[str, ...]:
    """Write a generator as one ONNX file, checked with onnxruntime where that is installed.

    The input is ``image``, the output ``translated``: float32 (batch, channels, height, width) in
    [-1, 1].

    Args:
        generator: The network; written as in eval mode.
        path: The file; it is there when it is complete and, where it can be checked, equal.
        shape: Channels, height and width of the image it is traced with.

    Returns:
        The dimensions that may vary: batch, height and width, or (for networks that cannot, such
        as U-Nets) batch alone.

    Raises:
        ConfigError: If onnx or onnxscript is missing, or torch cannot write the network.
        DistillError: If onnxruntime computes something else than torch.
    """
    need_onnx("gan")
    example = _example(shape)
    with evaluating(generator):
        _run(generator, example)

        def write(axes: Mapping[int, str], target: Path) -> None:
            write_onnx(generator, example, target, (["image"], ["translated"]), axes)
            if checked_by_onnxruntime():
                run = onnx_call(target, "image")
                _compare(generator, lambda image: run(image)[0], example, axes, "The ONNX file")

        return tuple(export_first(write, _WAYS, Path(path)).values())


def export_program(
    generator: nn.Module, path: str | Path, shape: Sequence[int] = (3, 256, 256)
) -> tuple[str, ...]:
    """Write a generator as a program that plain torch loads (``torch.export.load``).

    Args:
        generator: The network; written as in eval mode.
        path: The file, usually ``.pt2``; it is there when it is complete and was checked.
        shape: Channels, height and width of the image it is traced with.

    Returns:
        The dimensions that may vary; see :func:`export_onnx`.

    Raises:
        ConfigError: If torch cannot trace the network.
        DistillError: If the program computes something else.
    """
    example = _example(shape)
    with evaluating(generator):
        _run(generator, example)

        def write(axes: Mapping[int, str], target: Path) -> None:
            loaded = write_program(generator, example, target, axes)
            _compare(generator, loaded, example, axes, "The program")

        return tuple(export_first(write, _WAYS, Path(path)).values())


def _example(shape: Sequence[int]) -> Tensor:
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"Expected channels, height and width, got {tuple(shape)}.")
    # Not one image: a dimension of 1 is taken for a constant.
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _run(generator: nn.Module, images: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return generator(images)
    except RuntimeError as error:
        raise ShapeError(
            f"{type(generator).__name__} does not run on images of "
            f"{'x'.join(map(str, images.shape[1:]))} (channels, height, width): {error}"
        ) from error


def _compare(
    generator: nn.Module,
    exported: Callable[[Tensor], Tensor],
    example: Tensor,
    axes: Mapping[int, str],
    what: str,
) -> None:
    """Hold what was written against the network, at another size too where sizes may vary."""
    images = [example, example[:1]]
    if len(axes) > 1:
        step = getattr(generator, "side_multiple", 4)
        larger = (0, 2 * step, 0, step)
        images.append(torch.nn.functional.pad(example[:1], larger, mode="replicate"))
    for image in images:
        expected = _run(generator, image)
        with torch.no_grad():
            found = exported(image)
        gap = float("inf")
        if found.shape == expected.shape:
            gap = float((found - expected).abs().max())
        if not gap <= _TOLERANCE:
            raise DistillError(
                f"{what} differs from torch by {gap:.3g} on an input of {tuple(image.shape)} "
                f"(at most {_TOLERANCE} is expected), so it was not kept."
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Export a generator from a training checkpoint."""
    parser = argparse.ArgumentParser(
        description="Export a generator: a bare state dict, ONNX, a torch.export program."
    )
    parser.add_argument("config", help="config file the generator was trained with")
    parser.add_argument("checkpoint", help="training checkpoint, or a bare state dict")
    add_targets(parser, ", under the releases' names")
    parser.add_argument(
        "--shape", nargs=2, type=int, metavar=("H", "W"), help="image (default: the config's)"
    )
    parser.add_argument("--which", choices=WHICH, default="generator", help="of a CycleGAN")
    parser.add_argument(
        "--channels", help="of a super-network: the configuration to cut out, 16_16_32_..."
    )
    args = parser.parse_args(argv)
    read_targets(args)
    cfg = load_config(args.config)
    generator = build_generator(cfg, args.checkpoint, args.which, args.channels)
    if isinstance(generator, SuperMobileResnetGenerator):
        raise ConfigError(
            f"Config {args.config!r} has a super-network, which holds many generators. Let "
            "tools/search.py find one, whose config and checkpoint are exported, or name one with "
            f"--channels, such as {'_'.join(map(str, generator.smallest))}."
        )
    shape = (_settings(cfg, args.which).get("in_channels", 3), *input_shape(cfg)[0][1:])
    if args.shape:
        shape = (shape[0], *args.shape)
    if args.out:
        save_state(export_state(generator), Path(args.out))
        print(f"State dict: {args.out}")
    if args.onnx:
        free = export_onnx(generator, args.onnx, shape)
        checked = "equal to torch" if checked_by_onnxruntime() else "unchecked: no onnxruntime"
        print(f"ONNX: {args.onnx} ({', '.join(free)} may vary; {checked})")
    if args.program:
        free = export_program(generator, args.program, shape)
        print(f"Program: {args.program} ({', '.join(free)} may vary; equal to torch)")
