from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage

from taskdistill.core.errors import ConfigError, TapError
from taskdistill.core.online import one_losses
from taskdistill.core.recipe import Progress
from taskdistill.core.taps import Taps
from taskdistill.tasks.classification import one as module
from taskdistill.tasks.classification.one import OneClassifier

MADE = dict(at="layer2", size=(3, 8, 8))


def make(tiny_data, **options) -> OneClassifier:
    return tiny_data.build(tiny_data.model("OneClassifier", **MADE, **options))


def images(count: int = 6):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def at_epoch(monkeypatch, epoch: float) -> None:
    monkeypatch.setattr(module, "training_progress", lambda: Progress(0, epoch))


def test_losses_are_those_of_the_core(tiny_data, monkeypatch):
    model = make(tiny_data, weight=0.5, temperature=2.0, ramp_up=10.0, label_smoothing=0.1)
    labels = torch.arange(6) % 3
    at_epoch(monkeypatch, 5.0)
    found = model(images(), labels, mode="loss")
    out = model.branches(model.network, images())
    terms = one_losses(out.logits, out.ensemble, labels, temperature=2.0)
    smooth = [F.cross_entropy(z, labels, label_smoothing=0.1) for z in out.logits]
    torch.testing.assert_close(found["loss_cls"], smooth[0])
    torch.testing.assert_close(found["loss_branches"], smooth[1] + smooth[2])
    half = torch.tensor(-5 * 0.25).exp() * 0.5
    torch.testing.assert_close(found["loss_one"], half * terms["distill"])
    torch.testing.assert_close(found["one_raw"], terms["distill"].detach())
    assert not found["one_raw"].requires_grad
    total, _ = model.parse_losses(found)
    summed = sum(value for name, value in found.items() if "loss" in name)
    torch.testing.assert_close(total, summed)


def test_the_ramp_up_is_a_switch(tiny_data, monkeypatch):
    found = {}
    for length in (0.0, 80.0):
        at_epoch(monkeypatch, 0.0)
        model = make(tiny_data, ramp_up=length)
        losses = model(images(), torch.arange(6) % 3, mode="loss")
        found[length] = (losses["loss_one"] / losses["one_raw"]).item()
    assert found[0.0] == pytest.approx(1.0)
    assert found[80.0] == pytest.approx(0.0067379, rel=1e-4)


def test_checkpoints_hold_the_plain_network(tiny_data, tiny_network):
    model = make(tiny_data)
    tiny_network.load_state_dict(model.state_dict(), strict=True)
    tiny_network.eval()
    model.eval()
    torch.testing.assert_close(tiny_network(images()), model(images()))
    other = make(tiny_data)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(model.state_dict(), strict=True)
    other.load_partner_state(model.partner_state())
    other.eval()
    torch.testing.assert_close(other.further_scores(images()), model.further_scores(images()))


def test_partners_are_the_other_branches_and_the_gate_alone(tiny_data):
    model = make(tiny_data, branches=3)
    kept = model.partner_state()
    parts = {name.split(".")[1] for name in kept}
    assert parts == {"backs", "gate"}
    assert not any("conv1" in name or "layer1" in name for name in kept)
    branch = sum(name.startswith("branches.backs.0.") for name in kept)
    assert branch == len([n for n in model.network.state_dict() if n.startswith(("layer2", "fc"))])


def test_recipes_compare_the_networks_own_logits(tiny_data):
    model = make(tiny_data)
    model.loss(images(), torch.arange(6) % 3)
    (logits,) = model.take_outputs().values()
    torch.testing.assert_close(logits, model.network(images()))
    assert logits.requires_grad


def test_taps_on_the_network_fire_once_a_step(tiny_data):
    model = make(tiny_data)
    taps = Taps(model.bare, ["conv1", "layer1", "layer2", "fc"])
    with taps.capture() as seen:
        model(images(), torch.arange(6) % 3, mode="loss")
    assert set(seen.counts().values()) == {1}


