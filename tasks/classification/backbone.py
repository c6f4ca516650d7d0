"""Any image classifier as the backbone of a detector."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen
from torch.nn.modules.batchnorm import _BatchNorm

from ...core.errors import ConfigError, did_you_mean
from ...core.modes import evaluating
from ...core.taps import Taps
from ...core.teacher import load_weights
from ..openmm.teacher import SAFE_GLOBALS
from .networks import build_network, is_pretrained

__all__ = ["ClassifierBackbone", "features_at"]

_PROBES = (64, 128)  # sides of the images that tell channels and strides
_NETWORK = "network."


@MODELS.register_module()
class ClassifierBackbone(BaseModule):
    """A classification network that gives the maps of some of its modules, in order.

    What comes after the last of them (head, classifier) is dropped: it has no parameters here, so
    data-parallel training waits for none. Names in ``state_dict`` are the network's own. What a
    named module holds is run as it is; of the modules around it, the ``forward`` is followed once
    (by ``torch.fx``), so a branch on the image's size there is refused.

    A neck's ``in_channels`` must be :attr:`out_channels`, which are measured when this is built and
    written to the log when training begins.

    Args:
        network: Config of the network, for :func:`.networks.build_network`, or the network.
        out: Names of the modules whose maps are given out, e.g. ``["stages.2", "stages.4",
            "stages.6"]``.
        checkpoint: Local file with the network's weights: one of this package's training
            checkpoints, a bare state dict, or a file that the network's ``checkpoint_names`` knows.
            It is read by :meth:`init_weights` alone, which begins training; a trained detector
            opens without it. Weights of the dropped part may differ (another number of classes),
            all others fit exactly. Weights that ``network`` itself asks for (``weights="DEFAULT"``,
            ``pretrained=True``) are fetched at that time too.
        frozen: Up to which of ``out`` nothing is trained: 0 freezes what is run up to the first, 1
            up to the second; -1 trains everything. Batch norms in there keep their statistics. A
            name freezes up to that module (``"stem"``).
        norm_eval: Whether batch norms keep their statistics in training. For batches of a few
            images and pretrained weights; never without.
        in_channels: C of the images.

    Shapes:
        (B, ``in_channels``, H, W) in; a tuple of (B, ``out_channels[i]``, about
        H / ``strides[i]``, about W / ``strides[i]``) out.

    Raises:
        ConfigError: If the network has no such module, its forward cannot be followed, or a module
            gives no map.
        CheckpointError: From :meth:`init_weights`, if the file is missing, damaged, or belongs to
            another network.

    Reference:
        Cai, Gan, Lin, Han: Network Augmentation for Tiny Deep Learning, ICLR 2022 (arXiv
        2110.08890), which transfers its classifiers to detection.

    Example:
        >>> backbone = ClassifierBackbone(
        ...     dict(type="torchvision", name="resnet18"), out=["layer2", "layer3"]
        ... )
        >>> backbone.out_channels, backbone.strides
        ((128, 256), (8, 16))
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 128, 8, 12), (1, 256, 4, 6)]
        >>> any(name.startswith(("layer4", "fc")) for name in backbone.state_dict())
        False
    """

    def __init__(
        self,
        network: Mapping[str, Any] | nn.Module,
        out: Sequence[str],
        checkpoint: str | None = None,
        frozen: int | str = -1,
        norm_eval: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.out = tuple(out)
        self.checkpoint = checkpoint
        self.norm_eval = norm_eval
        self._pretrained = network if is_pretrained(network) else None
        whole = build_network(_without_weights(network))
        self._rename = getattr(whole, "checkpoint_names", None)
        self.network = features_at(whole, out)
        self._dropped = set(whole.state_dict()) - set(self.network.state_dict())
        self._frozen = _run_up_to(self.network, out, frozen)
        for name in self._frozen:
            found = _named(self.network, name)
            if isinstance(found, nn.Module | nn.Parameter):
                found.requires_grad_(False)
        self.out_channels, self.strides = _probe(self.network, out, in_channels)
        self.register_state_dict_post_hook(_export_network)
        self.register_load_state_dict_pre_hook(_import_network)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.network(images)

    def init_weights(self) -> None:
        """Load the weights to begin with; called once, when training begins."""
        super().init_weights()
        if self.checkpoint is not None:
            load_weights(
                self.network, self.checkpoint, safe_globals=SAFE_GLOBALS, names=self._own_names
            )
        elif self._pretrained is not None:
            state = build_network(self._pretrained).state_dict()
            self.network.load_state_dict({n: state[n] for n in self.network.state_dict()})
        begun = self.checkpoint or (
            "its library's weights" if self._pretrained else "random weights"
        )
        print_log(
            f"Backbone with {begun}: {', '.join(self.out)} give {self.out_channels} channels at "
            f"strides {self.strides}.",
            logger="current",
        )

    def train(self, mode: bool = True) -> ClassifierBackbone:
        """Set the mode; what is frozen and, with ``norm_eval``, every batch norm stays in eval."""
        super().train(mode)
        if mode:
            for name in self._frozen:
                if isinstance(found := _named(self.network, name), nn.Module):
                    found.eval()
            for module in self.modules() if self.norm_eval else ():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _own_names(self, state: Mapping[str, Any]) -> dict[str, Any]:
        if self._rename is not None:
            state = self._rename(state)
        return {name: value for name, value in state.items() if name not in self._dropped}


def features_at(network: nn.Module, out: Sequence[str]) -> fx.GraphModule:
    """Return a network that gives what some modules of another return, and holds no more of it.

    The modules are those of ``network``, not copies.

    Args:
        network: Any module with one tensor as input.
        out: Module names, none within another.

    Raises:
        ConfigError: If there is no such module, it is not called exactly once, or the calls around
            it depend on values or on the training mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> features = features_at(net, ["0", "1"])
        >>> [tuple(x.shape) for x in features(torch.ones(4, 2))]
        [(4, 3), (4, 3)]
        >>> list(features.state_dict())
        ['0.weight', '0.bias']
    """
    _check_names(network, out)
    with evaluating(network):
        found = _cut(network, out)
    with _training(network):
        other = _cut(network, out)
    if found.code != other.code:
        raise ConfigError(
            f"{type(network).__name__} takes another way to {', '.join(out)} in training than in "
            "evaluation, in the code around these modules. Name modules before that, or put what "
            "differs into a module of its own."
        )
    return found


def _check_names(network: nn.Module, out: Sequence[str]) -> None:
    if isinstance(out, str) or not out or not all(isinstance(name, str) and name for name in out):
        raise ConfigError(f"out must be a list of module names, got {out!r}.")
    if len(set(out)) != len(out):
        raise ConfigError(f"out names a module twice: {list(out)}.")
    known = [name for name, _ in network.named_modules(remove_duplicate=False) if name]
    for name in out:
        if name not in known:
            top = ", ".join(child for child, _ in network.named_children())
            raise ConfigError(
                f"{type(network).__name__} has no module {name!r}.{did_you_mean(name, known)} Its "
                f"top-level modules are: {top or 'none'}."
            )
        for outer in out:
            if name.startswith(f"{outer}."):
                raise ConfigError(f"out names {name!r}, which lies within {outer!r}; give one.")


class _Outline(fx.Tracer):
    """Follows the forward of what lies around the named modules, and keeps all else whole."""

    def __init__(self, out: Sequence[str] = ()) -> None:  # no names when unpickled
        super().__init__()
        parts = [name.split(".") for name in out]
        self.around = {".".join(p[:depth]) for p in parts for depth in range(1, len(p))}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.around


def _cut(network: nn.Module, out: Sequence[str]) -> fx.GraphModule:
    tracer = _Outline(out)
    # Options of the forward keep their defaults.
    parameters = list(inspect.signature(network.forward).parameters.values())[1:]
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    name = type(network).__name__
    try:
        graph = tracer.trace(network, concrete_args=options or None)
    except Exception as error:  # whatever a forward does with a stand-in of a tensor
        raise ConfigError(
            f"The forward of {name} around {', '.join(out)} cannot be followed: {error}. Name "
            "modules nearer to the top, whose inside is left as it is, or move what depends on a "
            "tensor's values into a module of its own."
        ) from error
    nodes = [_call(graph, module, name) for module in out]
    for node in list(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
    graph.output(tuple(nodes))
    outline = fx.GraphModule(network, graph, name)
    graph.eliminate_dead_code()
    for node in [n for n in graph.nodes if n.op == "placeholder"][1:]:
        _forget(graph, node)
    graph.set_codegen(CodeGen())
    for node in graph.nodes:
        node.type = None  # an annotation in quotes, which a pickled graph could not name
    return fx.GraphModule(outline, graph, name)  # of the modules that are left alone


def _call(graph: fx.Graph, module: str, network: str) -> fx.Node:
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == module]
    if len(calls) != 1:
        raise ConfigError(
            f"{network} calls {module!r} {len(calls)} times in a forward, so it names no map. Name "
            "a module that is called once."
        )
    return calls[0]


def _forget(graph: fx.Graph, option: fx.Node) -> None:
    """Take out an option's placeholder, and the checks that it has its default."""
    for user in list(option.users):
        _forget(graph, user)
    graph.erase_node(option)


