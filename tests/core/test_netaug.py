"""A network as the first channels of wider ones."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.core.netaug import NetAug, SlicedBatchNorm2d, SlicedConv2d, SlicedLinear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        BasicBlock(4, 4, 1),
        BasicBlock(4, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class Inverted(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, squeeze: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, 1, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.down, self.up = nn.Conv2d(middle, squeeze, 1), nn.Conv2d(squeeze, middle, 1)
        self.project = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.relu6(self.bn1(self.expand(x)))
        out = nn.functional.relu6(self.bn2(self.depthwise(out)))
        out = out * torch.sigmoid(self.up(torch.relu(self.down(out.mean((2, 3), keepdim=True)))))
        out = self.bn3(self.project(out))
        return x + out if self.residual else out


def mobilenet(stem: int = 4, middles=(12, 16), last: int = 6, squeeze=(2, 4)) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, stem, 3, 2, 1),
        Inverted(stem, middles[0], stem, squeeze[0]),
        Inverted(stem, middles[1], last, squeeze[1]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(last, 5),
    )


def vgg() -> nn.Module:
    """Flattened before it is pooled to one pixel, with a hidden layer and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 7),
        nn.BatchNorm1d(7),
        nn.ReLU(),
        nn.Linear(7, 5),
    )


NETWORKS = {"resnet": resnet, "mobilenet": mobilenet, "vgg": vgg}
WIDTH, EXPANSION = (1.0, 1.5, 2.25), (1.0, 1.5, 2.0)


def stir(network: nn.Module) -> nn.Module:
    """Statistics and affine weights that are not those a norm begins with."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor)
    return network


def augmented(kind: str) -> tuple[nn.Module, NetAug]:
    network = stir(NETWORKS[kind]())
    return network, NetAug(network, WIDTH, EXPANSION)


IMAGES = torch.rand(4, 3, 12, 12, generator=generator(5))


# -- the base -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_at_the_base_it_is_the_network(kind: str, mode: str) -> None:
    network, netaug = augmented(kind)
    for one in (network, netaug.network):
        one.train(mode == "train")
    theirs, ours = network(IMAGES), netaug(IMAGES)
    assert torch.allclose(ours, theirs, atol=1e-6)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    wide = dict(netaug.network.named_parameters())
    for name, parameter in network.named_parameters():
        part = wide[name].grad[tuple(slice(n) for n in parameter.shape)]
        assert torch.allclose(part, parameter.grad, atol=1e-5), name
        # Nothing outside of it.
        assert wide[name].grad.abs().sum() == pytest.approx(part.abs().sum().item())
    # Training moved the statistics alike.
    state = netaug.base_state()
    for name, value in network.state_dict().items():
        assert torch.allclose(state[name].float(), value.float(), atol=1e-6), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_given_network_is_untouched(kind: str) -> None:
    network = stir(NETWORKS[kind]())
    before = copy.deepcopy(network.state_dict())
    netaug = NetAug(network, WIDTH, EXPANSION)
    netaug.use_widest()
    netaug(IMAGES)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert type(network[0]) is nn.Conv2d


# -- wider ones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_wider_one_is_the_plain_network_built_so(mode: str) -> None:
    """Hand-built: the class with those channels, and the first of all weights."""
    _, netaug = augmented("mobilenet")
    stir(netaug.network)
    names = {"stem": "0", "middles": "1.expand", "second": "2.expand", "last": "2.project"}
    netaug.apply({names["stem"]: 1.5, names["middles"]: 2.0, names["last"]: 2.25})
    # What the blocks read is 1.5 times as wide: so are their middles, times their own.
    assert [netaug.active[names[n]] for n in names] == [6, 36, 24, 14]
    plain = mobilenet(6, (36, 24), 14, squeeze=(6, 6))
    assert (netaug.active["1.down"], netaug.active["2.down"]) == (6, 6)
    wide = netaug.network.state_dict()
    plain.load_state_dict(
        {k: wide[k][tuple(slice(n) for n in v.shape)] for k, v in plain.state_dict().items()}
    )
    for one in (plain, netaug.network):
        one.train(mode == "train")
    assert torch.allclose(netaug(IMAGES), plain(IMAGES), atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_any_setting_is_the_network_cut_out_of_it(kind: str, seed: int) -> None:
    _, netaug = augmented(kind)
    stir(netaug.network).eval()
    setting = netaug.sample(generator(seed))
    cut = netaug.export(setting)
    assert not any(type(m).__name__.startswith("Sliced") for m in cut.modules())
    assert torch.allclose(cut(IMAGES), netaug(IMAGES), atol=1e-6)


def test_the_widest_uses_every_weight() -> None:
    _, netaug = augmented("mobilenet")
    netaug.use_widest()
    netaug(IMAGES).square().sum().backward()
    shapes = {k: v.shape for k, v in netaug.export(netaug.setting).state_dict().items()}
    assert shapes == {k: v.shape for k, v in netaug.network.state_dict().items()}


def test_gradients_reach_the_active_slice_alone() -> None:
    _, netaug = augmented("resnet")
    netaug.apply({"0": 1.5})
    netaug(IMAGES).square().sum().backward()
    weight = netaug.network[0].weight
    assert weight.shape[0] == 9
    rows = weight.grad.flatten(1).abs().sum(1)
    assert (rows[:6] > 0).all() and (rows[6:] == 0).all()


def test_statistics_are_the_bases_own() -> None:
    _, netaug = augmented("resnet")
    before = netaug.base_state()
    netaug.use_widest()
    netaug(IMAGES)
    assert all(torch.equal(before[k], v) for k, v in netaug.base_state().items())
    netaug.use_base()
    netaug(IMAGES)
    assert not torch.equal(before["1.running_mean"], netaug.base_state()["1.running_mean"])


# -- channels -----------------------------------------------------------------------------------


def test_channels_of_the_authors_mobilenet_block() -> None:
    """Width: base times multiplier. Middle: ratio times multiplier times what is read."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), Inverted(16, 48, 16, 4), nn.Flatten(), nn.Linear(16 * 4, 2)
    )
    netaug = NetAug(network, width=(1.0, 1.8, 2.6), expansion=(1.0, 1.6, 2.2, 2.8))
    for width in (1.0, 1.8, 2.6):
        for expansion in (1.0, 1.6, 2.2, 2.8):
            netaug.apply({"0": width, "1.expand": expansion})
            stem = math.floor(16 * width + 0.5)
            assert netaug.active["0"] == stem
            assert netaug.active["1.expand"] == math.floor(3 * expansion * stem + 0.5 + 1e-9)


