from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import kl_div
from taskdistill.core.online import mutual_loss, mutual_losses


def golden_logits() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    made = [3 * torch.randn(8, 10, generator=g) for _ in range(2)]
    assert made[0].sum().item() == pytest.approx(21.5691509, rel=1e-5)
    return made


def divergence(target: Tensor, own: Tensor) -> float:
    """KL(target || own), in python's own numbers."""
    total = 0.0
    for t_row, s_row in zip(target.tolist(), own.tolist(), strict=True):
        t_sum, s_sum = sum(map(math.exp, t_row)), sum(map(math.exp, s_row))
        for t, s in zip(t_row, s_row, strict=True):
            total += math.exp(t) / t_sum * (t - math.log(t_sum) - s + math.log(s_sum))
    return total / len(target)


def test_golden_values_of_both_networks():
    first, second = mutual_losses(golden_logits())
    assert first.item() == pytest.approx(4.72599459, rel=1e-6)
    # What the reverse direction gives: the two must not be mixed up.
    assert second.item() == pytest.approx(3.49194503, rel=1e-6)


def test_swapping_the_networks_swaps_their_losses():
    one, two = golden_logits()
    assert mutual_losses([one, two]) == mutual_losses([two, one])[::-1]


def test_three_networks_by_hand():
    logits = list(torch.randn(3, 4, 5, dtype=torch.float64))
    found = mutual_losses(logits)
    for k, loss in enumerate(found):
        others = [divergence(logits[i], logits[k]) for i in range(3) if i != k]
        assert loss.item() == pytest.approx(sum(others) / 2, rel=1e-9)


@given(
    count=st.integers(2, 5),
    rows=st.integers(1, 4),
    classes=st.integers(2, 6),
    seed=st.integers(0, 10**6),
)
def test_any_number_of_networks(count: int, rows: int, classes: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    logits = [torch.randn(rows, classes, generator=g, dtype=torch.float64) for _ in range(count)]
    found = mutual_losses(logits)
    for k, loss in enumerate(found):
        others = [divergence(other, logits[k]) for i, other in enumerate(logits) if i != k]
        assert loss.item() == pytest.approx(sum(others) / (count - 1), rel=1e-7, abs=1e-12)
    # A copy of a peer changes nothing for the one whose peers were all alike.
    same = mutual_loss(logits[0], [logits[1]] * 3)
    torch.testing.assert_close(same, mutual_loss(logits[0], [logits[1]]))


def test_the_temperature_softens_both_and_keeps_the_size_of_the_gradient():
    one, two = golden_logits()
    (found, _) = mutual_losses([one, two], temperature=4.0)
    assert found.item() == pytest.approx(8.00192642, rel=1e-6)  # kl_div at T = 4
    assert mutual_losses([one, one])[0].item() == 0.0


def test_each_loss_reaches_its_own_network_alone():
    logits = [each.requires_grad_() for each in torch.randn(3, 4, 5)]
    losses = mutual_losses(logits)
    losses[1].backward()
    assert logits[0].grad is None and logits[2].grad is None
    assert logits[1].grad is not None and logits[1].grad.abs().sum() > 0


def test_gradient_is_exact():
    one, two, three = torch.randn(3, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda own: mutual_loss(own, [two, three], temperature=2.0), (one.requires_grad_(),)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    logits = [(1e4 * each.sign()).to(dtype) for each in golden_logits()]
    for loss in mutual_losses(logits):
        assert loss.dtype == torch.float32 and loss.isfinite()


# -- a whole step of two networks, against one written out by hand --------------------------------


def softmax_regression(seed: int) -> tuple[nn.Linear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    network = nn.Linear(3, 4).double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return network, network.weight.detach().clone(), network.bias.detach().clone()


def stepped(
    weight: Tensor, bias: Tensor, images: Tensor, labels: Tensor, peer: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """One step of a softmax regression whose gradient is known: (2p - y - p_peer) / B."""
    p = (images @ weight.T + bias).softmax(1)
    slope = (2 * p - F.one_hot(labels, 4) - peer) / len(images)
    return weight - rate * slope.T @ images, bias - rate * slope.sum(0)


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_a_step_of_two_networks(update: str):
    images = torch.randn(5, 3, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    (one, w1, b1), (two, w2, b2) = softmax_regression(1), softmax_regression(2)

    def predict(weight: Tensor, bias: Tensor) -> Tensor:
        return (images @ weight.T + bias).softmax(1)

    new_1 = stepped(w1, b1, images, labels, predict(w2, b2), 0.1)
    teacher_of_2 = (w1, b1) if update == "simultaneous" else new_1
    new_2 = stepped(w2, b2, images, labels, predict(*teacher_of_2), 0.1)

    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (one, two)]
    if update == "simultaneous":
        logits = [one(images), two(images)]
        losses = [
            F.cross_entropy(z, labels) + term
            for z, term in zip(logits, mutual_losses(logits), strict=True)
        ]
        # One steps before the other's backward: nothing of it is in the other's graph.
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
    else:
        for own, other, optimizer in ((one, two, optimizers[0]), (two, one, optimizers[1])):
            z = own(images)
            (F.cross_entropy(z, labels) + mutual_loss(z, [other(images)])).backward()
            optimizer.step()
    torch.testing.assert_close((one.weight.data, one.bias.data), new_1)
    torch.testing.assert_close((two.weight.data, two.bias.data), new_2)
    # The two ways differ by more than rounding.
    gap = (predict(*new_1) - predict(w1, b1)).abs().max()
    assert gap > 1e-3


def test_networks_that_agree_learn_the_labels_alone():
    network = nn.Linear(3, 4)
    twin = copy.deepcopy(network)
    images = torch.randn(6, 3)
    for term in mutual_losses([network(images), twin(images)]):
        term.backward()
    for p in [*network.parameters(), *twin.parameters()]:
        assert p.grad is not None and p.grad.abs().max() < 1e-7


def test_what_cannot_be_meant():
    one = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="two networks or more, got 1"):
        mutual_losses([one])
    with pytest.raises(ConfigError, match="at least one other network"):
        mutual_loss(one, [])
    with pytest.raises(ShapeError, match=r"\(2, 3\), \(2, 4\)"):
        mutual_losses([one, torch.zeros(2, 4)])
    with pytest.raises(ConfigError, match="temperature"):
        mutual_losses([one, one], temperature=0.0)


def test_two_networks_are_the_plain_divergence():
    one, two = golden_logits()
    assert torch.equal(mutual_losses([one, two])[0], kl_div(one, two))
