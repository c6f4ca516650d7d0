"""Deploy a trained classifier: a bare state dict, an ONNX file, a ``torch.export`` program."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ...core.errors import CheckpointError, ConfigError, DistillError, ShapeError
from ...core.modes import evaluating
from ...core.online import BeYourOwnTeacher
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
from ..openmm.teacher import SAFE_GLOBALS, read_mm_checkpoint
from .byot import SelfTaughtClassifier
from .classifier import ImageClassifier
from .hooks import SIDE_ENTRY
from .preflight import sample_shape

__all__ = [
    "ExitsForExport",
    "build_classifier",
    "export_onnx",
    "export_program",
    "main",
    "peer_network",
    "with_exits",
]

# How far logits may be from torch's, of the largest one; float32 sums in another order.
_TOLERANCE = 1e-4

# What may vary: the batch, or of a network that fixes it nothing.
_WAYS: Sequence[Mapping[int, str]] = ({0: "batch"}, {})


def build_classifier(
    cfg: Config, checkpoint: str | None = None, partners: bool = False
) -> ImageClassifier:
    """Build the classifier of a config, in eval mode on the CPU.

    Args:
        cfg: A config of task ``"classification"``; a ``distill`` entry is left out.
        checkpoint: A checkpoint of its training, or a bare state dict of its network; loaded
            strictly. Random weights without.
        partners: Whether peers, branches and exits are needed too, which lie beside the network in
            a checkpoint of training; of averaged weights (EMA) the averaged ones.

    Raises:
        ConfigError: If the config has no classifier, or it cannot be built.
        CheckpointError: If the checkpoint is unreadable or does not fit, or holds no partners.

    Example:
        >>> network = dict(type="torch.nn:Linear", in_features=2, out_features=3)
        >>> model = dict(type="ImageClassifier", network=network)
        >>> build_classifier(Config(dict(task="classification", model=model))).training
        False
    """
    cfg = plain_config(cfg)
    name = f"config {cfg.filename!r}" if cfg.filename else "the config"
    if "model" not in cfg or cfg.get("task") != "classification":
        raise ConfigError(f"{name} is of no classifier: expected task='classification' and model.")
    settings = cfg.model
    if "data_preprocessor" in cfg:  # the runner hands it to the model
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        try:
            model = MODELS.build(settings)
        except DistillError:
            raise
        except Exception as error:
            raise ConfigError(f"The model of {name} cannot be built: {error}") from error
    if not isinstance(model, ImageClassifier):
        raise ConfigError(
            f"The model of {name} is a {type(model).__name__}; expected an ImageClassifier."
        )
    if checkpoint is not None:
        load_weights(model, checkpoint, safe_globals=SAFE_GLOBALS)
        if partners and model.partner_state():
            read = read_mm_checkpoint(checkpoint)
            side = read.get(SIDE_ENTRY) if isinstance(read.get("state_dict"), dict) else None
            found = side and side.get("averaged", side.get("partners"))
            if not found:
                raise CheckpointError(
                    f"Checkpoint {checkpoint!r} holds the network alone, without what "
                    f"{type(model).__name__} trains beside it. Take a checkpoint of training "
                    "(epoch_*.pth, best_*.pth)."
                )
            model.load_partner_state(found)
    return cast(ImageClassifier, model.eval())


def peer_network(model: ImageClassifier, number: int = 0) -> nn.Module:
    """Return one of the networks that a classifier trains together.

    Args:
        model: The classifier.
        number: 0 for the one that checkpoints hold; from 1 on a peer of mutual learning, or a
            branch of ONE with the shared layers.

    Raises:
        ConfigError: If it has no such network.
    """
    if number == 0:
        return model.network
    peers = getattr(model, "peers", None)
    if isinstance(peers, nn.ModuleList):
        if 1 <= number <= len(peers):
            return peers[number - 1]
        raise ConfigError(f"There is no peer {number}; there are 0 to {len(peers)}.")
    if hasattr(model, "peer"):
        return cast(Any, model).peer(number)
    raise ConfigError(
        f"A {type(model).__name__} has no peers or branches beside its network. Leave --peer out."
    )


def with_exits(model: ImageClassifier) -> BeYourOwnTeacher:
    """Return a network together with its exits, as a module that needs torch alone.

    Its state dict has the network's names behind ``network.`` and the exits' behind ``exits.``; a
    :class:`~taskdistill.core.online.BeYourOwnTeacher` of the same network, exits and features
    loads it.

    Raises:
        ConfigError: If it has no exits.
    """
    if not isinstance(model, SelfTaughtClassifier):
        raise ConfigError(
            f"A {type(model).__name__} has no exits; a SelfTaughtClassifier has. Leave --exits out."
        )
    exits = model.exits
    whole = BeYourOwnTeacher(model.network, exits.exits, exits.deepest, example=model.size)
    whole.exits = exits
    return whole.eval()


class ExitsForExport(nn.Module):
    """All exits of a network at once, without the hooks that no exporter follows.

    Args:
        model: A network with its exits.

    Shapes:
        (B, C, H, W) in; the logits (B, K) of each exit out, the network's end last.

    Raises:
        ConfigError: If the network's forward cannot be traced.
    """

    def __init__(self, model: BeYourOwnTeacher) -> None:
        super().__init__()
        exits = model.exits.exits
        try:
            _, nodes = get_graph_node_names(model.network)
            wanted = {name: f"exit{index}" for index, name in enumerate(exits)}
            wanted = {_last_within(nodes, name): key for name, key in wanted.items()}
            self.network = create_feature_extractor(
                model.network.eval(), return_nodes={**wanted, nodes[-1]: "logits"}
            )
        except Exception as error:  # tracing fails in many ways
            raise ConfigError(
                f"{type(model.network).__name__} cannot be traced, so its exits cannot be "
                f"exported as one program: {error}. Write them by --out."
            ) from error
        self.heads = model.exits.heads

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of each exit."""
        found = self.network(images)
        answers = [head(found[f"exit{index}"])[1] for index, head in enumerate(self.heads)]
        return (*answers, found["logits"])


