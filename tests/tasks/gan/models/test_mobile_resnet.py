from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError, ShapeError  # noqa: E402
from taskdistill.tasks.gan.models import MobileResnetGenerator, SeparableConv2d  # noqa: E402
from taskdistill.tasks.gan.models.mobile_resnet import (  # noqa: E402
    MobileResnetBlock,
    inner_channels,
)

# Of one 256x256 image: options, parameters, multiply-accumulates in units of 1e9, and with the
# elements of instance norms added, as the paper's tool printed them.
PUBLISHED = [
    (dict(width=64), 1_987_075, 18.314, 18.366),
    (dict(width=48), 1_130_883, 10.565, 10.603),
    (dict(width=32), 514_307, 4.929, 4.955),
    (dict(channels="16_16_32_16_32_32_16_16"), 356_867, 2.525, 2.546),
    (dict(channels="16_16_24_16_32_64_16_24"), 355_235, 2.618, 2.641),
    (dict(channels="24_24_24_32_20_16"), 341_627, 2.649, 2.670),
    (dict(channels="24_24_24_32_20_16", legacy=True), 302_651, 2.491, 2.510),
    (dict(channels="32_32_48_32_48_48_16_16"), 822_051, 4.961599488, 4.993843200),
    (dict(channels="32_32_40_48_16_32", legacy=True), 699_875, 4.778, 4.809),
    (dict(channels="48_32_40_40_24_32", legacy=True), 707_347, 5.633, 5.665),
    (dict(channels="32_32_48_32_32_48_24_24"), 780_819, 5.560, 5.592),
    (dict(channels=[16] * 8), 137_347, 1.408, 1.421),
    (dict(channels=[32] * 8), 514_307, 4.929, 4.955),
]


@pytest.mark.parametrize(("options", "parameters", "macs", "with_norms"), PUBLISHED)
def test_published_costs(cost, options: dict, parameters: int, macs: float, with_norms: float):
    found = cost(lambda: MobileResnetGenerator(**options))
    assert found.parameters == parameters
    assert found.macs / 1e9 == pytest.approx(macs, abs=0.0005)
    assert (found.macs + found.norm_elements) / 1e9 == pytest.approx(with_norms, abs=0.0005)


def test_the_published_cost_of_edges_to_shoes_is_exact(cost):
    found = cost(lambda: MobileResnetGenerator(channels="32_32_48_32_48_48_16_16"))
    assert found.macs == 4_961_599_488
    assert found.macs + found.norm_elements == 4_993_843_200


def test_names_and_shapes_are_those_of_the_release():
    with torch.device("meta"):
        net = MobileResnetGenerator(channels=(1, 2, 3, 4, 5, 6, 7, 8), blocks=9)
    expected = {
        "model.1.weight": (1, 3, 7, 7),
        "model.4.weight": (4, 1, 3, 3),
        "model.7.weight": (12, 4, 3, 3),
        "model.19.weight": (12, 14, 3, 3),
        "model.22.weight": (14, 8, 3, 3),
        "model.26.weight": (3, 8, 7, 7),
    }
    for place in range(9):
        block, inner = f"model.{10 + place}.conv_block", 4 * (4 + place // 3)
        expected[f"{block}.1.conv.0.weight"] = (12, 1, 3, 3)
        expected[f"{block}.1.conv.2.weight"] = (inner, 12, 1, 1)
        expected[f"{block}.6.conv.0.weight"] = (inner, 1, 3, 3)
        expected[f"{block}.6.conv.2.weight"] = (12, inner, 1, 1)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    weights = {name: shape for name, shape in shapes.items() if name.endswith("weight")}
    assert weights == expected
    assert set(shapes) - set(weights) == {n.replace("weight", "bias") for n in expected}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_dropout_layer_is_always_there(dropout: float):
    block = MobileResnetBlock(4, 8, dropout=dropout)
    assert [m.p for m in block.modules() if isinstance(m, nn.Dropout)] == [dropout]
    assert isinstance(block.conv_block[6], SeparableConv2d)


def test_separable_convolutions_have_biases_whatever_the_norm():
    for norm, kind in (("batch", nn.BatchNorm2d), ("none", nn.Identity)):
        layer = SeparableConv2d(4, 8, norm=norm)
        assert isinstance(layer.conv[1], kind)
        assert layer.conv[0].bias is not None and layer.conv[2].bias is not None


def test_a_separable_convolution_without_norm_is_one_of_rank_one():
    layer = SeparableConv2d(3, 5, padding=1, norm="none").double()
    depthwise, _, pointwise = layer.conv
    weight = pointwise.weight * depthwise.weight[:, 0]
    bias = pointwise.bias + pointwise.weight[:, :, 0, 0] @ depthwise.bias
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, weight, bias, padding=1))


@given(st.integers(1, 20), st.booleans())
def test_blocks_come_in_thirds(blocks: int, legacy: bool):
    found = inner_channels((9, 9, 9, 1, 2, 3, 9, 9), blocks, legacy=legacy)
    parts = [part for part, _ in found]
    assert len(parts) == blocks and parts == sorted(parts)
    assert parts.count(0) == parts.count(1) == blocks // 3
    for place, (part, inner) in enumerate(found):
        first = place == 0 or parts[place - 1] != part
        assert inner == (36 if legacy and not first else 4 * (part + 1))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=8, max_size=8),
    st.integers(1, 7),
    st.booleans(),
    st.integers(2, 6),
    st.integers(2, 6),
)
def test_any_widths_and_sizes(channels, blocks: int, legacy: bool, height: int, width: int):
    net = MobileResnetGenerator(2, 1, channels=channels, legacy=legacy, blocks=blocks)
    assert net.channels == tuple(channels)
    output = net(torch.rand(1, 2, 4 * height, 4 * width))
    assert output.shape == (1, 1, 4 * height, 4 * width)
    assert output.abs().max() <= 1


def test_width_is_eight_times_the_same():
    wide = MobileResnetGenerator(width=3, blocks=3)
    same = MobileResnetGenerator(channels="3_3_3_3_3_3_3_3", blocks=3)
    same.load_state_dict(wide.state_dict(), strict=True)
    images = torch.rand(1, 3, 12, 16)
    assert torch.equal(same(images), wide(images))


def test_what_cannot_be_built():
    with pytest.raises(ConfigError, match="channels must be 8 whole numbers"):
        MobileResnetGenerator(channels="16_16")
    with pytest.raises(ConfigError, match="blocks must be"):
        MobileResnetGenerator(blocks=0)
    with pytest.raises(ConfigError, match="dropout must be"):
        MobileResnetGenerator(width=2, dropout=2)
    with pytest.raises(ConfigError, match="norm must be one of"):
        MobileResnetGenerator(width=2, norm="group")


def test_sizes_not_divisible_by_four():
    with pytest.raises(ShapeError, match="divisible by 4, got 12x18"):
        MobileResnetGenerator(width=2, blocks=1)(torch.rand(1, 3, 12, 18))
