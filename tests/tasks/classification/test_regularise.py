from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from torch import nn

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.taps import Taps
from taskdistill.tasks.classification.regularise import add_drops


class Head(nn.Module):
    """Two linear layers, of which the last is the classifier's."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.hidden = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.hidden(self.maps(x)))


def dropped(kind: str, shape, seed: int = 0, **options) -> torch.Tensor:
    """What is left of ones."""
    network = nn.Sequential(nn.Identity())
    add_drops(network, [dict(type=kind, at="0", **options)])
    torch.manual_seed(seed)
    return network(torch.ones(shape))


def test_dropout_goes_before_the_last_linear_layer(tiny_network):
    network = Head()
    add_drops(network, [dict(type="Dropout", p=0.5)])
    seen = []
    network.fc.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    hidden = []
    network.hidden.register_forward_hook(lambda m, args, out: hidden.append(out))
    torch.manual_seed(1)
    network(torch.ones(100, 4))
    torch.manual_seed(1)
    torch.testing.assert_close(seen[0], F.dropout(hidden[0], 0.5))


@pytest.mark.parametrize("kind", ["Dropout", "SpatialDropout", "DropBlock"])
def test_it_rests_in_eval_mode_and_leaves_the_state_dict_alone(tiny_network, kind):
    before = list(tiny_network.state_dict())
    images = torch.randn(2, 3, 8, 8)
    expected = tiny_network.eval()(images)
    add_drops(tiny_network, [dict(type=kind, p=0.5, at=["layer1", "layer2"])])
    assert list(tiny_network.state_dict()) == before
    assert torch.equal(tiny_network(images), expected)
    tiny_network.layer1.train()
    assert not torch.equal(tiny_network(images), tiny_network(images))
    # It is the module's own mode that counts: its owner may hold it in eval mode.
    tiny_network.layer1.eval()
    tiny_network.fc.train()
    assert torch.equal(tiny_network(images), expected)


def test_it_repeats_itself_by_the_seed(tiny_network):
    add_drops(tiny_network, [dict(type="Dropout"), dict(type="DropBlock", at="layer1", p=0.3)])
    images = torch.randn(2, 3, 8, 8)
    tiny_network.bn1.eval()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(tiny_network(images))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_drops_by_itself(again):
    network = Head()
    add_drops(network, [dict(type="Dropout", p=0.7), dict(type="Dropout", p=0.7, at="maps")])
    other = again(network)
    network.eval()
    images = torch.ones(50, 4)
    assert torch.equal(network(images), network(images))
    assert not torch.equal(other(images), other(images))
    assert torch.equal(other.eval()(images), network(images))


def test_spatial_dropout_takes_whole_maps():
    left = dropped("SpatialDropout", (20, 10, 3, 5), p=0.4).flatten(2)
    assert (left == left[..., :1]).all()
    assert set(left.unique().tolist()) == {0.0, left.max().item()}
    assert left.max().item() == pytest.approx(1 / 0.6)
    assert (left[..., 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.1)
    assert left[..., 0].sum(1).unique().numel() > 1  # each image for itself


def test_drop_block_takes_squares():
    """With next to no seeds there is one block or none in a map."""
    left = dropped("DropBlock", (50, 4, 16, 16), p=0.02, block_size=5)
    holes = (left == 0).flatten(0, 1)
    found = [hole.nonzero() for hole in holes if hole.sum() == 25]
    assert found
    for places in found:
        spans = places.max(0).values - places.min(0).values
        assert spans.tolist() == [4, 4]
    # What is left is scaled so that the mean stays.
    assert left.mean().item() == pytest.approx(1.0, abs=1e-5)


def test_drop_block_takes_about_p_of_the_pixels():
    left = dropped("DropBlock", (200, 8, 14, 14), p=0.1, block_size=7)
    assert (left == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)


@given(height=st.integers(1, 9), width=st.integers(1, 9), block=st.sampled_from([1, 3, 5, 7]))
def test_a_block_is_cut_to_the_map(height: int, width: int, block: int):
    left = dropped("DropBlock", (2, 3, height, width), p=0.3, block_size=block)
    assert left.shape == (2, 3, height, width) and left.isfinite().all()


def test_drop_block_counts_in_half_precision_maps():
    network = nn.Sequential(nn.Identity())
    add_drops(network, [dict(type="DropBlock", at="0", p=0.1)])
    left = network(torch.ones(8, 64, 20, 20, dtype=torch.float16))  # more than fp16's largest
    assert left.dtype == torch.float16
    assert left.float().mean().item() == pytest.approx(1.0, abs=1e-2)


def test_a_ramp_rises_with_the_epochs():
    network = nn.Sequential(nn.Identity())
    add_drops(network, [dict(type="Dropout", at="0", p=0.8, ramp=4)])
    hub, shares = MessageHub.get_current_instance(), []
    for epoch in (0, 2, 4, 9):
        hub.update_info("epoch", epoch)
        shares.append((network(torch.ones(20000)) == 0).float().mean().item())
    assert shares == pytest.approx([0.0, 0.4, 0.8, 0.8], abs=0.02)


def test_globs_and_inputs(tiny_network):
    add_drops(tiny_network, [dict(type="Dropout", p=0.999, at=["layer*", "bn1@input"])])
    with Taps(tiny_network, ["layer1", "layer2", "bn1@input", "conv1"]).capture() as seen:
        tiny_network(torch.randn(2, 3, 8, 8))
    zeros = {name: (seen.tensors(name)[0] == 0).float().mean() for name in ("layer1", "layer2")}
    assert all(share > 0.9 for share in zeros.values())
    assert (seen.tensors("bn1@input")[0] == 0).float().mean() > 0.9
    assert (seen.tensors("conv1")[0] == 0).float().mean() < 0.1


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (dict(type="Dropuot"), "none of Dropout, .* Did you mean 'Dropout'"),
        (dict(p=0.5), "type='None'"),
        (dict(type="Dropout", probability=0.5), "Dropout has no 'probability'"),
        (dict(type="Dropout", rank=4), "Dropout has no 'rank'"),
        (dict(type="Dropout", p=1.0), "p=1.0; expected a number from 0 to below 1"),
        (dict(type="Dropout", p="half"), "p='half'"),
        (dict(type="Dropout", ramp=-1), "ramp=-1"),
        (dict(type="Dropout", at="layr1"), "Did you mean 'layer1'"),
        (dict(type="Dropout", at="layer1[0]"), r"without \[...\]"),
        (dict(type="DropBlock"), "DropBlock in drops needs 'at'"),
        (dict(type="DropBlock", at="layer1", block_size=4), "block_size=4"),
    ],
)
def test_mistakes_change_nothing(tiny_network, drop, message):
    with pytest.raises(ConfigError, match=message):
        add_drops(tiny_network, [dict(type="Dropout", at="layer1"), drop])
    assert not tiny_network.layer1._forward_hooks


def test_a_network_without_a_linear_layer_needs_a_place():
    with pytest.raises(ConfigError, match="needs 'at'"):
        add_drops(nn.Sequential(nn.Conv2d(3, 2, 1)), [dict(type="Dropout")])


@pytest.mark.parametrize("kind", ["SpatialDropout", "DropBlock"])
def test_maps_are_told_from_vectors(tiny_network, kind):
    add_drops(tiny_network, [dict(type=kind, at="fc")])
    with pytest.raises(ShapeError, match=r"needs maps \(B, C, H, W\).*Linear it got \(2, 3\)"):
        tiny_network(torch.zeros(2, 3, 8, 8))
