"""What the network of a config costs, on the whole and part by part."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table
from torch import nn

from ...core.errors import ConfigError, DistillError, ShapeError
from ...core.teacher import load_weights
from ..common.cost import (
    MAC_CONVENTION,
    available_cores,
    count_parameters,
    macs_by_module,
    median_latency,
    peak_memory,
)
from ..common.files import write_json
from .adapter import task_of
from .config import load_config, plain_config
from .teacher import SAFE_GLOBALS

__all__ = [
    "Part",
    "Profile",
    "Subject",
    "format_count",
    "input_shape",
    "main",
    "measure",
    "prepare_subject",
]

# Image sizes where a config names none: what generators are usually compared at, and ImageNet's.
_GAN_SIZE, _MM_SIZE = 256, 224
_ROUNDS = 10


@dataclass(frozen=True)
class Part:
    """A piece of the network.

    Attributes:
        name: Dotted module name.
        kind: Its class.
        parameters: How many it holds.
        trainable: How many of them train.
        macs: Multiply-accumulates for one image.
    """

    name: str
    kind: str
    parameters: int
    trainable: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """What one network costs.

    Attributes:
        config: Path of its config.
        checkpoint: Path of its weights; ``None`` for random ones.
        task: The config's task.
        network: Class of the network.
        shape: Channels, height and width of one image.
        shape_source: Where the shape comes from.
        batch_size: Images in the timed batch.
        device: Where it was measured.
        parameters: All parameters.
        trainable: Parameters that train.
        macs: Multiply-accumulates for one image.
        latency_ms: Median milliseconds for one batch; ``None`` where it was not asked for.
        peak_bytes: Most memory held at a time for one batch, beyond weights and input.
        parts: The network's pieces that hold parameters or compute.
    """

    config: str
    checkpoint: str | None
    task: str | None
    network: str
    shape: tuple[int, int, int]
    shape_source: str
    batch_size: int
    device: str
    parameters: int
    trainable: int
    macs: int
    latency_ms: float | None
    peak_bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Subject:
    """A network ready to be measured; the attributes are those of :class:`Profile`."""

    config: str
    checkpoint: str | None
    task: str | None
    network: nn.Module
    shape: tuple[int, int, int]
    shape_source: str
    batch_size: int
    device: str
    forward: Callable[[], object]


def _build(cfg: Config, config: str, checkpoint: str | None) -> nn.Module:
    """The plain model of an mm config in eval mode, its weights loaded strictly."""
    settings = cfg.model
    if "data_preprocessor" in cfg:  # the runner hands it to the model
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    scope = cfg.get("default_scope")
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        # The libraries warn of names and defaults in their own configs.
        warnings.simplefilter("ignore", UserWarning)
        try:
            network = MODELS.build(settings)
        except Exception as error:
            raise ConfigError(f"The model of config {config!r} cannot be built: {error}") from error
    if checkpoint is not None:
        load_weights(network, checkpoint, safe_globals=SAFE_GLOBALS)
    return network.eval()


def input_shape(cfg: Config) -> tuple[tuple[int, int, int], str]:
    """Return the shape of the image that a config's network is made for, and where it says so.

    A generator's: its ``in_channels`` and the ``crop_size`` (or ``size``) of the validation data.
    Of an mm model: ``size`` of its data preprocessor, or else ``scale`` of the test pipeline's
    ``Resize`` (width before height, as mm writes it), rounded up to what the preprocessor pads to.

    Example:
        >>> input_shape(Config(dict(task="gan", model=dict(generator=dict(in_channels=1)))))
        ((1, 256, 256), 'default')
    """
    if cfg.get("task") == "gan":
        channels = cfg.model.generator.get("in_channels", 3)
        for loader in ("val_dataloader", "test_dataloader"):
            dataset = (cfg.get(loader) or {}).get("dataset", {})
            for key in ("crop_size", "size"):
                if size := dataset.get(key):
                    height, width = (size, size) if isinstance(size, int) else size
                    return (channels, int(height), int(width)), f"{key} of {loader}"
        return (channels, _GAN_SIZE, _GAN_SIZE), "default"
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    for entry in (preprocessor.get("test_cfg") or {}, preprocessor):
        if size := entry.get("size"):
            return (3, int(size[0]), int(size[1])), "size of data_preprocessor"
    for pipeline in _test_pipelines(cfg):
        if scale := _resize_scale(pipeline):
            divisor = preprocessor.get("pad_size_divisor") or 1
            width, height = (-(-side // divisor) * divisor for side in scale)
            padded = f", padded to a multiple of {divisor}" if divisor > 1 else ""
            return (3, height, width), f"Resize scale of the test pipeline{padded}"
    return (3, _MM_SIZE, _MM_SIZE), "default"


def _test_pipelines(cfg: Config) -> list[Any]:
    loaders = (cfg.get(name) or {} for name in ("test_dataloader", "val_dataloader"))
    found = [cfg.get("test_pipeline")]
    found += [loader.get("dataset", {}).get("pipeline") for loader in loaders]
    return [pipeline for pipeline in found if pipeline]


def _resize_scale(pipeline: Sequence[Any]) -> tuple[int, int] | None:
    for step in pipeline:
        scale = step.get("scale") if str(step.get("type")).endswith("Resize") else None
        if isinstance(scale, Sequence) and len(scale) == 2:
            return int(scale[0]), int(scale[1])
    return None


def prepare_subject(
    config: str,
    checkpoint: str | None = None,
    shape: Sequence[int] | None = None,
    batch_size: int = 1,
    device: str = "cpu",
) -> Subject:
    """Build the network that a config deploys: the plain student, of a GAN its generator alone.

    Of a classifier it is the network without what only training needs (peers, branches, a wide
    part), on images of the size that it is trained on.

    Args:
        config: Path of the config; a ``distill`` entry in it is left out.
        checkpoint: Its weights; random ones by default, which cost the same.
        shape: Height and width, or channels, height and width; by default the config's own, see
            :func:`input_shape`.
        batch_size: Images in a batch.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ConfigError: If the config, the device or a number cannot be meant.
        CheckpointError: If the checkpoint does not fit.
        ShapeError: If the network does not run on that shape.
    """
    cfg = plain_config(load_config(config))
    if batch_size < 1:
        raise ConfigError(f"Expected a batch of at least one image, got {batch_size}.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"Device {device!r} was asked for, but torch finds no CUDA device.")
    task = cfg.get("task")
    found, source = input_shape(cfg)
    # The tasks whose deployed network is a part of their model; imported only for them.
    if task == "gan":
        from ..gan.export import build_generator

        network = build_generator(cfg, checkpoint)
    elif task == "classification":
        from ..classification.export import build_classifier
        from ..classification.preflight import sample_shape

        classifier = build_classifier(cfg, checkpoint)
        netaug = getattr(classifier, "netaug", None)
        network = classifier.network if netaug is None else netaug.export()
        try:
            found = tuple(getattr(classifier, "size", None) or sample_shape(cfg))
            source = "the training data"
        except DistillError:
            pass  # the data are not here; the network can be measured all the same
    else:
        network = _build(cfg, config, checkpoint)
    network.to(device)
    if shape is not None:
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ConfigError(
                f"--shape {' '.join(map(str, shape))}: expected H W or C H W, positive numbers."
            )
        found, source = (found[: 3 - len(shape)] + tuple(shape)), "given"
    scope = cfg.get("default_scope")
    channels, height, width = found
    images = torch.zeros(batch_size, channels, height, width, device=device)
    meta = dict.fromkeys(
        ("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (height, width)
    )
    samples = [
        BaseDataElement(metainfo={**meta, "scale_factor": (1.0, 1.0)}) for _ in range(batch_size)
    ]

    def forward() -> object:
        if task in ("gan", "classification"):
            return network(images)
        with DefaultScope.overwrite_default_scope(scope):
            return network(images, samples, mode="tensor")

    subject = Subject(
        config=config,
        checkpoint=checkpoint,
        task=task_of(cfg),
        network=network,
        shape=(channels, height, width),
        shape_source=source,
        batch_size=batch_size,
        device=device,
        forward=forward,
    )
    try:
        with torch.no_grad():
            forward()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ShapeError(
            f"{type(network).__name__} of config {config!r} does not run on images of "
            f"{channels}x{height}x{width} (channels, height, width; {source}): {error} "
            "Give another size by --shape."
        ) from error
    return subject


def measure(
    subjects: Sequence[Subject], latency: bool = True, rounds: int = _ROUNDS
) -> list[Profile]:
    """Measure networks; they are timed in turns, see :func:`~.cost.median_latency`.

    Args:
        subjects: The networks, all on one device.
        latency: Whether to time them.
        rounds: Timed calls of each.

    Raises:
        ConfigError: If ``rounds`` is not positive.
    """
    times: Mapping[str, float] = {}
    if latency and subjects:
        calls = {str(i): subject.forward for i, subject in enumerate(subjects)}
        times = median_latency(calls, rounds, warmup=1, device=subjects[0].device)
    found = []
    for i, subject in enumerate(subjects):
        macs = macs_by_module(subject.forward)
        macs = {name: count // subject.batch_size for name, count in macs.items()}
        found.append(
            Profile(
                config=subject.config,
                checkpoint=subject.checkpoint,
                task=subject.task,
                network=type(subject.network).__name__,
                shape=subject.shape,
                shape_source=subject.shape_source,
                batch_size=subject.batch_size,
                device=subject.device,
                parameters=count_parameters(subject.network),
                trainable=count_parameters(subject.network, trainable_only=True),
                macs=macs[""],
                latency_ms=times.get(str(i)),
                peak_bytes=peak_memory(subject.forward, subject.device),
                parts=tuple(_parts(subject.network, macs)),
            )
        )
    return found


def _parts(network: nn.Module, macs: Mapping[str, int]) -> list[Part]:
    prefix, inside = "", network
    # One part would say no more than the total.
    while len(children := dict(inside.named_children())) == 1:
        name, child = next(iter(children.items()))
        if not list(child.children()):
            break
        prefix, inside = f"{prefix}{name}.", child
    parts = []
    for name, child in inside.named_children():
        part = Part(
            name=prefix + name,
            kind=type(child).__name__,
            parameters=count_parameters(child),
            trainable=count_parameters(child, trainable_only=True),
            macs=_macs_within(prefix + name, macs),
        )
        if part.parameters or part.macs:
            parts.append(part)
    rest = macs[""] - sum(part.macs for part in parts)
    weights = count_parameters(network) - sum(part.parameters for part in parts)
    if rest > 0 or weights > 0:
        trainable = count_parameters(network, True) - sum(part.trainable for part in parts)
        parts.append(Part("(itself)", type(network).__name__, weights, trainable, rest))
    return parts


def _macs_within(name: str, macs: Mapping[str, int]) -> int:
    """Figure of a module; of one that was called past torch's hooks, the sum of those within."""
    if name in macs:
        return macs[name]
    below = [key for key in macs if key.startswith(f"{name}.")]
    tops = [key for key in below if not any(key.startswith(f"{other}.") for other in below)]
    return sum(macs[key] for key in tops)


