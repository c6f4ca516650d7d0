from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core.errors import ConfigError, ShapeError, TapError
from taskdistill.core.online import (
    Branches,
    Gate,
    One,
    branch_weights,
    one_losses,
    ramp_up,
)


class Net(nn.Module):
    def __init__(self, width: int = 4, inplace: bool = False, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.tail = nn.Sequential(nn.ReLU(inplace), nn.Conv2d(width, 6, 3), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tail(self.stem(x) * 1).mean((2, 3)))


def images(batch: int = 4, side: int = 6) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def labels(batch: int = 4) -> Tensor:
    return torch.arange(batch) % 5


def nets(count: int = 3, **options) -> list[Net]:
    torch.manual_seed(2)
    return [Net(**options) for _ in range(count)]


def slow_gate(gate: Gate, shared: Tensor) -> Tensor:
    scores = shared.flatten(2).mean(2) @ gate.linear.weight.T + gate.linear.bias
    mean, var = scores.mean(0), scores.var(0, unbiased=False)
    scores = (scores - mean) / (var + 1e-5).sqrt() * gate.norm.weight + gate.norm.bias
    scores = scores.clamp(min=0).exp()
    return scores / scores.sum(1, keepdim=True)


def test_golden():
    """The authors' divergence, which adds 1e-7 to the target, hence the tolerance."""
    g = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(8, 10, generator=g), 3 * torch.randn(8, 10, generator=g)
    assert student.sum().item() == pytest.approx(21.5691509, rel=1e-5)
    target = torch.randint(0, 10, (8,), generator=g)
    alone = one_losses([student, teacher], teacher, target)["distill"]
    assert alone.item() == pytest.approx(7.78346872, rel=1e-5)


def test_losses_by_hand():
    z = torch.randn(3, 4, 5, dtype=torch.float64)
    e = torch.randn(4, 5, dtype=torch.float64)
    y = torch.tensor([0, 4, 2, 2])
    expected = {"cls": 0.0, "branches": 0.0, "ensemble": 0.0, "distill": 0.0}

    def probabilities(logits: Tensor, t: float) -> list[float]:
        exps = [math.exp(v / t) for v in logits.tolist()]
        return [v / sum(exps) for v in exps]

    for b in range(4):
        expected["ensemble"] -= math.log(probabilities(e[b], 1)[y[b]]) / 4
        p = probabilities(e[b], 2)
        for i in range(3):
            name = "branches" if i else "cls"
            expected[name] -= math.log(probabilities(z[i, b], 1)[y[b]]) / 4
            q = probabilities(z[i, b], 2)
            divergence = sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
            expected["distill"] += 4 * divergence / 4
    found = one_losses(list(z), e, y, temperature=2.0)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected)


def test_the_ensemble_is_a_target_without_gradient():
    model = One(nets(), "tail", example=images())
    out = model(images())
    terms = one_losses(out.logits, out.ensemble, labels())
    gate = list(model.branches.gate.parameters())
    through = torch.autograd.grad(terms["distill"], gate, allow_unused=True, retain_graph=True)
    assert all(grad is None for grad in through)
    assert all(grad is not None for grad in torch.autograd.grad(terms["ensemble"], gate))


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(2, 4),
    shape=st.sampled_from([(1, 3, 1, 1), (2, 3, 5, 7), (5, 3), (3, 4, 3), (4, 3, 16, 16)]),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_gate_weights_sum_to_one(count, shape, scale):
    gate = Gate(3, count)
    weights = gate(scale * torch.randn(shape))
    assert weights.shape == (shape[0], count)
    torch.testing.assert_close(weights.sum(1), torch.ones(shape[0]))
    assert weights.isfinite().all()


def test_gate_by_hand():
    torch.manual_seed(0)
    gate = Gate(4, 3)
    with torch.no_grad():
        gate.norm.weight.uniform_(0.5, 2)
        gate.norm.bias.uniform_(-1, 1)
    shared = torch.randn(6, 4, 3, 5)
    torch.testing.assert_close(gate(shared), slow_gate(gate, shared))


