from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from taskdistill.core.errors import ConfigError
from taskdistill.core.online import byot_losses
from taskdistill.core.taps import Taps
from taskdistill.tasks.classification.byot import SelfTaughtClassifier

MADE = dict(exits=["bn1", "layer1"], features="layer2", size=(3, 8, 8))


def make(tiny_data, **options) -> SelfTaughtClassifier:
    return tiny_data.build(tiny_data.model("SelfTaughtClassifier", **{**MADE, **options}))


def images(count: int = 6):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["paper", "code"])
def test_losses_are_those_of_the_core(tiny_data, form):
    options = dict(alpha=0.3, temperature=2.0, hint_weight=0.25, form=form)
    model = make(tiny_data, **options, label_smoothing=0.1)
    labels = torch.arange(6) % 3
    found = model(images(), labels, mode="loss")
    outputs = model.exits(model.network, images())
    terms = byot_losses(outputs, labels, **options)
    hard = [F.cross_entropy(z, labels, label_smoothing=0.1) for z in outputs.logits]
    deepest = hard[2] * (0.7 if form == "code" else 1)
    torch.testing.assert_close(found["loss_cls"], deepest)
    torch.testing.assert_close(found["loss_exits"], 0.7 * (hard[0] + hard[1]))
    torch.testing.assert_close(found["loss_self"], terms["distill"])
    torch.testing.assert_close(found["loss_hint"], 0.25 * found["hint_raw"])
    torch.testing.assert_close(found["loss_self"], 0.3 * found["self_raw"])
    assert not found["self_raw"].requires_grad and not found["hint_raw"].requires_grad
    total, _ = model.parse_losses(found)
    torch.testing.assert_close(total, sum(v for k, v in found.items() if "loss" in k))


def test_soft_labels(tiny_data):
    model = make(tiny_data)
    hard = model(images(), torch.arange(6) % 3, mode="loss")
    soft = model(images(), F.one_hot(torch.arange(6) % 3, 3).float(), mode="loss")
    torch.testing.assert_close(hard, soft)


def test_checkpoints_hold_the_plain_network(tiny_data, tiny_network):
    model = make(tiny_data)
    tiny_network.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(tiny_network.eval()(images()), model.eval()(images()))
    assert {name.split(".")[:2][1] for name in model.partner_state()} == {"heads"}
    other = make(tiny_data)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(model.state_dict(), strict=True)
    other.load_partner_state(model.partner_state())
    torch.testing.assert_close(
        other.eval().further_scores(images()), model.further_scores(images())
    )


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


def test_predictions(tiny_data):
    model = make(tiny_data).eval()
    with torch.no_grad():
        logits = model.exits(model.network, images(2)).logits
        samples = model(images(2), torch.tensor([0, 2]), mode="predict")
    further = samples[1]["further"]
    assert list(further) == ["exit0", "exit1", "ensemble"]
    torch.testing.assert_close(samples[1]["scores"], logits[2][1].softmax(0))
    torch.testing.assert_close(further["exit1"], logits[1][1].softmax(0))
    mean = torch.stack([z[1].softmax(0) for z in logits]).mean(0)
    torch.testing.assert_close(further["ensemble"], mean)


def test_leaving_early(tiny_data):
    model = make(tiny_data).eval()
    with torch.no_grad():
        logits = model.exits(model.network, images(2)).logits
        torch.testing.assert_close(model.exit_at(images(2), 1), logits[1])
        found, leaving = model.early_exit(images(2), [2.0, 0.0])
    torch.testing.assert_close(found, logits[1])
    assert leaving.tolist() == [1, 1]


def test_training_and_resuming(tiny_data, tmp_path):
    """Two epochs at once, and one plus one: the heads too."""
    settings = tiny_data.model("SelfTaughtClassifier", **MADE)
    whole = tiny_data.train(tiny_data.config(settings), tmp_path / "whole")
    resumed = tiny_data.train(
        tiny_data.config(settings, load_from=str(tmp_path / "whole" / "epoch_1.pth"), resume=True),
        tmp_path / "resumed",
    )
    torch.testing.assert_close(resumed.model.partner_state(), whole.model.partner_state())
    scalars = whole.message_hub.log_scalars
    assert {"train/loss_hint", "train/self_raw"} <= scalars.keys()
    assert any(name.endswith("accuracy/exit0_top1") for name in scalars)


def test_mistakes(tiny_data):
    for options, told in (
        (dict(alpha=2), "alpha"),
        (dict(temperature=0), "temperature"),
        (dict(hint_weight=-1), "hint_weight"),
        (dict(form="cod"), "Did you mean 'code'"),
        (dict(exits=["layer2"]), "modules of their own"),
        (dict(exits=["layer1", "bn1"]), "must run in the given order"),
    ):
        with pytest.raises(ConfigError, match=told):
            make(tiny_data, **options)
