"""The checkpoint contract: plain files, repeatable runs, nothing lost."""

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saved_runs import assert_equal, curves

from taskdistill.core.errors import CheckpointError
from taskdistill.tasks.openmm import cli
from taskdistill.tasks.openmm.hooks import SIDE_ENTRY
from taskdistill.tasks.openmm.teacher import SAFE_GLOBALS, read_mm_checkpoint

TRAIN = Path(__file__).parents[3] / "tools" / "train.py"

# A machine that has mmdet and no taskdistill: build from the file alone, load strictly, predict.
PLAIN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "taskdistill":
            raise ImportError("this process must not need " + name)

sys.meta_path.insert(0, Blocked())
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
import mmdet.utils

job = json.load(open(sys.argv[1]))
init_default_scope("mmdet")
inputs = torch.load(job["inputs"])
found = {}
for path in job["checkpoints"]:
    checkpoint = torch.load(path, weights_only=False)
    cfg = Config.fromstring(checkpoint["meta"]["cfg"], ".py")
    assert cfg.model.type == "GFL" and "distill" not in cfg
    model = MODELS.build(cfg.model)
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    model.eval()
    with torch.no_grad():
        raw = model(inputs, mode="tensor")
    detector = init_detector(job["config"], path, device="cpu")
    result = inference_detector(detector, job["picture"]).pred_instances
    found[path] = [[t for level in raw for t in level], result.bboxes, result.scores]
    assert detector.dataset_meta["classes"] == ("red", "green", "blue")
assert not any(name.split(".")[0] == "taskdistill" for name in sys.modules)
torch.save(found, job["out"])
"""

EMA = dict(type="EMAHook", momentum=0.3, update_buffers=False)


@pytest.fixture(scope="module")
def run_config(tiny):
    """Everything that a run keeps: dropout in the model, augmentation, best files, a warm-up."""
    model = tiny.model(neck=dict(type="DropoutFPN"))
    distill = tiny.distill()
    distill["pairs"][0]["warmup"] = 1.5
    config = tiny.config(model, distill=distill)
    config["default_hooks"]["checkpoint"] = dict(
        type="CheckpointHook", interval=1, save_best="coco/bbox_mAP_50", rule="greater"
    )
    config["train_cfg"]["val_interval"] = 1
    return config


def ema_config(config):
    return {**copy.deepcopy(config), "custom_hooks": [dict(type="SignalHook"), dict(EMA)]}


@pytest.fixture(scope="module")
def runs(tiny, run_config, tmp_path_factory):
    """One run without and one with EMA, uninterrupted."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, config in (("plain", run_config), ("ema", ema_config(run_config))):
        made[name] = tiny.train(config, folder / name)
    return made


def raw_outputs(model, inputs):
    model.eval()
    with torch.no_grad():
        return [t for level in model(inputs, mode="tensor") for t in level]


def test_every_checkpoint_loads_strictly_into_the_plain_model_elsewhere(tiny, runs, tmp_path):
    files, expected = [], {}
    plain = tiny.build(tiny.model(neck=dict(type="DropoutFPN")))
    inputs, _ = tiny.batch(plain, "0", "1", split="val")
    for runner in runs.values():
        written = sorted(str(p) for p in Path(runner.work_dir).glob("*.pth"))
        kinds = {os.path.basename(p).split("_")[0] for p in written}
        assert kinds == {"epoch", "best"}, written
        files += written
        ema = next((h for h in runner.hooks if type(h).__name__ == "EMAHook"), None)
        live = ema.ema_model.module if ema else runner.model
        expected[str(Path(runner.work_dir) / "epoch_2.pth")] = raw_outputs(live, inputs)
        if ema:
            trained = raw_outputs(runner.model, inputs)
            averaged = expected[str(Path(runner.work_dir) / "epoch_2.pth")]
            assert not torch.equal(trained[0], averaged[0])
    config = str(Path(runs["plain"].work_dir) / "student_config.py")
    torch.save(inputs, tmp_path / "inputs.pt")
    job = dict(
        checkpoints=files,
        inputs=str(tmp_path / "inputs.pt"),
        config=config,
        picture=str(tiny.data / "val" / "1.png"),
        out=str(tmp_path / "out.pt"),
    )
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "plain.py").write_text(PLAIN)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "plain.py"), str(tmp_path / "job.json")],
        env=tiny.env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt")
    assert set(found) == set(files)
    for path, outputs in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(found[path][0], outputs, strict=True))
    # The files of other epochs: as our own model, loading the same file, computes.
    model = runs["plain"].model
    kept = copy.deepcopy(model.state_dict())
    for path in files:
        model.load_state_dict(torch.load(path, weights_only=False)["state_dict"], strict=True)
        outputs = raw_outputs(model, inputs)
        assert all(torch.equal(a, b) for a, b in zip(found[path][0], outputs, strict=True))
        assert len(found[path][1]) == len(found[path][2]) > 0
    model.load_state_dict(kept)