def test_a_batch_of_one_uses_the_running_statistics():
    gate = Gate(4, 3)
    gate(torch.randn(16, 4, 2, 2))
    before = copy.deepcopy(gate.state_dict())
    single = torch.randn(1, 4, 2, 2)
    trained = gate(single)
    torch.testing.assert_close(gate.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(trained, gate.eval()(single))
    trained.sum().backward()


def test_under_autocast_the_gate_is_precise():
    gate = Gate(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(torch.randn(4, 4, 2, 2)).dtype == torch.float32


def test_forward_is_the_networks_and_their_weighted_sum():
    """Branch i: the shared layers of the first network, then the tail of network i."""
    made = nets()
    plain = copy.deepcopy(made)
    model = One(made, "tail", example=(3, 6, 6))
    for side in (6, 9):
        out = model(images(side=side))
        shared = plain[0].stem(images(side=side))
        expected = [n.fc(n.tail(shared).mean((2, 3))) for n in plain]
        for found, wanted in zip(out.logits, expected, strict=True):
            torch.testing.assert_close(found, wanted)
        weights = slow_gate(model.branches.gate, shared)
        torch.testing.assert_close(out.gate, weights)
        mixed = sum(weights[:, i : i + 1] * z for i, z in enumerate(expected))
        torch.testing.assert_close(out.ensemble, mixed)


def test_one_step_by_hand():
    """Parameters of every branch after a step of SGD on the whole loss."""
    made = nets()
    plain, gate = copy.deepcopy(made), None
    model = One(made, "tail", example=images())
    gate = copy.deepcopy(model.branches.gate)
    slow = nn.ModuleList([*plain, gate])
    for kind, params in (("fast", model.parameters()), ("slow", slow.parameters())):
        optimizer = torch.optim.SGD(params, 0.1)
        if kind == "fast":
            out = model(images())
            sum(one_losses(out.logits, out.ensemble, labels()).values()).backward()
        else:
            shared = plain[0].stem(images())
            z = [n.fc(n.tail(shared).mean((2, 3))) for n in plain]
            g = slow_gate(gate, shared)
            e = sum(g[:, i : i + 1] * each for i, each in enumerate(z))
            total = F.cross_entropy(e, labels())
            p = (e.detach() / 3).softmax(1)
            for each in z:
                total = total + F.cross_entropy(each, labels())
                log_q = (each / 3).log_softmax(1)
                total = total + 9 * (p * (p.log() - log_q)).sum(1).mean()
            total.backward()
        optimizer.step()
    torch.testing.assert_close(made[0].stem.weight, plain[0].stem.weight)
    for i in range(3):
        torch.testing.assert_close(made[i].tail[1].weight, plain[i].tail[1].weight)
        torch.testing.assert_close(made[i].fc.bias, plain[i].fc.bias)
    torch.testing.assert_close(model.branches.gate.linear.weight, gate.linear.weight)
    assert not torch.equal(gate.linear.weight, nets()[0].fc.weight)


def test_the_shared_part_runs_once_and_the_other_fronts_are_gone():
    made = nets()
    fronts = {id(p) for net in made[1:] for p in net.stem.parameters()}
    model = One(made, "tail", example=images())
    assert not fronts & {id(p) for p in model.parameters()}
    calls = []
    for name, module in made[0].named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(images())
    assert sorted(calls) == sorted(dict(made[0].named_modules()))


def test_an_in_place_head_changes_only_its_own_input():
    fast, slow = One(nets(inplace=True), "tail", example=images()), None
    slow = One(nets(), "tail", example=images())
    slow.load_state_dict(fast.state_dict())
    assert fast.branches.copies and not slow.branches.copies
    a, b = fast(images()), slow(images())
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.gate, b.gate)
    for model, out in ((fast, a), (slow, b)):
        sum(one_losses(out.logits, out.ensemble, labels()).values()).backward()
        assert model.network.stem.weight.grad is not None
    torch.testing.assert_close(fast.network.stem.weight.grad, slow.network.stem.weight.grad)


def test_each_branch_is_a_plain_network():
    model = One(nets(), "tail", example=images()).eval()
    out = model(images())
    for number in range(3):
        plain = Net()
        state = branch_weights(model.network, model.branches, number)
        plain.load_state_dict(state, strict=True)
        torch.testing.assert_close(plain.eval()(images()), out.logits[number])
    with pytest.raises(ConfigError, match="no branch 3"):
        branch_weights(model.network, model.branches, 3)


def test_a_copy_is_independent():
    model = One(nets(), "tail", example=images()).eval()
    twin = copy.deepcopy(model)
    before = model(images()).ensemble
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(images()).ensemble, before)
    assert not torch.equal(twin(images()).ensemble, before)


def test_gradient_is_exact():
    target = labels(3)
    torch.manual_seed(0)
    logits = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ensemble = torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: sum(one_losses([a, b], ensemble, target).values()), logits
    )


def test_soft_labels_and_extreme_logits():
    soft = F.one_hot(labels(), 5).float()
    z = [1e4 * torch.randn(4, 5, requires_grad=True) for _ in range(2)]
    hard_terms, soft_terms = one_losses(z, z[0], labels()), one_losses(z, z[0], soft)
    torch.testing.assert_close(hard_terms, soft_terms)
    assert all(term.isfinite() for term in soft_terms.values())
    same = one_losses([z[0], z[0]], z[0], labels())
    assert same["distill"].item() == 0


def test_ramp_up():
    assert ramp_up(0) == pytest.approx(math.exp(-5))
    assert ramp_up(20, 80) == pytest.approx(math.exp(-5 * 0.75**2))
    assert ramp_up(80) == ramp_up(1000) == 1.0
    assert ramp_up(0, length=0) == 1.0
    assert ramp_up(-3) == ramp_up(0)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="length"):
            ramp_up(1, bad)


def test_mistakes():
    with pytest.raises(ConfigError, match="two networks or more, got 1"):
        One(nets(1), "tail", example=images())
    with pytest.raises(ConfigError, match="at least one network beside the first"):
        Branches(Net(), [], "tail", images())
    net = Net()
    with pytest.raises(ConfigError, match="Network 1 shares parameters"):
        One([net, net], "tail", example=images())
    with pytest.raises(ConfigError, match="begins with the weights of the first"):
        One([net, copy.deepcopy(net)], "tail", example=images())
    with pytest.raises(ConfigError, match=r"features of shape \(4, 8, 6, 6\)"):
        One([Net(), Net(width=8)], "tail", example=images())
    with pytest.raises(ConfigError, match=r"logits of shape \(4, 7\)"):
        One([Net(), Net(classes=7)], "tail", example=images())
    with pytest.raises(TapError, match="Did you mean 'tail'"):
        One(nets(), "tall", example=images())
    with pytest.raises(ShapeError, match=r"does not run on images of shape \(1, 2, 6, 6\)"):
        One(nets(), "tail", example=(2, 6, 6))
    with pytest.raises(ConfigError, match="example image is"):
        One(nets(), "tail", example=(3, 0, 6))
    z = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="two branches"):
        one_losses([z], z, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ShapeError, match="one shape"):
        one_losses([z, z], torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ConfigError, match="temperature"):
        one_losses([z, z], z, torch.zeros(2, dtype=torch.long), temperature=0)
