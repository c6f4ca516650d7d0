from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from torch import nn

from taskdistill.core.errors import CheckpointError, ConfigError, NonFiniteLossError, ShapeError
from taskdistill.tasks.classification.classifier import ImageClassifier
from taskdistill.tasks.openmm.model import DistilledModel


class Held(ImageClassifier):
    """With partners of every kind: a module, a parameter and a buffer of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.branch = nn.BatchNorm1d(3)
        self.gate = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, inputs, labels):
        return {**super().loss(inputs, labels), "loss_branch": self.branch.weight.sum() * 0.1}


def equal(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def forward_of(model, batch, training=True):
    return model.data_preprocessor(batch, training)


# -- the state dict --------------------------------------------------------------------------------


@pytest.fixture
def plain(tiny_data):
    return type(tiny_data.build().network)()


def test_it_is_the_plain_networks(tiny_data, plain):
    for kind in (ImageClassifier, Held):
        state = kind(network=tiny_data.network()).state_dict()
        assert list(state) == list(plain.state_dict())
        assert state._metadata.keys() == plain.state_dict()._metadata.keys()
        plain.load_state_dict(state, strict=True)


def test_it_takes_a_plain_networks_and_leaves_partners_alone(tiny_data, plain):
    model = Held(network=tiny_data.network())
    nn.init.uniform_(model.branch.weight)
    before = {name: value.clone() for name, value in model.partner_state().items()}
    model.load_state_dict(plain.state_dict(), strict=True)
    assert equal(model.state_dict(), plain.state_dict())
    assert equal(model.partner_state(), before)


def test_strict_loading_tells_what_is_missing_and_unexpected(tiny_data, plain):
    model = Held(network=tiny_data.network())
    state = plain.state_dict()
    del state["fc.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fc\.weight"):
        model.load_state_dict(state)
    state = {**plain.state_dict(), "branch.weight": torch.ones(3), "surplus": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surplus"):
        model.load_state_dict(state)
    found = model.load_state_dict(state, strict=False)
    assert found.unexpected_keys and not found.missing_keys


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_a_model_of_its_own(tiny_data, plain, again):
    model = tiny_data.build(tiny_data.model(drops=[dict(type="Dropout", p=0.9)]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = again(model)
    other.load_state_dict(plain.state_dict(), strict=True)
    assert equal(other.state_dict(), plain.state_dict())
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize("buffers", [False, True])
def test_an_average_of_weights_has_the_plain_networks_names(tiny_data, plain, buffers):
    model = Held(network=tiny_data.network())
    average = ExponentialMovingAverage(model, momentum=0.5, update_buffers=buffers)
    average.update_parameters(model)  # the first is a copy
    old = model.network.fc.bias.detach().clone()
    with torch.no_grad():
        model.network.fc.bias += 1
        model.branch.bias += 1
    average.update_parameters(model)
    state = {k.removeprefix("module."): v for k, v in average.state_dict().items() if k != "steps"}
    plain.load_state_dict(state, strict=True)
    torch.testing.assert_close(plain.fc.bias, old + 0.5)
    if not buffers:  # else mmengine averages what the state dict holds; the hook refuses it
        bias = average.module.partner_state()["branch.bias"]
        torch.testing.assert_close(bias, torch.full((3,), 0.5))
    average.load_state_dict(average.state_dict(), strict=True)


def test_a_distilled_model_has_them_too(tiny_data, plain):
    """As the student of DistilledModel, whose state dict it goes through."""

    class Distiller(nn.Module):
        def __init__(self):
            super().__init__()
            self.adapter = nn.Linear(2, 2)

    model = DistilledModel.__new__(DistilledModel)
    nn.Module.__init__(model)
    from taskdistill.tasks.openmm import model as module

    model.student = Held(network=tiny_data.network())
    model.distiller = Distiller()
    model.register_state_dict_post_hook(module._export_student)
    model.register_load_state_dict_pre_hook(module._import_student)
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    assert state._metadata.keys() >= plain.state_dict()._metadata.keys()
    partners = copy.deepcopy(model.student.partner_state())
    model.load_state_dict(plain.state_dict(), strict=True)
    assert equal(model.state_dict(), plain.state_dict())
    assert equal(model.student.partner_state(), partners)
    with pytest.raises(RuntimeError, match="surplus"):
        model.load_state_dict({**plain.state_dict(), "surplus": torch.ones(1)})
    copied = copy.deepcopy(model)
    copied.load_state_dict({k: v + 1 for k, v in plain.state_dict().items()}, strict=True)
    assert equal(model.state_dict(), plain.state_dict())


# -- partners --------------------------------------------------------------------------------------


def test_partners_are_kept_and_restored(tiny_data):
    ours, theirs = Held(network=tiny_data.network()), Held(network=tiny_data.network())
    with torch.no_grad():
        for value in theirs.partner_state().values():
            value.add_(2)
    state = {name: value.clone() for name, value in theirs.partner_state().items()}
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(state) == {"gate", "seen", *(f"branch.{name}" for name in names)}
    network = copy.deepcopy(ours.state_dict())
    ours.load_partner_state(state)
    assert equal(ours.partner_state(), state)
    assert equal(ours.state_dict(), network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("gate"), "missing: gate"),
        (lambda state: state.update(more=torch.ones(1)), "unexpected: more"),
        (lambda state: state.update(gate=torch.ones(5)), "of another shape: gate"),
    ],
)
def test_partners_of_another_config_change_nothing(tiny_data, change, message):
    model = Held(network=tiny_data.network())
    state = {name: value + 1 for name, value in model.partner_state().items()}
    change(state)
    before = {name: value.clone() for name, value in model.partner_state().items()}
    with pytest.raises(CheckpointError, match=message):
        model.load_partner_state(state)
    assert equal(model.partner_state(), before)


def test_a_plain_classifier_has_none(tiny_data):
    assert tiny_data.build().partner_state() == {}


# -- what it computes ------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy(tiny_data):
    model = tiny_data.build()
    batch = forward_of(model, tiny_data.batch())
    losses = model(**batch, mode="loss")
    expected = F.cross_entropy(model.network(batch["inputs"]), batch["data_samples"])
    assert list(losses) == ["loss_cls"]
    torch.testing.assert_close(losses["loss_cls"], expected)


def test_smoothing_and_temperature(tiny_data):
    model = tiny_data.build(tiny_data.model(label_smoothing=0.3, temperature=20.0))
    model.eval()
    batch = forward_of(model, tiny_data.batch())
    logits = model(**batch)
    rows = (logits / 20).log_softmax(1)
    own = rows[torch.arange(6), batch["data_samples"]]
    by_hand = -(0.7 * own + 0.3 * rows.mean(1)).mean()
    torch.testing.assert_close(model(**batch, mode="loss")["loss_cls"], by_hand)
    # In prediction there is no temperature.
    scores = torch.stack([s["scores"] for s in model(**batch, mode="predict")])
    torch.testing.assert_close(scores, logits.softmax(1))


def test_a_temperature_makes_logits_grow():
    """Trained at T, logits come out about T times as large (defensive distillation)."""
    sizes = {}
    for temperature in (1.0, 10.0):
        torch.manual_seed(0)
        model = ImageClassifier(nn.Linear(4, 2), temperature=temperature)
        nn.init.zeros_(model.network.weight)
        nn.init.zeros_(model.network.bias)
        inputs, labels = torch.randn(64, 4), torch.randint(2, (64,))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=temperature**2
        )  # gradients are 1 / T as large
        for _ in range(20):
            optimizer.zero_grad()
            model(inputs, labels, mode="loss")["loss_cls"].backward()
            optimizer.step()
        sizes[temperature] = model(inputs).abs().mean().item()
    assert sizes[10.0] == pytest.approx(10 * sizes[1.0], rel=1e-4)


def test_soft_labels_of_one_class_are_that_class(tiny_data):
    model = tiny_data.build().eval()
    batch = forward_of(model, tiny_data.batch())
    hard = model(**batch, mode="loss")["loss_cls"]
    soft = F.one_hot(batch["data_samples"], 3).float()
    torch.testing.assert_close(model(batch["inputs"], soft, mode="loss")["loss_cls"], hard)


def test_the_loss_is_float32_under_autocast(tiny_data):
    model = tiny_data.build()
    batch = forward_of(model, tiny_data.batch())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**batch, mode="loss")["loss_cls"].dtype == torch.float32


def test_predictions_name_labels_where_there_are_some(tiny_data):
    class Further(ImageClassifier):
        def further_scores(self, inputs):
            return {"even": torch.full((len(inputs), 3), 1 / 3)}

    model = Further(network=tiny_data.network()).eval()
    batch = forward_of(model, tiny_data.batch(), False)
    found = model(**batch, mode="predict")
    assert [sample["label"] for sample in found] == [0, 1, 2, 0, 1, 2]
    assert all(sample["scores"].sum().item() == pytest.approx(1) for sample in found)
    assert torch.equal(found[4]["further"]["even"], torch.full((3,), 1 / 3))
    unlabelled = model(batch["inputs"], mode="predict")
    assert {sample["label"] for sample in unlabelled} == {None}


def test_it_learns(tiny_data):
    torch.manual_seed(0)
    model = tiny_data.build()
    batch = tiny_data.batch(12)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    losses = [model.train_step(batch, optimizer)["loss"].item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_loss_that_is_not_finite_stops_training(tiny_data):
    model = tiny_data.build()
    with torch.no_grad():
        model.network.fc.bias.fill_(float("nan"))
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteLossError, match="loss_cls=nan"):
        model.train_step(tiny_data.batch(), optimizer)


def test_the_bare_module_is_the_network(tiny_data):
    model = tiny_data.build()
    assert model.bare is model.network


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_smoothing=1.5), "label_smoothing=1.5; expected a number from 0 to 1"),
        (dict(label_smoothing=True), "label_smoothing=True"),
        (dict(temperature=0), "temperature=0; expected a number above 0"),
        (dict(temperature="hot"), "temperature='hot'"),
        (dict(temperature=float("inf")), "temperature=inf"),
        (dict(num_classes=4), "num_classes of the classifier is 4, but that of its network is 3"),
    ],
)
def test_options_out_of_range(tiny_data, options, message):
    with pytest.raises(ConfigError, match=message):
        ImageClassifier(tiny_data.network(num_classes=3), **options)


def test_classes_are_counted_by_a_zero_image(tiny_data):
    model = tiny_data.build(tiny_data.model(network=tiny_data.network(), num_classes=None))
    model.train()
    assert model.check_classes(8) == model.check_classes((3, 8, 12)) == 3
    assert model.network.bn1.num_batches_tracked == 0 and model.network.bn1.training
    model.num_classes = 5
    with pytest.raises(ConfigError, match="gives 3 classes, but num_classes is 5"):
        model.check_classes(8)
    with pytest.raises(ConfigError, match=r"cannot take an image of shape \(1, 8, 8\)"):
        model.check_classes((1, 8, 8))


def test_a_network_must_give_logits():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ShapeError, match="must give logits.*got tuple"):
        ImageClassifier(Two())(torch.zeros(2, 3), torch.zeros(2).long(), mode="loss")
    maps = ImageClassifier(nn.Conv2d(3, 2, 1))
    with pytest.raises(ShapeError, match=r"got \(1, 2, 8, 8\)"):
        maps.check_classes(8)


def test_labels_must_go_with_the_images(tiny_data):
    model = tiny_data.build()
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ShapeError, match="data_samples is None"):
        model(images, mode="loss")
    with pytest.raises(ShapeError, match="B=3"):
        model(images, torch.zeros(3).long(), mode="loss")
    with pytest.raises(ShapeError, match=r"Labels of shape \(2, 4\)"):
        model(images, torch.zeros(2, 4), mode="loss")
    with pytest.raises(ConfigError, match="mode='losses'"):
        model(images, mode="losses")


# -- initial weights -------------------------------------------------------------------------------


class Redrawn(nn.Module):
    """Has `init_weights`, as timm's models do, which draws all weights anew."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def init_weights(self, mode=""):
        nn.init.zeros_(self.fc.weight)


