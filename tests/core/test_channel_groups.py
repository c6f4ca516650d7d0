"""Which channels belong together: found through every way of joining them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskdistill.core.channel_groups import ChannelGraph, channel_groups
from taskdistill.core.errors import ConfigError


class Net(nn.Module):
    """A stem of 4 channels, a body that is given, and a classifier."""

    def __init__(
        self, body: Callable[["Net", Tensor], Tensor], features: int = 4, **layers
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = body
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self, self.stem(x)))


def pooled(x: Tensor) -> Tensor:
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


def kinds(graph: ChannelGraph) -> dict[str, str]:
    return {group.name: group.kind for group in graph.groups.values()}


def conv(i: int, o: int, k: int = 1, **more) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


def test_an_addition_unites_its_operands() -> None:
    net = Net(
        lambda n, x: pooled(x + n.last(F.relu(n.first(x)))), first=conv(4, 6), last=conv(6, 4)
    )
    graph = channel_groups(net)
    assert graph.outputs["stem"] == graph.outputs["last"] == "stem"
    assert graph.groups["stem"].producers == ["stem", "last"]
    assert graph.groups["stem"].consumers == ["first", "fc"]
    # Inside of a residual block, in a network without depthwise convolutions.
    assert kinds(graph) == {"input": "fixed", "stem": "width", "first": "expansion", "fc": "fixed"}
    assert graph.groups["first"].follows == "stem"


def test_an_inverted_block_expands_and_the_stem_does_not() -> None:
    # A stem that is filtered depthwise and narrowed looks like a block, but widens no map.
    net = Net(
        lambda n, x: pooled(n.project(n.filter(n.expand(n.narrow(n.dw(x)))))),
        features=3,
        dw=conv(4, 4, 3, groups=4),
        narrow=conv(4, 2),
        expand=conv(2, 12),
        filter=conv(12, 12, 3, groups=12),
        project=conv(12, 3),
    )
    graph = channel_groups(net)
    assert kinds(graph) == {
        "input": "fixed",
        "stem": "width",
        "narrow": "width",
        "expand": "expansion",
        "project": "width",
        "fc": "fixed",
    }
    assert graph.groups["expand"].depthwise == ["filter"]
    assert graph.groups["expand"].follows == "narrow"


def test_depthwise_separable_layers_are_widths() -> None:
    """MobileNetV1: a depthwise convolution in every group, and no block that narrows again."""
    net = Net(
        lambda n, x: pooled(n.b(n.c(n.a(x)))),
        features=16,
        a=conv(4, 8),
        c=conv(8, 8, 3, groups=8),
        b=conv(8, 16),
    )
    assert set(kinds(channel_groups(net)).values()) == {"width", "fixed"}


def test_a_plain_chain_has_widths_alone() -> None:
    net = Net(lambda n, x: pooled(n.a(x)), features=8, a=conv(4, 8))
    assert kinds(channel_groups(net))["a"] == "width"


@pytest.mark.parametrize("linear", [False, True])
def test_squeeze_and_excitation_is_a_gate(linear: bool) -> None:
    def gated(n: Net, x: Tensor) -> Tensor:
        if not linear:
            scale = n.up(F.relu(n.down(x.mean((2, 3), keepdim=True))))
            return pooled(x * torch.sigmoid(scale))
        b, c, _, _ = x.size()
        scale = n.up(F.relu(n.down(F.adaptive_avg_pool2d(x, 1).view(b, -1))))
        return pooled(x * torch.sigmoid(scale).view(b, c, 1, 1).expand_as(x))

    down, up = (nn.Linear(4, 2), nn.Linear(2, 4)) if linear else (conv(4, 2), conv(2, 4))
    graph = channel_groups(Net(gated, down=down, up=up))
    assert graph.groups["down"].kind == "gate" and graph.groups["down"].follows == "stem"
    assert graph.outputs["up"] == "stem"


def test_globs_say_what_expands() -> None:
    net = Net(lambda n, x: pooled(n.b(n.a(x))), features=8, a=conv(4, 6), b=conv(6, 8))
    found = kinds(channel_groups(net, expansion_layers=["a*"]))
    assert (found["stem"], found["a"], found["b"]) == ("width", "expansion", "width")
    assert "expansion" not in kinds(channel_groups(net, expansion_layers=[])).values()
    with pytest.raises(ConfigError, match="'stme'.*Did you mean 'stem'"):
        channel_groups(net, expansion_layers=["stme"])


def test_an_expansion_behind_another_follows_what_the_block_reads() -> None:
    net = Net(
        lambda n, x: pooled(x + n.c(n.b(n.a(x)))), a=conv(4, 6), b=conv(6, 6, 3), c=conv(6, 4)
    )
    graph = channel_groups(net)
    assert kinds(graph)["a"] == kinds(graph)["b"] == "expansion"
    assert graph.groups["a"].follows == graph.groups["b"].follows == "stem"


def test_one_channel_stays_one() -> None:
    """A map that is broadcast over all channels could not be with two."""
    net = Net(lambda n, x: pooled(x * torch.sigmoid(n.where(x))), where=conv(4, 1, 3))
    assert kinds(channel_groups(net))["where"] == "fixed"


def test_a_layer_that_is_called_twice_unites_what_it_reads() -> None:
    net = Net(
        lambda n, x: pooled(n.shared(x) + n.shared(n.other(x))),
        features=6,
        shared=conv(4, 6),
        other=conv(4, 4),
    )
    graph = channel_groups(net)
    assert graph.outputs["other"] == graph.outputs["stem"] == graph.inputs["shared"]


WAYS = {
    "flatten": lambda n, x: torch.flatten(x, 1),
    "method": lambda n, x: x.flatten(start_dim=1),
    "view": lambda n, x: x.view(x.size(0), -1),
    "reshape": lambda n, x: x.reshape((x.shape[0], -1)),
    "mean": lambda n, x: x.mean([2, 3]),
    "means": lambda n, x: x.mean(3).mean(2),
    "squeeze": lambda n, x: F.avg_pool2d(x, 2).mean(3, keepdim=True).squeeze(-1).flatten(1),
    "slice": lambda n, x: pooled(F.pad(x[:, :, ::2, 1:], (1, 0, 0, 1))),
    "number": lambda n, x: pooled(2 * x.clamp(0, 1) + 1),
    "broadcast": lambda n, x: pooled(x * x.mean((2, 3))[:, :, None, None]),
    "unsqueeze": lambda n, x: pooled(x * x.mean((2, 3)).unsqueeze(-1).unsqueeze(-1)),
    "conditioned": lambda n, x: pooled(x) if x.dtype is None else pooled(x.float()),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_the_classifier(way: str) -> None:
    graph = channel_groups(Net(WAYS[way]))
    assert graph.inputs["fc"] == "stem"


REFUSED = {
    "cat": (lambda n, x: pooled(torch.cat([x, x], 1)), "'cat' in Net.forward: Concatenated"),
    "chunk": (lambda n, x: pooled(x.chunk(2, 1)[0]), "'chunk' in Net.forward: Split"),
    "pad": (lambda n, x: pooled(F.pad(x, (0, 0, 0, 0, 2, 2))), "option B"),
    "shape": (lambda n, x: pooled(x).view(-1, 4), "numbers of its own.*torch.flatten"),
    "channel mean": (lambda n, x: x.mean(1).flatten(1), "height and width"),
    "mean of vectors": (lambda n, x: x.flatten(1).mean(-1, keepdim=True), "height and width"),
    "permute": (lambda n, x: x.permute(0, 2, 3, 1).flatten(1), "'permute'.*not known to keep"),
    "channel slice": (lambda n, x: pooled(x[:, 1:]), "only height and width"),
    "grouped": (lambda n, x: pooled(n.layer(x)), "'layer'.*2 groups of 4 to 4 channels"),
    "norm": (lambda n, x: pooled(n.norm(x)), "'norm' is a GroupNorm"),
    "weights": (lambda n, x: pooled(x * n.gamma), r"'gamma' of shape \(4, 1, 1\)"),
    "flatten all": (lambda n, x: torch.flatten(x), "from dimension 1"),
    "not flattened": (lambda n, x: x, "not flattened"),
    "squeeze": (lambda n, x: F.adaptive_avg_pool2d(x, 1).squeeze(), "name the dimensions"),
    "transposed": (lambda n, x: pooled(x.T), "attribute 'T'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_mixes_channels_is_refused_with_its_place(why: str) -> None:
    body, message = REFUSED[why]
    layers: dict = {}
    if why == "grouped":
        layers = dict(layer=conv(4, 4, groups=2))
    if why == "norm":
        layers = dict(norm=nn.GroupNorm(2, 4))
    if why == "weights":
        layers = dict(gamma=nn.Parameter(torch.ones(4, 1, 1)))
    with pytest.raises(ConfigError, match=message):
        channel_groups(Net(body, **layers))


def test_the_place_is_a_module() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Block()))
    with pytest.raises(ConfigError, match="'cat' in 1.0"):
        channel_groups(net)


def test_a_forward_that_looks_at_values_is_refused() -> None:
    net = Net(lambda n, x: pooled(x) if x.sum() > 0 else pooled(-x))
    with pytest.raises(ConfigError, match="Net cannot be traced by torch.fx"):
        channel_groups(net)


def test_a_layer_that_is_never_called_is_refused() -> None:
    net = Net(lambda n, x: pooled(x), aux=nn.Linear(4, 5))
    with pytest.raises(ConfigError, match="never calls aux in eval mode"):
        channel_groups(net)


def test_a_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight - self.weight.mean(), self.bias)

    net = Net(lambda n, x: pooled(n.own(x)), own=Standardised(4, 4, 1))
    with pytest.raises(ConfigError, match="'own' is a Standardised"):
        channel_groups(net)


def test_a_layer_with_hooks_is_refused() -> None:
    net = Net(lambda n, x: pooled(x))
    net.stem.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="'stem' has forward hooks"):
        channel_groups(net)


def test_the_network_is_left_in_its_modes() -> None:
    net = Net(lambda n, x: pooled(x), drop=nn.Dropout().eval())
    channel_groups(net)
    assert net.training and not net.drop.training
