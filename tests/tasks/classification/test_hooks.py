from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.classification.classifier import ImageClassifier
from taskdistill.tasks.classification.hooks import SIDE_ENTRY, classifier_of


@MODELS.register_module(name="TestOnlyPartnered", force=True)
class Partnered(ImageClassifier):
    """Trains a second network beside the first, as mutual learning does."""

    def __init__(self, width: int = 2, **options):
        super().__init__(**options)
        self.peer = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(3)
        )
        self.peer(torch.zeros(2, 3, 8, 8))

    def loss(self, inputs, labels):
        loss_peer = self.classification_loss(self.peer(inputs), labels)
        return {**super().loss(inputs, labels), "loss_peer": loss_peer}

    def further_scores(self, inputs):
        return {"peer": self.peer(inputs).softmax(1)}


EMA = dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.3)


@pytest.fixture
def config(tiny_data):
    def make(kind="TestOnlyPartnered", ema=False, **entries):
        model = entries.pop("model", {})
        made = tiny_data.config(tiny_data.model(kind, **model), **entries)
        if ema:
            made["custom_hooks"].insert(0, EMA)
        return made

    return make


def resumed(path, **entries):
    return dict(load_from=str(path), resume=True, **entries)


def states(runner):
    classifier = classifier_of(runner.model)
    return {**classifier.state_dict(), **classifier.partner_state()}


def test_checkpoints_hold_the_network_and_beside_it_the_partners(config, tiny_data, tmp_path):
    runner = tiny_data.train(config(), tmp_path)
    checkpoint = torch.load(tmp_path / "epoch_2.pth", weights_only=False)
    plain = type(classifier_of(runner.model).network)()
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    side = checkpoint[SIDE_ENTRY]
    partners = classifier_of(runner.model).partner_state()
    assert side["version"] == 1 and list(side["partners"]) == list(partners)
    assert all(torch.equal(side["partners"][name], value) for name, value in partners.items())
    scalars = runner.message_hub.log_scalars
    assert {"val/accuracy/top1", "val/accuracy/peer_top1"} <= set(scalars)


@pytest.mark.parametrize("ema", [False, True])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(config, tiny_data, tmp_path, ema):
    whole = tiny_data.train(config(ema=ema), tmp_path / "whole")
    first = config(ema=ema)
    first["train_cfg"]["max_epochs"] = 1
    tiny_data.train(first, tmp_path / "first")
    again = config(ema=ema, **resumed(tmp_path / "first" / "epoch_1.pth"))
    second = tiny_data.train(again, tmp_path / "second")
    expected, found = states(whole), states(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    one, two = (
        torch.load(tmp_path / run / "epoch_2.pth", weights_only=False)[SIDE_ENTRY]
        for run in ("whole", "second")
    )
    assert one.keys() == two.keys() and ("averaged" in one) == ema
    for entry in set(one) - {"version"}:
        assert all(torch.equal(two[entry][name], value) for name, value in one[entry].items())
    if ema:
        assert any(not torch.equal(one["averaged"][n], v) for n, v in one["partners"].items())


@pytest.fixture(scope="module")
def saved(tiny_data, tmp_path_factory):
    """A checkpoint of a plain classifier and one with a partner, after an epoch."""
    found = {}
    for kind in ("ImageClassifier", "TestOnlyPartnered"):
        made = tiny_data.config(tiny_data.model(kind))
        made["train_cfg"].update(max_epochs=1, val_interval=9)
        folder = tmp_path_factory.mktemp(kind)
        with DefaultScope.overwrite_default_scope("mmengine"):
            tiny_data.train(made, folder)
        found[kind] = folder / "epoch_1.pth"
    return found


def test_a_plain_classifier_has_no_entry_and_resumes(config, tiny_data, tmp_path, saved):
    path = saved["ImageClassifier"]
    assert SIDE_ENTRY not in torch.load(path, weights_only=False)
    runner = tiny_data.train(config("ImageClassifier", **resumed(path)), tmp_path)
    assert runner.iter == 6


@pytest.mark.parametrize(
    ("kind", "taken", "message"),
    [
        ("ImageClassifier", {}, "no 'classification' entry.*load_from"),
        ("TestOnlyPartnered", dict(kind="ImageClassifier"), "unexpected: peer.0.weight"),
        ("TestOnlyPartnered", dict(model=dict(width=3)), "of another shape: peer.0.weight"),
    ],
)
def test_a_run_of_another_kind_is_not_resumed(
    config, tiny_data, tmp_path, saved, kind, taken, message
):
    with pytest.raises(CheckpointError, match=message):
        tiny_data.train(config(**taken, **resumed(saved[kind])), tmp_path)


def test_without_resume_the_network_alone_is_taken(config, tiny_data, tmp_path, saved):
    made = config(load_from=str(saved["ImageClassifier"]))
    made["optim_wrapper"]["optimizer"]["lr"] = 0.0
    runner = tiny_data.train(made, tmp_path)
    taken = dict(classifier_of(runner.model).named_parameters(prefix=""))
    state = torch.load(saved["ImageClassifier"], weights_only=False)["state_dict"]
    assert torch.equal(taken["network.fc.weight"], state["fc.weight"])


def test_averages_that_begin_later_follow_the_partners_until_then(config, tiny_data, tmp_path):
    made = config(ema=True)
    made["custom_hooks"][0] = dict(EMA, begin_iter=6)  # in the second epoch
    tiny_data.train(made, tmp_path)
    side = torch.load(tmp_path / "epoch_1.pth", weights_only=False)[SIDE_ENTRY]
    assert all(torch.equal(side["averaged"][n], v) for n, v in side["partners"].items())


def test_averages_of_the_state_dict_are_refused(config, tiny_data, tmp_path):
    made = config(ema=True)
    made["custom_hooks"][0] = dict(EMA, update_buffers=True)
    with pytest.raises(ConfigError, match="Leave update_buffers out"):
        tiny_data.train(made, tmp_path)


def test_only_classifiers_have_partners():
    with pytest.raises(CheckpointError, match="Expected an image classifier, got Linear"):
        classifier_of(nn.Linear(1, 1))
