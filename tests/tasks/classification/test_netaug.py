"""Network augmentation under mmengine: plain checkpoints, one draw a step, the schedule."""

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # saved_runs

from saved_runs import assert_equal, curves

import taskdistill.tasks.classification.recalibration  # noqa: F401
from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.core.netaug import NetAug
from taskdistill.tasks.classification.classifier import ImageClassifier
from taskdistill.tasks.classification.models import MCUNet, MobileNetV2Tiny, ProxylessNASMobile
from taskdistill.tasks.classification.netaug import AugmentedClassifier
from taskdistill.tasks.openmm import load_config

OPTIONS = dict(width=[1.0, 1.5, 2.0], expansion=[1.0], expand_only=0)


def block_network() -> nn.Module:
    """A block that expands, with dropout nowhere: what is drawn is NetAug's alone."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(4, 12, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, 1, 1, groups=12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def classifier(**options: Any) -> AugmentedClassifier:
    return AugmentedClassifier(
        block_network(), **{"width": [1.0, 1.5], "expansion": [1.0, 2.0], **options}
    )


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3, 8, 8), torch.arange(6) % 3


@pytest.fixture
def training() -> Any:
    """Where training stands, as the runner's hooks tell."""
    hub = MessageHub.get_current_instance()

    def stand(step: int = 0, epoch: int = 0, epochs: int = 10) -> None:
        hub.update_info("iter", step)
        hub.update_info("epoch", epoch)
        hub.update_info("max_epochs", epochs)

    return stand


# -- losses -------------------------------------------------------------------------------------


def test_the_base_learns_as_in_plain_training(batch: Any) -> None:
    network = block_network()
    plain = ImageClassifier(copy.deepcopy(network), label_smoothing=0.1)
    ours = AugmentedClassifier(network, label_smoothing=0.1, **OPTIONS)
    theirs = plain.loss(*batch)
    found = ours.loss(*batch)
    assert list(found) == ["loss_cls"]
    assert torch.allclose(found["loss_cls"], theirs["loss_cls"], atol=1e-6)
    theirs["loss_cls"].backward()
    found["loss_cls"].backward()
    grad = ours.network[6].weight.grad[:6, :12]
    assert torch.allclose(grad, plain.network[6].weight.grad, atol=1e-6)


def test_the_loss_of_a_step_has_both(batch: Any) -> None:
    model = classifier(alpha=0.5, expand_only=0)
    losses = model(*batch, mode="loss")
    assert list(losses) == ["loss_cls", "loss_aug"]
    # alpha times the cross-entropy of what was drawn.
    model.loss(*batch)
    model.untapped_loss(*batch)
    taken = model.take_outputs()
    logits, augmented = taken["logits"], taken.get("aug_logits")
    assert augmented is not None
    expected = 0.5 * model.classification_loss(augmented, batch[1])
    assert torch.allclose(losses["loss_aug"], expected, atol=1e-6)
    assert not torch.allclose(augmented, logits)
    # The next step's are not there yet.
    model.loss(*batch)
    assert model.take_outputs().get("aug_logits") is None
    total, _ = model.parse_losses(losses)
    assert torch.allclose(total, losses["loss_cls"] + losses["loss_aug"])


def test_taps_on_the_network_see_the_base_alone(batch: Any) -> None:
    """What a recipe compares is read in `loss`; the wider network runs after that."""
    model = classifier(expand_only=0)
    seen: list[int] = []
    handle = model.bare[1].register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    model.loss(*batch)
    assert seen == [12]
    handle.remove()
    model.untapped_loss(*batch)
    assert model.netaug.setting == dict.fromkeys(model.netaug.setting, 1.0)
    model(batch[0])
    assert seen == [12]


def test_draws_depend_on_the_step_and_the_seed_alone(batch: Any, training: Any) -> None:
    def drawn(model: AugmentedClassifier, step: int, seed: int) -> dict[str, float]:
        training(step=step)
        torch.manual_seed(seed)
        found: dict[str, float] = {}
        handle = model.network.register_forward_hook(lambda *_: found.update(model.netaug.setting))
        model.untapped_loss(*batch)
        handle.remove()
        return found

    first, second = classifier(expand_only=0), classifier(expand_only=0)
    settings = [drawn(first, step, seed=step) for step in range(8)]
    # As on another process, or after an interruption.
    assert [drawn(second, step, seed=99) for step in range(8)] == settings
    assert len({tuple(s.items()) for s in settings}) > 3
    other = classifier(expand_only=0, seed=1)
    assert [drawn(other, step, seed=0) for step in range(8)] != settings


