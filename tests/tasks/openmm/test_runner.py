import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from saved_runs import RANK_HOOK

from taskdistill.core.errors import CheckpointError
from taskdistill.tasks.openmm.hooks import SIDE_ENTRY
from taskdistill.tasks.openmm.runner import latest_checkpoint
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

TRAIN = Path(__file__).parents[3] / "tools" / "train.py"


def test_latest_checkpoint(tmp_path):
    folder = str(tmp_path)
    assert latest_checkpoint(folder) is None
    assert latest_checkpoint(str(tmp_path / "gone")) is None
    for name in ("epoch_2.pth", "epoch_10.pth", ".epoch_11.pth.partial", "best_x_epoch_12.pth"):
        (tmp_path / name).touch()
    note = tmp_path / "last_checkpoint"
    for text, expected in (
        (None, "epoch_10.pth"),
        ("", "epoch_10.pth"),  # cut off while it was written
        (str(tmp_path / "epoch_2.pth"), "epoch_2.pth"),
        ("/somewhere/else/epoch_2.pth", "epoch_2.pth"),  # the folder was moved
        (str(tmp_path / "epoch_99.pth"), "epoch_10.pth"),
    ):
        if text is not None:
            note.write_text(text)
        assert latest_checkpoint(folder) == str(tmp_path / expected)


@pytest.fixture
def runner(tiny, tmp_path):
    return tiny.runner(tiny.config(distill=tiny.distill()), tmp_path)


def test_a_checkpoint_appears_only_when_it_is_complete(runner, monkeypatch, tmp_path):
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    seen = []
    replace = os.replace

    def spy(source, target):
        seen.append((os.path.basename(source), Path(target).exists()))
        read_mm_checkpoint(source)  # whole already
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    runner.save_checkpoint(str(tmp_path), "some.pth")
    assert seen == [(".some.pth.partial", False)]
    assert [p.name for p in tmp_path.glob("*.pth")] == ["some.pth"]

    def fail(*args, **kwargs):
        (tmp_path / ".other.pth.partial").write_bytes(b"half")
        raise OSError("cable")

    monkeypatch.setattr("mmengine.runner.Runner.save_checkpoint", fail)
    with pytest.raises(OSError, match="cable"):
        runner.save_checkpoint(str(tmp_path), "other.pth")
    assert not list(tmp_path.glob("*other*")) and not list(tmp_path.glob(".other*"))


def test_another_process_leaves_a_half_written_checkpoint_alone(runner, monkeypatch, tmp_path):
    """In data-parallel training all processes come by, and one writes."""
    monkeypatch.setattr("taskdistill.tasks.openmm.runner.is_main_process", lambda: False)
    monkeypatch.setattr("mmengine.runner.Runner.save_checkpoint", lambda *a, **k: None)
    (tmp_path / ".some.pth.partial").write_bytes(b"half")
    runner.save_checkpoint(str(tmp_path), "some.pth")
    assert (tmp_path / ".some.pth.partial").exists() and not (tmp_path / "some.pth").exists()


def test_every_process_prepares_a_checkpoint(runner, monkeypatch, tmp_path):
    """mmengine calls hooks on the one that writes: an average over processes would never end."""

    class AveragingHook(Hook):
        def before_checkpoint(self, runner):
            order.append("prepared")

    order = []
    monkeypatch.setattr("taskdistill.tasks.openmm.runner.is_main_process", lambda: False)
    monkeypatch.setattr("mmengine.runner.Runner.save_checkpoint", lambda *a, **k: order.append("w"))
    runner.register_hook(AveragingHook())
    runner.save_checkpoint(str(tmp_path), "some.pth")
    assert order == ["prepared", "w"]


def test_a_damaged_checkpoint_is_told_before_it_is_loaded(runner, tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CheckpointError, match="cut.pth.*truncated"):
        runner.load_checkpoint(str(tmp_path / "cut.pth"))


def test_load_from_a_file_that_is_not_there(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="gone.pth.*load_from"):
        tiny.runner(tiny.config(distill=tiny.distill(), load_from="gone.pth"), tmp_path)


@pytest.mark.slow
def test_two_processes_train_one_student(tiny, tmp_path):
    """Gloo on a CPU, a pair that is off, no search for unused parameters."""
    (tmp_path / "rank_hook.py").write_text(RANK_HOOK)
    distill = tiny.distill()
    distill["pairs"][0]["start"] = 1
    distill["pairs"].append(
        dict(student="backbone.layer2", loss="FeatureImitation", stop=1, name="layer")
    )
    config = tiny.config(distill=distill, custom_hooks=[dict(type="RankHook")])
    config["custom_imports"]["imports"].append("rank_hook")
    config["default_hooks"]["checkpoint"].update(save_best="coco/bbox_mAP_50", rule="greater")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", str(TRAIN), tiny.write(config), "--launcher", "pytorch"]
    env = {**tiny.env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{tiny.env['PYTHONPATH']}"}
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path / "run")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / "run" / f"rank{rank}.json").read_text())
        assert found == dict(backend="gloo", world=2, equal=True, finite=True)
    checkpoint = read_mm_checkpoint(str(tmp_path / "run" / "epoch_2.pth"))
    plain = tiny.build(tiny.model())
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    assert {name.split(".")[1] for name in checkpoint[SIDE_ENTRY]["adapters"]} == {"neck", "layer"}
    assert checkpoint["meta"]["iter"] == 4  # 12 pictures, 2 processes, batches of 4, 2 epochs
    assert not torch.distributed.is_initialized()