def test_what_a_checkpoint_holds(tiny, runs):
    path = Path(runs["ema"].work_dir) / "epoch_2.pth"
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        checkpoint = torch.load(path, weights_only=True)
    side = checkpoint[SIDE_ENTRY]
    teacher = tiny.teacher()
    assert side["teachers"]["teacher"]["source"] == teacher["checkpoint"]
    assert set(side["adapters"]) == set(runs["ema"].model.distiller.state_dict())
    plain = tiny.build(tiny.model(neck=dict(type="DropoutFPN")))
    assert set(checkpoint["state_dict"]) == set(plain.state_dict())
    assert {f"module.{k}" for k in plain.state_dict()} | {"steps"} == set(
        checkpoint["ema_state_dict"]
    )
    best = next(Path(runs["plain"].work_dir).glob("best_*.pth"))
    assert "optimizer" not in read_mm_checkpoint(str(best))


def test_the_students_config_lies_beside_and_in_the_checkpoint(tiny, runs, run_config):
    from mmengine.config import Config

    folder = Path(runs["plain"].work_dir)
    beside = Config.fromfile(folder / "student_config.py")
    within = Config.fromstring(
        read_mm_checkpoint(str(folder / "epoch_1.pth"))["meta"]["cfg"], ".py"
    )
    assert beside.to_dict() == within.to_dict()
    assert beside.model.to_dict() == Config(dict(model=run_config["model"])).model.to_dict()
    assert "distill" not in beside and "SeededDataset" not in beside.pretty_text


def assert_same_end(first, second):
    first, second = (read_mm_checkpoint(str(p)) for p in (first, second))
    assert_equal(curves(first), curves(second), "curves")
    for entry in ("state_dict", "optimizer", "param_schedulers", SIDE_ENTRY):
        assert_equal(first[entry], second[entry], entry)
    return curves(first)


def kill_and_resume(tiny, config, work_dir, at="1:1", seed=True):
    """Run tools/train.py, killed with SIGKILL after step 2 of epoch 2, and resume it here."""
    path = tiny.write(config)
    done = subprocess.run(
        [sys.executable, str(TRAIN), path, "--work-dir", str(work_dir)],
        env={**tiny.env, "SIGNAL_AT": f"{at}:{int(signal.SIGKILL)}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (work_dir / "epoch_1.pth").exists() and not (work_dir / "epoch_2.pth").exists()
    options = ["--cfg-options", f"experiment_name={work_dir.name}_resumed"]
    cli.train([path, "--work-dir", str(work_dir), "--resume", *options])


def test_resume_after_kill_equals_the_uninterrupted_run(tiny, runs, run_config, tmp_path):
    kill_and_resume(tiny, run_config, tmp_path / "killed")
    reference = Path(runs["plain"].work_dir)
    found = assert_same_end(tmp_path / "killed" / "epoch_2.pth", reference / "epoch_2.pth")
    assert len(found["loss"]) == 6
    assert {"loss_kd_neck", "kd_neck_raw", "lr"} <= set(found)
    # The warm-up of 1.5 epochs went on inside the epochs, of three steps each.
    weighted, raw = (torch.tensor(found[k]) for k in ("loss_kd_neck", "kd_neck_raw"))
    factors = 0.5 * torch.tensor([0, 1, 2, 3, 4, 4.5]) / 4.5
    torch.testing.assert_close(weighted, raw * factors, check_dtype=False)


@pytest.mark.slow
def test_resume_with_persistent_workers_and_ema_equals_the_uninterrupted_run(
    tiny, run_config, tmp_path
):
    config = ema_config(run_config)
    config["train_dataloader"].update(num_workers=2, persistent_workers=True)
    tiny.train(config, tmp_path / "whole")
    kill_and_resume(tiny, config, tmp_path / "killed")
    assert_same_end(tmp_path / "killed" / "epoch_2.pth", tmp_path / "whole" / "epoch_2.pth")
    first, second = (
        read_mm_checkpoint(str(tmp_path / name / "epoch_2.pth")) for name in ("whole", "killed")
    )
    assert_equal(first["ema_state_dict"], second["ema_state_dict"], "ema")


WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]  # torch takes 10 s to end the processes


@pytest.mark.parametrize("workers", WORKERS)
def test_the_number_of_workers_makes_no_difference(tiny, runs, run_config, tmp_path, workers):
    config = copy.deepcopy(run_config)
    config["train_cfg"].update(max_epochs=1)
    config["train_dataloader"].update(num_workers=workers, persistent_workers=workers > 0)
    tiny.train(config, tmp_path)
    reference = read_mm_checkpoint(str(Path(runs["plain"].work_dir) / "epoch_1.pth"))
    found = read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))
    assert_equal(found["state_dict"], reference["state_dict"])


