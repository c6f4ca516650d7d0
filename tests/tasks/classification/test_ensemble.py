from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.classification.classifier import ImageClassifier
from taskdistill.tasks.classification.ensemble import Ensemble
from taskdistill.tasks.openmm.teacher import build_teacher

FLAT = dict(type="torch.nn:Linear", in_features=4, out_features=3)
WIDE = dict(type="taskdistill.tasks.classification.models:CifarResNet", depth=8, num_classes=3)


def trained(folder: Path, count: int) -> tuple[list[nn.Module], list[str]]:
    """Networks, and their files: as training leaves them, bare, and as data-parallel code does."""
    networks = [nn.Linear(4, 3) for _ in range(count)]
    paths = []
    for i, network in enumerate(networks):
        state = network.state_dict()
        forms = [
            {"meta": {}, "state_dict": state},
            state,
            {f"module.{k}": v for k, v in state.items()},
        ]
        torch.save(forms[i % 3], folder / f"{i}.pth")
        paths.append(str(folder / f"{i}.pth"))
    return networks, paths


def test_the_mean_of_trained_networks(tmp_path):
    networks, paths = trained(tmp_path, 3)
    images = torch.randn(5, 4)
    mean = torch.stack([network(images).softmax(1) for network in networks]).mean(0)
    for given in (FLAT, [FLAT] * 3):
        ensemble = Ensemble(given, paths)
        torch.testing.assert_close(ensemble(images).softmax(1), mean)
    logits = torch.stack([network(images) for network in networks]).mean(0)
    torch.testing.assert_close(Ensemble(FLAT, paths, average="logits")(images), logits)


def test_it_is_trained_where_all_its_networks_are(tmp_path):
    _, paths = trained(tmp_path, 2)
    assert Ensemble(FLAT, paths).is_trained
    assert not Ensemble([FLAT, FLAT], [paths[0], None]).is_trained
    assert not Ensemble([FLAT, FLAT]).is_trained


def test_members_may_be_of_any_architecture():
    ensemble = Ensemble([WIDE, dict(WIDE, depth=14)])
    assert ensemble(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_as_the_network_of_a_classifier_it_teaches(tmp_path):
    networks, paths = trained(tmp_path, 2)
    model = dict(
        type="ImageClassifier",
        network=dict(type="Ensemble", networks=[FLAT, FLAT], checkpoints=paths),
        data_preprocessor=dict(type="BaseDataPreprocessor"),
    )
    student = ImageClassifier(FLAT, data_preprocessor=dict(type="BaseDataPreprocessor"))
    teacher = build_teacher(dict(config=dict(model=model)), student, "teacher")
    images = torch.randn(5, 4)
    mean = torch.stack([network(images).softmax(1) for network in networks]).mean(0)
    torch.testing.assert_close(teacher(images).softmax(1), mean)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    # Another member is another teacher, which a resumed run must notice.
    model["network"]["checkpoints"] = [paths[0], paths[0]]
    other = build_teacher(dict(config=dict(model=model)), student, "teacher")
    assert other.sha256 != teacher.sha256


def test_a_whole_ensemble_saves_and_loads(tmp_path):
    one, two = Ensemble([FLAT, FLAT]), MODELS.build(dict(type="Ensemble", networks=[FLAT, FLAT]))
    two.load_state_dict(one.state_dict(), strict=True)
    images = torch.randn(2, 4)
    assert torch.equal(one(images), two(images))


def test_what_cannot_be_meant(tmp_path):
    _, paths = trained(tmp_path, 2)
    with pytest.raises(ConfigError, match="2 networks, but 1 checkpoints"):
        Ensemble([FLAT, FLAT], paths[:1])
    with pytest.raises(ConfigError, match="list of files"):
        Ensemble(FLAT, paths[0])  # type: ignore[arg-type]
    for empty in ([], FLAT):
        with pytest.raises(ConfigError, match="needs networks="):
            Ensemble(empty)
    with pytest.raises(ConfigError, match="Did you mean 'logits'"):
        Ensemble([FLAT], average="logit")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="does not fit Linear"):
        Ensemble([dict(FLAT, out_features=5)], paths[:1])
    with pytest.raises(CheckpointError, match="does not exist"):
        Ensemble([FLAT], [str(tmp_path / "none.pth")])
