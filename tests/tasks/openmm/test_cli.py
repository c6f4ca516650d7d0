"""The command lines, as a user meets them: exit codes, messages, and what the options do."""

import copy
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

from taskdistill.tasks.openmm import cli
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run tools/train.py or tools/test.py in this process; give exit code and standard error."""

    def run(function, *arguments):
        options = ["--cfg-options", f"experiment_name={uuid.uuid4().hex}"]
        if "--cfg-options" in arguments:
            at = arguments.index("--cfg-options") + 1
            arguments = (*arguments[:at], options[1], *arguments[at:])
            options = []
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments), *options])
        capsys.readouterr()
        try:
            cli.run(function)
            code = 0
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err

    return run


def distilled(tiny, **changes):
    config = tiny.config(distill=tiny.distill())
    for key, value in changes.items():
        config["distill"][key] = value
    return config


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A distilled run of the command line, validated at its end."""
    folder = tmp_path_factory.mktemp("trained")
    path = tiny.write(distilled(tiny), folder / "distilled.py")
    options = ["optim_wrapper.optimizer.lr=0.002", "train_cfg.max_epochs=1"]
    cli.train([path, "--work-dir", str(folder / "run"), "--cfg-options", *options])
    return folder


def scalars(folder):
    file = next(Path(folder).rglob("scalars.json"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_cfg_options_and_figures_in_the_log(trained):
    assert (trained / "run" / "epoch_1.pth").exists()
    assert not (trained / "run" / "epoch_2.pth").exists()
    line = scalars(trained / "run")[0]
    assert {"loss_kd_neck", "kd_neck_raw", "loss_kd_ld", "kd_ld_raw", "loss_cls"} <= set(line)


@pytest.mark.parametrize("config", ["distilled.py", "run/student_config.py"])
def test_test_gives_the_figures_of_validation(tiny, trained, command, tmp_path, config):
    """With the distilled config or the student's own."""
    validated = [line for line in scalars(trained / "run") if "coco/bbox_mAP" in line][-1]
    out = tmp_path / "predictions.pkl"
    code, errors = command(
        cli.test,
        trained / config,
        trained / "run" / "epoch_1.pth",
        *("--work-dir", tmp_path / "test", "--out", out),
    )
    assert code == 0, errors
    tested = json.loads(next((tmp_path / "test").rglob("*.json")).read_text())
    assert {k: v for k, v in validated.items() if "mAP" in k} == {
        k: v for k, v in tested.items() if "mAP" in k
    }
    assert out.stat().st_size > 0


def test_test_needs_no_teacher(tiny, trained, command, tmp_path):
    config = distilled(tiny, teacher=dict(config="gone.py", checkpoint="gone.pth"))
    path = tiny.write(config)
    checkpoint = trained / "run" / "epoch_1.pth"
    code, errors = command(cli.test, path, checkpoint, "--work-dir", tmp_path)
    assert code == 0, errors


def test_test_draws_pictures(tiny, trained, command, tmp_path):
    config = tiny.config()
    config["default_hooks"]["visualization"] = dict(type="DetVisualizationHook")
    checkpoint = trained / "run" / "epoch_1.pth"
    code, errors = command(
        cli.test, tiny.write(config), checkpoint, "--work-dir", tmp_path, "--show-dir", "shown"
    )
    assert code == 0, errors
    assert len(list(tmp_path.rglob("shown/*.png"))) == 6
    code, errors = command(cli.test, tiny.write(tiny.config()), checkpoint, "--show-dir", "x")
    assert code == 2 and "visualization" in errors


def test_amp_ema_and_auto_scale_lr(tiny, command, tmp_path):
    config = distilled(tiny)
    config["custom_hooks"] = [dict(type="EMAHook", momentum=0.1)]
    config["param_scheduler"] = None
    config["train_cfg"].update(max_epochs=1)
    path = tiny.write(config)
    code, errors = command(cli.train, path, "--work-dir", tmp_path, "--amp", "--auto-scale-lr")
    assert code == 0, errors
    checkpoint = read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))
    groups = checkpoint["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [2e-3, 2e-3]  # batches of 4, made for 2
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values())
    assert "ema_state_dict" in checkpoint


def test_auto_scale_lr_needs_a_base(tiny, command):
    config = distilled(tiny)
    del config["auto_scale_lr"]
    code, errors = command(cli.train, tiny.write(config), "--auto-scale-lr")
    assert code == 2 and "base_batch_size" in errors


