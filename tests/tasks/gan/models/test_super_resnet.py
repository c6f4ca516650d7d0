from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("mmengine")

from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from taskdistill.core.errors import ConfigError, ShapeError  # noqa: E402
from taskdistill.tasks.gan.models import (  # noqa: E402
    MobileResnetGenerator,
    SuperMobileResnetGenerator,
)

SPACE = [[6, 4, 2], [4, 3], [5, 3, 1], [2, 6], [4], [3, 5], [4, 2], [6, 3]]
MIXED = (4, 3, 3, 2, 4, 5, 2, 3)


def small(**options) -> SuperMobileResnetGenerator:
    torch.manual_seed(0)
    return SuperMobileResnetGenerator(SPACE, **{"blocks": 4, **options})


def example(height: int = 12, width: int = 20, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, height, width) * 2 - 1


# -- one network of the space ----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*map(st.sampled_from, SPACE)),
    st.integers(1, 9),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from(["instance", "none"]),
    st.sampled_from(["reflect", "replicate", "zero"]),
)
def test_a_slice_is_the_active_network(
    channels: tuple[int, ...], blocks: int, height: int, width: int, norm: str, padding: str
):
    net = SuperMobileResnetGenerator(
        SPACE, in_channels=2, out_channels=1, blocks=blocks, norm=norm, padding=padding
    )
    thin, images = net.slice(channels), example(4 * height, 4 * width, 2)
    assert type(thin) is MobileResnetGenerator and thin.channels == channels
    net.active = channels
    torch.testing.assert_close(thin(images), net(images), atol=1e-6, rtol=0)


def test_different_configurations_are_different_networks():
    net, images = small(), example()
    net.active = net.largest
    whole = net(images)
    net.active = net.smallest
    assert not torch.allclose(net(images), whole, atol=1e-3)
    net.active = net.largest
    assert torch.equal(net(images), whole)


def test_extremes_of_the_published_space(cost):
    space = [[32, 24, 16]] * 8

    def thin(which: str) -> MobileResnetGenerator:
        net = SuperMobileResnetGenerator(space)
        return MobileResnetGenerator(channels=getattr(net, which))

    assert cost(lambda: SuperMobileResnetGenerator(space)).parameters == 514_307
    assert cost(lambda: thin("largest")).parameters == 514_307
    assert cost(lambda: thin("smallest")).parameters == 137_347


def test_weights_load_both_ways():
    net, images = small(), example()
    mobile = MobileResnetGenerator(channels=net.largest, blocks=4)
    assert list(mobile.state_dict()) == list(net.state_dict())
    net.load_state_dict(mobile.state_dict(), strict=True)
    torch.testing.assert_close(net(images), mobile(images), atol=1e-6, rtol=0)
    nn.init.normal_(net.model[1].weight)
    mobile.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(net(images), mobile(images), atol=1e-6, rtol=0)


def test_a_slice_is_a_copy_in_the_same_mode_and_precision():
    net = small().double().eval()
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    thin = net.slice(MIXED)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net.active == net.largest
    assert not thin.training and all(p.dtype == torch.float64 for p in thin.parameters())
    assert all(p.requires_grad and p.is_leaf for p in thin.parameters())
    with torch.no_grad():
        for parameter in thin.parameters():
            parameter.add_(1.0)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert net.train().slice(MIXED).training


def test_a_slice_keeps_dropout():
    thin = small(dropout=0.25).slice(MIXED)
    assert {m.p for m in thin.modules() if isinstance(m, nn.Dropout)} == {0.25}


def test_the_first_channels_are_the_shared_ones():
    net = small()
    thin = net.slice(MIXED)
    assert torch.equal(thin.model[4].weight, net.model[4].weight[:6, :4])
    assert torch.equal(thin.model[4].bias, net.model[4].bias[:6])
    up, wide = thin.model[14], net.model[14]
    assert isinstance(up, nn.ConvTranspose2d)
    assert torch.equal(up.weight, wide.weight[:12, :4])


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_gradients_flow_into_the_slice_alone(norm: str):
    net = small(norm=norm).double()
    thin, images = net.slice(MIXED), example().double()
    net.active = MIXED
    net(images).square().sum().backward()
    thin(images).square().sum().backward()
    wide = dict(net.named_parameters())
    outside = 0
    for name, parameter in thin.named_parameters():
        whole = wide[name].grad
        assert whole is not None and whole.shape == wide[name].shape, name
        part = tuple(slice(n) for n in parameter.shape)
        torch.testing.assert_close(whole[part], parameter.grad, msg=name)
        rest = whole.clone()
        rest[part] = 0
        assert not rest.any(), name
        outside += rest.numel() - parameter.numel()
    assert outside > 0


