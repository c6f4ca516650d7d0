from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.gan.models import (  # noqa: E402
    MobileResnetGenerator,
    PatchDiscriminator,
    ResnetGenerator,
    SuperMobileResnetGenerator,
    transfer_channels,
)
from taskdistill.tasks.gan.models.mobile_resnet import MobileResnetBlock  # noqa: E402

Generator = ResnetGenerator | MobileResnetGenerator | SuperMobileResnetGenerator

WIDE = (6, 5, 4, 7, 3, 5, 4, 6)
THIN = (3, 4, 2, 5, 3, 2, 3, 4)


def shaken(model: Generator, seed: int = 0) -> Generator:
    """With weights, biases and statistics that are all different.

    In double precision: without a norm the maps are large, and so are roundings.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return model.double().eval()


def mobile(channels=WIDE, **options) -> MobileResnetGenerator:
    return MobileResnetGenerator(channels=channels, **{"blocks": 4, **options})


def resnet(width: int = 4, **options) -> ResnetGenerator:
    return ResnetGenerator(width=width, **{"blocks": 3, **options})


def supernet(channels=WIDE, **options) -> SuperMobileResnetGenerator:
    return SuperMobileResnetGenerator([[c] for c in channels], **{"blocks": 4, **options})


def images(channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, channels, 12, 20, generator=generator).double() * 2 - 1


def importance(conv: nn.Module) -> torch.Tensor:
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    dims = (0, 2, 3) if isinstance(conv, nn.ConvTranspose2d) else (1, 2, 3)
    return conv.weight.detach().abs().sum(dims)


def second(block: nn.Module) -> nn.Module:
    """The layer that gives a block's output."""
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1]


def stream_importance(model: Generator) -> torch.Tensor:
    return sum((importance(second(block)) for block in blocks(model)), importance(model.model[7]))


def blocks(model: Generator) -> list[nn.Module]:
    return [layer for layer in model.model if hasattr(layer, "conv_block")]


# -- equal widths: the same function ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (lambda: mobile(), lambda: mobile()),
        (lambda: mobile(), lambda: supernet()),
        (lambda: supernet(), lambda: mobile()),
        (lambda: supernet(), lambda: supernet()),
        (lambda: mobile(norm="batch"), lambda: mobile(norm="batch")),
        (lambda: mobile(norm="none"), lambda: supernet(norm="none")),
        (lambda: mobile(legacy=True), lambda: mobile(legacy=True)),
        (lambda: mobile(padding="zero"), lambda: mobile(padding="zero")),
        (lambda: resnet(), lambda: resnet()),
        (lambda: resnet(norm="batch"), lambda: resnet(norm="batch")),
        (lambda: resnet(norm="none"), lambda: resnet(norm="none", dropout=0.5)),
        (lambda: resnet(dropout=0.5), lambda: resnet()),
        (
            lambda: resnet(in_channels=1, out_channels=2),
            lambda: resnet(in_channels=1, out_channels=2),
        ),
    ],
)
def test_at_equal_widths_the_function_is_the_same(source, target):
    wide, same = shaken(source()), shaken(target(), seed=5)
    state = copy.deepcopy(wide.state_dict())
    x = images(wide.in_channels)
    assert not torch.allclose(same(x), wide(x), atol=1e-2)
    transfer_channels(wide, same)
    torch.testing.assert_close(same(x), wide(x), atol=1e-7, rtol=0)
    for name, value in wide.state_dict().items():
        assert torch.equal(value, state[name]), name
    # It is another order of the channels, most important ones first.
    assert not torch.equal(same.model[1].weight, wide.model[1].weight)