def test_a_divisor_rounds_what_it_divides() -> None:
    netaug = NetAug(resnet(), width=(1.0, 1.3), expansion=(1.0,), divisor=4)
    netaug.use_widest()
    # 5.2 and 10.4 to multiples of 4, never below the base.
    assert netaug.active["0"] == 4 and netaug.active["4.conv2"] == 12
    odd = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 2))
    netaug = NetAug(odd, width=(1.0, 1.3), expansion=(1.0,), divisor=4)
    netaug.use_widest()
    assert netaug.active["0"] == 7


# -- sampling -----------------------------------------------------------------------------------


def test_sampling_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    _, netaug = augmented("mobilenet")
    state = torch.get_rng_state()
    drawn = [netaug.sample(generator(3)), netaug.sample(generator(3)), netaug.sample(generator(4))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    first = netaug.sample()
    torch.manual_seed(1)
    assert netaug.sample() == first == netaug.setting


def test_every_multiplier_is_drawn_equally_often_and_by_itself() -> None:
    _, netaug = augmented("mobilenet")
    g = generator()
    drawn = [netaug.sample(g) for _ in range(600)]
    for name in drawn[0]:
        choices = netaug.expansion if netaug.groups[name].kind == "expansion" else netaug.width
        shares = [sum(d[name] == c for d in drawn) / len(drawn) for c in choices]
        assert shares == pytest.approx([1 / 3] * 3, abs=0.07), name
    pairs = {(d["1.expand"], d["2.expand"]) for d in drawn}
    assert len(pairs) == 9


def test_expansions_alone_and_widths_alone() -> None:
    _, netaug = augmented("mobilenet")
    g = generator()
    for width, expansion in ((False, True), (True, False)):
        kept = "width" if expansion else "expansion"
        drawn = [netaug.sample(g, width=width, expansion=expansion) for _ in range(20)]
        for name, group in netaug.groups.items():
            if group.kind == kept:
                assert {d[name] for d in drawn} == {1.0}
            elif group.kind != "fixed" and name in drawn[0]:
                assert {d[name] for d in drawn} != {1.0}


def test_it_comes_back_to_the_setting_before_also_after_an_error() -> None:
    _, netaug = augmented("resnet")
    netaug.apply({"0": 1.5})
    before = netaug.setting
    with pytest.raises(RuntimeError), netaug.restored():
        netaug.use_widest()
        assert netaug.setting != before
        raise RuntimeError
    assert netaug.setting == before


def test_unknown_settings_are_refused() -> None:
    _, netaug = augmented("resnet")
    with pytest.raises(ConfigError, match=r"no group '3.conv2'.*Did you mean .*'3.conv1'"):
        netaug.apply({"3.conv2": 1.5})  # it is added to the stem, and goes by that name
    with pytest.raises(ConfigError, match=r"'0' has the multipliers \[1.0, 1.5, 2.25\], not 3"):
        netaug.apply({"0": 3})


# -- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_base_state_is_the_plain_networks(kind: str) -> None:
    network, netaug = augmented(kind)
    state = netaug.base_state()
    theirs = network.state_dict()
    assert list(state) == list(theirs)
    assert all(torch.equal(state[k], v) for k, v in theirs.items())
    # Copies: a file does not drag the wide weights along.
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in state.values())
    NETWORKS[kind]().load_state_dict(state, strict=True)


