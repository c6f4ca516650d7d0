"""What leaving a network early costs in accuracy and saves in work."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from ...core.errors import ConfigError, DataError
from ...core.modes import evaluating
from ...core.online import ensemble_logits
from ..common.cost import MAC_CONVENTION, available_cores, count_macs, median_latency
from ..common.files import write_json, write_text
from ..openmm.config import load_config, plain_config
from ..openmm.profile import format_count
from .byot import SelfTaughtClassifier
from .export import build_classifier

__all__ = [
    "ExitRow",
    "ThresholdRow",
    "answers_of",
    "exit_rows",
    "main",
    "threshold_rows",
]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ROUNDS = 30


@dataclass(frozen=True)
class ExitRow:
    """One place to leave.

    Args:
        name: ``exit0``, ..., ``network`` (its end) or ``ensemble`` (all of them).
        at: The module behind which it is.
        accuracy: Top-1, per cent.
        parameters: That leaving there uses.
        macs: Multiply-accumulates of one image.
        latency_ms: Median time of one image.
    """

    name: str
    at: str
    accuracy: float
    parameters: int
    macs: int
    latency_ms: float | None


@dataclass(frozen=True)
class ThresholdRow:
    """Leaving at the first exit that is sure enough.

    Args:
        threshold: Least top probability.
        accuracy: Top-1, per cent.
        macs: Multiply-accumulates of one image, averaged over the images.
        shares: Per cent of the images that leave at each exit, the network's end last.
    """

    threshold: float
    accuracy: float
    macs: float
    shares: tuple[float, ...]


def answers_of(
    model: SelfTaughtClassifier, batches: Iterable[dict[str, Any]]
) -> tuple[list[Tensor], Tensor]:
    """Ask all exits about labelled images.

    Args:
        model: The classifier.
        batches: As the data loader gives them; preprocessed here.

    Returns:
        Logits (N, K) of each exit, the network's end last, and the labels (N,), on the CPU.

    Raises:
        DataError: If there are no images.
    """
    found: list[list[Tensor]] = []
    labels: list[Tensor] = []
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            data = model.data_preprocessor(batch, False)
            outputs = model.exits(model.network, data["inputs"])
            found.append([each.float().cpu() for each in outputs.logits])
            labels.append(torch.as_tensor(data["data_samples"]).cpu())
    if not found:
        raise DataError("The data to measure on are empty.")
    return [torch.cat(each) for each in zip(*found, strict=True)], torch.cat(labels)


def exit_rows(
    model: SelfTaughtClassifier,
    logits: Sequence[Tensor],
    labels: Tensor,
    rounds: int = _ROUNDS,
    shape: Sequence[int] | None = None,
    threads: int | None = None,
) -> list[ExitRow]:
    """Accuracy and cost of each exit, of the network's end and of the ensemble.

    Args:
        model: The classifier.
        logits: Of :func:`answers_of`.
        labels: Of the same.
        rounds: Timed calls of each; 0 for none.
        shape: Channels, height and width; by default the ``size`` of the model.
        threads: CPU threads to time with; all cores by default.
    """
    image = _image(model, shape)
    names = [f"exit{index}" for index in range(len(model.exits.exits))] + ["network"]
    calls: dict[str, Callable[[], object]] = {
        name: lambda index=index: model.exit_at(image, index) for index, name in enumerate(names)
    }
    calls["ensemble"] = lambda: ensemble_logits(model.exits(model.network, image).logits)
    places = dict(zip(names, [*model.exits.exits, "(its end)"], strict=True))
    answers = dict(zip(names, logits, strict=True))
    answers["ensemble"] = ensemble_logits(logits)
    with torch.no_grad(), evaluating(model):
        times = _times(calls, rounds, threads, image.device)
        return [
            ExitRow(
                name=name,
                at=places.get(name, "(all)"),
                accuracy=_accuracy(answers[name].argmax(1), labels),
                parameters=_parameters_used(model, call),
                macs=count_macs(call),
                latency_ms=times.get(name),
            )
            for name, call in calls.items()
        ]


def threshold_rows(
    model: SelfTaughtClassifier,
    logits: Sequence[Tensor],
    labels: Tensor,
    thresholds: Sequence[float] = THRESHOLDS,
    shape: Sequence[int] | None = None,
) -> list[ThresholdRow]:
    """Accuracy and mean cost where every image leaves at the first exit that is sure enough.

    An image that goes on has paid for the heads it came by.

    Args:
        model: The classifier.
        logits: Of :func:`answers_of`.
        labels: Of the same.
        thresholds: Least top probabilities.
        shape: Channels, height and width; by default the ``size`` of the model.
    """
    image = _image(model, shape)
    count = len(model.exits.exits)
    with torch.no_grad(), evaluating(model):
        # 2 is never reached and 0 always.
        plans = [[2.0] * index + [0.0] * (count - index) for index in range(count + 1)]
        costs = [count_macs(lambda plan=plan: model.early_exit(image, plan)) for plan in plans]
    scores = torch.stack([each.softmax(1).amax(1) for each in logits])
    chosen = torch.stack([each.argmax(1) for each in logits])
    rows = []
    for threshold in thresholds:
        sure = scores >= threshold
        sure[-1] = True  # nobody goes further than the end
        leaving = sure.int().argmax(0)  # the first of them
        picked = chosen.gather(0, leaving.unsqueeze(0)).squeeze(0)
        shares = torch.bincount(leaving, minlength=count + 1).double() / len(labels)
        rows.append(
            ThresholdRow(
                threshold=float(threshold),
                accuracy=_accuracy(picked, labels),
                macs=float((shares * torch.tensor(costs, dtype=torch.float64)).sum()),
                shares=tuple(100.0 * float(share) for share in shares),
            )
        )
    return rows


def _times(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    threads: int | None,
    device: torch.device,
) -> dict[str, float]:
    if not rounds:
        return {}
    return median_latency(calls, rounds, threads=threads, device=device)


def _image(model: SelfTaughtClassifier, shape: Sequence[int] | None) -> Tensor:
    first = next(model.parameters())
    return torch.zeros(1, *(shape or model.size), device=first.device, dtype=first.dtype)


def _accuracy(chosen: Tensor, labels: Tensor) -> float:
    return 100.0 * float((chosen == labels).double().mean())


def _parameters_used(model: nn.Module, call: Callable[[], object]) -> int:
    """Parameters of the modules that a call runs."""
    used: dict[int, int] = {}

    def note(module: nn.Module, _args: Any) -> None:
        used.update((id(p), p.numel()) for p in module.parameters(recurse=False))

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return sum(used.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the exits of a trained classifier."""
    parser = argparse.ArgumentParser(
        description="Accuracy, parameters, MACs and latency of each exit of a "
        "SelfTaughtClassifier, and what leaving by confidence saves."
    )
    parser.add_argument("config", help="config file; a distill entry in it is left out")
    parser.add_argument("checkpoint", help="training checkpoint")
    parser.add_argument("--work-dir", help="folder for early_exit.md and .json, which are replaced")
    parser.add_argument(
        "--thresholds",
        nargs="+",
        type=float,
        default=THRESHOLDS,
        metavar="P",
        help=f"least top probabilities to leave with (default: {' '.join(map(str, THRESHOLDS))})",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="timed calls; 0 for none")
    args = parser.parse_args(argv)
    if args.rounds < 0:
        raise ConfigError(f"--rounds {args.rounds}: expected 0 or more.")
    if not all(0 <= p <= 1 for p in args.thresholds):
        raise ConfigError(f"--thresholds {args.thresholds}: expected probabilities from 0 to 1.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("Device 'cuda' was asked for, but torch finds no CUDA device.")
    cfg = plain_config(load_config(args.config))
    model = build_classifier(cfg, args.checkpoint, partners=True)
    if not isinstance(model, SelfTaughtClassifier):
        raise ConfigError(
            f"Config {args.config!r} has a {type(model).__name__}, which has no exits; expected a "
            "SelfTaughtClassifier."
        )
    model.to(args.device)
    loader = _validation(cfg, args.config)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    batches = track(loader, "Asking all exits", console=console, transient=True)
    logits, labels = answers_of(model, batches)
    # The images' own size: the config's may be another.
    first = model.data_preprocessor(next(iter(loader)), False)["inputs"]
    shape = tuple(first.shape[1:])
    exits = exit_rows(model, logits, labels, args.rounds, shape)
    thresholds = threshold_rows(model, logits, labels, args.thresholds, shape)
    where = f"CPU, {available_cores()} cores" if args.device == "cpu" else args.device
    notes = [
        f"{len(labels)} images of {'x'.join(map(str, shape))} (channels, height, width).",
        f"MACs: {MAC_CONVENTION}; of one image.",
        "By confidence, the heads that an image came by count as well.",
    ]
    if args.rounds:
        notes.append(f"Latency: median of one image, on {where}.")
    tables = [_exit_table(exits), _threshold_table(thresholds)]
    for title, header, rows in tables:
        table = Table(title=title, title_justify="left")
        for index, heading in enumerate(header):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    name = os.path.splitext(os.path.basename(args.config))[0]
    folder = Path(args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", name))
    write_text(folder / "early_exit.md", _markdown(tables, notes))
    write_json(
        folder / "early_exit.json",
        dict(
            config=args.config,
            checkpoint=args.checkpoint,
            images=len(labels),
            shape=shape,
            mac_convention=MAC_CONVENTION,
            exits=[dataclasses.asdict(row) for row in exits],
            thresholds=[dataclasses.asdict(row) for row in thresholds],
        ),
    )
    console.print(f"Written: {folder / 'early_exit.md'}, .json", highlight=False, soft_wrap=True)


def _validation(cfg: Config, path: str) -> Any:
    loader = cfg.get("val_dataloader") or cfg.get("test_dataloader")
    if not loader:
        raise ConfigError(f"Config {path!r} has no val_dataloader to measure accuracy on.")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return Runner.build_dataloader(loader, seed=0)


_Contents = tuple[str, list[str], list[list[str]]]


def _exit_table(rows: Sequence[ExitRow]) -> _Contents:
    header = ["", "Behind", "Accuracy, %", "Parameters", "MACs"]
    timed = all(row.latency_ms is not None for row in rows)
    cells = [
        [row.name, row.at, f"{row.accuracy:.2f}", *map(format_count, (row.parameters, row.macs))]
        + ([f"{row.latency_ms:.2f}"] if timed else [])
        for row in rows
    ]
    return "Each exit by itself", header + (["Latency, ms"] if timed else []), cells


def _threshold_table(rows: Sequence[ThresholdRow]) -> _Contents:
    count = len(rows[0].shares) if rows else 1
    left = [f"exit{index}, %" for index in range(count - 1)] + ["network, %"]
    cells = [
        [f"{row.threshold:g}", f"{row.accuracy:.2f}", format_count(round(row.macs))]
        + [f"{share:.1f}" for share in row.shares]
        for row in rows
    ]
    return "Leaving by confidence", ["Threshold", "Accuracy, %", "Mean MACs", *left], cells


def _markdown(tables: Sequence[_Contents], notes: Sequence[str]) -> str:
    lines = ["# Early exits", ""]
    for title, header, rows in tables:
        lines += [f"## {title}", ""]
        aligned = [":--"] + ["--:"] * (len(header) - 1)
        lines += [f"| {' | '.join(row)} |" for row in (header, aligned, *rows)]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"
