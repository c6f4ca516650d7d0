"""Ways to name a teacher, and its accuracy before training."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core.errors import ConfigError
from taskdistill.tasks.classification.models import CifarResNet
from taskdistill.tasks.classification.teachers import TEACHERS_FILE, full_entry

SMALL = dict(type="CifarResNet", depth=8, widths=(4, 8, 8), num_classes=3)
KD = dict(student="outputs.logits", loss="KLDivergence")


@pytest.fixture
def files(tmp_path: Any) -> list[str]:
    """Two sets of weights."""
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        paths.append(str(tmp_path / f"{seed}.pth"))
        torch.save(CifarResNet(8, widths=(4, 8, 8), num_classes=3).state_dict(), paths[-1])
    return paths


def test_a_config_is_taken_as_it_is():
    entry = dict(config="teacher.py", checkpoint="a.pth")
    assert full_entry(entry, "teacher", nn.Identity()) is entry


def test_a_network_shares_the_students_normalisation_where_it_has_none(tiny_data):
    student = tiny_data.build()
    entry = full_entry(dict(network=SMALL, checkpoint="a.pth", scale=2), "teacher", student)
    model = entry["config"]["model"]
    assert model["type"] == "ImageClassifier" and model["network"] is SMALL
    assert model["data_preprocessor"]["mean"] == [110.0, 100.0, 90.0]
    assert (entry["checkpoint"], entry["scale"]) == ("a.pth", 2)
    own = full_entry(dict(network=SMALL, checkpoint="a.pth", mean=[1.0] * 3), "teacher", student)
    assert own["config"]["model"]["data_preprocessor"]["mean"] == [1.0] * 3
    assert own["config"]["model"]["data_preprocessor"]["std"] == [60.0, 50.0, 40.0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(checkpoint="a.pth"), r"needs one of config=..., network=... or ensemble=\[...\]"),
        (dict(network=SMALL, config="a.py"), r"it has \['config', 'network'\]"),
        (dict(config="a.py", mean=[0.0]), "'mean' beside its config"),
        (dict(ensemble=[dict(network=SMALL)]), "at least two members"),
        (dict(ensemble=[SMALL, SMALL]), "A member of the ensemble of teacher 'big'"),
    ],
)
def test_entries_that_cannot_be_meant(entry: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        full_entry(entry, "big", nn.Identity())


def distilled(tiny_data: Any, **teachers: Any) -> Any:
    distill = dict(pairs=[KD], probe_size=8, **teachers)
    model = tiny_data.model(network=SMALL)
    return MODELS.build(
        dict(type="DistilledModel", student=model, distill=distill, scope="classification")
    )


def test_an_ensemble_teaches_the_mean_of_its_members(tiny_data, files):
    members = [dict(network=SMALL, checkpoint=path) for path in files]
    model = distilled(tiny_data, teacher=dict(ensemble=members))
    images = torch.randn(4, 3, 8, 8)
    teacher = model.distiller.teachers["teacher"]
    expected = torch.zeros(4, 3)
    for path in files:
        network = CifarResNet(8, widths=(4, 8, 8), num_classes=3).eval()
        network.load_state_dict(torch.load(path, weights_only=True))
        expected += network(images).softmax(1) / 2
    torch.testing.assert_close(teacher(images).softmax(1), expected)
    assert len(teacher.sha256) == 64


def test_an_untrained_teacher_is_refused(tiny_data):
    with pytest.raises(ConfigError, match="an untrained teacher teaches nothing"):
        distilled(tiny_data, teacher=dict(network=SMALL))


def test_accuracy_is_measured_and_shown_before_training(tiny_data, files, tmp_path):
    """Each of two teachers, against its accuracy counted by hand."""
    config = tiny_data.config(
        tiny_data.model(network=SMALL),
        task="classification",
        custom_hooks=[],
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=1),
        distill=dict(
            teachers=dict(
                first=dict(network=SMALL, checkpoint=files[0]),
                second=dict(network=SMALL, checkpoint=files[1]),
            ),
            pairs=[dict(KD, of="first"), dict(KD, of="second", name="other")],
        ),
    )
    runner = tiny_data.train(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / TEACHERS_FILE).read_text())
    data = runner.val_loop.dataloader
    for name, path in zip(("first", "second"), files, strict=True):
        net = CifarResNet(8, widths=(4, 8, 8), num_classes=3).eval()
        net.load_state_dict(torch.load(path, weights_only=True))
        right = 0
        for batch in data:
            ready = runner.model.data_preprocessor(batch, False)
            labels = ready["data_samples"]
            right += int((net(ready["inputs"]).argmax(1) == labels).sum())
        assert found[name]["accuracy"] == pytest.approx(100 * right / 12)
        assert found[name]["images"] == 12 and found[name]["source"] == path
    log = next((tmp_path / "run").glob("*/*.log")).read_text()
    assert "Teacher 'first'" in log and "on 12 validation images" in log
    assert log.index("Teacher 'first'") < log.index("Epoch(train)")


def test_measuring_can_be_cut_short_or_left_out(tiny_data, files, tmp_path):
    entry = dict(network=SMALL, checkpoint=files[0])
    for measure, images in ((5, 8), (False, None)):
        config = tiny_data.config(
            tiny_data.model(network=SMALL),
            task="classification",
            custom_hooks=[],
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=1),
            distill=dict(teacher=entry, pairs=[KD], measure_teacher=measure),
        )
        tiny_data.train(config, tmp_path / str(measure))
        path = tmp_path / str(measure) / TEACHERS_FILE
        if images is None:
            assert not path.exists()
        else:  # whole batches of eight
            assert json.loads(path.read_text())["teacher"]["images"] == images
    with pytest.raises(ConfigError, match="measure_teacher is -3"):
        config["distill"] = dict(teacher=entry, pairs=[KD], measure_teacher=-3)
        tiny_data.train(config, tmp_path / "bad")
