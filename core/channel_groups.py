"""Which channels of a convolutional network belong together.

Two layers that are added to each other must have as many channels; so must a depthwise convolution
and what it reads. Found once, from a torch.fx graph, such groups can be widened or narrowed as one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ConfigError, did_you_mean
from .modes import evaluating

__all__ = ["ChannelGraph", "ChannelGroup", "channel_groups"]

Kind = Literal["width", "expansion", "gate", "fixed"]

# Each channel by itself, or all alike: their output has the channels of their input.
_PASS_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)
_PASS_NAMES = frozenset(
    "relu relu_ relu6 leaky_relu elu selu celu gelu silu mish softplus sigmoid sigmoid_ tanh tanh_ "
    "hardtanh hardswish hardsigmoid dropout dropout2d max_pool2d avg_pool2d adaptive_avg_pool2d "
    "adaptive_max_pool2d interpolate contiguous clone detach float half to type clamp clamp_ neg "
    "abs exp sqrt pow square stochastic_depth boolean_dispatch".split()
)
_JOINS = frozenset({"add", "iadd", "add_", "sub", "isub", "sub_", "maximum", "minimum"})
_PRODUCTS = frozenset({"mul", "imul", "mul_", "multiply", "truediv", "div"})
_FACTS = frozenset({"dim", "ndimension", "numel", "is_floating_point"})
_SPATIAL = {2, 3, -1, -2}
# Of timm: a linear layer that minds scripting, and a norm followed by its own activation.
_ALIKE = {("timm", "Linear"), ("timm", "BatchNormAct2d")}
_HELP = {
    "cat": "Concatenated maps have no common first channels; such a network needs other layers.",
    "concat": "Concatenated maps have no common first channels.",
    "chunk": "Split maps have no common first channels.",
    "split": "Split maps have no common first channels.",
    "pad": "Padding may only touch height and width; a shortcut that pads channels with zeros "
    "(option A) has to be one with a 1x1 convolution (option B).",
}


@dataclass
class ChannelGroup:
    """Channels that must stay as many as each other.

    Args:
        name: The first layer that makes them.
        channels: How many there are.
        producers: Convolutions and linear layers whose output they are.
        depthwise: Depthwise convolutions within.
        consumers: Convolutions and linear layers that read them.
        kind: ``"fixed"`` (image, classes), ``"gate"`` (the narrow layer of a squeeze-and-excitation
            branch), ``"expansion"`` (inside a block) or ``"width"`` (all others).
        joined: Whether maps are added in it.
        follows: Of a gate, the group that it scales; of an expansion, the group that its block
            reads, if that can be widened.
    """

    name: str
    channels: int
    producers: list[str] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    kind: Kind = "width"
    joined: bool = False
    follows: str | None = None


@dataclass
class ChannelGraph:
    """The channel groups of a network.

    Args:
        groups: By name, in the order in which the network makes them.
        inputs: By layer, the name of the group that it reads.
        outputs: By layer, the name of the group that it gives.
    """

    groups: dict[str, ChannelGroup]
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass
class _Data:
    """A map, or a flattened one, with the channels of a group."""

    group: int
    flat: bool = False


@dataclass
class _Sizes:
    """The shape of a map; ``channels`` where it is one number of it, the second."""

    group: int
    channels: bool = False


class _Sets:
    """Groups of channels while they are being found: a union-find."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.channels: list[int | None] = []
        self.fixed: list[bool] = []
        self.joined: list[bool] = []

    def new(self, channels: int | None, fixed: bool = False) -> int:
        self.parent.append(len(self.parent))
        self.channels.append(channels)
        self.fixed.append(fixed)
        self.joined.append(False)
        return len(self.parent) - 1

    def find(self, index: int) -> int:
        while self.parent[index] != index:
            index = self.parent[index]
        return index

    def unite(self, a: int, b: int) -> int:
        a, b = sorted((self.find(a), self.find(b)))
        if a != b:
            self.parent[b] = a
            self.fixed[a] |= self.fixed[b]
            self.joined[a] |= self.joined[b]
        return a

    def size(self, index: int) -> int | None:
        return self.channels[self.find(index)]