@pytest.mark.slow
def test_a_run_without_a_seed_goes_on_with_its_own(tiny, tmp_path):
    config = tiny.config(distill=tiny.distill(), randomness=dict(seed=None))
    tiny.train(config, tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_1.pth", tmp_path / "resumed")
    tiny.train(
        {**config, "resume": True, "load_from": str(tmp_path / "resumed" / "epoch_1.pth")},
        tmp_path / "resumed",
    )
    assert_same_end(tmp_path / "resumed" / "epoch_2.pth", tmp_path / "whole" / "epoch_2.pth")


def iteration_config(tiny, **distill):
    config = tiny.config(tiny.model(neck=dict(type="DropoutFPN")), distill=tiny.distill(**distill))
    config["train_cfg"] = dict(type="IterBasedTrainLoop", max_iters=8, val_interval=4)
    config["train_dataloader"]["sampler"] = dict(type="InfiniteSampler", shuffle=True)
    config["param_scheduler"] = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=6)]
    config["default_hooks"]["checkpoint"] = dict(type="CheckpointHook", interval=4, by_epoch=False)
    config["log_processor"]["by_epoch"] = False
    return config


@pytest.mark.parametrize("workers", WORKERS)
def test_training_by_iterations_resumes_equal_too(tiny, tmp_path, workers):
    config = iteration_config(tiny)
    config["train_dataloader"].update(num_workers=workers, persistent_workers=workers > 0)
    tiny.train(config, tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    half = shutil.copy(tmp_path / "whole" / "iter_4.pth", tmp_path / "resumed")
    tiny.train({**config, "resume": True, "load_from": str(half)}, tmp_path / "resumed")
    assert_same_end(tmp_path / "resumed" / "iter_8.pth", tmp_path / "whole" / "iter_8.pth")


def test_resuming_with_another_teacher_is_refused(tiny, runs, run_config, tmp_path):
    config = copy.deepcopy(run_config)
    config["distill"]["teacher"] = tiny.save_teacher(tiny.model(width=16), seed=99)
    path = str(Path(runs["plain"].work_dir) / "epoch_1.pth")
    with pytest.raises(CheckpointError, match="not the one this run began with.*sha256"):
        tiny.train({**config, "resume": True, "load_from": path}, tmp_path)


def test_resuming_with_other_pairs_is_refused(tiny, runs, run_config, tmp_path):
    config = copy.deepcopy(run_config)
    config["distill"]["pairs"][0]["student"] = "neck[0:1]"
    path = str(Path(runs["plain"].work_dir) / "epoch_1.pth")
    with pytest.raises(CheckpointError, match="not those of this recipe"):
        tiny.train({**config, "resume": True, "load_from": path}, tmp_path)


def test_resuming_from_plain_training_is_refused_and_starting_from_it_works(tiny, tmp_path):
    plain = tiny.config()
    plain["train_cfg"].update(max_epochs=1)
    runner = tiny.train(plain, tmp_path / "plain")
    path = str(tmp_path / "plain" / "epoch_1.pth")
    weights = copy.deepcopy(runner.model.state_dict())
    config = tiny.config(distill=tiny.distill(), load_from=path)
    with pytest.raises(CheckpointError, match="written by plain training.*load_from"):
        tiny.train({**config, "resume": True}, tmp_path / "resumed")
    config["optim_wrapper"]["optimizer"]["lr"] = 0.0
    config["param_scheduler"] = None
    loaded = tiny.train(config, tmp_path / "loaded").model.state_dict()
    for key, value in weights.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(loaded[key], value), key


class FullDisk:
    """The local backend, on a disk that is full once it has taken half a file."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def put(self, content, path):
        Path(path).write_bytes(bytes(content)[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_earlier_checkpoint(tiny, tmp_path, monkeypatch):
    import mmengine.fileio

    config = tiny.config(distill=tiny.distill())
    config["default_hooks"]["checkpoint"]["max_keep_ckpts"] = 1
    runner = tiny.runner(config, tmp_path)
    real = mmengine.fileio.get_file_backend

    def get_file_backend(uri=None, **kwargs):
        backend = real(uri, **kwargs)
        full = uri is not None and ".epoch_2.pth" in str(uri)
        return FullDisk(backend) if full else backend

    monkeypatch.setattr(mmengine.fileio, "get_file_backend", get_file_backend)
    monkeypatch.setattr("mmengine.fileio.io.get_file_backend", get_file_backend, raising=False)
    monkeypatch.setattr(
        "mmengine.runner.checkpoint.get_file_backend", get_file_backend, raising=False
    )
    with pytest.raises(CheckpointError, match="the disk is full.*epoch_1.pth' is intact.*--resume"):
        runner.train()
    assert sorted(p.name for p in tmp_path.rglob("*.pth*")) == ["epoch_1.pth"]
    assert not list(tmp_path.glob(".*partial"))
    assert read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))["meta"]["epoch"] == 1


def test_old_checkpoints_are_deleted_as_mmengine_does(tiny, tmp_path):
    config = tiny.config(distill=tiny.distill())
    config["default_hooks"]["checkpoint"]["max_keep_ckpts"] = 1
    tiny.train(config, tmp_path)
    assert [p.name for p in tmp_path.glob("*.pth")] == ["epoch_2.pth"]
    assert (tmp_path / "last_checkpoint").read_text().endswith("epoch_2.pth")