def test_loading_a_base_leaves_what_is_around_it() -> None:
    _, netaug = augmented("resnet")
    other = resnet()
    before = copy.deepcopy(netaug.wide_state())
    netaug.load_base_state(other.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in netaug.base_state().items())
    assert torch.equal(netaug.wide_state()["0.weight"][4:], before["0.weight"][4:])


def test_a_state_of_something_else_is_refused_whole() -> None:
    _, netaug = augmented("resnet")
    before = netaug.base_state()
    state = resnet().state_dict()
    del state["0.weight"]
    state["0.bias"] = torch.zeros(4)
    state["7.weight"] = torch.zeros(5, 9)
    with pytest.raises(
        CheckpointError, match="0.weight is missing; 0.bias is unexpected; 7.weight"
    ):
        netaug.load_base_state(state)
    assert all(torch.equal(before[k], v) for k, v in netaug.base_state().items())


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_export_is_plain_and_its_own(kind: str) -> None:
    network, netaug = augmented(kind)
    netaug.use_widest()
    out = netaug.export()
    assert [type(m) for m in out.modules()] == [type(m) for m in network.modules()]
    assert repr(out) == repr(network)
    out.eval(), network.eval()
    assert torch.equal(out(IMAGES), network(IMAGES))
    wide = {t.data_ptr() for t in netaug.wide_state().values()}
    assert not wide & {t.data_ptr() for t in out.state_dict().values()}
    out(IMAGES).sum().backward()  # it can be trained on


def test_the_weights_around_are_drawn_as_a_wide_layer_draws_them() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 2)
    )
    netaug = NetAug(network, width=(1.0, 3.0), expansion=(1.0,))
    layer = netaug.network[1]
    assert isinstance(layer, SlicedConv2d)
    new = layer.weight[64:].detach()
    bound = 1 / math.sqrt(192 * 9)  # torch's, of the wide layer's inputs
    assert new.abs().max() <= bound and new.std().item() == pytest.approx(
        bound / math.sqrt(3), rel=0.02
    )
    norm = NetAug(resnet(), WIDTH).network[1]
    assert isinstance(norm, SlicedBatchNorm2d)
    assert norm.weight[4:].eq(1).all() and norm.bias[4:].eq(0).all()


def test_module_names_modes_and_frozen_parameters_are_kept() -> None:
    network = resnet()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    netaug = NetAug(network, WIDTH)
    assert [n for n, _ in netaug.network.named_modules()] == [n for n, _ in network.named_modules()]
    assert not netaug.network[1].training and netaug.network[0].training
    assert not netaug.network[0].weight.requires_grad
    assert not netaug.export()[0].weight.requires_grad


def test_a_copy_is_steered_by_its_own() -> None:
    """As an average of weights copies a whole model."""
    _, netaug = augmented("resnet")
    twin = copy.deepcopy(netaug)
    twin.use_widest()
    assert twin.network[0].active == 9 and netaug.network[0].active == 4
    assert twin.network[0].weight is not netaug.network[0].weight