@contextmanager
def _training(network: nn.Module):  # noqa: ANN202
    modes = {module: module.training for module in network.modules()}
    for module in modes:
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _run_up_to(network: fx.GraphModule, out: Sequence[str], last: int | str) -> list[str]:
    """Names of the modules and parameters that are used up to one of the modules."""
    used = [str(n.target) for n in network.graph.nodes if n.op in ("call_module", "get_attr")]
    if isinstance(last, str):
        if last not in used:
            raise ConfigError(
                f"frozen={last!r} is not among what is run up to {out[-1]!r}."
                f"{did_you_mean(last, used)} There are: {', '.join(dict.fromkeys(used))}."
            )
        return used[: used.index(last) + 1]
    if isinstance(last, bool) or not -1 <= last < len(out):
        raise ConfigError(
            f"frozen={last!r} must be -1 (nothing), an index of out, up to {len(out) - 1}, or the "
            "name of a module."
        )
    return used[: used.index(out[last]) + 1] if last >= 0 else []


def _named(network: nn.Module, name: str) -> object:
    parent, _, attribute = name.rpartition(".")
    return getattr(network.get_submodule(parent), attribute)


def _probe(
    network: fx.GraphModule, out: Sequence[str], in_channels: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the maps, from two zero images."""
    taps = Taps(network, out)
    with torch.no_grad(), evaluating(network), taps.capture() as captured:
        small, large = (_maps(network, out, in_channels, side) for side in _PROBES)
    changed = [name for name, _ in captured.mutated()]
    if changed:
        raise ConfigError(
            f"What {', '.join(changed)} returns is changed in place by the next layer. Name that "
            "layer, which is what would be read anyway."
        )
    # Of differences, so that a layer without padding does not look like a larger stride.
    grown = [more.shape[-1] - less.shape[-1] for less, more in zip(small, large, strict=True)]
    if 0 in grown:
        raise ConfigError(
            f"Module {out[grown.index(0)]!r} gives a map of one size, whatever the image's. Name "
            "one before the pooling."
        )
    step = _PROBES[1] - _PROBES[0]
    return tuple(x.shape[1] for x in small), tuple(round(step / cells) for cells in grown)


def _maps(
    network: nn.Module, out: Sequence[str], in_channels: int, side: int
) -> tuple[Tensor, ...]:
    try:
        maps = network(torch.zeros(1, in_channels, side, side))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"The backbone cannot take an image of {in_channels} x {side} x {side}: {error}. Set "
            "in_channels, or another network."
        ) from error
    for name, found in zip(out, maps, strict=True):
        if not isinstance(found, Tensor) or found.dim() != 4:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"Module {name!r} gives {got}, not a map (B, C, H, W). Name one before the pooling."
            )
    return maps


def _without_weights(network: Mapping[str, Any] | nn.Module) -> Mapping[str, Any] | nn.Module:
    """The config of the same network with random weights."""
    if isinstance(network, nn.Module) or not is_pretrained(network):
        return network
    named = ("weights", "pretrained", "checkpoint_path", "progress", "pretrained_cfg_overlay")
    return {key: value for key, value in network.items() if key not in named}


def _export_network(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Give the entries the network's own names."""
    ours = f"{prefix}{_NETWORK}"
    for entries in (state_dict, getattr(state_dict, "_metadata", {})):
        own = {key: entries.pop(key) for key in [k for k in entries if k.startswith(ours)]}
        entries.update({prefix + key.removeprefix(ours): value for key, value in own.items()})


def _import_network(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Undo :func:`_export_network`."""
    own = {key: state_dict.pop(key) for key in [k for k in state_dict if k.startswith(prefix)]}
    for key, value in own.items():
        state_dict[f"{prefix}{_NETWORK}{key.removeprefix(prefix)}"] = value
