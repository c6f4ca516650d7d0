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
    BeYourOwnTeacher,
    ByotOutputs,
    EarlyExits,
    ExitHead,
    byot_losses,
)

EXITS = ["a", "b"]


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 4, 1), block(4, 6, 2), block(6, 8, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x))).mean((2, 3)))


def images(batch: int = 6, side: int = 12) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def labels(batch: int = 6) -> Tensor:
    return torch.arange(batch) % 5


def make(exits=EXITS, features="c", side: int = 12) -> BeYourOwnTeacher:
    torch.manual_seed(1)
    return BeYourOwnTeacher(Net(), exits, features, example=(3, side, side))


def golden() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    made = {"ls": 3 * torch.randn(8, 10, generator=g), "lt": 3 * torch.randn(8, 10, generator=g)}
    made["y"] = torch.randint(0, 10, (8,), generator=g)
    made["fs"], made["ft"] = (torch.randn(4, 6, 8, 8, generator=g) for _ in range(2))
    assert made["ls"].sum().item() == pytest.approx(21.5691509, rel=1e-5)
    return made


def test_golden():
    x = golden()
    outputs = ByotOutputs([x["ls"], x["lt"]], [x["fs"], x["ft"]])
    terms = byot_losses(outputs, x["y"], alpha=1.0, hint_weight=1.0, form="code")
    assert terms["distill"].item() == pytest.approx(25.6413422, rel=1e-5)
    assert terms["hint"].item() == pytest.approx(2724.69189, rel=1e-5)


def test_the_two_forms_differ_where_they_say():
    x = golden()
    active = (x["fs"].relu(), x["ft"].relu())  # as behind a ReLU, where the mask changes nothing
    outputs = ByotOutputs([x["ls"].requires_grad_(), x["lt"]], list(active))
    options = dict(alpha=0.3, temperature=2.0, hint_weight=1.0)
    paper, code = (byot_losses(outputs, x["y"], form=f, **options) for f in ("paper", "code"))
    elements = x["fs"].numel()
    torch.testing.assert_close(code["hint"], elements * paper["hint"])
    torch.testing.assert_close(code["cls"], 0.7 * paper["cls"])
    torch.testing.assert_close(code["exits"], paper["exits"])
    p = (x["lt"] / 2).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(code["distill"] - paper["distill"], 0.3 * 4 * entropy)
    one, other = (torch.autograd.grad(t["distill"], x["ls"])[0] for t in (paper, code))
    torch.testing.assert_close(one, other)
    default = [byot_losses(outputs, x["y"], form=f) for f in ("paper", "code")]
    ratios = [(terms["hint"] / terms["hint_raw"]).item() for terms in default]
    assert ratios == pytest.approx([1.0, 1e-6])


def slow_total(outputs: ByotOutputs, y: Tensor, alpha: float, t: float, hint: float) -> Tensor:
    *exits, last = outputs.logits
    total = F.cross_entropy(last, y)
    target = (last.detach() / t).softmax(1)
    for q, f in zip(exits, outputs.features, strict=False):
        kl = (target * (target.log() - (q / t).log_softmax(1))).sum(1).mean()
        squares = (f - outputs.features[-1].detach()).square().mean()
        total = total + (1 - alpha) * F.cross_entropy(q, y) + alpha * t * t * kl + hint * squares
    return total


def parts(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([terms[name] for name in ("cls", "exits", "distill", "hint")]).sum()


def test_one_step_by_hand():
    model, slow = make(), make()
    for kind, each in (("fast", model), ("slow", slow)):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        outputs = each(images())
        if kind == "fast":
            parts(byot_losses(outputs, labels(), alpha=0.3, hint_weight=0.5)).backward()
        else:
            slow_total(outputs, labels(), 0.3, 3.0, 0.5).backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), slow.state_dict())
    assert not torch.equal(model.network.a[0].weight, make().network.a[0].weight)


def test_the_deepest_is_a_target_without_gradient():
    model = make()
    outputs = model(images())
    terms = byot_losses(outputs, labels())
    only_deep = [*model.network.c.parameters(), *model.network.fc.parameters()]
    for name in ("exits", "distill", "hint"):
        grads = torch.autograd.grad(terms[name], only_deep, allow_unused=True, retain_graph=True)
        assert all(grad is None for grad in grads)
    grads = torch.autograd.grad(terms["hint"], [*model.network.a.parameters()], retain_graph=True)
    assert any(grad.any() for grad in grads)
    heads = torch.autograd.grad(parts(terms), [*model.exits.parameters()])
    assert all(grad is not None for grad in heads)


