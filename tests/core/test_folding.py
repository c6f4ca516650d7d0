from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskdistill.core.folding import find_foldable, fold_batch_norms


def settled(network: nn.Module) -> nn.Module:
    """With statistics and factors that are not those of a new norm; in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                module.weight.data.uniform_(-2.0, 2.0)
                module.bias.data.normal_()
    return network.eval()


def folded(network: nn.Module, *inputs: Tensor, keep=()) -> tuple[nn.Module, list]:
    pairs = find_foldable(network, lambda: network(*inputs), keep)
    made = copy.deepcopy(network)
    fold_batch_norms(made, pairs)
    return made, pairs


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3, bias=False), nn.BatchNorm1d(4), (2, 3, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6), (2, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(4), (2, 4, 5, 6)),
        (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3, eps=0.1), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), nn.BatchNorm2d(5), (2, 3, 4, 4)),
        (nn.Linear(5, 7), nn.BatchNorm1d(7), (3, 5)),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), (2, 3, 4, 4)),
        (nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), (2, 3, 4, 4)),
    ],
)
def test_a_folded_layer_gives_what_the_norm_gave(layer, norm, shape):
    network = settled(nn.Sequential(layer, norm, nn.ReLU(inplace=True))).double()
    inputs = torch.randn(shape, dtype=torch.float64)
    made, pairs = folded(network, inputs)
    assert pairs == [("0", "1")]
    assert type(made[1]) is nn.Identity and type(network[1]) is type(norm)  # type: ignore[index]
    torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-10, atol=1e-12)


def test_a_network_through_and_through():
    torchvision = pytest.importorskip("torchvision")
    network = settled(torchvision.models.resnet18())
    image = torch.randn(1, 3, 64, 64)
    made, pairs = folded(network, image)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(pairs) == len(norms) == 20
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    torch.testing.assert_close(made(image), network(image), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tap", [("0", "output"), ("0", "weight"), ("1", "input"), ("1", "weight")])
def test_what_is_tapped_stays(tap):
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert folded(network, torch.randn(1, 3, 4, 4), keep=[tap])[1] == []


@pytest.mark.parametrize("tap", [("0", "input"), ("1", "output"), ("2", "output"), ("", "output")])
def test_other_taps_are_no_obstacle(tap):
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    assert folded(network, torch.randn(1, 3, 4, 4), keep=[tap])[1] == [("0", "1")]


class Shared(nn.Module):
    """One convolution over two levels, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        return sum(norm(self.conv(x)) for norm in self.norms)  # type: ignore[return-value]


class Standardised(nn.Conv2d):
    """Its weights are not what it convolves with."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight / self.weight.std()
        return F.conv2d(input, weight, self.bias)


class Between(nn.Module):
    """Something lies between the layer and the norm that no module says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu())


@pytest.mark.parametrize(
    "network",
    [
        Shared(),
        Between(),
        nn.Sequential(Standardised(3, 4, 1, bias=True), nn.BatchNorm2d(4)),
        nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)
        ),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)),
    ],
    ids=lambda network: type(network).__name__ + "-" + type(next(network.children())).__name__,
)
def test_what_cannot_be_folded_is_left_alone(network):
    settled(network)
    image = torch.randn(2, 3, 5, 5)
    made, pairs = folded(network, image)
    assert pairs == []
    assert torch.equal(made(image), network(image))


def test_a_module_under_two_names_is_replaced_in_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.block = nn.Sequential(self.conv, self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    network = settled(Twice())
    image = torch.randn(1, 3, 4, 4)
    made, pairs = folded(network, image)
    assert len(pairs) == 1
    torch.testing.assert_close(made(image), network(image))
    torch.testing.assert_close(made.block(image), network(image))


def test_no_hook_stays_behind():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    made, _ = folded(network, torch.randn(1, 3, 4, 4))
    for module in (*network.modules(), *made.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_weights_of_the_original_are_not_touched():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    memo: dict = {id(t): t for t in (*network.parameters(), *network.buffers())}
    sharing = copy.deepcopy(network, memo)
    fold_batch_norms(sharing, [("0", "1")])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_folded_network_can_be_hooked():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    made, _ = folded(network, torch.randn(1, 3, 4, 4))
    seen = []
    for module in made:  # type: ignore[attr-defined]
        module.register_forward_hook(lambda *_: seen.append(1))
    made(torch.randn(1, 3, 4, 4))
    assert len(seen) == 2