def _last_within(nodes: Sequence[str], name: str) -> str:
    """The node that gives a module's output."""
    within = [node for node in nodes if node == name or node.startswith(f"{name}.")]
    if not within:
        raise ValueError(f"no node belongs to {name!r}")
    return within[-1]


def export_onnx(network: nn.Module, path: str | Path, shape: Sequence[int]) -> tuple[str, ...]:
    """Write a network as one ONNX file, checked with onnxruntime where that is installed.

    The input is ``images``, float32 (batch, channels, height, width), normalised as in training;
    the output ``logits`` (batch, classes). With several outputs, those before it are ``exit0``,
    ``exit1``, ...

    Args:
        network: Gives logits, or a tuple of them with the network's own at the end; written as in
            eval mode.
        path: The file; it is there when it is complete and, where it can be checked, equal.
        shape: Channels, height and width.

    Returns:
        The dimensions that may vary: ``("batch",)``, or none for a network that fixes it.

    Raises:
        ConfigError: If onnx or onnxscript is missing, or torch cannot write the network.
        DistillError: If onnxruntime computes something else than torch.
    """
    need_onnx("classification")
    images = _example(shape)
    with evaluating(network):
        names = [f"exit{index}" for index in range(len(_run(network, images)) - 1)] + ["logits"]

        def write(axes: Mapping[int, str], target: Path) -> None:
            write_onnx(network, images, target, (["images"], names), axes)
            if checked_by_onnxruntime():
                _compare(network, onnx_call(target, "images"), images, axes, "The ONNX file")

        return tuple(export_first(write, _WAYS, Path(path)).values())


def export_program(network: nn.Module, path: str | Path, shape: Sequence[int]) -> tuple[str, ...]:
    """Write a network as a program that plain torch loads (``torch.export.load``).

    Args:
        network: See :func:`export_onnx`.
        path: The file, usually ``.pt2``; it is there when it is complete and was checked.
        shape: Channels, height and width.

    Returns:
        The dimensions that may vary; see :func:`export_onnx`.

    Raises:
        ConfigError: If torch cannot trace the network.
        DistillError: If the program computes something else.
    """
    images = _example(shape)
    with evaluating(network):
        _run(network, images)

        def write(axes: Mapping[int, str], target: Path) -> None:
            loaded = write_program(network, images, target, axes)
            _compare(network, loaded, images, axes, "The program")

        return tuple(export_first(write, _WAYS, Path(path)).values())