def test_branches_begin_differently_and_come_to_agree(tiny_data):
    model = make(tiny_data, ramp_up=0.0)
    model.train()
    labels = torch.arange(6) % 3
    first = model(images(), labels, mode="loss")["one_raw"].item()
    assert first > 1e-4
    optimizer = torch.optim.SGD([*model.branches.backs.parameters()], 0.2)
    for _ in range(25):
        losses = model(images(), labels, mode="loss")
        optimizer.zero_grad()
        losses["loss_one"].backward()
        optimizer.step()
    assert losses["one_raw"].item() < first / 2


def test_predictions(tiny_data):
    model = make(tiny_data).eval()
    with torch.no_grad():
        out = model.branches(model.network, images(2))
        samples = model(images(2), torch.tensor([0, 2]), mode="predict")
    assert list(samples[0]["further"]) == ["branch1", "branch2", "ensemble"]
    torch.testing.assert_close(samples[1]["scores"], out.logits[0][1].softmax(0))
    torch.testing.assert_close(samples[1]["further"]["branch2"], out.logits[2][1].softmax(0))
    mixed = sum(out.gate[1, i] * out.logits[i][1] for i in range(3))
    torch.testing.assert_close(samples[1]["further"]["ensemble"], mixed.softmax(0))


def test_a_branch_as_a_network(tiny_data, tiny_network):
    model = make(tiny_data).eval()
    wanted = model.branches(model.network, images()).logits
    for number in range(3):
        tiny_network.load_state_dict(model.peer(number).state_dict(), strict=True)
        torch.testing.assert_close(tiny_network.eval()(images()), wanted[number])
    with pytest.raises(ConfigError, match="no branch 5"):
        model.peer(5)


def test_averages_and_copies_are_independent(tiny_data):
    model = make(tiny_data)
    average = ExponentialMovingAverage(model, momentum=0.5)
    before = copy.deepcopy(average.module.partner_state())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(average.module.partner_state(), before, rtol=0, atol=0)
    for _ in range(2):  # the first takes the model's values
        average.update_parameters(model)
    after = average.module.partner_state()["branches.gate.linear.weight"]
    assert not torch.equal(after, before["branches.gate.linear.weight"])
    average.module.eval()
    assert average.module.further_scores(images()).keys() == {"branch1", "branch2", "ensemble"}


def test_training_and_resuming(tiny_data, tmp_path):
    """Two epochs at once, and one plus one: the branches and the gate too."""
    settings = tiny_data.model("OneClassifier", **MADE, ramp_up=1.0)
    whole = tiny_data.train(tiny_data.config(settings), tmp_path / "whole")
    torch.testing.assert_close(
        torch.load(tmp_path / "whole" / "epoch_2.pth", weights_only=False)["state_dict"],
        whole.model.network.state_dict(),
    )
    resumed = tiny_data.train(
        tiny_data.config(settings, load_from=str(tmp_path / "whole" / "epoch_1.pth"), resume=True),
        tmp_path / "resumed",
    )
    torch.testing.assert_close(resumed.model.partner_state(), whole.model.partner_state())
    scalars = whole.message_hub.log_scalars
    assert any(name.endswith("accuracy/ensemble_top1") for name in scalars)


def test_drops_hold_for_every_branch(tiny_data):
    model = make(tiny_data, drops=[dict(type="Dropout", p=0.5)])
    linears = [back.get_submodule("fc") for back in model.branches.backs]
    assert all(linear._forward_pre_hooks for linear in [model.network.fc, *linears])


def test_mistakes(tiny_data, tiny_network):
    with pytest.raises(ConfigError, match="needs the config of its network"):
        OneClassifier(tiny_network, **MADE)
    for options, told in (
        (dict(branches=0), "branches=0"),
        (dict(temperature=0.0), "temperature"),
        (dict(ramp_up=-1), "ramp_up"),
        (dict(weight=-1), "weight"),
    ):
        with pytest.raises(ConfigError, match=told):
            make(tiny_data, **options)
    with pytest.raises(TapError, match="Did you mean 'layer"):
        tiny_data.build(tiny_data.model("OneClassifier", at="layer3", size=(3, 8, 8)))


def test_the_config_is_not_changed(tiny_data):
    settings = Config(dict(model=tiny_data.model("OneClassifier", **MADE)))
    before = copy.deepcopy(settings.to_dict())
    tiny_data.build(settings.model)
    assert settings.to_dict() == before