class Mm(BaseModule):
    """mmengine's: the constructor leaves initialisation to `init_weights`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def init_weights(self):
        super().init_weights()
        nn.init.constant_(self.fc.weight, 7.0)


def test_plain_networks_keep_the_weights_of_their_constructor():
    for network in (Redrawn(), dict(type=Redrawn)):
        model = ImageClassifier(network)
        before = model.network.fc.weight.clone()
        model.init_weights()
        assert torch.equal(model.network.fc.weight, before)


def test_mm_networks_are_initialised_once():
    model = ImageClassifier(dict(type=Mm))
    model.init_weights()
    assert (model.network.fc.weight == 7).all()
    nn.init.zeros_(model.network.fc.weight)
    model.init_weights()
    assert (model.network.fc.weight == 0).all()
    held = ImageClassifier(Mm())  # its owner's weights
    before = held.network.fc.weight.clone()
    held.init_weights()
    assert torch.equal(held.network.fc.weight, before)


def test_weights_from_a_file(tiny_data, plain, tmp_path):
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "plain.pth")
    config = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"))
    model = Held(network=tiny_data.network(), init_cfg=config)
    model.init_weights()
    assert equal(model.state_dict(), plain.state_dict())
    with pytest.raises(CheckpointError, match="fc.weight"):
        ImageClassifier(tiny_data.network(num_classes=5), init_cfg=config).init_weights()


def test_a_file_that_runs_code_is_not_read(tiny_data, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"fc.weight": Evil()}}, tmp_path / "evil.pth")
    config = dict(type="Pretrained", checkpoint=str(tmp_path / "evil.pth"))
    with pytest.raises(CheckpointError):
        ImageClassifier(tiny_data.network(), init_cfg=config).init_weights()
    assert not (tmp_path / "ran").exists()
