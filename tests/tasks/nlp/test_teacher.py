from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nlp_architectures import encoder, texts
from torch import nn

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.core.teacher import FrozenTeacher, state_sha256
from taskdistill.tasks.nlp.teacher import load_teacher, model_of

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved classifier."""
    encoder("Bert").save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


# -- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Path, str, lambda path: dict(path=path)])
def test_a_saved_folder_is_loaded(folder: Path, form: Any):
    teacher = load_teacher(form(folder), CLASSIFIER)
    assert isinstance(teacher, FrozenTeacher)
    assert teacher.source == str(folder)
    assert state_sha256(teacher.model) == state_sha256(encoder("Bert"))
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert torch.equal(teacher(**texts()).logits, encoder("Bert")(**texts()).logits)


def test_our_own_architecture_is_loaded(tmp_path: Path):
    encoder("IBBert").save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, CLASSIFIER)
    assert state_sha256(teacher.model) == state_sha256(encoder("IBBert"))


def test_options(folder: Path):
    options = dict(path=folder, precision="bf16", attn_implementation="eager")
    teacher = load_teacher(options, CLASSIFIER)
    assert teacher.precision == "bf16" and teacher(**texts()).logits.dtype == torch.float32
    model: Any = teacher.model
    assert model.config._attn_implementation == "eager"
    default: Any = load_teacher(folder, CLASSIFIER).model
    assert default.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (dict(paht="x"), "Did you mean 'path'"),
        (dict(precision="bf16"), "has no 'path'"),
        (dict(path=None), "has no 'path'"),
        ("", "has no 'path'"),
        (5, "has no 'path'"),
        ("/no/such/folder", "does not exist. Train the teacher first"),
        ("../folder", "does not exist"),
        ("runs/big/model", "does not exist"),
    ],
)
def test_sources_that_cannot_be_meant(source: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        load_teacher(source, CLASSIFIER)


def test_other_options_that_cannot_be_meant(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="no model class 'AutoModelForSequence'"):
        load_teacher(folder, "AutoModelForSequence")
    with pytest.raises(ConfigError, match="precision 'int8'"):
        load_teacher(dict(path=folder, precision="int8"), CLASSIFIER)
    with pytest.raises(TeacherError, match="attn_implementation"):
        load_teacher(dict(path=folder, attn_implementation="fast"), CLASSIFIER)
    with pytest.raises(ConfigError, match="holds no config.json"):
        load_teacher(tmp_path, CLASSIFIER)


def test_a_name_that_is_not_at_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match="'no-such-model' cannot be loaded as AutoModelFor"):
        load_teacher("no-such-model", CLASSIFIER)


def test_a_head_that_was_never_trained(tmp_path: Path):
    encoder("Bert", "Model").save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="no weights for classifier.bias, classifier.weight of"):
        load_teacher(tmp_path, CLASSIFIER)
    assert load_teacher(tmp_path, "AutoModel").model.config.hidden_size == 8  # type: ignore[union-attr]


def test_another_number_of_classes(folder: Path):
    _edit(folder, id2label={str(i): f"c{i}" for i in range(5)})
    with pytest.raises(TeacherError, match="cannot be loaded as"):
        load_teacher(folder, CLASSIFIER)


@pytest.mark.parametrize("kept", [0, 4, 100, -100])
def test_damaged_weights(folder: Path, kept: int):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(TeacherError, match="cannot be loaded as .*header"):
        load_teacher(folder, CLASSIFIER)


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match="no file named model.safetensors"):
        load_teacher(folder, CLASSIFIER)


@pytest.mark.parametrize("text", ["{", "{}"])
def test_damaged_config(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(TeacherError, match="config"):
        load_teacher(folder, CLASSIFIER)


def test_code_of_a_checkpoint_is_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trace = tmp_path / "ran"
    (folder / "mod.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    auto = {"AutoConfig": "mod.C", CLASSIFIER: "mod.M"}
    _edit(folder, model_type="odd", auto_map=auto)
    # Nor may anybody be asked about it: a training job has nobody at the keyboard.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the keyboard"))
    with pytest.raises(TeacherError, match="custom code"):
        load_teacher(folder, CLASSIFIER)
    assert not trace.exists()


def _edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# -- knowing it again -----------------------------------------------------------------------------


def test_model_of_a_teacher():
    model = nn.Linear(1, 1)
    assert model_of(model) is model
    assert model_of(FrozenTeacher(model)) is model