def test_the_global_generator_goes_on_undisturbed(batch: Any) -> None:
    model = classifier(expand_only=0)
    state = torch.get_rng_state()
    model(*batch, mode="loss")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("epoch", "drawn"),
    [
        (0, (True, True)),
        (4, (True, True)),
        (5, (False, True)),
        (8, (False, True)),
        (9, (False, False)),
    ],
)
def test_the_schedule(epoch: int, drawn: tuple[bool, bool], training: Any, batch: Any) -> None:
    """Of 10 epochs, the last 5 draw expansions alone and the very last nothing."""
    model = classifier(expand_only=5, stop=1)
    training(epoch=epoch, epochs=10)
    assert model.drawn() == drawn
    assert ("loss_aug" in model(*batch, mode="loss")) == any(drawn)


def test_no_weight_no_second_network(batch: Any) -> None:
    assert list(classifier(alpha=0.0, expand_only=0)(*batch, mode="loss")) == ["loss_cls"]


def test_an_end_that_leaves_nothing_is_refused(training: Any, batch: Any) -> None:
    model = classifier(expand_only=75)
    training(epochs=60)
    with pytest.raises(ConfigError, match="expand_only=75 of 60 epochs leaves none"):
        model(*batch, mode="loss")
    # Where no width can be drawn in the first place, nothing is lost.
    narrow = classifier(width=[1.0], expand_only=75)
    assert narrow.drawn() == (True, True)


def test_nothing_to_expand_is_refused() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    with pytest.raises(ConfigError, match="nothing can be expanded: the network has 0 expansions"):
        AugmentedClassifier(network, expand_only=5)
    AugmentedClassifier(network, expand_only=0)


@pytest.mark.parametrize(
    "wrong",
    [dict(alpha=-1), dict(alpha=True), dict(expand_only=-1), dict(stop=1.5), dict(seed="a")],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        classifier(**wrong)


def test_drops_are_on_the_layers_that_are_trained(batch: Any) -> None:
    model = classifier(expand_only=0, drops=[dict(type="Dropout", p=0.5)])
    assert not torch.equal(model(batch[0]), model(batch[0]))
    model.eval()
    assert torch.equal(model(batch[0]), model(batch[0]))


# -- weights ------------------------------------------------------------------------------------


def test_the_state_dict_is_the_plain_networks() -> None:
    network = block_network()
    model = AugmentedClassifier(network, **OPTIONS)
    state, theirs = model.state_dict(), network.state_dict()
    assert list(state) == list(theirs)
    assert all(torch.equal(state[k], v) for k, v in theirs.items())
    block_network().load_state_dict(state, strict=True)


def test_a_plain_state_dict_goes_into_the_base() -> None:
    model, other = classifier(), block_network()
    wide = {k: v.clone() for k, v in model.partner_state().items()}
    missing = model.load_state_dict(other.state_dict(), strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    around = model.partner_state()["wide.1.weight"][12:]
    assert torch.equal(around, wide["wide.1.weight"][12:])


def test_wrong_state_dicts_are_told_in_the_bases_terms() -> None:
    model = classifier()
    state = model.state_dict()
    state["1.weight"] = torch.zeros(13, 4, 1, 1)
    with pytest.raises(RuntimeError, match=r"1.weight has shape \(13, 4, 1, 1\).*\(12, 4, 1, 1\)"):
        model.load_state_dict(state)
    state = model.state_dict()
    state["new"] = state.pop("1.weight")
    with pytest.raises(RuntimeError, match="(?s)Missing.*1.weight.*Unexpected.*new"):
        model.load_state_dict(state)


def test_partners_are_all_that_is_trained() -> None:
    """Base and surroundings; put into another, it gives the same wide network."""
    first, second = classifier(), classifier()
    second.load_partner_state({k: v.clone() for k, v in first.partner_state().items()})
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="another shape: wide.0.weight"):
        classifier(width=[1.0, 3.0]).load_partner_state(first.partner_state())


def test_a_copy_is_a_model_of_its_own(batch: Any) -> None:
    """As mmengine's averages of weights are made, also in the middle of a step."""
    model = classifier(expand_only=0)
    model.loss(*batch)
    model.untapped_loss(*batch)
    twin = copy.deepcopy(model)
    twin.netaug.use_widest()
    assert twin.network is twin.netaug.network is not model.network
    assert model.network[0].active == 4 and twin.network[0].active == 6
    assert list(twin.state_dict()) == list(model.state_dict())


def test_weights_of_a_network_of_our_own_survive_initialisation() -> None:
    model = classifier()
    before = {k: v.clone() for k, v in model.partner_state().items()}
    model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.partner_state().items())


# -- whole runs ---------------------------------------------------------------------------------


def config(tiny_data: Any, **entries: Any) -> dict[str, Any]:
    model = tiny_data.model("AugmentedClassifier", **OPTIONS)
    return tiny_data.config(model, **entries)


