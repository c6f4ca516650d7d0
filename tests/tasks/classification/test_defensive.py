"""Defensive distillation: what training at a temperature does to a network, and what it does not.

The method is configs alone: a teacher with ``temperature``, and a student that learns from its
softened outputs and from nothing else.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.recipe import Recipe
from taskdistill.tasks.classification.classifier import ImageClassifier
from taskdistill.tasks.openmm.config import load_config
from taskdistill.tasks.openmm.model import DistilledModel

T = 20.0
PLAIN = dict(type="BaseDataPreprocessor")
CONFIGS = Path(__file__).resolve().parents[3] / "configs/classification/defensive"


class Linear(nn.Module):
    """The smallest classifier of images, beginning at 0."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 2 * 2, num_classes).double()
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1).double())


def noisy_batch(count: int = 64) -> tuple[Tensor, Tensor]:
    """Labels that depend on the image, with mistakes: the best logits are finite."""
    images = torch.randn(count, 3, 2, 2)
    labels = images[:, :, 0, 0].argmax(1)
    wrong = torch.rand(count) < 0.3
    return images, torch.where(wrong, torch.randint(0, 3, (count,)), labels)


def train(model: ImageClassifier, rate: float, steps: int, data: tuple[Tensor, Tensor]) -> None:
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), rate))
    for _ in range(steps):
        model.train_step(dict(inputs=data[0], data_samples=data[1]), wrapper)


@pytest.fixture(scope="module")
def trained() -> tuple[ImageClassifier, ImageClassifier, tuple[Tensor, Tensor]]:
    """One network trained at T = 1 and one at T, on the same data, and the data."""
    torch.manual_seed(0)
    data = noisy_batch()
    plain, hot = (
        ImageClassifier(Linear(), data_preprocessor=PLAIN, temperature=t) for t in (1.0, T)
    )
    # The slope of the loss is T times, its curvature T^2 times as small.
    train(plain, 0.5, 60, data)
    train(hot, 0.5 * T**2, 60, data)
    return plain, hot, data


def test_logits_grow_by_the_temperature(trained):
    """Of a network that is linear in its weights exactly, step by step."""
    plain, hot, (images, _) = trained
    assert plain(images).abs().max() > 1
    # The loss is computed in float32.
    torch.testing.assert_close(hot(images), T * plain(images), rtol=1e-4, atol=1e-3)


def test_at_temperature_1_it_is_much_surer_with_the_same_answers(trained):
    plain, hot, (images, labels) = trained
    ours, theirs = (model(images, labels, mode="predict") for model in (plain, hot))
    for one, two in zip(ours, theirs, strict=True):
        assert one["scores"].argmax() == two["scores"].argmax()
        assert two["scores"].max() >= one["scores"].max()
    sure = [torch.stack([s["scores"].max() for s in found]).mean() for found in (ours, theirs)]
    assert sure[0] < 0.8 and sure[1] > 0.95


def test_gradients_are_hidden_and_not_gone(trained):
    """At T = 1 nearly none for what is classified well; divided by T those of the plain network.

    Which is why it is no defence: whoever attacks may divide.
    """
    plain, hot, (images, _) = trained

    def slope(model: ImageClassifier, temperature: float) -> Tensor:
        x = images.clone().requires_grad_()
        logits = model(x) / temperature
        F.cross_entropy(logits, model(images).argmax(1), reduction="sum").backward()
        assert x.grad is not None
        return x.grad.flatten(1)

    hidden, open_ = slope(hot, 1.0).norm(dim=1), slope(plain, 1.0).norm(dim=1)
    assert hidden.median() < 0.01 * open_.median()
    torch.testing.assert_close(slope(hot, T), slope(plain, 1.0))


# -- the student -----------------------------------------------------------------------------------


def distilled(teacher: ImageClassifier, folder: Path) -> DistilledModel:
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    model = dict(type="ImageClassifier", network=dict(type=Linear), data_preprocessor=PLAIN)
    entry: dict[str, Any] = load_config(str(CONFIGS / "student.py")).distill.to_dict()
    entry["teacher"] = dict(
        config=dict(model=dict(model, temperature=T)), checkpoint=str(folder / "teacher.pth")
    )
    return DistilledModel(dict(model, temperature=T), {**entry, "probe_size": 2}, "classification")


def test_the_student_learns_from_soft_labels_alone(trained, tmp_path):
    """Other labels, the same step; and that is the one of the paper's cross-entropy."""
    _, hot, (images, labels) = trained
    slopes = []
    for given in (labels, (labels + 1) % 3):
        student = distilled(hot, tmp_path)
        losses = student(images, given, mode="loss")
        total, logged = student.parse_losses(losses)
        total.backward()
        assert logged["loss_cls"] == 0 and logged["loss_kd_soft"] > 0
        slopes.append(student.student.network.fc.weight.grad)
    assert torch.equal(*slopes)
    student = distilled(hot, tmp_path)
    soft = (hot(images) / T).softmax(1).detach()
    loss = -(soft * (student.student(images) / T).log_softmax(1)).sum(1).mean()
    loss.backward()
    torch.testing.assert_close(slopes[0], student.student.network.fc.weight.grad)
    torch.testing.assert_close(losses["loss_kd_soft"], loss)


def test_trained_to_its_end_the_student_is_its_teacher(trained, tmp_path):
    """Of a convex problem; at T = 1 too, its logits are T times those of plain training."""
    plain, hot, (images, labels) = trained
    student = distilled(hot, tmp_path)
    wrapper = OptimWrapper(torch.optim.SGD(student.parameters(), 1.5 * T**2))
    for _ in range(100):
        student.train_step(dict(inputs=images, data_samples=labels), wrapper)
    apart = (student.student(images) - T * plain(images)).abs().mean()
    assert apart < 0.05 * (T * plain(images)).abs().mean()


# -- the shipped configs ---------------------------------------------------------------------------


def test_the_configs_say_the_papers_settings():
    teacher, student = (load_config(str(CONFIGS / f"{name}.py")) for name in ("teacher", "student"))
    assert teacher.model == student.model  # the same architecture
    assert "distill" not in teacher
    (pair,) = Recipe.from_config(student.distill.pairs, stages=student.distill.stages).pairs
    assert teacher.model.temperature == pair.options["temperature"] == T
    assert pair.weight * T**2 == pytest.approx(1.0)  # the paper has no T^2
    assert [stage.task_weight for stage in student.distill.stages] == [0.0]
    assert student.distill.teacher.config.endswith("defensive/teacher.py")
    last = f"epoch_{teacher.train_cfg.max_epochs}.pth"
    assert Path(student.distill.teacher.checkpoint).name == last


def test_the_cross_entropy_alone_has_the_temperature():
    model = ImageClassifier(Linear(), data_preprocessor=PLAIN, temperature=T)
    nn.init.normal_(model.network.fc.weight)
    images, labels = noisy_batch(8)
    logits = model(images)
    found = model(images, labels, mode="loss")["loss_cls"]
    torch.testing.assert_close(found, F.cross_entropy(logits.float() / T, labels))
    scores = torch.stack([s["scores"] for s in model(images, labels, mode="predict")])
    torch.testing.assert_close(scores, logits.float().softmax(1))
    assert copy.deepcopy(model).temperature == T