def main(argv: Sequence[str] | None = None) -> None:
    """Print what a config's network costs, and how it compares with another's."""
    parser = argparse.ArgumentParser(
        description="Parameters, multiply-accumulates, latency and memory of a config's network: "
        "the plain student, of a GAN its generator."
    )
    parser.add_argument("config", help="config file; a distill entry in it is left out")
    parser.add_argument("--checkpoint", help="weights to load, which proves that they fit")
    parser.add_argument("--compare", metavar="CONFIG", help="config of a second network")
    parser.add_argument(
        "--shape", nargs="+", type=int, metavar="N", help="H W or C H W (default: the config's)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-latency", action="store_true", help="do not time it")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"timed calls ({_ROUNDS})")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    parser.add_argument("--force", action="store_true", help="replace an existing --json file")
    args = parser.parse_args(argv)
    if args.json and os.path.exists(args.json) and not args.force:
        raise ConfigError(f"--json {args.json!r} exists; choose another name, or add --force.")
    size = (args.shape, args.batch_size, args.device)
    subjects = [prepare_subject(args.config, args.checkpoint, *size)]
    if args.compare:
        subjects.append(prepare_subject(args.compare, None, *size))
    profiles = measure(subjects, latency=not args.no_latency, rounds=args.rounds)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    _show(profiles, console)
    if args.json:
        figures = [dataclasses.asdict(profile) for profile in profiles]
        write_json(Path(args.json), dict(mac_convention=MAC_CONVENTION, networks=figures))
        print(f"Written: {args.json}", file=sys.stderr)


