from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError, ShapeError  # noqa: E402
from taskdistill.tasks.gan.models import ResnetGenerator  # noqa: E402
from taskdistill.tasks.gan.models.resnet import FIRST_BLOCK, ResnetBlock  # noqa: E402


def test_the_generator_of_the_paper(cost):
    found = cost(ResnetGenerator)
    assert found.parameters == 11_378_179
    assert found.macs == 56_799_264_768
    assert found.macs + found.norm_elements == 56_831_770_624
    assert found.macs_by_input == pytest.approx(49.55e9, abs=0.005e9)


def test_names_are_those_of_the_release():
    with torch.device("meta"):
        state = ResnetGenerator().state_dict()
    convs = {1: (64, 3, 7, 7), 4: (128, 64, 3, 3), 7: (256, 128, 3, 3)}
    convs |= {19: (256, 128, 3, 3), 22: (128, 64, 3, 3), 26: (3, 64, 7, 7)}
    expected = {f"model.{index}.weight": shape for index, shape in convs.items()}
    for block in range(10, 19):
        for place in (1, 5):
            expected[f"model.{block}.conv_block.{place}.weight"] = (256, 256, 3, 3)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    weights = {name: shape for name, shape in shapes.items() if name.endswith("weight")}
    assert weights == expected
    assert set(shapes) - set(weights) == {n.replace("weight", "bias") for n in expected}


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (dict(), (1, 5)),
        (dict(dropout=0.5), (1, 6)),
        (dict(padding="replicate"), (1, 5)),
        (dict(padding="zero"), (0, 3)),
        (dict(padding="zero", dropout=0.5), (0, 4)),
        (dict(norm="none"), (1, 5)),
    ],
)
def test_places_in_a_block(options: dict, places: tuple[int, int]):
    block = ResnetBlock(4, **options)
    assert {int(name.split(".")[1]) for name in block.state_dict()} == set(places)
    drops = [m.p for m in block.modules() if isinstance(m, nn.Dropout)]
    assert drops == ([0.5] if "dropout" in options else [])


def test_with_a_batch_norm_only_the_last_convolution_has_a_bias():
    net = ResnetGenerator(width=4, blocks=2, norm="batch")
    with_bias = [
        name
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.bias is not None
    ]
    assert with_bias == ["model.19"]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 5 + 2 * 2


def test_a_block_is_the_definition():
    block = ResnetBlock(4).double()
    first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    y = x
    for conv in (first, second):
        y = nn.functional.pad(y, (1, 1, 1, 1), mode="reflect")
        y = nn.functional.conv2d(y, conv.weight, conv.bias)
        variance, mean = torch.var_mean(y, (2, 3), correction=0, keepdim=True)
        y = (y - mean) / (variance + 1e-5).sqrt()
        y = y.relu() if conv is first else y
    torch.testing.assert_close(block(x), x + y)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.integers(1, 4))
def test_any_size_divisible_by_four(height: int, width: int, blocks: int, channels: int):
    net = ResnetGenerator(channels, 2, width=2, blocks=blocks)
    images = torch.rand(2, channels, 4 * height, 4 * width) * 2 - 1
    output = net(images)
    assert output.shape == (2, 2, 4 * height, 4 * width)
    assert output.abs().max() <= 1
    assert isinstance(net.model[FIRST_BLOCK], ResnetBlock)
    # With an instance norm, an image is translated by itself.
    torch.testing.assert_close(net(images[1:]), output[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(30, 32), (32, 33), (10, 8)])
def test_sizes_not_divisible_by_four(size: tuple[int, int]):
    net = ResnetGenerator(width=2, blocks=1)
    with pytest.raises(ShapeError, match=f"divisible by 4, got {size[0]}x{size[1]}"):
        net(torch.rand(1, 3, *size))


def test_sizes_that_are_too_small():
    net = ResnetGenerator(width=2, blocks=1)
    with pytest.raises(ShapeError, match="sides of 8 at least, got 4x64"):
        net(torch.rand(1, 3, 4, 64))
    assert net(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=0), "blocks must be a whole number >= 1, got 0"),
        (dict(width=1.5), "width must be a whole number >= 1, got 1.5"),
        (dict(out_channels=0), "out_channels must be"),
        (dict(dropout=1.0), r"dropout must be a probability in \[0, 1\), got 1.0"),
        (dict(dropout=-0.1), "dropout must be"),
        (dict(norm="layer"), "norm must be one of"),
        (dict(padding="zeros"), "padding must be one of .* Did you mean 'zero'"),
    ],
)
def test_what_cannot_be_built(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        ResnetGenerator(**{"width": 2, "blocks": 1, **options})
