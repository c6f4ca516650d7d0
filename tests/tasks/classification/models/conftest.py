from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from taskdistill.tasks.common.cost import count_macs, count_parameters


def cost(build: Callable[..., nn.Module], side: int, **options: object) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one image; nothing is computed."""
    with torch.device("meta"):
        network = build(**options).eval()
        images = torch.empty(1, 3, side, side)
    return count_parameters(network), count_macs(lambda: network(images))


@pytest.fixture(name="cost")
def cost_fixture() -> Callable[..., tuple[int, int]]:
    return cost


def released_state(
    network: nn.Module, head: bool, features: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Every entry of a network of stages under the name that the NetAug release gives it.

    Written from the release's layout: a stem of a convolution and a first block; the stages; and a
    head which begins with the last inverted block (``head`` true: then a 1x1 convolution), or, of
    MobileNetV3 (``features`` true), with a 1x1 convolution.
    """
    stages = list(network.get_submodule("stages").children())
    inner = stages[1:] if features else stages[1:-1]

    def layer(place: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from module.state_dict(prefix=f"{place}.").items()

    def block(place: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        theirs = dict(expand="inverted_conv", depthwise="depth_conv", project="point_conv")
        for name, child in module.named_children():
            if name == "squeeze":
                yield from layer(
                    f"{place}.conv.se_layer.reduce_conv", child.get_submodule("reduce")
                )
                yield from layer(
                    f"{place}.conv.se_layer.expand_conv", child.get_submodule("expand")
                )
            else:
                yield from layer(f"{place}.conv.{theirs[name]}", child)

    yield from layer("backbone.input_stem.op_list.0", network.get_submodule("stem"))
    yield from block("backbone.input_stem.op_list.1", stages[0].get_submodule("0"))
    for number, stage in enumerate(inner):
        for index, module in enumerate(stage.children()):
            yield from block(f"backbone.stages.{number}.op_list.{index}", module)
    if features:
        yield from layer("head.op_list.0", network.get_submodule("head"))
        yield from layer("head.op_list.2", network.get_submodule("features"))
        place = 3
    else:
        yield from block("head.op_list.0", stages[-1].get_submodule("0"))
        if head:
            yield from layer("head.op_list.1", network.get_submodule("head"))
        place = 3 if head else 2
    yield from layer(f"head.op_list.{place}.linear", network.get_submodule("classifier"))


@pytest.fixture(name="released_state")
def released_state_fixture() -> Callable[..., Iterator[tuple[str, Tensor]]]:
    return released_state