class _Tracer(fx.Tracer):
    """Looks into every module but the layers that hold channels."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layers = (nn.Conv2d, nn.Linear, _BatchNorm)
        return isinstance(m, layers) or super().is_leaf_module(m, module_qualified_name)


def channel_groups(
    network: nn.Module, expansion_layers: Sequence[str] | None = None
) -> ChannelGraph:
    """Find the channel groups of a convolutional classifier.

    Groups are followed through residual additions, gates (squeeze-and-excitation), depthwise
    convolutions, batch norms, pooling, activations and flattening.

    A group is an *expansion* if it lies inside a block: made by one 1x1 convolution that widens,
    filtered by a depthwise one, and narrowed by another 1x1 (the inverted residual block). In a
    network that has none but adds maps (a ResNet), an expansion is made by one layer, read by one,
    and added to nothing. All other groups that may change are *widths*.

    Args:
        network: The network. It is traced in eval mode and not changed.
        expansion_layers: Globs over layer names. If given, exactly the groups that a matching layer
            makes are expansions.

    Raises:
        ConfigError: If the network cannot be traced, or does something to its channels of which
            this does not know that it keeps them apart; names the place.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3),
        ...                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        >>> {g.name: (g.channels, g.kind) for g in channel_groups(net).groups.values()}
        {'input': (3, 'fixed'), '0': (4, 'width'), '2': (8, 'width'), '5': (10, 'fixed')}
    """
    with evaluating(network):
        try:
            graph = _Tracer().trace(network)
        except ConfigError:
            raise
        except Exception as error:  # whatever the network's own code does with a proxy
            raise ConfigError(
                f"{type(network).__name__} cannot be traced by torch.fx, by which its channels are "
                f"found: {type(error).__name__}: {error}. Its forward must not depend on the "
                "values or sizes of its inputs."
            ) from error
    walk = _Walk(network)
    for node in graph.nodes:
        walk.visit(node)
    return walk.finish(expansion_layers)


class _Walk:
    """One pass over the graph, in the order of execution."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.sets = _Sets()
        self.values: dict[fx.Node, _Data | _Sizes | None] = {}
        self.reads: dict[str, int] = {}
        self.gives: dict[str, int] = {}
        self.depthwise: set[str] = set()
        self.seen: set[str] = set()
        self.gates: list[tuple[int, int]] = []

    # -- nodes ---------------------------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            first = not self.values and not node.args
            self.values[node] = _Data(self.sets.new(None, fixed=True)) if first else None
        elif node.op == "output":
            for data in self._data(node):
                self.sets.fixed[self.sets.find(data.group)] = True
        elif node.op == "get_attr":
            self.values[node] = self._attribute(node)
        elif node.op == "call_module":
            self.values[node] = self._module(node)
        elif any(node_value is not None for node_value in map(self._value, node.all_input_nodes)):
            self.values[node] = self._function(node)
        else:
            self.values[node] = None

    def _value(self, node: Any) -> _Data | _Sizes | None:
        return self.values.get(node) if isinstance(node, fx.Node) else None

    def _data(self, node: fx.Node) -> list[_Data]:
        return [v for v in map(self._value, node.all_input_nodes) if isinstance(v, _Data)]

    def _fail(self, node: fx.Node, why: str) -> ConfigError:
        stack = (node.meta or {}).get("nn_module_stack") or {}
        target = str(node.target) if node.op == "call_module" else ""
        outer = [name for name, _ in stack.values() if name and name != target]
        where = outer or [f"{type(self.network).__name__}.forward"]
        return ConfigError(
            f"Channels cannot be followed through {_name(node)!r} in {where[-1]}: {why}"
        )

    def _attribute(self, node: fx.Node) -> None:
        value: Any = self.network
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor) and value.numel() > 1:
            raise self._fail(
                node,
                f"{node.target!r} of shape {tuple(value.shape)} is used outside of a convolution, "
                "linear layer or batch norm, and cannot be widened with them.",
            )
        return None

    def _module(self, node: fx.Node) -> _Data | None:
        name = str(node.target)
        module = self.modules[name]
        self.seen.add(name)
        found = self._data(node)
        if not found:
            raise self._fail(node, "it is called on no map of the image.")
        data = found[0]
        if isinstance(module, nn.Conv2d):
            return self._convolution(node, name, module, data)
        if isinstance(module, nn.Linear):
            return self._linear(node, name, module, data)
        if isinstance(module, _BatchNorm):
            _check_plain(module, name, (nn.BatchNorm2d, nn.BatchNorm1d))
            self._agree(node, data.group, module.num_features)
            self.reads[name] = self.gives[name] = data.group
            return data
        if isinstance(module, nn.Flatten):
            return self._flatten(node, data, module.start_dim, module.end_dim)
        if isinstance(module, _PASS_MODULES):
            return data
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return data
        raise self._fail(
            node,
            f"{name!r} is a {type(module).__name__}, which is not known to keep channels apart. "
            "Known are Conv2d, Linear, BatchNorm1d/2d, pooling, dropout and activations.",
        )

    def _convolution(self, node: fx.Node, name: str, module: nn.Conv2d, data: _Data) -> _Data:
        _check_plain(module, name, (nn.Conv2d,))
        self._agree(node, data.group, module.in_channels)
        self.reads[name] = data.group if name not in self.reads else self._again(name, data)
        if module.groups == 1:
            if name not in self.gives:
                # One channel is broadcast over all others; two would not be.
                self.gives[name] = self.sets.new(
                    module.out_channels, fixed=module.out_channels == 1
                )
            return _Data(self.gives[name])
        if module.groups == module.in_channels == module.out_channels:
            self.depthwise.add(name)
            self.gives[name] = self.reads[name]
            return _Data(data.group)
        raise self._fail(
            node,
            f"{name!r} has {module.groups} groups of {module.in_channels} to "
            f"{module.out_channels} channels. Only plain convolutions and depthwise ones with as "
            "many channels out as in can be widened.",
        )

    def _linear(self, node: fx.Node, name: str, module: nn.Linear, data: _Data) -> _Data:
        _check_plain(module, name, (nn.Linear,))
        if not data.flat:
            raise self._fail(node, f"{name!r} reads a map that was not flattened before.")
        channels = self.sets.size(data.group)
        if channels is None or module.in_features % channels:
            raise self._fail(
                node,
                f"{name!r} has {module.in_features} inputs, which is no multiple of the "
                f"{channels} channels that it reads.",
            )
        self.reads[name] = data.group if name not in self.reads else self._again(name, data)
        if name not in self.gives:
            self.gives[name] = self.sets.new(module.out_features)
        return _Data(self.gives[name], flat=True)

    def _again(self, name: str, data: _Data) -> int:
        """A layer that is called twice reads one group."""
        return self.sets.unite(self.reads[name], data.group)

    def _agree(self, node: fx.Node, group: int, channels: int) -> None:
        root = self.sets.find(group)
        if self.sets.channels[root] is None:  # of the image
            self.sets.channels[root] = channels
        if self.sets.channels[root] != channels:
            raise self._fail(
                node, f"it reads {channels} channels, but gets {self.sets.channels[root]}."
            )

    # -- functions and methods -----------------------------------------------------------------

    def _function(self, node: fx.Node) -> _Data | _Sizes | None:
        name = _name(node)
        first = self._value(node.args[0]) if node.args else None
        if isinstance(first, _Sizes):
            if name == "getitem":
                return _Sizes(first.group, channels=_is_one(node.args[1]))
            return None
        found = self._data(node)
        if not found:
            return None
        if name == "size":
            asked = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            return _Sizes(found[0].group, channels=_is_one(asked))
        if name == "getattr":
            if node.args[1] == "shape":
                return _Sizes(found[0].group)
            if node.args[1] in ("ndim", "dtype", "device", "is_cuda", "requires_grad"):
                return None
            raise self._fail(node, f"the attribute {node.args[1]!r} of a map is used.")
        if name in _FACTS:
            return None
        if name in _JOINS | _PRODUCTS:
            return self._combine(node, found, joined=name in _JOINS)
        data = found[0]
        special: dict[str, Callable[[], _Data]] = {
            "flatten": lambda: self._flatten(
                node, data, _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
            ),
            "view": lambda: self._reshape(node, data),
            "reshape": lambda: self._reshape(node, data),
            "mean": lambda: self._mean(node, data),
            "squeeze": lambda: self._squeeze(node, data),
            "unsqueeze": lambda: self._unsqueeze(node, data),
            "getitem": lambda: self._index(node, data),
            "pad": lambda: self._pad(node, data),
            "expand_as": lambda: self._combine(node, found, joined=False),
        }
        if name in special:
            return special[name]()
        if name in _PASS_NAMES and len(found) == 1:
            return data
        raise self._fail(
            node, _HELP.get(name, "it is not known to keep the channels of a map apart.")
        )

    def _combine(self, node: fx.Node, found: list[_Data], joined: bool) -> _Data:
        if len(found) == 1:  # and a number
            return found[0]
        a, b = found[0], found[1]
        sizes = self.sets.size(a.group), self.sets.size(b.group)
        if sizes[0] != sizes[1]:
            if 1 in sizes:
                return b if sizes[0] == 1 else a
            raise self._fail(node, f"its maps have {sizes[0]} and {sizes[1]} channels.")
        if a.flat != b.flat:
            raise self._fail(node, "one of its maps is flattened and the other is not.")
        if not joined:
            self._note_gates(node)
        root = self.sets.unite(a.group, b.group)
        self.sets.joined[root] |= joined
        return _Data(root, a.flat)

    def _note_gates(self, node: fx.Node) -> None:
        """Remember the narrow layer of a branch: pooled, layer, narrow, layer, times."""
        for operand in node.all_input_nodes:
            widening = self._layer_behind(operand)
            narrowing = self._layer_behind(widening.args[0]) if widening else None
            if widening and narrowing and self._is_pooled(narrowing.args[0]):
                narrow = self.reads[str(widening.target)]
                self.gates.append((narrow, self.gives[str(widening.target)]))

    def _layer_behind(self, node: Any) -> fx.Node | None:
        """The convolution or linear layer that gave a value, with nothing but activations after."""
        while isinstance(node, fx.Node) and isinstance(self._value(node), _Data):
            target = str(node.target)
            if node.op == "call_module" and target in self.gives:
                module = self.modules[target]
                if not isinstance(module, _BatchNorm):
                    return None if target in self.depthwise else node
            if node.op == "placeholder" or not node.args:
                return None
            node = node.args[0]
        return None

    def _is_pooled(self, node: Any) -> bool:
        while isinstance(node, fx.Node) and node.op != "placeholder" and node.args:
            if node.op == "call_module":
                module = self.modules[str(node.target)]
                if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                    return True
                if str(node.target) in self.gives:
                    return False
            elif _name(node) in ("mean", "adaptive_avg_pool2d", "adaptive_max_pool2d"):
                return True
            node = node.args[0]
        return False

    def _flatten(self, node: fx.Node, data: _Data, start: Any, end: Any) -> _Data:
        if start != 1 or end not in (-1, 3):
            raise self._fail(node, "only flattening from dimension 1 on keeps channels in order.")
        return _Data(data.group, flat=True)

    def _reshape(self, node: fx.Node, data: _Data) -> _Data:
        sizes: Any = node.args[1:] or (node.kwargs.get("shape"),)
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = sizes[0]
        if len(sizes) == 2 and sizes[1] == -1:
            return _Data(data.group, flat=True)
        if len(sizes) == 4 and tuple(sizes[2:]) == (1, 1):
            count = self._value(sizes[1])
            if isinstance(count, _Sizes) and count.channels:
                return _Data(self.sets.unite(data.group, count.group))
            if sizes[1] == -1:
                return _Data(data.group)
        raise self._fail(
            node,
            "a shape with numbers of its own does not fit other widths. Write torch.flatten(x, 1), "
            "or x.view(x.size(0), -1).",
        )

    def _mean(self, node: fx.Node, data: _Data) -> _Data:
        dims = _argument(node, 1, "dim", None)
        asked = {dims} if isinstance(dims, int) else set(dims or ())
        wrong = _SPATIAL if data.flat and min(asked, default=0) < 0 else set()
        if not asked or not asked <= _SPATIAL - wrong:
            raise self._fail(node, "only the mean over height and width keeps channels apart.")
        return _Data(data.group, flat=not _argument(node, 2, "keepdim", False))

    def _squeeze(self, node: fx.Node, data: _Data) -> _Data:
        dims = _argument(node, 1, "dim", None)
        asked = {dims} if isinstance(dims, int) else set(dims or ())
        if not asked or not asked <= _SPATIAL:
            raise self._fail(node, "name the dimensions to drop, 2 and 3.")
        return _Data(data.group, flat=True)

    def _unsqueeze(self, node: fx.Node, data: _Data) -> _Data:
        if _argument(node, 1, "dim", None) not in (2, 3, -1):
            raise self._fail(node, "a dimension may only be added behind the channels.")
        return _Data(data.group)

    def _index(self, node: fx.Node, data: _Data) -> _Data:
        index = node.args[1]
        whole = slice(None)
        if not isinstance(index, tuple) or len(index) < 2 or index[:2] != (whole, whole):
            raise self._fail(node, "only height and width may be indexed.")
        return _Data(data.group, data.flat and None not in index)

    def _pad(self, node: fx.Node, data: _Data) -> _Data:
        amounts = _argument(node, 1, "pad", ())
        if not isinstance(amounts, (tuple, list)) or len(amounts) > 4:
            raise self._fail(node, _HELP["pad"])
        return data

    # -- the end -------------------------------------------------------------------------------

    def finish(self, expansion_layers: Sequence[str] | None) -> ChannelGraph:
        unseen = [
            name
            for name, module in self.modules.items()
            if isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)) and name not in self.seen
        ]
        if unseen:
            raise ConfigError(
                f"{type(self.network).__name__} never calls {', '.join(unseen[:5])} in eval mode, "
                "so that their channels are not known. Build it without auxiliary heads."
            )
        found: dict[int, ChannelGroup] = {}
        for name, index in self.gives.items():
            root = self.sets.find(index)
            is_norm = isinstance(self.modules[name], _BatchNorm)
            group = found.setdefault(root, ChannelGroup("", self.sets.channels[root] or 0))
            if name in self.depthwise:
                group.depthwise.append(name)
            elif not is_norm:
                group.producers.append(name)
        for name, index in self.reads.items():
            root = self.sets.find(index)
            group = found.setdefault(root, ChannelGroup("", self.sets.channels[root] or 0))
            if name not in self.depthwise and not isinstance(self.modules[name], _BatchNorm):
                group.consumers.append(name)
        for root, group in found.items():
            group.name = group.producers[0] if group.producers else "input"
            group.joined = self.sets.joined[root]
            group.kind = "fixed" if self.sets.fixed[root] else "width"
        for narrow, wide in self.gates:
            gate, scaled = found[self.sets.find(narrow)], found[self.sets.find(wide)]
            if gate.kind == "width":
                gate.kind, gate.follows = "gate", scaled.name
        names = {root: group.name for root, group in found.items()}
        graph = ChannelGraph(
            {g.name: g for _, g in sorted(found.items())},
            {name: names[self.sets.find(i)] for name, i in self.reads.items()},
            {name: names[self.sets.find(i)] for name, i in self.gives.items()},
        )
        _mark_expansions(graph, self.modules, expansion_layers)
        return graph