def test_resume_without_a_checkpoint_starts_as_the_config_says(tiny, trained, command, tmp_path):
    """From `load_from`, where there is one."""
    config = distilled(tiny)
    config["train_cfg"].update(max_epochs=1)
    config["optim_wrapper"]["optimizer"]["lr"] = 0.0
    config["param_scheduler"] = None
    config["load_from"] = str(trained / "run" / "epoch_1.pth")
    code, errors = command(cli.train, tiny.write(config), "--work-dir", tmp_path, "--resume")
    assert code == 0, errors
    weight = "bbox_head.gfl_reg.weight"
    states = [
        read_mm_checkpoint(str(folder / "epoch_1.pth"))["state_dict"][weight]
        for folder in (tmp_path, trained / "run")
    ]
    assert torch.equal(*states)


def test_batches_without_an_object_train(tiny, command, tmp_path):
    annotations = json.loads((tiny.data / "train.json").read_text())
    annotations["images"] = [i for i in annotations["images"] if i["id"] in (3, 7)]
    annotations["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(annotations))
    config = distilled(tiny)
    config["train_dataloader"]["dataset"]["ann_file"] = str(tmp_path / "empty.json")
    config["train_dataloader"].update(batch_size=2)
    config["train_cfg"].update(max_epochs=1)
    code, errors = command(cli.train, tiny.write(config), "--work-dir", tmp_path / "run")
    assert code == 0, errors
    line = scalars(tmp_path / "run")[0]
    assert line["loss_kd_ld"] == 0 and line["loss_kd_neck"] > 0
    assert all(value == value for value in line.values())


def _no_teacher(tiny, folder):
    return distilled(tiny, teacher={**tiny.teacher(), "checkpoint": str(folder / "gone.pth")})


def _cut_teacher(tiny, folder):
    content = Path(tiny.teacher()["checkpoint"]).read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    return distilled(tiny, teacher={**tiny.teacher(), "checkpoint": str(folder / "cut.pth")})


def _other_teacher(tiny, folder):
    return distilled(tiny, teacher={**tiny.teacher(), "config": tiny.write(tiny.config())})


class _Code:
    def __reduce__(self):
        return (os.system, ("true",))


def _evil_teacher(tiny, folder):
    torch.save({"state_dict": {"a": _Code()}}, folder / "evil.pth")
    return distilled(tiny, teacher={**tiny.teacher(), "checkpoint": str(folder / "evil.pth")})


def _no_teacher_config(tiny, folder):
    return distilled(tiny, teacher={**tiny.teacher(), "config": "configs/gone.py"})


def _teacher_with(**changes):
    def make(tiny, folder):
        return distilled(tiny, teacher=tiny.save_teacher(tiny.model(width=16, **changes)))

    return make


def _pair(**changes):
    def make(tiny, folder):
        pair = {"student": "neck", "loss": "FeatureImitation", **changes}
        return distilled(tiny, pairs=[pair])

    return make


def _no_annotations(tiny, folder):
    config = distilled(tiny)
    config["train_dataloader"]["dataset"]["ann_file"] = "trian.json"
    return config


def _bad_annotations(tiny, folder):
    (folder / "bad.json").write_text('{"images": [')
    config = distilled(tiny)
    config["val_dataloader"]["dataset"]["ann_file"] = str(folder / "bad.json")
    return config


def _nan(tiny, folder):
    pairs = [
        dict(student="neck", loss="FeatureImitation", name="fine"),
        dict(
            student="neck[0]", loss="tiny_parts:NanLoss", name="broken", start=1, teacher="neck[0]"
        ),
    ]
    return distilled(tiny, pairs=pairs)


def _too_heavy(tiny, folder):
    return distilled(tiny, pairs=[dict(student="neck", loss="FeatureImitation", weight=1e39)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_no_teacher, ["CheckpointError", "gone.pth", "does not exist"]),
        (_cut_teacher, ["CheckpointError", "cut.pth", "truncated"]),
        (
            _other_teacher,
            ["CheckpointError", "another architecture", "other shape", "conv1.weight"],
        ),
        (_evil_teacher, ["CheckpointError", "would run code"]),
        (_no_teacher_config, ["ConfigError", "configs/gone.py"]),
        (_teacher_with(num_classes=5), ["TeacherError", "classes: student 3, teacher 5"]),
        (_teacher_with(reg_max=4), ["TeacherError", "reg_max: student 8, teacher 4"]),
        (_teacher_with(strides=(16, 32)), ["teacher", "student [8, 16, 32], teacher [16, 32]"]),
        (_pair(student="neckk"), ["TapError", "Did you mean 'neck'"]),
        (_pair(loss="FeatureImitate"), ["ConfigError", "Did you mean 'FeatureImitation'"]),
        (_pair(wait=2), ["ConfigError", "'wait'"]),
        (_pair(student="outputs.clss"), ["ConfigError", "Did you mean 'cls'"]),
        (_pair(student="outputs.cls", region="vrl"), ["ConfigError", "Did you mean 'vlr'"]),
        (_no_annotations, ["DataError", "trian.json does not exist", "Did you mean 'train.json'"]),
        (_bad_annotations, ["DataError", "bad.json", "not valid JSON"]),
        (_nan, ["NonFiniteLossError", "step 4", "loss_kd_broken=nan"]),
        (_too_heavy, ["NonFiniteLossError", "step 1", "loss_kd_feature_imitation=inf"]),
    ],
)
def test_bad_input_ends_in_one_message(tiny, command, tmp_path, make, words):
    path = tiny.write(make(tiny, tmp_path))
    code, errors = command(cli.train, path, "--work-dir", tmp_path / "run")
    assert code == 2
    message = errors[errors.rindex("Error:") - 30 :] if "Error:" in errors else errors
    assert all(word in errors for word in words), message
    assert "Traceback" not in errors
    if words[0] != "NonFiniteLossError":
        assert not list((tmp_path / "run").rglob("*.pth"))


