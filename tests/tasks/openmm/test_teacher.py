import os

import numpy as np
import pytest
import torch

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.openmm.teacher import (
    build_teacher,
    read_mm_checkpoint,
    read_model_config,
)


class RunsCode:
    def __reduce__(self):
        return (os.system, ("touch ran",))


class UsesGetattr:
    def __reduce__(self):
        return (getattr, (np.ndarray, "tofile"))


@pytest.fixture
def student(tiny):
    return tiny.build(tiny.model())


def test_the_teacher_is_the_trained_network(tiny, student):
    files = tiny.teacher()
    teacher = build_teacher(files, student, "teacher")
    state = torch.load(files["checkpoint"], weights_only=True)["state_dict"]
    assert all(torch.equal(v, state[k]) for k, v in teacher.model.state_dict().items())
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert teacher.source == files["checkpoint"] and len(teacher.sha256) == 64
    assert teacher.preprocess is None  # normalises as the student does


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(checkpoint="gone/teacher.pth"), CheckpointError, "gone/teacher.pth.*does not exist"),
        (dict(config="gone.py"), ConfigError, "gone.py.*does not exist"),
        (dict(config="mmdet::gfl/no_such.py"), ConfigError, "cannot be read"),
        (dict(chekpoint="x"), ConfigError, "Did you mean 'checkpoint'"),
        (dict(precision="fp8"), ConfigError, "fp8"),
        (dict(scale=0), ConfigError, "scale is 0; expected"),
    ],
)
def test_what_cannot_be_built_is_told(tiny, student, change, error, words):
    with pytest.raises(error, match=words):
        build_teacher({**tiny.teacher(), **change}, student, "teacher")


@pytest.mark.parametrize("key", ["config", "checkpoint"])
def test_what_is_left_out_is_told(tiny, student, key):
    files = tiny.teacher()
    del files[key]
    with pytest.raises(ConfigError, match=key):
        build_teacher(files, student, "teacher")


def test_a_truncated_checkpoint_is_told(tiny, student, tmp_path):
    files = tiny.teacher()
    content = open(files["checkpoint"], "rb").read()
    for part in (0, 100, len(content) // 2):
        (tmp_path / "cut.pth").write_bytes(content[:part])
        with pytest.raises(CheckpointError, match=rf"cut.pth.*{part} bytes.*truncated"):
            build_teacher({**files, "checkpoint": str(tmp_path / "cut.pth")}, student, "teacher")


def test_weights_of_another_architecture_are_listed(tiny, student):
    files = tiny.teacher()
    other = tiny.write(tiny.config(tiny.model("RetinaNet", width=16)))
    with pytest.raises(CheckpointError) as error:
        build_teacher({**files, "config": other}, student, "teacher")
    text = str(error.value)
    assert "missing" in text and "bbox_head.retina_cls.weight" in text
    assert "unexpected" in text and "bbox_head.gfl_cls.weight" in text
    thinner = tiny.write(tiny.config(tiny.model(width=8)))
    with pytest.raises(CheckpointError, match=r"backbone.conv1.weight \(model \(8, "):
        build_teacher({**files, "config": thinner}, student, "teacher")
    loose = build_teacher({**files, "config": other, "strict": False}, student, "teacher")
    assert type(loose.model).__name__ == "RetinaNet"


@pytest.mark.parametrize("content", [RunsCode(), UsesGetattr()])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(
    tiny, student, tmp_path, content, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": content}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        build_teacher({**tiny.teacher(), "checkpoint": str(path)}, student, "teacher")
    with pytest.raises(CheckpointError, match="would run code"):
        read_mm_checkpoint(str(path))
    assert not (tmp_path / "ran").exists()


def test_packaged_configs_and_mappings_are_read(tiny):
    assert read_model_config("mmdet::gfl/gfl_r50_fpn_1x_coco.py", "x").model.type == "GFL"
    assert read_model_config(tiny.config(), "x").model.type == "GFL"
    with pytest.raises(ConfigError, match="no 'model'"):
        read_model_config({"lr": 1}, "x")
