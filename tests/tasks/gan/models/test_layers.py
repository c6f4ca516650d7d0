from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.model import BaseModel, BaseModule  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

from taskdistill.core.errors import ConfigError, ShapeError  # noqa: E402
from taskdistill.tasks.gan.models import (  # noqa: E402
    conv_bias,
    init_weights,
    norm_layer,
)
from taskdistill.tasks.gan.models.layers import padding_layer  # noqa: E402

NETWORKS = [
    dict(type="ResnetGenerator", width=4, blocks=2),
    dict(type="ResnetGenerator", width=4, blocks=2, norm="batch", dropout=0.5, padding="zero"),
    dict(type="MobileResnetGenerator", channels="4_3_2_5_4_3", blocks=4, padding="replicate"),
    dict(type="MobileResnetGenerator", width=4, blocks=3, norm="batch", dropout=0.1),
    dict(type="SuperMobileResnetGenerator", space=[[4, 2]] * 8, blocks=3),
    dict(type="SuperMobileResnetGenerator", space=[[4, 2]] * 8, blocks=3, norm="none"),
    dict(type="UnetGenerator", downs=4, width=4),
    dict(type="UnetGenerator", downs=4, width=4, norm="instance"),
    dict(type="PatchDiscriminator", width=4),
    dict(type="PixelDiscriminator", width=4, norm="none"),
]


def ids(config: dict) -> str:
    return config["type"] + "-" + str(config.get("norm", ""))


# -- normalisation and padding ---------------------------------------------------------------------


def test_an_instance_norm_knows_its_image_alone_and_nothing_of_the_past():
    norm = norm_layer("instance", 4)
    assert not norm.state_dict() and not list(norm.parameters())
    x = torch.randn(3, 4, 5, 6)
    y = norm(x)
    assert torch.equal(norm.eval()(x), y)
    torch.testing.assert_close(norm(x[:1]), y[:1])
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.var((2, 3), correction=0), torch.ones(3, 4), atol=1e-3, rtol=0)


def test_a_batch_norm_has_weights_and_running_statistics():
    names = set(norm_layer("batch", 4).state_dict())
    assert names == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_no_norm_hands_on():
    x = torch.randn(1, 4, 2, 2)
    assert norm_layer("none", 4)(x) is x


def test_biases_are_left_to_a_batch_norm():
    assert [conv_bias(norm) for norm in ("instance", "batch", "none")] == [True, False, True]


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
def test_padding_keeps_the_size(padding: str):
    layers, own = padding_layer(padding)
    x = torch.rand(1, 2, 3, 5)
    y = nn.Sequential(*layers, nn.Conv2d(2, 2, 3, padding=own))(x)
    assert y.shape == x.shape
    mode = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}[padding]
    expected = nn.functional.pad(x, (1, 1, 1, 1), mode=mode)
    padded = nn.Sequential(*layers)(x)
    assert torch.equal(nn.functional.pad(padded, [own] * 4), expected)


@pytest.mark.parametrize("function", [lambda n: norm_layer(n, 3), conv_bias])
def test_unknown_norms(function):
    with pytest.raises(ConfigError, match="'instanc'. Did you mean 'instance'"):
        function("instanc")


def test_unknown_padding():
    with pytest.raises(ConfigError, match="padding must be one of .*'zeros'. Did you mean 'zero'"):
        padding_layer("zeros")


# -- initialisation --------------------------------------------------------------------------------


def example() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 32, 3), nn.Linear(64, 96)
    )


@pytest.mark.parametrize(
    ("kind", "deviations"),
    [
        # The last two by their formulas: gain * sqrt(2 / (fan_in + fan_out)), sqrt(2 / fan_in).
        ("normal", (0.02, 0.02, 0.02)),
        ("xavier", tuple(0.02 * (2 / n) ** 0.5 for n in (96 * 9, 96 * 9, 160))),
        ("kaiming", tuple((2 / n) ** 0.5 for n in (32 * 9, 32 * 9, 64))),
    ],
)
def test_weights_have_the_deviation_of_their_kind(kind: str, deviations: tuple[float, ...]):
    torch.manual_seed(0)
    net = example()
    init_weights(net, kind)
    for layer, deviation in zip((net[0], net[2], net[3]), deviations, strict=True):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert layer.weight.mean().item() == pytest.approx(0.0, abs=deviation / 20)
        assert not layer.bias.any()
    assert net[1].weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert net[1].weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not net[1].bias.any()


def test_orthogonal_rows():
    net = nn.Conv2d(8, 16, 3)
    init_weights(net, "orthogonal", gain=0.5)
    rows = net.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, 0.25 * torch.eye(16), atol=1e-5, rtol=0)


def test_what_cannot_be_initialised():
    with pytest.raises(ConfigError, match="kind must be one of .*'xaver'. Did you mean 'xavier'"):
        init_weights(example(), "xaver")
    with pytest.raises(ConfigError, match="gain must be a number >= 0, got -1"):
        init_weights(example(), gain=-1)


@pytest.mark.parametrize("config", NETWORKS, ids=ids)
def test_mmengine_initialises_every_network(config: dict):
    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = MODELS.build(config)

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return self.net(inputs)

    assert issubclass(Model, BaseModule)
    model = Model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    model.init_weights()
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() < 1.2, name
        assert name.endswith("bias") or parameter.std() > 0 or parameter.numel() == 1, name


# -- every network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", NETWORKS, ids=ids)
def test_copies_and_pickles_are_the_same_network(config: dict):
    net = MODELS.build(config).eval()
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    expected = net(images)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(images), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        assert not torch.equal(other(images), expected)
    assert torch.equal(net(images), expected)
    again = MODELS.build(config).eval()
    again.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(again(images), expected)


@pytest.mark.parametrize("config", NETWORKS, ids=ids)
def test_gradients_reach_every_parameter_and_the_images(config: dict):
    net = MODELS.build(config)
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    net(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("config", NETWORKS, ids=ids)
def test_what_a_tap_reads_is_not_overwritten(config: dict):
    """The output of each layer, at the end of the forward pass, is what it was in the beginning."""
    net = MODELS.build(config)
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: seen.append((name, o, o.clone())))
    net(torch.rand(2, 3, 32, 32))
    assert len(seen) > 5
    for name, output, before in seen:
        assert torch.equal(output, before), name


@pytest.mark.parametrize("config", NETWORKS, ids=ids)
def test_wrong_images_are_named(config: dict):
    net, name = MODELS.build(config), config["type"]
    with pytest.raises(ShapeError, match=rf"this {name} takes images \(B, 3, H, W\), got \(2, 4,"):
        net(torch.rand(2, 4, 32, 32))
    with pytest.raises(ShapeError, match=r"got \(3, 32, 32\)"):
        net(torch.rand(3, 32, 32))


@pytest.mark.parametrize("config", NETWORKS, ids=ids)
@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_counts_are_whole_numbers(config: dict, count: object):
    with pytest.raises(ConfigError, match="in_channels must be a whole number >= 1"):
        MODELS.build({**config, "in_channels": count})


def test_bfloat16_by_autocast():
    for config in NETWORKS:
        net = MODELS.build(config).eval()
        images = torch.rand(1, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            output = net(images)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), net(images), atol=0.1, rtol=0.1)
