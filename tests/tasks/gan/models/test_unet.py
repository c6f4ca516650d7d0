from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError, ShapeError  # noqa: E402
from taskdistill.tasks.gan.models import UnetGenerator  # noqa: E402


def test_the_generators_of_the_release(cost):
    assert cost(UnetGenerator).parameters == 54_413_955
    assert cost(lambda: UnetGenerator(downs=7), side=128).parameters == 41_828_995


def test_the_way_down_ends_at_one_pixel():
    with torch.device("meta"):
        net = UnetGenerator()
        images = torch.empty(1, 3, 256, 256)
    shapes = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:])))
    assert net(images).shape == images.shape
    widths = (64, 128, 256, 512, 512, 512, 512, 512)
    assert shapes == [(w, 128 >> i, 128 >> i) for i, w in enumerate(widths)]


def test_names_are_those_of_the_release():
    with torch.device("meta"):
        net = UnetGenerator()
        state = net.state_dict()
    weights = {n: tuple(v.shape) for n, v in state.items() if n.endswith("weight") and v.ndim == 4}
    levels = [
        ((64, 3), (128, 3)), ((128, 64), (256, 64)), ((256, 128), (512, 128)),
        ((512, 256), (1024, 256)), *[((512, 512), (1024, 512))] * 3, ((512, 512), (512, 512)),
    ]  # fmt: skip
    expected, prefix = {}, "model.model"
    for level, (down, up) in enumerate(levels):
        first = level == 0
        places = (0, 3) if first else (1, 5)
        if level == 7:
            places = (1, 3)
        expected[f"{prefix}.{places[0]}.weight"] = (*down, 4, 4)
        expected[f"{prefix}.{places[1]}.weight"] = (*up, 4, 4)
        prefix += ".1.model" if first else ".3.model"
    assert weights == expected
    # No norm after the first and the last convolution of the way down, and after the output.
    norms = {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 6 + 7
    assert {"model.model.1.model.2", "model.model.1.model.6"} <= norms
    assert [n for n, v in state.items() if v.ndim == 1 and n.endswith("3.bias")] == [
        "model.model.3.bias"
    ]


@pytest.mark.parametrize(("downs", "count"), [(8, 3), (7, 2), (5, 0), (6, 1), (2, 0)])
def test_dropout_is_in_the_levels_between_the_fourth_and_the_innermost(downs: int, count: int):
    with torch.device("meta"):
        net = UnetGenerator(downs=downs)
        without = UnetGenerator(downs=downs, dropout=0.0)
    drops = {name for name, m in net.named_modules() if isinstance(m, nn.Dropout)}
    level4 = "model.model.1.model" + ".3.model" * 3
    assert drops == {f"{level4}{'.3.model' * i}.7" for i in range(count)}
    assert not any(isinstance(m, nn.Dropout) for m in without.modules())
    assert list(without.state_dict()) == list(net.state_dict())


def test_activations_in_place_would_give_the_same():
    """As in the release, where they write into what the connections hand on."""
    net = UnetGenerator(downs=4, width=4).eval()
    released = copy.deepcopy(net)
    for module in released.modules():
        if isinstance(module, nn.LeakyReLU | nn.ReLU):
            module.inplace = True
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    assert torch.equal(released(images), net(images))


def test_a_connection_hands_on_what_came_in():
    net = UnetGenerator(downs=3, width=4)
    block, x = net.model.model[1], torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x)[:, :4], x)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_any_size_that_can_be_halved(downs: int, height: int, width: int, channels: int):
    net = UnetGenerator(channels, 2, downs=downs, width=2, norm="instance")
    images = torch.rand(1, channels, height << downs, width << downs)
    output = net(images)
    assert output.shape == (1, 2, *images.shape[2:])
    assert output.abs().max() <= 1


@pytest.mark.parametrize("size", [(32, 40), (24, 32), (8, 16), (33, 32)])
def test_sizes_that_cannot(size: tuple[int, int]):
    net = UnetGenerator(downs=4, width=2)
    with pytest.raises(ShapeError, match=rf"divisible by 16, got {size[0]}x{size[1]}\. Crop"):
        net(torch.rand(1, 3, *size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(downs=1), "downs must be at least 2"),
        (dict(downs=0), "downs must be a whole number"),
        (dict(width=0), "width must be"),
        (dict(dropout=1), "dropout must be a probability"),
        (dict(norm="bath"), "Did you mean 'batch'"),
    ],
)
def test_what_cannot_be_built(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        UnetGenerator(**{"downs": 3, "width": 2, **options})