@pytest.mark.parametrize("build", [mobile, resnet, supernet])
def test_most_important_channels_come_first(build):
    wide, same = shaken(build()), build()
    transfer_channels(wide, same)
    free = [layer for layer in same.model if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    for layer in (free[0], free[1], free[3], free[4]):
        found = importance(layer)
        assert torch.all(found[:-1] >= found[1:] - 1e-5)
    found = stream_importance(same)
    assert torch.all(found[:-1] >= found[1:] - 1e-5)
    for block in blocks(same):
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        found = importance(convs[1] if isinstance(block, MobileResnetBlock) else convs[0])
        assert torch.all(found[:-1] >= found[1:] - 1e-5)


# -- narrower --------------------------------------------------------------------------------------


def test_the_kept_filters_are_those_of_the_largest_sum():
    wide, thin = shaken(mobile()), mobile(THIN)
    transfer_channels(wide, thin)
    stem = importance(wide.model[1]).topk(THIN[0]).indices
    assert torch.equal(thin.model[1].weight, wide.model[1].weight[stem])
    assert torch.equal(thin.model[1].bias, wide.model[1].bias[stem])
    down1 = importance(wide.model[4]).topk(2 * THIN[1]).indices
    assert torch.equal(thin.model[4].weight, wide.model[4].weight[down1][:, stem])
    stream = stream_importance(wide).topk(4 * THIN[2]).indices
    assert torch.equal(thin.model[7].weight, wide.model[7].weight[stream][:, down1])
    for place in range(4):
        from_, to = (m.model[10 + place].conv_block for m in (wide, thin))
        inner = importance(from_[1].conv[2]).topk(to[1].conv[2].out_channels).indices
        assert torch.equal(to[1].conv[0].weight, from_[1].conv[0].weight[stream])
        assert torch.equal(to[1].conv[2].weight, from_[1].conv[2].weight[inner][:, stream])
        assert torch.equal(to[6].conv[0].weight, from_[6].conv[0].weight[inner])
        assert torch.equal(to[6].conv[2].weight, from_[6].conv[2].weight[stream][:, inner])
        assert torch.equal(to[6].conv[2].bias, from_[6].conv[2].bias[stream])
    up1 = importance(wide.model[14]).topk(2 * THIN[6]).indices
    assert torch.equal(thin.model[14].weight, wide.model[14].weight[stream][:, up1])
    up2 = importance(wide.model[17]).topk(THIN[7]).indices
    assert torch.equal(thin.model[17].weight, wide.model[17].weight[up1][:, up2])
    assert torch.equal(thin.model[21].weight, wide.model[21].weight[:, up2])
    assert torch.equal(thin.model[21].bias, wide.model[21].bias)


def silence(conv: nn.Module, keep: int, seed: int) -> None:
    """All but some output channels of a layer become zero."""
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    gone = torch.randperm(conv.out_channels, generator=torch.Generator().manual_seed(seed))[keep:]
    weight = (
        conv.weight.data.transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else conv.weight
    )
    weight.data[gone] = 0
    if conv.bias is not None:
        conv.bias.data[gone] = 0


def silence_all(wide: Generator, thin: Generator) -> None:
    pairs = list(zip(wide.model, thin.model, strict=True))
    for index, (from_, to) in enumerate(pairs[:-2]):
        if isinstance(from_, nn.Conv2d | nn.ConvTranspose2d):
            silence(from_, to.out_channels, seed=index)
        elif hasattr(from_, "conv_block"):
            silence(second(from_), second(to).out_channels, seed=7)  # as down2, at index 7
            first, other = (
                [m for m in b.modules() if isinstance(m, nn.Conv2d)][len(blocks_convs(b)) // 2 - 1]
                for b in (from_, to)
            )
            silence(first, other.out_channels, seed=index)


def blocks_convs(block: nn.Module) -> list[nn.Module]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (lambda: mobile(), lambda: mobile(THIN)),
        (lambda: mobile(), lambda: supernet(THIN)),
        (lambda: supernet(), lambda: mobile(THIN, legacy=False)),
        (lambda: resnet(4), lambda: resnet(3)),
        (lambda: resnet(4, norm="none"), lambda: resnet(1, norm="none")),
        (lambda: resnet(5), lambda: resnet(2, dropout=0.5)),
    ],
)
def test_channels_that_do_nothing_are_the_ones_to_go(source, target):
    wide, thin = shaken(source()), shaken(target(), seed=5)
    silence_all(wide, thin)
    transfer_channels(wide, thin)
    x = images()
    assert wide(x).std() > 0.05
    torch.testing.assert_close(thin(x), wide(x), atol=1e-7, rtol=0)


def test_running_statistics_follow():
    wide, thin = shaken(mobile(norm="batch")), mobile(THIN, norm="batch")
    wide.model[2].num_batches_tracked.fill_(9)
    transfer_channels(wide, thin)
    stem = importance(wide.model[1]).topk(THIN[0]).indices
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(thin.model[2], name), getattr(wide.model[2], name)[stem])
    assert thin.model[2].num_batches_tracked == 9


def test_a_super_network_is_filled_to_its_largest():
    wide = shaken(mobile())
    net = SuperMobileResnetGenerator(
        [sorted({a, b}) for a, b in zip(WIDE, THIN, strict=True)], blocks=4
    )
    net.double()
    net.active = net.smallest
    transfer_channels(wide, net)
    assert net.active == net.smallest == THIN
    net.active = net.largest
    torch.testing.assert_close(net(images()), wide(images()), atol=1e-7, rtol=0)
    # Its first channels are what a thin generator would have got.
    thin = mobile(THIN).double()
    transfer_channels(wide, thin)
    for name, value in net.slice(THIN).state_dict().items():
        torch.testing.assert_close(value, thin.state_dict()[name], msg=name)


def test_parameters_stay_the_same_objects_and_leaves():
    """An optimizer that was built before goes on with them."""
    wide, thin = mobile(), mobile(THIN).double()
    before = list(thin.parameters())
    transfer_channels(wide, thin)
    for a, b in zip(before, thin.parameters(), strict=True):
        assert a is b and a.requires_grad and a.is_leaf and a.dtype == torch.float64


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (mobile(), resnet(blocks=4), "from MobileResnetGenerator to ResnetGenerator. Both must"),
        (resnet(blocks=4), supernet(), "from ResnetGenerator to SuperMobileResnetGenerator"),
        (PatchDiscriminator(width=2), PatchDiscriminator(width=2), "from PatchDiscriminator to"),
        (mobile(blocks=3), mobile(THIN), r"blocks is 3 and 4 \(source and target\)"),
        (mobile(norm="batch"), mobile(THIN), "norm is 'batch' and 'instance'"),
        (mobile(padding="zero"), mobile(THIN), "padding is 'zero' and 'reflect'"),
        (
            mobile(in_channels=1),
            mobile(THIN, out_channels=1),
            "in_channels is 1 and 3; out_channels is 3 and 1",
        ),
        (
            resnet(2),
            resnet(4),
            "wider than the source: model.1 has 4 output channels, the source 2",
        ),
        (resnet(2), resnet(4), "and 5 more"),
        (mobile(), supernet((6, 5, 4, 7, 3, 6, 4, 6)), "model.12 inside has 24 .* the source 20"),
    ],
)
def test_what_does_not_fit(source, target, message: str):
    state = copy.deepcopy(target.state_dict())
    with pytest.raises(ConfigError, match=message):
        transfer_channels(source, target)
    for name, value in target.state_dict().items():
        assert torch.equal(value, state[name]), name
