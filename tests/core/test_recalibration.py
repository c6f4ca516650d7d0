"""Batch-norm statistics computed anew."""

import pytest
import torch
from torch import nn

from taskdistill.core.errors import ConfigError
from taskdistill.core.netaug import NetAug
from taskdistill.core.recalibration import batch_norms, recalibrate, statistics


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


BATCHES = [torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def test_statistics_are_those_computed_by_hand() -> None:
    net = network()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    assert recalibrate(net, BATCHES) == 3
    means, variances = [], []
    with torch.no_grad():
        for images in BATCHES:
            first = net[0](images)
            normal = (first - first.mean((0, 2, 3), keepdim=True)) / (
                first.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
            ).sqrt()
            affine = normal * net[1].weight[:, None, None] + net[1].bias[:, None, None]
            second = net[4](affine.relu())  # no dropout
            means.append((first.mean((0, 2, 3)), second.mean((0, 2, 3))))
            variances.append((first.var((0, 2, 3)), second.var((0, 2, 3))))
    for index, norm in enumerate((net[1], net[5])):
        mean = torch.stack([m[index] for m in means]).mean(0)
        variance = torch.stack([v[index] for v in variances]).mean(0)
        assert torch.allclose(norm.running_mean, mean, atol=1e-4)
        assert torch.allclose(norm.running_var, variance, rtol=1e-4)
        assert norm.num_batches_tracked == 3


def test_everything_else_stays() -> None:
    net = network()
    net[3].eval()
    net[5].momentum = None
    weights = {n: p.clone() for n, p in net.named_parameters()}
    state = torch.get_rng_state()
    recalibrate(net, BATCHES)
    assert net[1].momentum == 0.3 and net[5].momentum is None
    assert [m.training for m in net] == [True] * 3 + [False] + [True] * 5
    assert all(torch.equal(weights[n], p) and p.grad is None for n, p in net.named_parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_earlier_statistics_do_not_matter() -> None:
    net = network()
    recalibrate(net, BATCHES)
    first = statistics(net)
    net.train()(BATCHES[0] * 7)
    recalibrate(net, BATCHES)
    assert all(torch.equal(first[k], v) for k, v in statistics(net).items())


def test_a_failed_run_restores_momentum_and_modes() -> None:
    net = network().eval()
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.zeros(1, 4, 8, 8)])
    assert net[1].momentum == 0.3 and not net[1].training


def test_another_way_to_run_it() -> None:
    net = network()
    recalibrate(net, [(images, "label") for images in BATCHES], lambda batch: net(batch[0]))
    first = statistics(net)
    recalibrate(net, BATCHES)
    assert all(torch.equal(first[k], v) for k, v in statistics(net).items())


def test_no_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="no batch"):
        recalibrate(network(), [])


def test_a_norm_without_statistics_is_left_alone() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    assert batch_norms(net) == {} and recalibrate(net, BATCHES) == 3


def test_statistics_are_copies_under_the_names_of_the_state_dict() -> None:
    net = network()
    found = statistics(net)
    assert set(found) == {k for k in net.state_dict() if "running" in k or "num_batches" in k}
    net(BATCHES[0])
    assert found["1.running_mean"].eq(0).all()


@pytest.mark.parametrize("setting", [{}, {"0": 2.0, "4": 2.0}])
def test_of_an_augmented_network_those_of_the_setting(setting: dict[str, float]) -> None:
    netaug = NetAug(network(), width=(1.0, 2.0), expansion=(1.0,))
    netaug.apply(setting)
    recalibrate(netaug.network, BATCHES)
    # Wide statistics that nobody computed would stand in the way of this.
    twin = netaug.export(netaug.setting)
    recalibrate(twin, BATCHES)
    netaug.network.eval(), twin.eval()
    assert torch.allclose(netaug(BATCHES[0]), twin(BATCHES[0]), atol=1e-6)
    assert torch.allclose(
        statistics(netaug.network)["1.running_mean"][: len(twin[1].running_mean)],
        twin[1].running_mean,
        atol=1e-6,
    )
    # In training, other widths than the base still leave them alone.
    before = statistics(netaug.network)
    netaug.use_widest()
    netaug.network.train()(BATCHES[1])
    assert all(torch.equal(before[k], v) for k, v in statistics(netaug.network).items())