def test_missing_files_are_told(tiny, trained, command, tmp_path):
    plain = tiny.write(tiny.config())
    for function, arguments, words in (
        (cli.train, [tmp_path / "gone.py"], "gone.py' does not exist"),
        (cli.train, [plain, "--resume", "gone.pth"], "'gone.pth' to resume from does not exist"),
        (cli.test, [plain, "gone.pth"], "'gone.pth' does not exist"),
        (cli.test, [plain, trained / "run/epoch_1.pth", "--out", "x.txt"], "must end in .pkl"),
        (cli.test, [plain, trained / "run/epoch_1.pth", "--tta"], "tta_model"),
        (cli.train, [plain, "--cfg-options", "param_scheduler.9.begin=1"], "--cfg-options"),
    ):
        code, errors = command(function, *arguments)
        assert code == 2 and words in errors, errors


@pytest.mark.slow
def test_resuming_from_another_run_is_refused(tiny, trained, command, tmp_path):
    config = distilled(tiny, teacher=tiny.save_teacher(tiny.model(width=16), seed=50))
    checkpoint = trained / "run" / "epoch_1.pth"
    arguments = ["--work-dir", tmp_path, "--resume", checkpoint]
    code, errors = command(cli.train, tiny.write(config), *arguments)
    assert code == 2 and "not the one this run began with" in errors
    shutil.copy(tiny.teacher()["checkpoint"], tmp_path / "plain.pth")
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:1000])
    for name, words in (("plain", "plain training"), ("cut", "truncated")):
        file = tmp_path / f"{name}.pth"
        arguments = ["--work-dir", tmp_path / name, "--resume", file]
        code, errors = command(cli.train, tiny.write(distilled(tiny)), *arguments)
        assert code == 2 and words in errors, errors


def start(tiny, folder, config, **options):
    command = [sys.executable, str(TOOLS / "train.py"), tiny.write(config), "--work-dir", "run"]
    env = {**tiny.env, **options.pop("env", {})}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, **options
    )


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path):
    config = copy.deepcopy(distilled(tiny))
    done = start(tiny, tmp_path, config, env={"SIGNAL_AT": f"1:0:{int(signal.SIGINT)}"})
    assert done.returncode == 130, done.stderr[-2000:]
    assert "Interrupted." in done.stderr and "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "epoch_1.pth").exists()


@pytest.mark.slow
def test_a_file_that_cannot_grow_leaves_the_earlier_checkpoint(tiny, tmp_path):
    """A real limit: the kernel stops the write in the middle (the adapters make it larger)."""
    config = distilled(tiny)
    config["default_hooks"]["checkpoint"].update(max_keep_ckpts=1)
    config["custom_hooks"] = [dict(type="EMAHook", begin_epoch=1)]
    config["train_cfg"].update(max_epochs=1)
    first = start(tiny, tmp_path, config)
    assert first.returncode == 0, first.stderr[-2000:]
    checkpoint = tmp_path / "run" / "epoch_1.pth"
    size = checkpoint.stat().st_size
    config["train_cfg"].update(max_epochs=2)
    path = tiny.write(config)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = subprocess.run(
        [sys.executable, str(TOOLS / "train.py"), path, "--work-dir", "run", "--resume"],
        cwd=tmp_path,
        env=tiny.env,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the disk is full" in done.stderr and "epoch_1.pth' is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_mm_checkpoint(str(checkpoint))["meta"]["epoch"] == 1
    assert not (tmp_path / "run" / "epoch_2.pth").exists()