def _mark_expansions(
    graph: ChannelGraph, modules: dict[str, nn.Module], globs: Sequence[str] | None
) -> None:
    free = [group for group in graph.groups.values() if group.kind == "width"]
    if globs is not None:
        chosen = _matching(free, globs)
    else:
        chosen = [group for group in free if _is_inverted(group, graph, modules)]
        if not chosen and any(group.joined for group in graph.groups.values()):
            chosen = [group for group in free if _is_inner(group)]
    for group in chosen:
        group.kind = "expansion"
    for group in chosen:
        # The ratio is of what the block reads, also behind another layer of the same block.
        above, seen = group, set()
        while above.kind == "expansion" and above.name not in seen:
            seen.add(above.name)
            above = graph.groups[graph.inputs[above.producers[0]]]
        group.follows = above.name if above.kind == "width" else None


def _matching(groups: Iterable[ChannelGroup], globs: Sequence[str]) -> list[ChannelGroup]:
    groups = list(groups)
    layers = [layer for group in groups for layer in group.producers]
    chosen: list[ChannelGroup] = []
    for glob in globs:
        hit = [g for g in groups if any(fnmatch.fnmatchcase(p, glob) for p in g.producers)]
        if not hit:
            raise ConfigError(
                f"expansion_layers has {glob!r}, which matches no layer whose channels may change."
                f"{did_you_mean(glob, layers)} There are: {', '.join(layers)}."
            )
        chosen += [group for group in hit if group not in chosen]
    return chosen