def test_two_passes_in_one_step_add_their_gradients() -> None:
    _, netaug = augmented("resnet")
    grads = []
    for both in (True, False):
        netaug.network.zero_grad()
        total = netaug(IMAGES).square().mean()
        netaug.use_widest()
        wide = netaug(IMAGES).square().mean()
        netaug.use_base()
        if both:
            (total + wide).backward()
        else:
            total.backward()
            wide.backward()
        grads.append(netaug.network[3].conv1.weight.grad.clone())
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_half_precision_and_double() -> None:
    network = resnet().double()
    netaug = NetAug(network, WIDTH)
    assert netaug(IMAGES.double()).dtype == torch.float64
    network = resnet()
    netaug = NetAug(network, WIDTH)
    netaug.use_widest()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(netaug(IMAGES)).all()


def test_a_norm_that_carries_its_activation() -> None:
    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        layers.BatchNormAct2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        layers.Linear(4, 2),
    )
    netaug = NetAug(network, WIDTH)
    theirs = network(IMAGES)
    assert torch.allclose(netaug(IMAGES), theirs, atol=1e-6)
    assert type(netaug.export()[1]) is layers.BatchNormAct2d
    assert "1.act" in dict(netaug.network.named_modules())


# -- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [(), (0.5, 1.0), (1.0, math.inf), ("2",), "wide", (True,), 2.0])
def test_wrong_multipliers(wrong: object) -> None:
    with pytest.raises(ConfigError, match="width is"):
        NetAug(resnet(), width=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expansion is"):
        NetAug(resnet(), expansion=wrong)  # type: ignore[arg-type]


def test_multipliers_that_widen_nothing() -> None:
    """The default of the authors' config file, which trains a plain network twice."""
    with pytest.raises(ConfigError, match="widen nothing of Sequential"):
        NetAug(resnet(), width=(1.0,), expansion=(1.0,))
    with pytest.raises(ConfigError, match=r"\(3 widths and 0 expansions\)"):
        NetAug(vgg(), width=(1.0,), expansion=(1.0, 2.0))


@pytest.mark.parametrize("divisor", [0, 1.5, True])
def test_wrong_divisor(divisor: object) -> None:
    with pytest.raises(ConfigError, match="divisor"):
        NetAug(resnet(), divisor=divisor)  # type: ignore[arg-type]


def test_shared_weights_are_refused() -> None:
    network = resnet()
    network[3].conv2.weight = network[3].conv1.weight
    with pytest.raises(
        ConfigError, match="'3.conv2.weight' and '3.conv1.weight' are one parameter"
    ):
        NetAug(network)


def test_a_linear_layer_takes_what_comes() -> None:
    layer = SlicedLinear(nn.Linear(4, 3), 8, 6)
    layer.active = 5
    found = layer(torch.ones(1, 6))
    assert torch.allclose(found, layer.weight[:5, :6].sum(1) + layer.bias[:5], atol=1e-6)


# -- networks of torchvision --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_small", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_networks_of_torchvision(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = stir(getattr(torchvision.models, name)(num_classes=5)).eval()
    netaug = NetAug(network, width=(1.0, 1.25), expansion=(1.0, 1.5))
    images = torch.rand(1, 3, 32, 32)
    assert torch.allclose(netaug(images), network(images), atol=1e-6)
    setting = netaug.sample(generator(1))
    assert torch.allclose(netaug.export(setting)(images), netaug(images), atol=1e-6)


def test_a_network_of_timm() -> None:
    timm = pytest.importorskip("timm")
    network = stir(timm.create_model("mobilenetv3_small_050", num_classes=5)).eval()
    netaug = NetAug(network, width=(1.0, 1.25), expansion=(1.0, 1.5))
    images = torch.rand(1, 3, 32, 32)
    assert torch.allclose(netaug(images), network(images), atol=1e-5)


# -- training -----------------------------------------------------------------------------------


def test_training_with_it_teaches_the_base() -> None:
    """Coloured squares: the base that is cut out knows them, without recalibration."""
    g = generator()
    labels = torch.randint(3, (96,), generator=g)
    images = torch.rand(96, 3, 12, 12, generator=g) * 0.5
    images[torch.arange(96), labels, 3:9, 3:9] += 0.6
    network = nn.Sequential(*resnet()[:-1], nn.Linear(8, 3))
    netaug = NetAug(network, WIDTH, EXPANSION)
    optimizer = torch.optim.SGD(netaug.network.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        batch = torch.randint(96, (32,), generator=g)
        netaug.use_base()
        loss = nn.functional.cross_entropy(netaug(images[batch]), labels[batch])
        netaug.sample(generator(step))
        loss = loss + nn.functional.cross_entropy(netaug(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    base = netaug.export().eval()
    assert (base(images).argmax(1) == labels).float().mean() > 0.9
