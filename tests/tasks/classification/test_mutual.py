"""Peers that learn from each other: values, steps, what is kept and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.core.losses import kl_div
from taskdistill.core.online import mutual_losses
from taskdistill.tasks.classification.mutual import MutualClassifier
from taskdistill.tasks.openmm.model import DistilledModel
from taskdistill.tasks.openmm.optim import CpuAmpOptimWrapper

PLAIN = dict(type="BaseDataPreprocessor")


class Small(nn.Module):
    """With batch norm, so that a network has statistics."""

    def __init__(self, width: int = 6, num_classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


SMALL = dict(type=Small)


def make(**options) -> MutualClassifier:
    torch.manual_seed(3)
    return MutualClassifier(SMALL, data_preprocessor=PLAIN, **options)


def batch(count: int = 6, views: int | None = None) -> tuple[Tensor, Tensor]:
    shape = (count,) if views is None else (count, views)
    return torch.randn(*shape, 3, 5, 5), torch.randint(0, 4, shape)


def optimizer(model: nn.Module, **options) -> OptimWrapper:
    sgd = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, weight_decay=0.1)
    return OptimWrapper(sgd, **options)


def test_the_losses_are_those_of_the_pure_functions():
    model = make(peers=2, temperature=2.0, weight=0.5)
    images, labels = batch()
    found = model(images, labels, mode="loss")
    logits = [network(images) for network in model.networks]
    mutual = mutual_losses(logits, temperature=2.0)
    hard = [F.cross_entropy(z, labels) for z in logits]
    torch.testing.assert_close(found.pop("loss_cls"), hard[0])
    torch.testing.assert_close(found.pop("loss_mutual"), 0.5 * mutual[0])
    for k in (1, 2):
        torch.testing.assert_close(found.pop(f"loss_peer{k}"), hard[k] + 0.5 * mutual[k])
    assert not found


def test_each_loss_trains_its_own_network():
    model = make(peers=2)
    losses = model(*batch(), mode="loss")
    losses["loss_peer1"].backward()
    for k, network in enumerate(model.networks):
        assert all((p.grad is not None) == (k == 1) for p in network.parameters())


def test_the_networks_begin_differently():
    model = make(peers=2)
    model.init_weights()
    weights = [network.fc.weight for network in model.networks]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (weights[first] - weights[second]).abs().min() > 0


def test_networks_that_begin_equal_are_refused():
    class Fixed(Small):
        def __init__(self) -> None:
            super().__init__()
            for p in self.parameters():
                nn.init.constant_(p, 0.5)

    with pytest.raises(ConfigError, match="Networks 0 and 1 begin with the same weights"):
        MutualClassifier(dict(type=Fixed), data_preprocessor=PLAIN)
    model = MutualClassifier(dict(type=Fixed), peers=[SMALL], data_preprocessor=PLAIN)
    assert isinstance(model.peers[0], Small)
    with torch.device("meta"):  # nothing to compare there
        MutualClassifier(SMALL, data_preprocessor=PLAIN)


def test_checkpoints_hold_the_plain_network_and_the_peers_beside_it():
    model = make(peers=2)
    plain = Small()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain.fc.weight, model.network.fc.weight)
    beside = {name: value.clone() for name, value in model.partner_state().items()}
    assert len(beside) == 2 * len(plain.state_dict())
    torch.manual_seed(8)
    other = MutualClassifier(SMALL, peers=2, data_preprocessor=PLAIN)
    other.load_state_dict(model.state_dict())
    other.load_partner_state(beside)
    for ours, theirs in zip(model.networks, other.networks, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )


# -- steps -----------------------------------------------------------------------------------------


def by_hand(networks: list[nn.Module], update: str, steps: list[tuple[Tensor, Tensor]]) -> None:
    """Train networks, each with an optimizer of its own, in the plainest way."""
    optimizers = [
        torch.optim.SGD(n.parameters(), 0.3, momentum=0.9, weight_decay=0.1) for n in networks
    ]

    def loss(k: int, logits: list[Tensor], labels: Tensor) -> Tensor:
        value = F.cross_entropy(logits[k], labels)
        others = [z for i, z in enumerate(logits) if i != k]
        for z in others:
            value = value + kl_div(logits[k], z) / len(others)
        return value

    for images, labels in steps:
        if update == "simultaneous":
            logits = [n(images) for n in networks]
            losses = [loss(k, logits, labels) for k in range(len(networks))]
            for own, opt in zip(losses, optimizers, strict=True):
                opt.zero_grad()
                own.backward()
            for opt in optimizers:
                opt.step()
            continue
        for k, (own, opt) in enumerate(zip(networks, optimizers, strict=True)):
            # Told by copies, whose statistics may change as they like.
            logits = [own(images) if n is own else copy.deepcopy(n)(images) for n in networks]
            opt.zero_grad()
            loss(k, logits, labels).backward()
            opt.step()


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
@pytest.mark.parametrize("peers", [1, 2])
def test_steps_as_with_an_optimizer_for_each_network(update: str, peers: int):
    """Weights, momentum, weight decay and running statistics, over three steps."""
    model = make(peers=peers, update=update)
    networks = copy.deepcopy(model.networks)
    steps = [batch() for _ in range(3)]
    by_hand(networks, update, steps)
    wrapper = optimizer(model)
    for images, labels in steps:
        figures = model.train_step(dict(inputs=images, data_samples=labels), wrapper)
    for ours, theirs in zip(model.networks, networks, strict=True):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-6)
    names = ["loss_cls", "loss_mutual", *(f"loss_peer{k + 1}" for k in range(peers))]
    assert set(figures) == {"loss", *names}
    total = sum(figures[name] for name in names)
    torch.testing.assert_close(torch.as_tensor(figures["loss"]), total)


def test_the_two_ways_to_step_differ():
    images, labels = batch()
    weights = {}
    for update in ("simultaneous", "sequential"):
        model = make(update=update)
        model.train_step(dict(inputs=images, data_samples=labels), optimizer(model))
        weights[update] = [network.fc.weight.detach() for network in model.networks]
    # The first steps on what it saw before; the second on what the first says now.
    torch.testing.assert_close(weights["simultaneous"][0], weights["sequential"][0])
    assert (weights["simultaneous"][1] - weights["sequential"][1]).abs().max() > 1e-5


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_equal_images_in_every_order_are_the_same_order(update: str):
    """Losses, steps and running statistics."""
    images, labels = batch()
    same, different = make(peers=2, update=update), make(peers=2, update=update, order="different")
    data = dict(inputs=images, data_samples=labels)
    one = same.train_step(data, optimizer(same))
    stacked = {key: torch.stack([value] * 3, 1) for key, value in data.items()}
    two = different.train_step(stacked, optimizer(different))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name])
    for ours, theirs in zip(same.networks, different.networks, strict=True):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_each_network_learns_on_its_own_images():
    model = make(order="different")
    images, labels = batch(views=2)
    found = model(images, labels, mode="loss")
    zero, one = model.networks
    own = zero(images[:, 0])
    torch.testing.assert_close(found["loss_cls"], F.cross_entropy(own, labels[:, 0]))
    torch.testing.assert_close(found["loss_mutual"], kl_div(own, one(images[:, 0])))
    own = one(images[:, 1])
    expected = F.cross_entropy(own, labels[:, 1]) + kl_div(own, zero(images[:, 1]))
    torch.testing.assert_close(found["loss_peer1"], expected)


def test_soft_labels_of_every_order():
    model = make(order="different")
    images, labels = batch(views=2)
    soft = F.one_hot(labels, 4).float()
    hard, mixed = (model(images, each, mode="loss") for each in (labels, soft))
    for name, value in hard.items():
        torch.testing.assert_close(value, mixed[name])


def test_each_order_is_normalised_and_mixed_by_itself():
    torch.manual_seed(3)
    model = MutualClassifier(
        dict(type=Small, num_classes=4),
        order="different",
        data_preprocessor=dict(
            mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0], mixing=dict(type="MixUp")
        ),
    )
    pixels = torch.randint(0, 256, (6, 2, 3, 5, 5), dtype=torch.uint8)
    labels = torch.arange(12).reshape(6, 2) // 6  # of one view 0, 0, 0, 1, ...
    labels[:, 1] += 2
    data = model.data_preprocessor(dict(inputs=pixels, data_samples=labels), True)
    assert data["inputs"].shape == pixels.shape and data["data_samples"].shape == (6, 2, 4)
    # Classes 0 and 1 are in the first view alone: no image of the other is mixed in.
    assert not data["data_samples"][:, 0, 2:].any() and not data["data_samples"][:, 1, :2].any()
    tested = model.data_preprocessor(dict(inputs=pixels[:, 0], data_samples=labels[:, 0]), False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([10.0, 20.0, 30.0], [2.0, 4.0, 8.0]))
    torch.testing.assert_close(tested["inputs"], (pixels[:, 0].float() - mean) / std)
    model.train_step(dict(inputs=pixels, data_samples=labels), optimizer(model))


@pytest.mark.parametrize("order", ["same", "different"])
def test_steps_in_turn_under_mixed_precision(order: str):
    model = make(peers=2, update="sequential", order=order)
    before = [network.fc.weight.detach().clone() for network in model.networks]
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), 0.3))
    images, labels = batch(views=None if order == "same" else 3)
    figures = model.train_step(dict(inputs=images, data_samples=labels), wrapper)
    assert all(torch.as_tensor(value).isfinite() for value in figures.values())
    for weight, network in zip(before, model.networks, strict=True):
        assert not torch.equal(weight, network.fc.weight)


def test_a_turn_leaves_no_gradient_behind():
    model = make(update="sequential")
    data = batch()
    model(torch.randn(2, 3, 5, 5)).sum().backward()  # of whoever looked before
    reference = make(update="sequential")
    for each in (model, reference):
        each.train_step(dict(inputs=data[0], data_samples=data[1]), optimizer(each))
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.grad is None


def with_teacher(folder: Path, **options) -> DistilledModel:
    model = dict(type="ImageClassifier", network=SMALL, data_preprocessor=PLAIN)
    torch.save(Small().state_dict(), folder / "teacher.pth")
    return DistilledModel(
        dict(model, type="MutualClassifier", **options),
        dict(
            teacher=dict(config=dict(model=model), checkpoint=str(folder / "teacher.pth")),
            pairs=[
                dict(student="outputs.logits", loss="KLDivergence", name="kd"),
                dict(student="bn", loss="FeatureImitation", name="map"),
            ],
            probe_size=5,
        ),
        "classification",
    )


def test_a_teacher_beside_the_peers(tmp_path):
    """It teaches the deployed network; the peers are beside it as without one."""
    torch.manual_seed(3)
    model = with_teacher(tmp_path, peers=2)
    images, labels = batch()
    found = model(images, labels, mode="loss")
    alone = model.student(images, labels, mode="loss")
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value)
    teacher = model.distiller.teachers["teacher"]
    expected = kl_div(model.student.network(images), teacher(images))
    torch.testing.assert_close(found["loss_kd_kd"], expected)
    assert found["loss_kd_map"] > 0
    Small().load_state_dict(model.state_dict(), strict=True)
    with pytest.raises(ConfigError, match="Use update='simultaneous'"):
        with_teacher(tmp_path, update="sequential")(images, labels, mode="loss")


# -- predictions -----------------------------------------------------------------------------------


def test_predictions_of_the_deployed_network_and_of_the_others():
    model = make(peers=2).eval()
    images, labels = batch(3)
    found = model(images, labels, mode="predict")
    scores = [network(images).softmax(1) for network in model.networks]
    for i, sample in enumerate(found):
        assert sample["label"] == labels[i]
        torch.testing.assert_close(sample["scores"], scores[0][i])
        assert list(sample["further"]) == ["peer1", "peer2", "ensemble"]
        torch.testing.assert_close(sample["further"]["peer2"], scores[2][i])
        mean = torch.stack([each[i] for each in scores]).mean(0)
        torch.testing.assert_close(sample["further"]["ensemble"], mean)
    torch.testing.assert_close(model(images), model.network(images))


def test_peers_of_another_architecture():
    model = make(peers=[dict(type=Small, width=3), dict(type=Small, width=9)])
    assert [network.fc.in_features for network in model.networks] == [6, 3, 9]
    losses = model(*batch(), mode="loss")
    assert list(losses) == ["loss_cls", "loss_mutual", "loss_peer1", "loss_peer2"]


def test_peers_of_the_same_config_drop_as_the_network_does():
    drops = [dict(type="Dropout", p=0.5, at="bn")]
    model = make(peers=1, drops=drops)
    images, _ = batch()
    for network in model.networks:
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), network(images))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(peers=0), "peers=0"),
        (dict(peers=True), "peers=True"),
        (dict(peers=[]), r"peers=\[\]"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(weight=-1.0), "weight=-1.0"),
        (dict(update="sequentiel"), "Did you mean 'sequential'"),
        (dict(order="other"), "none of 'same', 'different'"),
        (dict(num_classes=4, peers=[dict(type=Small, num_classes=5)]), "num_classes=5"),
    ],
)
def test_options_that_cannot_be_meant(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_a_module_cannot_be_made_again():
    with pytest.raises(ConfigError, match="config of its network"):
        MutualClassifier(Small(), data_preprocessor=PLAIN)  # type: ignore[arg-type]


def test_turns_need_a_step_of_their_own():
    model = make(update="sequential")
    with pytest.raises(ConfigError, match="Use update='simultaneous'"):
        model(*batch(), mode="loss")
    images, labels = batch()
    with pytest.raises(ConfigError, match="accumulative_counts is 2"):
        model.train_step(
            dict(inputs=images, data_samples=labels), optimizer(model, accumulative_counts=2)
        )


def test_data_and_order_must_agree():
    with pytest.raises(DataError, match="orders=2"):
        make(order="different")(*batch(), mode="loss")
    with pytest.raises(DataError, match="orders=2"):
        make(order="different")(*batch(views=3), mode="loss")
    with pytest.raises(DataError, match="order='different'"):
        make()(*batch(views=2), mode="loss")