def test_raw_figures_have_no_weights():
    terms = byot_losses(make()(images()), labels(), alpha=0.2, hint_weight=0.25)
    torch.testing.assert_close(terms["distill"], 0.2 * terms["distill_raw"])
    torch.testing.assert_close(terms["hint"], 0.25 * terms["hint_raw"])
    off = byot_losses(make()(images()), labels(), alpha=0, hint_weight=0)
    assert off["distill"] == off["hint"] == 0


def test_gradient_is_exact():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, dtype=torch.float64, generator=g, requires_grad=True)
    f = torch.randn(3, 2, 2, 3, dtype=torch.float64, generator=g, requires_grad=True)
    last = (torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, 2, 3, dtype=torch.float64))

    def total(z: Tensor, f: Tensor) -> Tensor:
        return parts(byot_losses(ByotOutputs([z, last[0]], [f, last[1]]), labels(3) % 4, alpha=0.4))

    assert torch.autograd.gradcheck(total, (z, f))


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    halvings=st.integers(0, 4),
    batch=st.integers(1, 3),
)
def test_heads_round_up_as_stages_do(height, width, halvings, batch):
    features, logits = ExitHead(3, 6, halvings, 4).eval()(torch.randn(batch, 3, height, width))
    sides = [math.ceil(side / 2**halvings) for side in (height, width)]
    assert features.shape == (batch, 6, *sides) and logits.shape == (batch, 4)
    assert features.min() >= 0


@pytest.mark.parametrize("side", [12, 13, 16, 31, 5])
def test_any_size_of_input(side):
    """Heads made for one size, asked at others: their features are the deepest's size."""
    outputs = make()(images(side=side))
    assert {f.shape for f in outputs.features} == {outputs.features[-1].shape}
    assert byot_losses(outputs, labels())["hint"].isfinite()


def test_maps_of_two_sizes_are_pooled_to_the_smaller():
    one, other = torch.rand(2, 3, 4, 6), torch.rand(2, 3, 8, 3)
    logits = [torch.zeros(2, 4)] * 2
    terms = byot_losses(ByotOutputs(logits, [one, other]), labels(2))
    pooled = (F.avg_pool2d(one, (1, 2)), F.avg_pool2d(other, (2, 1)))
    torch.testing.assert_close(terms["hint"], (pooled[0] - pooled[1]).square().mean())


def test_outputs_are_the_heads_of_what_the_modules_give():
    model = make().eval()
    outputs = model(images())
    found, expected = images(), []
    for name in EXITS:
        found = getattr(model.network, name)(found)
        expected.append(model.exits.heads[len(expected)](found))
    for i, (features, logits) in enumerate(expected):
        torch.testing.assert_close(outputs.logits[i], logits)
        torch.testing.assert_close(outputs.features[i], features)
    torch.testing.assert_close(outputs.logits[-1], model.network(images()))
    torch.testing.assert_close(outputs.features[-1], model.network.c(found))


def test_an_exit_in_front_of_an_in_place_activation():
    torch.manual_seed(0)
    tail = (nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 2))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *tail)
    model = BeYourOwnTeacher(net, ["0"], "2", example=images()).eval()
    wanted = model.exits.heads[0](net[0](images()))[1]
    torch.testing.assert_close(model(images()).logits[0], wanted)
    torch.testing.assert_close(model.exit_at(images(), 0), wanted)


def called(model: BeYourOwnTeacher) -> list[str]:
    names: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: names.append(name))
    return names


def test_leaving_at_an_exit_runs_no_more_than_it_needs():
    model = make().eval()
    wanted = model(images()).logits
    names = called(model)
    for index, (runs, skipped) in enumerate(
        [("a", ["b", "c", "fc"]), ("b", ["c", "fc"]), ("fc", [])]
    ):
        names.clear()
        torch.testing.assert_close(model.exit_at(images(), index), wanted[index])
        assert not {f"network.{name}" for name in skipped} & set(names)
        # The exit's own module is left from within its hook, so its last child tells.
        assert any(name.startswith(f"network.{runs}") for name in names)
        heads = {name.split(".")[2] for name in names if name.startswith("exits.heads.")}
        assert heads == ({str(index)} if index < 2 else set())
    torch.testing.assert_close(model.exit_at(images(), -1), wanted[2])
    with pytest.raises(ConfigError, match="no exit 3; there are 0 to 2"):
        model.exit_at(images(), 3)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.3, [0.3, 0.22], 1.1])
