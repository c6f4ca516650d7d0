"""Cut a network in two at a module, without copying it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .errors import ConfigError, TapError, did_you_mean

__all__ = ["split_at"]

_OFFERED = 6  # names offered in a message


def split_at(network: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """Cut a network in front of one of its modules.

    ``back(front(x))`` computes what ``network(x)`` does. Both halves hold the network's own
    submodules, under the same names: they share its parameters, buffers, hooks and modes, and what
    is trained in a half is trained in the network. ``front.state_dict()`` and
    ``back.state_dict()`` are parts of ``network.state_dict()``.

    The ``forward`` of the modules that contain `name` is traced by ``torch.fx``; every other module
    is called as it is, whatever it does inside. So a module at the top level asks little of a
    network: its own ``forward`` has to be a plain sequence of calls, without a choice that depends
    on values or shapes. Forward hooks on the containing modules become part of the halves; on every
    other module they go on living there.

    Args:
        network: One tensor in; called as ``network(x)``, further arguments at their defaults.
        name: Dotted name of the module that the back half begins with, such as ``"layer3"``.

    Returns:
        ``front``, and ``back`` which takes the one tensor that front returns.

    Raises:
        TapError: If no module has that name, or it is not called exactly once.
        ConfigError: If ``forward`` cannot be traced; if it does something else in training than in
            evaluation (a choice by ``self.training`` outside of a module would be frozen; a module
            such as ``nn.Dropout`` follows its mode); or if not exactly one value crosses the cut.
            The message names what crosses and where one value does.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> front, back = split_at(net, "2")
        >>> x = torch.ones(4, 2)
        >>> torch.equal(back(front(x)), net(x)), back.get_submodule("2") is net[2]
        (True, True)
    """
    named = dict(network.named_modules(remove_duplicate=False))
    if not name or name not in named:
        top = ", ".join(child for child, _ in network.named_children())
        raise TapError(
            f"No module of {type(network).__name__} is called {name!r}.{did_you_mean(name, named)} "
            f"Its top-level modules are: {top or 'none'}."
        )
    target = named[name]
    parts = name.split(".")
    containing = [named[".".join(parts[:depth])] for depth in range(len(parts))]
    graph = _trace(network, name, containing)
    called = (node for node in graph.nodes if node.op == "call_module")
    calls = [node for node in called if named[str(node.target)] is target]
    if len(calls) != 1:
        often = "never called" if not calls else f"called {len(calls)} times"
        raise TapError(
            f"Module {name!r} is {often} in the forward of {type(network).__name__}; expected once."
            " Split at a module that runs once."
        )
    nodes = [node for node in graph.nodes if node.op != "output"]
    crossing = _crossing(nodes, nodes.index(calls[0]), graph)
    if len(crossing) != 1:
        places = [str(n.target) for i, n in enumerate(nodes) if _may_cut(nodes, i, graph)]
        offered = ", ".join(places[:_OFFERED]) + (", ..." if places[_OFFERED:] else "")
        what = ", ".join(_described(node) for node in crossing) or "nothing"
        raise ConfigError(
            f"A cut of {type(network).__name__} at {name!r} would be crossed by "
            f"{len(crossing)} values ({what}); expected one. One value crosses at: "
            f"{offered or 'no other module'}."
        )
    return _half(network, graph, None, crossing[0]), _half(network, graph, crossing[0], None)


class _Whole(nn.Module):
    """Calls a network with one argument, so that further ones keep their defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class _Tracer(fx.Tracer):
    """Goes into the given modules alone."""

    def __init__(self, entered: Sequence[nn.Module]) -> None:
        super().__init__()
        self._entered = {id(module) for module in entered}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._entered


def _trace(network: nn.Module, name: str, containing: Sequence[nn.Module]) -> fx.Graph:
    """The network's graph, which must be the same in training and evaluation."""
    found = []
    for training in (True, False):
        with _mode(containing, training):
            try:
                graph = _Tracer(containing).trace(_Whole(network))
            except Exception as error:  # whatever user code does with a value it cannot look at
                raise ConfigError(
                    f"The forward of {type(network).__name__} cannot be traced down to {name!r}: "
                    f"{error}. Where a choice depends on values or shapes, put it into a module "
                    "beside it, or split at a module further up."
                ) from error
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = str(node.target).removeprefix("network.")
        found.append(graph)
    pairs = itertools.zip_longest(*(graph.nodes for graph in found))
    odd = next((a or b for a, b in pairs if not a or not b or not _same(a, b)), None)
    if odd is not None:
        raise ConfigError(
            f"The forward of {type(network).__name__} does something else in training than in "
            f"evaluation, outside of the modules it calls, from {_described(odd)} on; its halves "
            "could not follow. Use a module for it (nn.Dropout in place of F.dropout)."
        )
    return found[1]


@contextmanager
def _mode(modules: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """Set the flag of these modules alone: those inside are not looked at."""
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            module.training = flag


def _same(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes of two traces do the same; equal histories give equal names."""
    told = ((n.op, n.target, str(n.args), str(n.kwargs)) for n in (one, other))
    return next(told) == next(told)


def _crossing(nodes: list[fx.Node], position: int, graph: fx.Graph) -> list[fx.Node]:
    """Values made before a position and used from there on; parameters go with their users."""
    later = [*nodes[position:], *(node for node in graph.nodes if node.op == "output")]
    used = {node for user in later for node in user.all_input_nodes}
    return [n for n in nodes[:position] if n in used and n.op != "get_attr"]


def _may_cut(nodes: list[fx.Node], position: int, graph: fx.Graph) -> bool:
    return nodes[position].op == "call_module" and len(_crossing(nodes, position, graph)) == 1


def _described(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the input"
    if node.op == "call_module":
        return f"the output of {str(node.target)!r}"
    if node.op == "output":
        return "what it returns"
    return f"the result of {getattr(node.target, '__name__', node.target)}"


def _half(
    network: nn.Module, graph: fx.Graph, start: fx.Node | None, end: fx.Node | None
) -> nn.Module:
    """What is needed to get from one value (or the input) to another (or the output)."""
    output = next(node for node in graph.nodes if node.op == "output")
    needed: set[fx.Node] = set()
    waiting = list(output.all_input_nodes) if end is None else [end]
    while waiting:
        node = waiting.pop()
        if node in needed or node is start:
            continue
        needed.add(node)
        waiting.extend(node.all_input_nodes)
    half = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node is start or (node.op == "placeholder" and start is None):
            made[node] = half.placeholder("x")
        elif node in needed:
            made[node] = half.node_copy(node, lambda n: made[n])
    if end is None:
        half.output(map_arg(output.args[0], lambda n: made[n]))
    else:
        half.output(made[end])
    return fx.GraphModule(network, half, type(network).__name__)
