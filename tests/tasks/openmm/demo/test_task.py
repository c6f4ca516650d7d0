from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("rich")

from mmengine.config import Config

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.common.demo import DemoOptions, Metric
from taskdistill.tasks.openmm.demo import MmTask
from taskdistill.tasks.openmm.demo.task import (
    option_text,
    shortened,
    signature,
    training_length,
)


class Plain(MmTask):
    folder = "fake"
    metrics = (Metric("quality", "quality"),)

    def prepare(self, cfg):
        return ""

    def load(self, cfg, checkpoint):
        raise AssertionError("no model is asked for")

    forward_call = predict_call = load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "tree" / "configs" / "fake"
    found.mkdir(parents=True)
    schedule = "dict(type='OneCycleLR', eta_max=0.1, total_steps=3, end=3)"
    common = f"train_cfg = dict(max_epochs=3)\nparam_scheduler = [{schedule}]\n"
    (found / "teacher.py").write_text(common + "model = dict(width=8)\n")
    (found / "student.py").write_text(common + "model = dict(width=2)\n")
    distill = "distill = dict(teacher=dict(checkpoint='elsewhere'))\n"
    (found / "distilled.py").write_text("_base_ = 'student.py'\n" + distill)
    return found


def options(folder: Path, **changes) -> DemoOptions:
    root = folder.parents[1]
    return DemoOptions(root, root.parent / "out", **changes)


def told(command: tuple[str, ...]) -> list[str]:
    return list(command[command.index("--cfg-options") + 1 :])


def test_runs_are_told_seed_and_teacher(folder):
    task = Plain()
    jobs = task.plan(task.load_configs(folder), options(folder, seeds=2))
    assert [job.name for job in jobs] == [
        *("teacher", "alone-0", "alone-1", "distilled-0", "distilled-1")
    ]
    teacher, alone, distilled = jobs[0], jobs[2], jobs[4]
    tools, out = folder.parents[1] / "tools", folder.parents[2] / "out"
    assert alone.command == (
        *(sys.executable, str(tools / "train.py"), str(folder / "student.py")),
        *("--work-dir", str(out / "alone-1"), "--resume", "--cfg-options", "randomness.seed=1"),
    )
    assert told(distilled.command) == [
        "randomness.seed=1",
        f"distill.teacher.config={folder / 'teacher.py'}",
        f"distill.teacher.checkpoint={out / 'teacher' / 'epoch_3.pth'}",
    ]
    # By its own config, of which tools/test.py takes the student's part.
    assert distilled.evaluate == (
        *(sys.executable, str(tools / "test.py"), str(folder / "distilled.py")),
        str(out / "distilled-1" / "epoch_3.pth"),
        *("--work-dir", str(out / "distilled-1" / "final")),
    )
    assert (teacher.length, teacher.unit, teacher.metric) == (3, "epoch", "quality")
    # Where the teacher lies does not decide what comes out: a work folder can be moved.
    configs = task.load_configs(folder)
    assert distilled.signature == signature(configs["distilled"], {"randomness.seed": 1})


def test_runs_that_count_iterations(folder):
    for name in ("teacher", "student"):
        (folder / f"{name}.py").write_text("train_cfg = dict(max_iters=50)\nmodel = dict()\n")
    task = Plain()
    job = task.plan(task.load_configs(folder), options(folder))[1]
    assert (job.length, job.unit, job.checkpoint.name) == (50, "iteration", "iter_50.pth")


def test_the_report_shows_a_config_and_what_it_inherits(folder):
    task = Plain()
    cfg = task.load_configs(folder)["distilled"]
    text, whole = task.sources(cfg)
    assert text == (folder / "distilled.py").read_text()
    assert "OneCycleLR" in whole and "OneCycleLR" not in text
    plain = task.plain(cfg)
    assert "distill" not in plain and plain.model.width == 2


def test_fewer_epochs_scale_the_schedule(folder):
    task = Plain()
    job = task.plan(task.load_configs(folder), options(folder, epochs=1))[0]
    assert job.length == 1
    assert job.checkpoint.name == "epoch_1.pth"
    assert set(told(job.command)) == {
        "randomness.seed=0",
        "train_cfg.max_epochs=1",
        "param_scheduler.0.total_steps=1",
        "param_scheduler.0.end=1",
    }


def test_shortened_handles_milestones_and_a_single_schedule():
    cfg = Config(
        dict(
            train_cfg=dict(max_epochs=12),
            param_scheduler=dict(type="MultiStepLR", begin=0, milestones=[8, 11]),
        )
    )
    assert shortened(cfg, 6) == {
        "train_cfg.max_epochs": 6,
        "param_scheduler.milestones": [4, 6],
    }
    short = Config(dict(train_cfg=dict(max_epochs=9), param_scheduler=dict(begin=4, end=9)))
    assert shortened(short, 1) == {
        "train_cfg.max_epochs": 1,
        "param_scheduler.begin": 0,
        "param_scheduler.end": 1,
    }
    assert option_text("param_scheduler.milestones", [4, 6]) == "param_scheduler.milestones=[4,6]"


def test_what_cannot_be_trained_is_refused(folder):
    with pytest.raises(ConfigError, match="train_cfg.max_epochs"):
        shortened(Config(dict(train_cfg=dict(max_iters=100))), 3)
    with pytest.raises(ConfigError, match="expected train_cfg"):
        training_length(Config(dict(train_cfg=None)))
    assert training_length(Config(dict(train_cfg=dict(max_iters=100)))) == 100
    (folder / "teacher.py").write_text("train_cfg = dict(\n")
    with pytest.raises(ConfigError, match=r"teacher.py.* cannot be read"):
        Plain().load_configs(folder)


def test_signature_follows_what_decides_the_outcome():
    cfg = Config(dict(model=dict(width=8), work_dir="a"))
    same = signature(cfg, {"randomness.seed": 0})
    # It is kept in work folders: another one for the same config would train everything again.
    assert same == "32eff8a1827a1ff77757dca435a945823f95cc25498ee4af6682b17484864aa9"
    cfg.work_dir = "b"
    assert signature(cfg, {"randomness.seed": 0}) == same
    assert signature(cfg, {"randomness.seed": 1}) != same
    assert "randomness" not in cfg
    cfg.model.width = 9
    assert signature(cfg, {"randomness.seed": 0}) != same