def _example(shape: Sequence[int]) -> Tensor:
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"Expected channels, height and width, got {tuple(shape)}.")
    # Not one image: a dimension of 1 is taken for a constant.
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _run(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    try:
        with torch.no_grad():
            return _as_tuple(network(images))
    except RuntimeError as error:
        raise ShapeError(
            f"{type(network).__name__} does not run on images of "
            f"{'x'.join(map(str, images.shape[1:]))} (channels, height, width): {error} Give "
            "another size by --shape."
        ) from error


def _as_tuple(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _compare(
    network: nn.Module,
    exported: Callable[[Tensor], Any],
    images: Tensor,
    axes: Mapping[int, str],
    what: str,
) -> None:
    """Hold what was written against the network, with other batches too where these may vary."""
    for batch in [images, images[:1], torch.cat([images, images[:1]])] if axes else [images]:
        expected = _run(network, batch)
        with torch.no_grad():
            found = _as_tuple(exported(batch))
        pairs = list(zip(found, expected, strict=True))
        gap = float("inf")
        if all(one.shape == other.shape for one, other in pairs):
            gap = max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in pairs)
        if not gap <= _TOLERANCE:
            raise DistillError(
                f"{what} differs from torch by {gap:.3g} of the largest logit on a batch of "
                f"{tuple(batch.shape)} (at most {_TOLERANCE} is expected), so it was not kept."
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Export a classifier from a training checkpoint."""
    parser = argparse.ArgumentParser(
        description="Export a classifier: a bare state dict, ONNX, a torch.export program."
    )
    parser.add_argument("config", help="config file the classifier was trained with")
    parser.add_argument("checkpoint", help="training checkpoint, or a bare state dict")
    add_targets(parser, " of the plain network")
    parser.add_argument(
        "--shape",
        nargs="+",
        type=int,
        metavar="N",
        help="image, H W or C H W (default: that of the config's data)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--peer", type=int, default=0, metavar="K", help="another peer or branch (default: 0)"
    )
    kind.add_argument("--exits", action="store_true", help="with the early exits")
    args = parser.parse_args(argv)
    read_targets(args)
    if args.shape and len(args.shape) not in (2, 3):
        raise ConfigError(f"--shape {args.shape}: expected H W, or C H W.")
    cfg = load_config(args.config)
    beside = args.exits or args.peer != 0
    model = build_classifier(cfg, args.checkpoint, partners=beside)
    network = with_exits(model) if args.exits else peer_network(model, args.peer)
    network.eval()
    if args.out:
        save_state(bare_state(network), Path(args.out))
        print(f"State dict: {args.out}")
    if not (args.onnx or args.program):
        return
    shape = _shape(cfg, model, args.shape)
    if isinstance(network, BeYourOwnTeacher):
        network = ExitsForExport(network)
    if args.onnx:
        free = export_onnx(network, args.onnx, shape)
        checked = "equal to torch" if checked_by_onnxruntime() else "unchecked: no onnxruntime"
        print(f"ONNX: {args.onnx} ({_may_vary(free)}; {checked})")
    if args.program:
        free = export_program(network, args.program, shape)
        print(f"Program: {args.program} ({_may_vary(free)}; equal to torch)")
    print(_normalisation(model, shape))


def _may_vary(axes: tuple[str, ...]) -> str:
    return "the batch may vary" if axes else "batches of 2 alone"


def _shape(cfg: Config, model: ImageClassifier, given: Sequence[int] | None) -> tuple[int, ...]:
    mean = getattr(model.data_preprocessor, "mean", None)
    channels = 3 if mean is None else len(mean)
    if given:
        return tuple(given) if len(given) == 3 else (channels, *given)
    if size := getattr(model, "size", None):
        return tuple(size)
    return tuple(sample_shape(cfg))


def _normalisation(model: ImageClassifier, shape: Sequence[int]) -> str:
    text = f"Input: images of {'x'.join(map(str, shape))} (channels, height, width)"
    mean, std = (getattr(model.data_preprocessor, name, None) for name in ("mean", "std"))
    if mean is None or std is None:
        return f"{text}, as the config's data_preprocessor gives them."
    numbers = ([round(float(v), 4) for v in each.flatten()] for each in (mean, std))
    return "{}, 0 to 255, minus {}, divided by {}.".format(text, *numbers)