def _is_inner(group: ChannelGroup) -> bool:
    return not group.joined and len(group.producers) == 1 == len(group.consumers)


def _is_inverted(group: ChannelGroup, graph: ChannelGraph, modules: dict[str, nn.Module]) -> bool:
    gates = {g.name for g in graph.groups.values() if g.kind == "gate"}
    producers = [p for p in group.producers if graph.inputs[p] not in gates]
    consumers = [c for c in group.consumers if graph.outputs[c] not in gates]
    if group.joined or not group.depthwise or len(producers) != 1 or len(consumers) != 1:
        return False
    first, last = modules[producers[0]], modules[consumers[0]]
    return (
        isinstance(first, nn.Conv2d)
        and isinstance(last, nn.Conv2d)
        and first.kernel_size == (1, 1)
        and group.channels > first.in_channels
        and group.channels > last.out_channels
    )


def _check_plain(module: nn.Module, name: str, known: tuple[type[nn.Module], ...]) -> None:
    """Refuse a layer that computes something of its own with its weights."""
    plain = any(type(module).forward is one.forward for one in known)
    cls = type(module)
    if not plain and (cls.__module__.split(".")[0], cls.__name__) not in _ALIKE:
        raise ConfigError(
            f"{name!r} is a {cls.__name__}, whose forward is not that of "
            f"{' or '.join(one.__name__ for one in known)}; it cannot be widened."
        )
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if any(hooks):
        raise ConfigError(f"{name!r} has forward hooks, which a wider layer would lose.")


def _is_one(index: Any) -> bool:
    return isinstance(index, int) and index == 1


def _name(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
