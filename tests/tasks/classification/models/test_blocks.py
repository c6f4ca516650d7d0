from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

pytest.importorskip("mmengine")

from mmengine.registry import MODELS  # noqa: E402

from taskdistill.core.errors import CheckpointError, ConfigError  # noqa: E402
from taskdistill.core.taps import Taps  # noqa: E402
from taskdistill.core.teacher import load_weights  # noqa: E402
from taskdistill.tasks.classification.models import (  # noqa: E402
    ConvNormAct,
    InvertedResidual,
    MCUNet,
    MobileNetV2Tiny,
    MobileNetwork,
    NarrowMobileNetV2,
    NarrowMobileNetV3,
    ProxylessNASMobile,
    SqueezeExcite,
    make_divisible,
)

NETWORKS = (MobileNetV2Tiny, MCUNet, ProxylessNASMobile, NarrowMobileNetV2, NarrowMobileNetV3)


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and scales other than 0 and 1, so that each place matters."""
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return network.eval()


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [(0.1, 8), (8, 8), (11.2, 16), (12, 16), (11.9, 16), (13.33, 16), (15, 16), (17.7, 16)]
    + [(17.8, 24), (18, 24), (19.9, 24), (20, 24), (22.4, 24), (56, 56), (1280 * 0.35, 448)],
)
def test_make_divisible(channels: float, rounded: int):
    assert make_divisible(channels) == rounded


@given(st.floats(0.01, 5000), st.sampled_from([1, 2, 4, 8, 16]))
def test_rounded_channels_are_near(channels: float, divisor: int):
    found = make_divisible(channels, divisor)
    assert found % divisor == 0
    assert found >= max(divisor, 0.9 * channels)
    assert found < channels + 1.5 * divisor


def test_squeeze_excitation_is_the_definition():
    layer = SqueezeExcite(6, 3).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    mean = x.mean((2, 3))
    hidden = (mean @ layer.reduce.weight[:, :, 0, 0].T + layer.reduce.bias).relu()
    gate = hidden @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias
    gate = (gate / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


@pytest.mark.parametrize("middle", [None, 12])
@pytest.mark.parametrize("squeeze", [None, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_an_inverted_residual_is_the_definition(middle, squeeze, residual):
    block = InvertedResidual(4, 4, middle, 5, act="relu6", residual=residual, squeeze=squeeze)
    randomise(block.double())
    x = 3 * torch.randn(2, 4, 7, 6, dtype=torch.float64)

    def layer(name: str, x: Tensor, act: bool = True, **options) -> Tensor:
        conv = block.get_submodule(f"{name}.conv")
        norm = block.get_submodule(f"{name}.norm")
        y = nn.functional.conv2d(x, conv.weight, **options)
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[:, None, None]
        y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
        return y.clamp(0, 6) if act else y

    y = x if middle is None else layer("expand", x)
    y = layer("depthwise", y, padding=2, groups=y.shape[1])
    if squeeze:
        y = block.get_submodule("squeeze")(y)
    y = layer("project", y, act=False)
    torch.testing.assert_close(block(x), x + y if residual else y)


def test_what_came_in_is_not_added_where_shapes_differ():
    with pytest.raises(ConfigError, match="4 channels.*8 channels, stride 1.*residual=False"):
        InvertedResidual(4, 8, 16, residual=True)
    with pytest.raises(ConfigError, match="stride 2"):
        InvertedResidual(4, 4, 16, stride=2, residual=True)


def test_a_convolution_without_a_norm_has_a_bias():
    assert ConvNormAct(2, 3, norm=False).conv.bias is not None
    assert ConvNormAct(2, 3).conv.bias is None
    with pytest.raises(ConfigError, match="'hard_swish'.*Did you mean 'hardswish'"):
        ConvNormAct(2, 3, act="hard_swish")


# -- whole networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_stages_reach_the_strides_of_a_detector(network: type[MobileNetwork]):
    net = network(num_classes=5).eval()
    last = len(net.stages) - 1
    names = ["stem", "stages.1", "stages.2", "stages.4", f"stages.{last}", "pool", "classifier"]
    with Taps(net, names).capture() as captured:
        net(torch.randn(1, 3, 64, 96))
    sides = [tuple(captured.tensors(name)[0].shape[2:]) for name in names]
    assert sides == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3), (1, 1), ()]
    assert not captured.mutated()


@pytest.mark.parametrize("network", NETWORKS)
def test_all_modules_may_be_tapped(network: type[MobileNetwork]):
    net = network(num_classes=5).eval()
    names = [name for name, _ in net.named_modules() if name]
    with Taps(net, names).capture() as captured:
        net(torch.randn(1, 3, 32, 32))
    assert set(captured.counts().values()) == {1}
    assert not captured.mutated()


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_traceable(network: type[MobileNetwork]):
    net = randomise(network(num_classes=5))
    images = torch.randn(2, 3, 40, 33)
    torch.testing.assert_close(fx.symbolic_trace(net)(images), net(images))


@pytest.mark.parametrize("network", NETWORKS)
def test_any_images(network: type[MobileNetwork]):
    net = network(num_classes=4, in_channels=2).eval()
    for height, width in ((1, 1), (1, 50), (37, 30)):
        logits = net(torch.randn(2, 2, height, width))
        assert logits.shape == (2, 4) and logits.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_is_an_option_before_the_classifier(network: type[MobileNetwork]):
    plain, dropping = network(num_classes=3), network(num_classes=3, dropout=0.25)
    assert not any(isinstance(m, nn.Dropout) for m in plain.modules())
    found = {n: m.p for n, m in dropping.named_modules() if isinstance(m, nn.Dropout)}
    assert found == {"drop": 0.25}
    assert list(plain.state_dict()) == list(dropping.state_dict())
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"probability in \[0, 1\)"):
            network(dropout=wrong)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_built_by_name(network: type[MobileNetwork]):
    net = MODELS.build(dict(type=network.__name__, num_classes=3))
    assert type(net) is network and net.classifier.out_features == 3
    with pytest.raises(ConfigError, match="num_classes must be an integer >= 1, got 0"):
        network(num_classes=0)


def test_the_classifier_begins_small_and_without_bias():
    net = MobileNetV2Tiny()
    assert net.classifier.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.classifier.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert not net.classifier.bias.any()


# -- the release's files ---------------------------------------------------------------------------

HEADS = {MobileNetV2Tiny: True, MCUNet: False, ProxylessNASMobile: True, NarrowMobileNetV2: True}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_released_file_loads_strictly(network, released_state, tmp_path: Path):
    source = randomise(network(num_classes=4))
    own = source.state_dict()
    theirs = dict(
        released_state(source, HEADS.get(network, True), features=network is NarrowMobileNetV3)
    )
    assert len(theirs) == len(own) and not set(theirs) & set(own)
    torch.save({"state_dict": theirs}, tmp_path / "released.pth")
    net = network(num_classes=4)
    load_weights(net, tmp_path / "released.pth", names=net.checkpoint_names)
    found = net.state_dict()
    for name, value in own.items():
        assert torch.equal(found[name], value), name


def test_names_of_the_release_one_by_one():
    names = {
        "backbone.input_stem.op_list.0.conv.weight": "stem.conv.weight",
        "backbone.input_stem.op_list.1.conv.depth_conv.conv.weight": (
            "stages.0.0.depthwise.conv.weight"
        ),
        "backbone.stages.4.op_list.2.conv.inverted_conv.norm.running_var": (
            "stages.5.2.expand.norm.running_var"
        ),
        "head.op_list.0.conv.point_conv.conv.weight": "stages.6.0.project.conv.weight",
        "head.op_list.1.norm.bias": "head.norm.bias",
        "head.op_list.3.linear.bias": "classifier.bias",
        "something.else": "something.else",
    }
    found = MobileNetwork.checkpoint_names(dict.fromkeys(names, 0))
    assert list(found) == list(names.values())


def test_own_names_pass_unchanged():
    state = MCUNet(num_classes=2).state_dict()
    assert list(MCUNet.checkpoint_names(state)) == list(state)


def test_the_file_of_another_network_does_not_load(released_state, tmp_path: Path):
    torch.save(dict(released_state(MCUNet(), False)), tmp_path / "released.pth")
    net = MobileNetV2Tiny()
    with pytest.raises(CheckpointError, match="does not fit MobileNetV2Tiny"):
        load_weights(net, tmp_path / "released.pth", names=net.checkpoint_names)
