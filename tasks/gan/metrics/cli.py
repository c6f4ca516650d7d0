"""The command line of ``tools/eval_fid.py``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from ....core.errors import ConfigError, DataError, DistillError
from .cache import load_statistics, save_statistics
from .folders import measure_files
from .frechet import Statistics, frechet_distance, kernel_distance
from .images import list_images
from .inception import DIMS, InceptionNetwork
from .network import NETWORKS, FeatureNetwork, build_network, pick_device

__all__ = ["main"]

_EPILOG = """examples:
  eval_fid.py REAL FAKE                                 two folders of images
  eval_fid.py REAL --save-stats real.npz                keep the statistics of a folder
  eval_fid.py real.npz FAKE                             ... and use them
  eval_fid.py REAL --config CFG --checkpoint CKPT       what a model makes of its validation images
  eval_fid.py --config CFG --checkpoint CKPT            ... against the targets of its data set
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the distance between two sets of images.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        Exit status: 0, 2 after an error a user can mend (one message on standard error), 130 after
        Ctrl-C.
    """
    args = _parser().parse_args(argv)
    with _short_warnings():
        try:
            _measure(args)
        except DistillError as error:
            print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt:
            print("\nInterrupted; there are no figures.", file=sys.stderr, flush=True)
            return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Frechet distance (FID) between two sets of images, as pytorch_fid computes it",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sets",
        nargs="*",
        metavar="REAL FAKE",
        help="folders of images, or .npz files of statistics; without FAKE: --config, --save-stats",
    )
    add("--config", help="config of a model that generates FAKE from its validation images")
    add("--checkpoint", help="weights of that model")
    add("--out", help="new folder for what it generates (default: not kept)")
    add("--network", choices=NETWORKS, default="inception", help="small needs no weights, no FID")
    add("--weights", help="Inception weights (default: $TASKDISTILL_INCEPTION, or torch hub's)")
    add("--dims", type=int, default=2048, choices=DIMS, help="Inception features (default: 2048)")
    add("--batch-size", type=int, default=50, help="images a step (default: 50)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    add("--num-workers", type=int, help="processes that read images (default: cores, at most 8)")
    add("--kid", action="store_true", help="kernel distance too")
    add("--save-stats", metavar="OUT.npz", help="write the statistics of REAL, as pytorch_fid does")
    add("--json", metavar="FILE", help="write the figures")
    add("--recursive", action="store_true", help="images of subfolders too")
    add("--no-cache", action="store_true", help="neither read nor keep statistics of folders")
    add("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    return parser


@dataclass
class _Set:
    """One side of the comparison: a name for messages, and where it comes from."""

    name: str
    path: Path

    @property
    def is_file(self) -> bool:
        return self.path.suffix == ".npz"


def _measure(args: argparse.Namespace) -> None:
    # Everything that can be wrong with the arguments, before anything takes time.
    sets = _sets(args)
    for output, suffix in ((args.save_stats, ".npz"), (args.json, "")):
        if output is not None and not output.endswith(suffix):
            raise ConfigError(f"--save-stats {output!r} must end in {suffix}.")
        if output is not None and Path(output).expanduser().exists():
            raise DataError(f"{output!r} exists already. Remove it, or choose another name.")
    if args.kid and (files := [str(side.path) for side in sets if side.is_file]):
        raise ConfigError(
            f"--kid needs images, and {files[0]!r} holds their mean and covariance. Give the "
            "folder."
        )
    device = pick_device(args.device)

    with contextlib.ExitStack() as stack:
        loaded = {side.name: load_statistics(side.path) for side in sets if side.is_file}
        listed = {
            side.name: list_images(side.path, recursive=args.recursive)
            for side in sets
            if not side.is_file
        }
        network = None
        if listed or args.config:
            network = build_network(args.network, args.weights, args.dims).to(device)
            _check_dims(network, loaded, sets)
        if args.config:
            for side in _generate(args, str(device), stack, with_targets=not sets):
                sets.append(side)
                listed[side.name] = list_images(side.path)
        statistics, features = _statistics(args, network, loaded, listed)
        _report(args, network, [side.name for side in sets], statistics, features)


def _sets(args: argparse.Namespace) -> list[_Set]:
    paths = [Path(path).expanduser() for path in args.sets]
    if args.config is None:
        if args.checkpoint or args.out:
            raise ConfigError("--checkpoint and --out go with --config.")
        wanted = 1 if args.save_stats else 2
        if not wanted <= len(paths) <= 2:
            raise ConfigError(
                f"Give two sets of images, REAL and FAKE (got {len(paths)}); or REAL alone with "
                "--save-stats or with --config and --checkpoint."
            )
    else:
        if not args.checkpoint:
            raise ConfigError("--config needs --checkpoint, the weights of the model.")
        if len(paths) > 1:
            raise ConfigError(
                "--config generates FAKE, so give REAL alone, or nothing to compare with the "
                f"config's own targets; got {' '.join(args.sets)}."
            )
        if args.out and Path(args.out).expanduser().exists():
            raise DataError(
                f"--out {args.out!r} exists already; its images would be mixed with the new ones. "
                "Choose another name."
            )
    for path in paths:
        if not path.exists():
            raise DataError(f"{str(path)!r} does not exist; give a folder of images or an .npz.")
    return [_Set(name, path) for name, path in zip(("real", "fake"), paths, strict=False)]


def _check_dims(network: FeatureNetwork, loaded: dict[str, Statistics], sets: list[_Set]) -> None:
    for side in sets:
        if side.name in loaded and loaded[side.name].dims != network.dims:
            raise DataError(
                f"{str(side.path)!r} holds statistics of {loaded[side.name].dims} dimensions, but "
                f"the features here have {network.dims}. Choose --dims and --network as they were "
                "when it was made."
            )


def _generate(
    args: argparse.Namespace, device: str, stack: contextlib.ExitStack, *, with_targets: bool
) -> list[_Set]:
    from ..generate import generate_images

    if args.out:
        folder = Path(args.out).expanduser()
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eval_fid_")))
    fake, real = folder / "fake", folder / "real"
    if with_targets:
        generate_images(args.config, args.checkpoint, fake, device, targets=real)
        return [_Set("real", real), _Set("fake", fake)]
    generate_images(args.config, args.checkpoint, fake, device)
    return [_Set("fake", fake)]


def _statistics(
    args: argparse.Namespace,
    network: FeatureNetwork | None,
    loaded: dict[str, Statistics],
    listed: dict[str, list[Path]],
) -> tuple[dict[str, Statistics], dict[str, Tensor]]:
    statistics, features = dict(loaded), {}
    workers = min(_cores(), 8) if args.num_workers is None else args.num_workers
    with _progress() as start:
        for name, files in listed.items():
            assert network is not None
            statistics[name], vectors = measure_files(
                files,
                network,
                batch_size=args.batch_size,
                num_workers=workers,
                skip_unreadable=args.skip_unreadable,
                keep_features=args.kid,
                cache=not args.no_cache,
                progress=start(name, len(files)),
            )
            if vectors is not None:
                features[name] = vectors
            if (skipped := len(files) - (statistics[name].images or 0)) > 0:
                print(f"{skipped} of {len(files)} files of {name} are left out.", file=sys.stderr)
    return statistics, features


def _report(
    args: argparse.Namespace,
    network: FeatureNetwork | None,
    names: list[str],
    statistics: dict[str, Statistics],
    features: dict[str, Tensor],
) -> None:
    figure = network.figure if network else ("FID" if args.network == "inception" else "SmallFD")
    figures: dict[str, Any] = {}
    lines = []
    if len(names) == 2:
        figures[figure] = frechet_distance(statistics["real"], statistics["fake"])
        lines.append(f"{figure}:  {figures[figure]}")
        if args.kid and network:
            mean, deviation = kernel_distance(
                features["real"], features["fake"], gamma=network.kernel_gamma
            )
            figures[network.kernel_figure] = mean
            figures[f"{network.kernel_figure}_std"] = deviation
            lines.append(f"{network.kernel_figure}:  {mean} (standard deviation {deviation})")
    counts = {name: statistics[name].images for name in names}
    lines.append(
        "Images:  "
        + ", ".join(
            f"{'an unknown number' if count is None else count} {name}"
            for name, count in counts.items()
        )
    )
    if args.save_stats:
        save_statistics(args.save_stats, statistics["real"])
        lines.append(f"Statistics of real:  {args.save_stats}")
    if args.json:
        figures |= {"images": counts, "dims": statistics["real"].dims, "network": args.network}
        if isinstance(network, InceptionNetwork):
            figures |= {"weights_sha256": network.sha256, "published_weights": network.published}
        _write_json(Path(args.json).expanduser(), figures)
    print("\n".join(lines), flush=True)


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A bar for each set on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    disabled = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disabled) as bars:

        def start(name: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(f"{name} images", total=total)
            return lambda count: bars.advance(task, count)

        yield start


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings as one line each, without the place in the code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"Warning: {message}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=__package__ or "")
        warnings.showwarning = show
        yield
