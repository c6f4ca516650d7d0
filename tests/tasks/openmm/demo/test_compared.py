from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("rich")

from taskdistill.core.errors import CheckpointError, ConfigError, TeacherError
from taskdistill.tasks.openmm import load_config
from taskdistill.tasks.openmm.demo.compared import MmContender, parse_options
from taskdistill.tasks.openmm.demo.task import signature

ROOT = Path(__file__).resolve().parents[4]
GAN = ROOT / "configs" / "gan" / "demo" / "student.py"

CONFIG = """
train_cfg = dict(max_epochs=4)
param_scheduler = dict(type='StepLR', step_size=2)
model = dict(width=8)
val_dataloader = dict(dataset=dict(split='val'), batch_size=2)
test_dataloader = dict(dataset=dict(split='val'), batch_size=1)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "student.py"
    path.write_text(CONFIG)
    return path


def test_a_run_is_told_seed_length_and_options(config, tmp_path):
    given = ["model.width=2", "val.names=[a,b]"]
    run = MmContender(config, ROOT, epochs=2, given=given).training(
        "kd-1", tmp_path / "kd-1", 1, "accuracy/top1"
    )
    assert run.command == (
        *(sys.executable, str(ROOT / "tools" / "train.py"), str(config)),
        *("--work-dir", str(tmp_path / "kd-1"), "--resume", "--cfg-options", *given),
        *("randomness.seed=1", "train_cfg.max_epochs=2", "param_scheduler.step_size=1"),
    )
    assert run.evaluate[-3:] == ("--cfg-options", *given)
    assert (run.length, run.metric) == (2, "accuracy/top1")
    assert run.checkpoint == tmp_path / "kd-1" / "epoch_2.pth"


def test_the_signature_follows_config_options_seed_and_length(config, tmp_path):
    def made(seed: int = 0, **options) -> str:
        return MmContender(config, ROOT, **options).training("a", tmp_path, seed, "").signature

    first = made()
    assert first == signature(load_config(str(config)), {"randomness.seed": 0})
    others = {made(1), made(epochs=2), made(given=["model.width=2"])}
    assert len(others - {first}) == 3
    config.write_text(CONFIG + "work_dir = 'elsewhere'\n")
    assert made() == first
    config.write_text(CONFIG.replace("width=8", "width=9"))
    assert made() != first


def test_a_teacher_that_is_not_there_is_told_before_training(config, tmp_path, monkeypatch):
    distill = "distill = dict(teacher=dict(config='t.py', checkpoint='runs/t.pth'), pairs=[])\n"
    config.write_text(CONFIG + distill)
    monkeypatch.chdir(tmp_path)
    contender = MmContender(config, ROOT)
    with pytest.raises(TeacherError, match=r"'runs/t.pth' does not exist .looked from"):
        contender.training("a", tmp_path / "a", 0, "")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "t.pth").touch()
    assert contender.training("a", tmp_path / "a", 0, "").name == "a"
    config.write_text(CONFIG + distill.replace("runs/t.pth", "https://example.org/t.pth"))
    assert MmContender(config, ROOT).training("a", tmp_path / "a", 0, "").name == "a"


def test_a_config_that_another_program_trains(config, tmp_path):
    entry = "compare = dict(command='tools/generations.py', arguments=['--generations', 3])\n"
    config.write_text(CONFIG + entry)
    with pytest.raises(ConfigError, match="compare.command 'tools/generations.py' does not exist"):
        MmContender(config, tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "generations.py").touch()
    contender = MmContender(config, tmp_path, epochs=2, given=["model.width=2"])
    run = contender.training("a-2", tmp_path / "a-2", 2, "m")
    assert run.command == (
        *(sys.executable, str(tmp_path / "tools" / "generations.py"), str(config)),
        *("--generations", "3", "--work-dir", str(tmp_path / "a-2"), "--seed", "2"),
        *("--cfg-options", "model.width=2", "train_cfg.max_epochs=2"),
        "param_scheduler.step_size=1",
    )
    assert run.writes_result and run.evaluate == ()
    for wrong, message in (
        ("dict(comand='tools/generations.py')", "no 'comand'. Did you mean 'command'"),
        ("dict(arguments=[])", "expected dict.command="),
        ("'tools/generations.py'", "expected dict.command="),
        ("dict(command='tools/generations.py', arguments='--x')", "expected a list of words"),
    ):
        config.write_text(f"{CONFIG}compare = {wrong}\n")
        with pytest.raises(ConfigError, match=message):
            MmContender(config, tmp_path)


def test_a_checkpoint_is_evaluated_once(config, tmp_path):
    checkpoint = tmp_path / "teacher.pth"
    contender = MmContender(config, ROOT)
    with pytest.raises(CheckpointError, match=r"teacher: checkpoint .* does not exist"):
        contender.evaluation("teacher", tmp_path / "t", checkpoint, "")
    checkpoint.write_text("weights")
    job = contender.evaluation("teacher", tmp_path / "t", checkpoint, "m")
    assert job.command == (
        *(sys.executable, str(ROOT / "tools" / "test.py"), str(config), str(checkpoint)),
        *("--work-dir", str(tmp_path / "t" / "final")),
    )
    assert contender.evaluation("teacher", tmp_path / "t", checkpoint, "m") == job
    os.utime(checkpoint, (1, 1))  # written anew
    changed = contender.evaluation("teacher", tmp_path / "t", checkpoint, "m")
    assert changed.signature != job.signature and replace(changed, signature=job.signature) == job


def test_other_test_data_are_said(config, tmp_path):
    assert MmContender(config, ROOT).caution() == ""
    config.write_text(CONFIG.replace("split='val'), batch_size=1", "split='test'), batch_size=1"))
    assert "differ from the validation data" in MmContender(config, ROOT).caution()


def test_a_cost_that_cannot_be_had(config, tmp_path):
    none = MmContender(config, ROOT).cost(tmp_path / "x.pth")
    assert none.parameters is None and "cannot be built" in none.problem


def test_cost_of_a_real_network(tmp_path):
    pytest.importorskip("torchmetrics")
    whole = MmContender(GAN, ROOT).cost(tmp_path / "x.pth")
    assert whole.problem == "" and whole.sample.startswith("one image of 3x")
    thin = MmContender(GAN, ROOT, given=["model.generator.width=3"]).cost(tmp_path / "x.pth")
    assert whole.parameters and thin.parameters and thin.parameters < whole.parameters / 2
    assert whole.macs and thin.macs and thin.macs < whole.macs / 2


def test_options_that_are_none():
    assert parse_options([]) == {}
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_options(["model.width"])
