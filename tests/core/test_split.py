from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core.errors import ConfigError, TapError
from taskdistill.core.split import split_at


class Stages(nn.Module):
    """Two stages with functions between them, a parameter of its own, and an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.stages = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = F.relu(self.conv(x)) * 2
        x = self.stages(x).mean((2, 3)) * self.scale
        if shift is not None:
            x = x + shift
        return self.fc(x)


def images(batch: int = 2, side: int = 7) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["conv", "stages", "stages.1", "fc"])
def test_the_halves_compute_what_the_network_does(name):
    net = Stages().eval()
    front, back = split_at(net, name)
    assert torch.equal(back(front(images())), net(images()))
    # What both hold is the network's, and together they hold all of it.
    assert back.get_submodule(name) is net.get_submodule(name)
    kept = {**front.state_dict(), **back.state_dict()}
    assert kept.keys() == net.state_dict().keys()
    assert len(front.state_dict()) + len(back.state_dict()) == len(kept)
    own = {id(p) for p in net.parameters()}
    assert {id(p) for half in (front, back) for p in half.parameters()} == own


def test_the_first_module_leaves_an_empty_front():
    front, back = split_at(Stages(), "conv")
    assert front(images()) is not None and not list(front.parameters())
    assert torch.equal(front(images()), images())
    assert back.get_parameter("scale") is not None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("resnet18", "layer3.1"),
        ("mobilenet_v2", "features.7"),
        ("densenet121", "features.transition2"),
        ("shufflenet_v2_x0_5", "stage3"),
        ("squeezenet1_1", "features.5"),
    ],
)
def test_networks_of_torchvision(kind, name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net = getattr(models, kind)(weights=None, num_classes=4).eval()
    front, back = split_at(net, name)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(back(front(x)), net(x))
    assert len(front.state_dict()) + len(back.state_dict()) == len(net.state_dict())


@pytest.mark.parametrize(
    ("kind", "name"), [("resnet18", "layer3"), ("mobilenetv3_small_050", "blocks.3")]
)
def test_networks_of_timm(kind, name):
    timm = pytest.importorskip("timm")
    net = timm.create_model(kind, num_classes=4).eval()
    front, back = split_at(net, name)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(back(front(x)), net(x))


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_chain_splits_anywhere(data):
    count = data.draw(st.integers(1, 6))
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(count)))
    index = data.draw(st.integers(0, count - 1))
    front, back = split_at(net, str(index))
    x = torch.randn(2, 3)
    assert torch.equal(back(front(x)), net(x))
    assert len(list(front.parameters())) == 2 * index


def test_halves_follow_the_networks_mode():
    net = Stages()
    front, back = split_at(net, "stages.1")
    net.train()
    torch.manual_seed(1)
    expected = copy.deepcopy(net)(images())
    torch.manual_seed(1)
    assert torch.equal(back(front(images())), expected)  # dropout, and statistics of the batch
    before = net.stages[1].running_mean.clone()
    back(front(images()))
    assert not torch.equal(net.stages[1].running_mean, before)
    net.eval()
    assert torch.equal(back(front(images())), back(front(images())))


def test_what_is_trained_in_a_half_is_trained_in_the_network():
    net = Stages()
    front, back = split_at(net, "stages")
    back(front(images()).detach()).sum().backward()
    assert net.conv.weight.grad is None
    assert net.fc.weight.grad is not None and net.scale.grad is not None
    with torch.no_grad():
        net.fc.bias += 1
    net.eval()
    assert torch.equal(back(front(images())), net(images()))


def test_hooks_on_the_called_modules_stay_there():
    net, seen = Stages(), []
    _, back = split_at(net, "stages")
    net.fc.register_forward_hook(lambda *_: seen.append("fc"))
    back(torch.randn(2, 4, 7, 7))
    assert seen == ["fc"]


def test_copies_share_nothing_with_the_original():
    net = Stages()
    pair = nn.ModuleDict(dict(net=net, back=split_at(net, "stages")[1]))
    twin = copy.deepcopy(pair)
    assert twin["back"].get_parameter("fc.weight") is twin["net"].get_parameter("fc.weight")
    assert twin["back"].get_parameter("fc.weight") is not net.fc.weight


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.d(self.c(self.b(y)) + y)


def test_a_cut_that_several_values_cross():
    told = "crossed by 2 values (the output of 'a', the output of 'b'); expected one"
    with pytest.raises(ConfigError, match=re.escape(told)) as error:
        split_at(Skip(), "c")
    assert "One value crosses at: a, b, d." in str(error.value)


def test_names():
    with pytest.raises(TapError, match=r"called 'stagse'. Did you mean 'stages'"):
        split_at(Stages(), "stagse")
    with pytest.raises(TapError, match="called ''"):
        split_at(Stages(), "")
    with pytest.raises(TapError, match="'unused' is never called"):
        split_at(Skip(), "unused")
    net = Skip()
    net.b = net.c
    with pytest.raises(TapError, match="'c' is called 2 times"):
        split_at(net, "c")


class Chooses(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if x.sum() > 0 else self.a(x)


class Drops(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x), training=self.training))


def test_what_cannot_be_split():
    with pytest.raises(ConfigError, match="Chooses cannot be traced down to 'b'"):
        split_at(Chooses(), "b")
    with pytest.raises(ConfigError, match="in training than in evaluation.*result of dropout"):
        split_at(Drops(), "b")
    # Inside of a module that is called as it is, either will do.
    net = nn.Sequential(Chooses(), nn.Linear(3, 2), Drops()).eval()
    net[2].a = nn.Linear(2, 3)
    front, back = split_at(net, "1")
    x = torch.ones(1, 3)
    assert torch.equal(back(front(x)), net(x))


def test_modes_are_left_as_they_were():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval(), nn.Linear(2, 2))
    before = [m.training for m in net.modules()]
    split_at(net, "0.1")
    assert [m.training for m in net.modules()] == before