def test_every_sample_leaves_at_the_first_exit_that_is_sure(threshold):
    model = make().eval()
    with torch.no_grad():
        for head in model.exits.heads:
            head.linear.weight.mul_(20)
        logits, leaving = model.early_exit(images(40), threshold)
        every = model(images(40)).logits
    limits = threshold if isinstance(threshold, list) else [threshold] * 2
    for sample in range(40):
        index = 0
        while index < 2 and every[index][sample].softmax(0).max() < limits[index]:
            index += 1
        assert leaving[sample] == index
        torch.testing.assert_close(logits[sample], every[index][sample], rtol=1e-4, atol=1e-5)
    if threshold == 0.25:
        assert leaving.unique().numel() > 1  # or the test says nothing


def test_layers_behind_an_exit_see_the_others_alone():
    model = make().eval()
    seen: dict[str, int] = {}
    for name in ("b", "c", "fc"):
        module = model.network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: len(x[0])}))
    with torch.no_grad():
        scores = model(images(40)).logits[0].softmax(1).amax(1)
        threshold = scores.sort().values[25].item()
        seen.clear()
        model.early_exit(images(40), [threshold, 2.0])
        assert seen == {"b": 25, "c": 25, "fc": 25}
        seen.clear()
        model.early_exit(images(40), 0.0)
    assert not seen


def test_no_hook_is_left_behind():
    model = make().eval()
    model.early_exit(images(), 0.0)
    model.early_exit(images(), 2.0)
    model.exit_at(images(), 0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_early_exit_refuses_training_mode_and_other_numbers_of_thresholds():
    model = make()
    with pytest.raises(ConfigError, match="eval mode"):
        model.early_exit(images(), 0.5)
    model.eval()
    for bad in ([0.5], -0.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            model.early_exit(images(), bad)


class Bypass(Net):
    """Something leads past the exits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean((1, 2, 3)).unsqueeze(1)


def test_a_network_that_cannot_go_on_with_a_part_of_the_batch():
    torch.manual_seed(0)
    model = BeYourOwnTeacher(Bypass(), EXITS, "c", example=images()).eval()
    scores = model(images(40)).logits[0].softmax(1).amax(1).sort().values
    for left in (25, 1):  # a single one would be broadcast
        with pytest.raises(ShapeError, match="something leads past the exits"):
            model.early_exit(images(40), [scores[left].item(), 2.0])
    assert model.exit_at(images(), 0).shape == (6, 5)


def test_the_network_is_whole_and_a_copy_independent():
    model = make().eval()
    assert model.network.state_dict().keys() == Net().state_dict().keys()
    twin = copy.deepcopy(model)
    before = model(images()).logits
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(images()).logits, before)
    assert not twin(images()).logits[0].any()


def test_the_example_leaves_no_trace():
    net = Net()
    before = copy.deepcopy(net.state_dict())
    EarlyExits(net, EXITS, "c", images())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert net.training and all(p.grad is None for p in net.parameters())


def test_mistakes():
    example = (3, 12, 12)
    with pytest.raises(TapError, match="'d'"):
        EarlyExits(Net(), ["a", "d"], "c", example)
    with pytest.raises(ConfigError, match="the network runs a, b, c"):
        EarlyExits(Net(), ["b", "a"], "c", example)
    with pytest.raises(ConfigError, match="modules of their own"):
        EarlyExits(Net(), ["a", "a"], "c", example)
    with pytest.raises(ConfigError, match="list of module names"):
        EarlyExits(Net(), "a", "c", example)
    with pytest.raises(ConfigError, match="list of module names"):
        EarlyExits(Net(), [], "c", example)
    with pytest.raises(ConfigError, match=r"one module, by its name; got 'a@input'"):
        EarlyExits(Net(), ["a@input"], "c", example)
    with pytest.raises(ShapeError, match=r"'fc' gives a tensor of shape \(1, 5\)"):
        EarlyExits(Net(), ["a"], "fc", example)
    with pytest.raises(ShapeError, match="does not run on images"):
        EarlyExits(Net(), ["a"], "c", (4, 12, 12))
    outputs = make()(images())
    for options in (
        {"alpha": 1.5},
        {"temperature": 0.0},
        {"hint_weight": -1.0},
        {"form": "papre"},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            byot_losses(outputs, labels(), **options)
    with pytest.raises(ConfigError, match="at least one exit"):
        byot_losses(ByotOutputs(outputs.logits[-1:], outputs.features[-1:]), labels())
    with pytest.raises(ShapeError, match="deepest's channels"):
        byot_losses(
            ByotOutputs(outputs.logits[-2:], [torch.zeros(6, 3, 3, 3), outputs.features[-1]]),
            labels(),
        )