def test_data_parallel_training_finds_no_unused_parameters(tmp_path: Path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        net = small()
        parallel = DistributedDataParallel(net)
        for channels in (net.largest, net.smallest, MIXED):
            net.active = channels
            parallel(example()).sum().backward()  # the next forward fails if one had no gradient
        assert all(p.grad is not None for p in net.parameters())
    finally:
        torch.distributed.destroy_process_group()


# -- how it runs -----------------------------------------------------------------------------------


def test_nothing_is_warned_about():
    net = small()
    net.active = net.smallest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(example())


@pytest.mark.parametrize("channels", [tuple(map(max, SPACE)), MIXED])
def test_autocast_is_that_of_the_slice(channels: tuple[int, ...]):
    net, images = small().eval(), example()
    net.active = channels
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = net(images), net.slice(channels)(images)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, atol=0.02, rtol=0)


def test_it_compiles_as_one_graph_and_follows_active():
    net, images = small(), example()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for channels in (net.largest, MIXED):
        net.active = channels
        torch.testing.assert_close(compiled(images), net(images))


def test_taps_see_the_active_widths():
    net, seen = small(), {}
    for name in ("7", "9", "10", "13", "19"):
        layer = net.model[int(name)]
        layer.register_forward_hook(lambda m, i, o, n=name: seen.__setitem__(n, o.shape[1]))
    net.active = MIXED
    net(example())
    assert seen == {"7": 12, "9": 12, "10": 12, "13": 12, "19": 3}


# -- configurations --------------------------------------------------------------------------------


def test_active_is_the_largest_in_the_beginning_and_not_saved():
    net = small()
    assert net.active == net.largest == (6, 4, 5, 6, 4, 5, 4, 6)
    assert net.smallest == (2, 3, 1, 2, 4, 3, 2, 3)
    assert net.space == tuple(map(tuple, SPACE))
    net.active = net.smallest
    assert not any("active" in name for name in net.state_dict())
    other = small()
    other.load_state_dict(net.state_dict(), strict=True)
    assert other.active == other.largest
    assert copy.deepcopy(net).active == net.smallest
    net.active = "4_3_3_2_4_5_2_3"
    assert net.active == MIXED
    assert "active=4_3_3_2_4_5_2_3" in repr(net)


def test_samples_are_uniform_and_repeatable():
    net = small()
    generator = random.Random(3)
    samples = [net.sample(generator) for _ in range(3000)]
    again = random.Random(3)
    assert samples == [net.sample(again) for _ in range(3000)]
    for stage, choices in enumerate(SPACE):
        counts = Counter(sample[stage] for sample in samples)
        assert set(counts) == set(choices)
        for count in counts.values():
            assert count == pytest.approx(3000 / len(choices), rel=0.1)
    assert net.active == net.largest


def test_what_is_not_in_the_space():
    net = small()
    for use in (net.slice, lambda channels: setattr(net, "active", channels)):
        with pytest.raises(ConfigError, match=r"down2 is 4, and the choices there are \[5, 3, 1\]"):
            use((4, 3, 4, 2, 4, 5, 2, 3))
        with pytest.raises(ConfigError, match="8 whole numbers"):
            use((4, 3))
    assert net.active == net.largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="batch"), "'instance' or 'none', got 'batch': running statistics"),
        (dict(norm="instanc"), "Did you mean 'instance'"),
        (dict(space=[[8]] * 6), "8 lists of widths"),
        (dict(blocks=0), "blocks must be"),
        (dict(dropout=1.5), "dropout must be"),
    ],
)
def test_what_cannot_be_built(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        SuperMobileResnetGenerator(**{"space": SPACE, "blocks": 1, **options})


def test_sizes_not_divisible_by_four():
    with pytest.raises(ShapeError, match="divisible by 4, got 10x12"):
        small()(torch.rand(1, 3, 10, 12))
