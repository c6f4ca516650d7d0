"""Numbers as distributions over bins: identities, a slow reference, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.losses import DistributionFocalLoss

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.tasks.detection.heads import Bins, is_binned
from taskdistill.tasks.detection.heads.bins import (
    bins_for_deltas,
    build_bins,
    distribution_loss,
)


@pytest.mark.parametrize("low,high,count", [(-1, 1, 17), (0, 16, 17), (-2.5, 4, 9), (0, 1, 2)])
def test_one_bin_alone_says_its_value(low, high, count):
    bins = Bins(low, high, count=count)
    certain = torch.eye(count).mul(200)  # the softmax of row i is one-hot at i
    torch.testing.assert_close(bins.expect(certain), bins.values)
    torch.testing.assert_close(bins.values[[0, -1]], torch.tensor([low, high]).float())
    torch.testing.assert_close(
        bins.values.diff(), torch.full((count - 1,), (high - low) / (count - 1))
    )
    middle = bins.expect(torch.zeros(3, 4, count))
    torch.testing.assert_close(middle, torch.full((3, 4), (low + high) / 2))


def test_expectation_is_the_sum_over_bins():
    bins = Bins(-3, 5, count=6)
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    found = bins.expect(logits)
    for i in range(2):
        for edge in range(4):
            weights = [math.exp(z) for z in logits[i, edge].tolist()]
            slow = sum(w * (-3 + 1.6 * k) for k, w in enumerate(weights)) / sum(weights)
            assert found[i, edge].item() == pytest.approx(slow, rel=1e-5)


def test_gradient_of_the_expectation():
    bins = Bins(-1, 2, count=5)
    logits = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bins.expect, (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_for_the_expectation(dtype):
    bins = Bins(0, 16)
    logits = torch.randn(50, 4, 17).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bins.expect(logits)
    assert found.dtype == torch.float32
    exact = (logits.double().softmax(-1) * torch.arange(17)).sum(-1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_position_undoes_values():
    bins = Bins(-2, 6, count=9)
    torch.testing.assert_close(bins.position(bins.values[:-1]), torch.arange(8.0))
    torch.testing.assert_close(bins.position(torch.tensor([-1.75, 2.5])), torch.tensor([0.25, 4.5]))


def test_position_stays_where_there_is_a_next_bin():
    bins = Bins(-2, 6, count=9)
    found = bins.position(torch.tensor([-100.0, -2.0, 6.0, 100.0, -math.inf, math.inf]))
    assert found[[0, 1, 4]].tolist() == [0, 0, 0]
    assert (found[[2, 3, 5]] < 8).all() and (found[[2, 3, 5]] > 7.99).all()
    assert found.long().max() == 7


def test_wrong_number_of_logits():
    with pytest.raises(ShapeError, match=r"17 bins.*\(3, 4, 9\)"):
        Bins(0, 16).expect(torch.zeros(3, 4, 9))


@pytest.mark.parametrize(
    "entries,said",
    [
        (dict(low=1, high=1), "low=1, high=1"),
        (dict(low=2, high=1), "low=2, high=1"),
        (dict(low=0, high=math.inf), "finite number as 'high'"),
        (dict(low="0", high=1), "finite number as 'low'"),
        (dict(low=True, high=3), "finite number as 'low'"),
        (dict(low=0, high=1, count=1), "at least 2"),
        (dict(low=0, high=1, count=17.0), "whole number"),
        (dict(low=0, high=1, count=True), "whole number"),
    ],
)
def test_bins_that_cannot_be_meant(entries, said):
    with pytest.raises(ConfigError, match=said):
        Bins(**entries)


def test_bins_are_not_in_checkpoints():
    assert not Bins(0, 1).state_dict()


def test_build_bins_fills_in_what_is_missing():
    bins = build_bins(dict(high=4), 0, 16)
    assert (bins.low, bins.high, bins.count) == (0, 4, 17)
    assert build_bins(None, 0, 16).high == 16


@pytest.mark.parametrize(
    "given,said",
    [(dict(counts=9), "Did you mean 'count'"), (17, "dict of"), (dict(low=0), "needs 'high'")],
)
def test_build_bins_refuses(given, said):
    with pytest.raises(ConfigError, match=said):
        build_bins(given, None, None)


def test_range_of_deltas_follows_the_coder():
    plain = SimpleNamespace(means=[0.0] * 4, stds=[1.0] * 4)
    scaled = SimpleNamespace(means=[0.0] * 4, stds=[0.1, 0.1, 0.2, 0.2])
    shifted = SimpleNamespace(means=[0.5, 0, 0, 0], stds=[0.5, 1.0, 1.0, 1.0])
    ends = [(b.low, b.high) for b in (bins_for_deltas(None, c) for c in (plain, scaled, shifted))]
    assert ends == [(-1, 1), (-10, 10), (-3, 1)]
    assert bins_for_deltas(dict(low=-4, count=5), scaled).low == -4
    with pytest.raises(ConfigError, match="needs 'low'"):
        bins_for_deltas(None, SimpleNamespace())
    assert bins_for_deltas(dict(low=0, high=2), SimpleNamespace()).high == 2


def test_range_of_deltas_holds_every_anchor_of_iou_half():
    """The bound that the docstring gives, tried out on many pairs of boxes."""
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
    from mmdet.structures.bbox import bbox_overlaps

    generator = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[0.0, 0, 1, 1]]).expand(200_000, 4)
    corner = torch.rand(200_000, 2, generator=generator) * 2 - 1
    size = torch.rand(200_000, 2, generator=generator) * 2 + 0.1
    boxes = torch.cat([corner, corner + size], 1)
    near = bbox_overlaps(anchors, boxes, is_aligned=True) >= 0.5
    deltas = DeltaXYWHBBoxCoder().encode(anchors[near], boxes[near]).abs()
    assert near.sum() > 1000
    assert deltas[:, :2].max() <= 0.5 and deltas[:, 2:].max() <= math.log(2)
    assert deltas[:, :2].max() > 0.3 and deltas[:, 2:].max() > 0.6  # the bound is not a loose one


@pytest.mark.parametrize("per_number", [False, True])
def test_distribution_loss_against_a_slow_loop(per_number):
    generator = torch.Generator().manual_seed(1)
    bins = Bins(-2, 2, count=5)
    logits = torch.randn(6, 4, 5, generator=generator)
    targets = torch.rand(6, 4, generator=generator) * 5 - 2.5  # some beyond the ends
    weight = torch.rand((6, 4) if per_number else (6,), generator=generator)
    loss = DistributionFocalLoss(loss_weight=0.25)
    found = distribution_loss(loss, bins, logits, targets, weight, 3.0)

    slow = 0.0
    for i in range(6):
        for k in range(4):
            place = min(max(targets[i, k].item() + 2, 0), 4 - 1e-3)
            below = int(place)
            chance = logits[i, k].softmax(-1)
            term = -(below + 1 - place) * chance[below].log()
            term = term - (place - below) * chance[below + 1].log()
            w = weight[i, k] if per_number else weight[i]
            slow += 0.25 * w.item() * term.item() / 4
    assert found.item() == pytest.approx(slow / 3.0, rel=1e-5)


def test_distribution_loss_without_positives_is_zero_with_a_graph():
    logits = torch.randn(5, 4, 17, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    for avg_factor in (0.0, 1.0, torch.tensor(0.0)):
        found = distribution_loss(
            DistributionFocalLoss(),
            Bins(0, 16),
            logits[nothing],
            torch.zeros(0, 4),
            torch.zeros(0),
            avg_factor,
        )
        assert found.item() == 0
        (grad,) = torch.autograd.grad(found, logits)
        assert not grad.any()


def test_is_binned():
    head = torch.nn.Module()
    assert not is_binned(head)
    head.bins = 17  # another library's head may use the word
    assert not is_binned(head)
    head.bins = Bins(0, 16)
    assert is_binned(head)