def _show(profiles: Sequence[Profile], console: Console) -> None:
    summary = Table(title="Cost of the network", title_justify="left")
    summary.add_column("")
    for number, profile in enumerate(profiles):
        title = profile.network if len(profiles) == 1 else f"{'AB'[number]}: {profile.network}"
        summary.add_column(title, justify="right", overflow="fold")
    if len(profiles) == 2:
        summary.add_column("A / B", justify="right")
    one = profiles[0].batch_size == 1
    batch = "one image" if one else f"{profiles[0].batch_size} images"
    rows: list[tuple[str, Callable[[Profile], Any], Callable[[Any], str]]] = [
        ("Config", lambda p: os.path.basename(p.config), str),
        ("Input (C, H, W)", lambda p: "x".join(map(str, p.shape)), str),
        ("  taken from", lambda p: p.shape_source, str),
        ("Parameters", lambda p: p.parameters, format_count),
        ("  trainable", lambda p: p.trainable, format_count),
        ("MACs, one image", lambda p: p.macs, format_count),
        (f"Latency, {batch}", lambda p: p.latency_ms, lambda ms: f"{ms:.1f} ms"),
        (f"Peak memory, {batch}", lambda p: p.peak_bytes, lambda n: f"{n / 2**20:.1f} MiB"),
    ]
    for label, value, text in rows:
        values = [value(profile) for profile in profiles]
        if None in values:
            continue
        cells = [text(v) for v in values]
        if len(profiles) == 2:
            numeric = isinstance(values[0], int | float) and values[1]
            cells.append(f"{values[0] / values[1]:.2f}x" if numeric else "")
        summary.add_row(label, *cells)
    console.print(summary)
    for number, profile in enumerate(profiles):
        letter = f"{'AB'[number]}: " if len(profiles) > 1 else ""
        console.print(_part_table(f"{letter}{profile.network}, part by part", profile))
    first = profiles[0]
    console.print(f"MACs: {MAC_CONVENTION}.")
    console.print("Peak memory: what torch's allocator holds at a time, beyond weights and input.")
    if first.latency_ms is not None:
        where = f"CPU, {available_cores()} cores" if first.device == "cpu" else first.device
        console.print(f"Latency: median, on {where}.")


def _part_table(title: str, profile: Profile) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("Part", overflow="fold")
    table.add_column("Class", overflow="fold")
    for heading in ("Parameters", "%", "MACs", "%"):
        table.add_column(heading, justify="right")
    for part in profile.parts:
        table.add_row(
            part.name,
            part.kind,
            format_count(part.parameters),
            _share(part.parameters, profile.parameters),
            format_count(part.macs),
            _share(part.macs, profile.macs),
        )
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def format_count(number: int) -> str:
    """Return a count as text, from a thousand on with a unit and two decimals.

    Example:
        >>> format_count(56_799_264_768), format_count(356_867), format_count(12)
        ('56.80 G', '356.87 k', '12')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
