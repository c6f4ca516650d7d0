"""What recipes may compare of classifiers, against the same computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.tasks.classification.models import CifarResNet

SMALL = dict(type="CifarResNet", depth=8, widths=(4, 8, 8), num_classes=3)
WIDE = dict(SMALL, widths=(8, 8, 16))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(CifarResNet(8, widths=(8, 8, 16), num_classes=3).state_dict(), path)
    return str(path)


@pytest.fixture
def build(tiny_data: Any, checkpoint: str) -> Any:
    def made(*pairs: dict[str, Any], model: Any = None, **options: Any) -> Any:
        given = dict(teacher=dict(network=WIDE, checkpoint=checkpoint), pairs=list(pairs))
        student = model or tiny_data.model(network=SMALL)
        torch.manual_seed(1)
        return MODELS.build(
            dict(
                type="DistilledModel",
                student=student,
                distill={"probe_size": [8, 8], **given, **options},
                scope="classification",
            )
        )

    return made


def batch(model: Any, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = model.data_preprocessor(
        {"inputs": pixels, "data_samples": torch.arange(count) % 3}, True
    )
    return data["inputs"], data["data_samples"]


def test_logits_features_and_weights(build):
    pairs = [
        dict(student="outputs.logits", loss="KLDivergence", temperature=3.0, weight=0.7),
        dict(student="layer3", loss="AttentionTransfer"),
        dict(student="layer1.0.conv2@weight", loss="WeightMatching"),
    ]
    # A tap is one of the network's own names; its teacher's too.
    model = build(*pairs)
    inputs, labels = batch(model)
    model.eval()
    found = model(inputs, labels, mode="loss")
    network, teacher = model.student.network, model.distiller.teachers["teacher"].model
    s, t = network(inputs), teacher(inputs)
    torch.testing.assert_close(found["loss_cls"], F.cross_entropy(s, labels))
    raw = losses.kl_div(s, t, temperature=3.0)
    torch.testing.assert_close(found["kd_kl_divergence_raw"], raw)
    torch.testing.assert_close(found["loss_kd_kl_divergence"], 0.7 * raw)
    assert found["kd_attention_transfer_raw"] > 0 and found["kd_weight_matching_raw"] > 0


def test_input_gradients_are_those_of_both_losses(build):
    pair = dict(student="outputs.input_gradient", loss="GradientAttentionTransfer", weight=2.0)
    model = build(pair).eval()
    inputs, labels = batch(model)
    found = model(inputs, labels, mode="loss")
    gradients = []
    for network in (model.student.network, model.distiller.teachers["teacher"].model):
        x = inputs.clone().requires_grad_()
        loss = F.cross_entropy(network(x), labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, x)[0])
    expected = losses.gradient_attention_transfer(*gradients)
    torch.testing.assert_close(found["kd_gradient_attention_transfer_raw"], expected)
    # It is differentiated by the student's weights, and reaches the teacher's not at all.
    found["loss_kd_gradient_attention_transfer"].backward()
    assert model.student.network.conv1.weight.grad.abs().sum() > 0
    teacher = model.distiller.teachers["teacher"].model
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not inputs.requires_grad and inputs.grad is None


def test_augmented_logits_are_the_wider_networks_and_taps_see_the_base_alone(build, tiny_data):
    student = tiny_data.model(
        "AugmentedClassifier",
        network=dict(SMALL, shortcut="B"),
        width=(1.0, 2.0),
        expansion=(1.0, 2.0),
        expand_only=0,
    )
    pairs = [
        dict(student="outputs.logits", loss="KLDivergence", name="base"),
        dict(
            student="outputs.aug_logits",
            teacher="outputs.logits",
            loss="KLDivergence",
            name="augmented",
        ),
        dict(student="layer2", loss="FeatureImitation", name="features"),
    ]
    model = build(*pairs, model=student)
    inputs, labels = batch(model)
    found = model(inputs, labels, mode="loss")
    assert {"loss_cls", "loss_aug", "loss_kd_base", "loss_kd_augmented"} <= set(found)
    assert not torch.equal(found["kd_base_raw"], found["kd_augmented_raw"])
    found["loss_kd_augmented"].backward()
    # Wider than the base: what lies around it is trained too.
    base = model.student.state_dict()
    beyond = [
        p.grad[len(base[name]) :].abs().sum()
        for name, p in model.student.network.named_parameters()
        if p.grad is not None
    ]
    assert sum(beyond) > 0


@pytest.mark.parametrize("kind", ["MutualClassifier", "OneClassifier", "SelfTaughtClassifier"])
def test_a_teacher_beside_online_methods_teaches_the_deployed_network(build, tiny_data, kind):
    options: dict[str, Any] = {
        "MutualClassifier": dict(peers=1),
        "OneClassifier": dict(at="layer3", size=(3, 8, 8)),
        "SelfTaughtClassifier": dict(exits=["layer1"], features="layer3", size=(3, 8, 8)),
    }[kind]
    student = tiny_data.model(kind, network=SMALL, **options)
    pairs = [
        dict(student="outputs.logits", loss="KLDivergence"),
        dict(student="layer3", loss="AttentionTransfer"),
    ]
    model = build(*pairs, model=student).eval()
    inputs, labels = batch(model)
    found = model(inputs, labels, mode="loss")
    expected = losses.kl_div(
        model.student.network(inputs), model.distiller.teachers["teacher"](inputs)
    )
    torch.testing.assert_close(found["kd_kl_divergence_raw"], expected)


def test_nothing_of_a_graph_outlives_the_step(build):
    model = build(dict(student="outputs.logits", loss="KLDivergence"))
    inputs, labels = batch(model)
    model(inputs, labels, mode="loss")
    assert model.task._seen == {} and model.student.take_outputs() == {}


def test_a_teacher_with_another_normalisation_sees_its_own_images(build, checkpoint):
    entry = dict(network=WIDE, checkpoint=checkpoint, mean=[0.0] * 3, std=[255.0] * 3)
    model = build(dict(student="outputs.logits", loss="KLDivergence"), teacher=entry).eval()
    inputs, labels = batch(model)
    found = model(inputs, labels, mode="loss")
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    pixels = (inputs * std + mean) / 255
    teacher = model.distiller.teachers["teacher"].model
    expected = losses.kl_div(model.student.network(inputs), teacher(pixels))
    torch.testing.assert_close(found["kd_kl_divergence_raw"], expected)


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        (dict(student="outputs.logit", loss="KLDivergence"), ConfigError, "no output 'logit'"),
        (
            dict(student="outputs.aug_logits", teacher="outputs.logits", loss="KLDivergence"),
            ConfigError,
            "compares aug_logits, which an AugmentedClassifier has",
        ),
        (
            dict(student="outputs.logits", teacher="outputs.aug_logits", loss="KLDivergence"),
            ConfigError,
            "a teacher has no aug_logits",
        ),
        (
            dict(student="outputs.input_gradient", teacher="outputs.logits", loss="Hint"),
            ConfigError,
            "a gradient can only be matched with a gradient",
        ),
        (
            dict(student="layer1", loss="AttentionTransfer", region="boxes"),
            ConfigError,
            "no region 'boxes'",
        ),
    ],
)
def test_pairs_that_cannot_be_meant(build, pair, error, message):
    with pytest.raises(error, match=message):
        build(pair)


def test_networks_that_cannot_be_compared(build, tiny_data, tmp_path, checkpoint):
    kd = dict(student="outputs.logits", loss="KLDivergence")
    torch.save(CifarResNet(8, widths=(8, 8, 16), num_classes=5).state_dict(), tmp_path / "5.pth")
    five = dict(network=dict(WIDE, num_classes=5), checkpoint=str(tmp_path / "5.pth"))
    with pytest.raises(TeacherError, match="student 3, teacher 5"):
        build(kd, teacher=five)
    build(dict(student="layer2", loss="Hint"), teacher=five)  # features alone may be matched
    mixing = tiny_data.model(network=SMALL)
    mixing["data_preprocessor"] = dict(
        mixing["data_preprocessor"], mixing=dict(type="MixUp", alpha=1.0)
    )
    with pytest.raises(ConfigError, match="one label an image, but the student's preprocessor"):
        build(dict(student="outputs.logits", loss="DecoupledKD"), model=mixing)
    gradient = dict(student="outputs.input_gradient", loss="GradientAttentionTransfer")
    other = dict(network=WIDE, checkpoint=checkpoint, mean=[0.0] * 3, std=[255.0] * 3)
    with pytest.raises(ConfigError, match="Give the student the teacher's mean and std"):
        build(gradient, teacher=other)