def test_checkpoints_open_without_us_and_training_resumes(tiny_data: Any, tmp_path: Path) -> None:
    hooks = [
        dict(type="PartnersHook"),
        dict(type="RepeatableHook"),
        dict(type="RecalibrateHook", batches=2),
    ]
    whole = config(tiny_data, custom_hooks=hooks)
    tiny_data.train(whole, tmp_path / "whole")
    first = torch.load(tmp_path / "whole" / "epoch_1.pth", weights_only=False)
    last = torch.load(tmp_path / "whole" / "epoch_2.pth", weights_only=False)
    plain = tiny_data.build(tiny_data.model()).network
    plain.load_state_dict(last["state_dict"], strict=True)
    # Trained: the base and, as part of the wider networks, what is around it.
    name = "wide.layer1.1.weight"
    was, now = (c["classification"]["partners"][name] for c in (first, last))
    assert not torch.equal(was[8:], now[8:])
    assert {"loss_cls", "loss_aug"} <= set(curves(last))

    resumed = config(
        tiny_data, custom_hooks=hooks, resume=True, load_from=str(tmp_path / "whole/epoch_1.pth")
    )
    tiny_data.train(resumed, tmp_path / "resumed")
    again = torch.load(tmp_path / "resumed" / "epoch_2.pth", weights_only=False)
    for key in ("state_dict", "optimizer", "classification", "recalibration"):
        assert_equal(last[key], again[key], key)
    assert_equal(curves(last), curves(again))


# -- the paper's networks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "width", "expansions", "blocks"),
    [
        (MobileNetV2Tiny, 144, (1.0, 1.8, 2.6), (1.0, 1.6, 2.2, 2.8), 16),
        (MCUNet, 176, (1.0, 1.6, 2.2), (1.0, 1.6, 2.2, 2.8), 17),
        (ProxylessNASMobile, 160, (1.0, 1.8, 2.6), (1.0, 1.6, 2.2, 2.8), 19),
    ],
)
def test_the_papers_networks(
    kind: Any, size: int, width: Any, expansions: Any, blocks: int
) -> None:
    network = kind(num_classes=10).eval()
    netaug = NetAug(network, width, expansions)
    assert netaug.count("expansion") == blocks
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(netaug(images), network(images), atol=1e-6)
    # Every middle is its block's ratio times what the block reads.
    netaug.use_widest()
    for name, group in netaug.groups.items():
        if group.kind == "expansion":
            assert group.follows is not None
            read = netaug.groups[group.follows]
            ratio = group.channels / read.channels
            wanted = 2.8 * ratio * netaug.active[read.name]
            assert abs(netaug.active[name] - wanted) <= 0.5 + 1e-6


# -- configs and distillation -------------------------------------------------------------------

CONFIGS = Path(__file__).parents[3] / "configs" / "classification" / "netaug"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_configs_build(path: Path) -> None:
    """The shipped recipes: what is drawn fits the network and the length of training."""
    cfg = load_config(str(path))
    model = MODELS.build(cfg.model)
    assert isinstance(model, AugmentedClassifier)
    assert 0 < model.expand_only < cfg.train_cfg.max_epochs
    scheduled = max(entry["end"] for entry in cfg.param_scheduler)
    assert scheduled == cfg.train_cfg.max_epochs
    assert [hook["type"] for hook in cfg.custom_hooks] == ["RecalibrateHook"]
    assert len(model.data_preprocessor.mean) == 3
    assert model.check_classes() == cfg.num_classes
    if "size" in cfg:
        crop, *_ = cfg.train_dataloader.dataset.transforms
        resize, centre = cfg.test_dataloader.dataset.transforms
        assert crop["size"] == centre["size"] == cfg.size
        assert resize["size"] == math.ceil(cfg.size / 0.875)
        assert cfg.model.label_smoothing == 0.1


def test_with_distillation_both_networks_learn_from_the_teacher(
    tiny_data: Any, tmp_path: Path
) -> None:
    teacher, weights = tiny_data.network(width=6), tmp_path / "teacher.pth"
    torch.save(tiny_data.build(tiny_data.model(network=teacher)).state_dict(), weights)
    entries = config(
        tiny_data,
        task="classification",
        custom_hooks=[dict(type="RecalibrateHook", batches=1)],
        distill=dict(
            teacher=dict(network=teacher, checkpoint=str(weights)),
            pairs=[
                dict(student="outputs.logits", loss="KLDivergence", name="kd"),
                dict(
                    student="outputs.aug_logits",
                    teacher="outputs.logits",
                    loss="KLDivergence",
                    name="aug_kd",
                ),
                dict(student="layer2", loss="AttentionTransfer", name="at"),
            ],
        ),
    )
    tiny_data.train(entries, tmp_path)
    file = torch.load(tmp_path / "epoch_2.pth", weights_only=False)
    figures = curves(file)
    assert {"loss_cls", "loss_aug", "loss_kd_kd", "loss_kd_aug_kd", "loss_kd_at"} <= set(figures)
    assert figures["loss_kd_kd"] != figures["loss_kd_aug_kd"]
    tiny_data.build(tiny_data.model()).network.load_state_dict(file["state_dict"], strict=True)
    assert {"classification", "recalibration", "distill"} <= set(file)
