"""Generations: how they are laid out, trained one after the other, and measured."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.core.teacher import file_sha256
from taskdistill.tasks.classification import born_again
from taskdistill.tasks.openmm.config import load_config
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

ROOT = Path(__file__).resolve().parents[3]


def config(folder: Path, **changes) -> Path:
    """A tiny network on real digits; with a learning rate of 0 the checkpoint is the start."""

    def loader(split: str, size: int) -> dict:
        return dict(
            batch_size=size,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=split == "train"),
            dataset=dict(type="SklearnDigits", split=split, subset=10),
        )

    entries = dict(
        _base_=str(ROOT / "configs/classification/_base_/default.py"),
        model=dict(
            type="ImageClassifier",
            network=dict(type="CifarResNet", depth=8, num_classes=10),
        ),
        data_preprocessor=dict(type="ClassifierPreprocessor", mean=[30.0] * 3, std=[90.0] * 3),
        train_dataloader=loader("train", 50),
        val_dataloader=loader("val", 50),
        test_dataloader=loader("val", 50),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=1, val_interval=1),
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.0)),
        randomness=dict(seed=7),
        distill=dict(pairs=[dict(student="outputs.logits", loss="SoftCrossEntropy", name="soft")]),
    )
    entries.update(changes)
    base = entries.pop("_base_")
    path = folder / "digits.py"
    path.write_text(f"_base_ = {base!r}\n{Config(entries).pretty_text}")
    return path


def plan(folder: Path, generations: int = 3, **options):
    cfg = load_config(str(config(folder)))
    return born_again.plan(cfg, generations, folder / "run", ROOT, **options)


def option(job, key: str) -> str:
    (found,) = [word for word in job.command if word.startswith(f"{key}=")]
    return found.partition("=")[2]


def test_each_generation_is_taught_by_the_one_before(tmp_path):
    line = plan(tmp_path)
    assert [g.name for g in line] == ["gen0", "gen1", "gen2", "gen3"]
    for number, generation in enumerate(line):
        job = generation.job
        assert job.work_dir == tmp_path / "run" / f"gen{number}"
        assert generation.checkpoint == job.checkpoint == job.work_dir / "epoch_1.pth"
        if number:
            assert job.needs == (f"gen{number - 1}",)
            assert option(job, "distill.teacher.checkpoint") == str(line[number - 1].checkpoint)
            assert job.command[2] == str(tmp_path / "run/distilled.py")
        else:
            assert job.needs == () and job.command[2] == str(tmp_path / "run/plain.py")
    assert "distill" not in load_config(str(tmp_path / "run/plain.py"))
    distilled = load_config(str(tmp_path / "run/distilled.py"))
    assert distilled.distill.teacher.config == str(tmp_path / "run/plain.py")
    # The teacher's images are normalised by what its config's model says.
    assert load_config(str(tmp_path / "run/plain.py")).model.data_preprocessor.mean == [30.0] * 3


def test_every_generation_begins_with_weights_of_its_own(tmp_path):
    line = plan(tmp_path, 2)
    assert [int(option(g.job, "randomness.seed")) for g in line] == [7, 8, 9]
    assert [g.seed for g in plan(tmp_path, 1, seed=100)] == [100, 101]
    weights = []
    for generation in line:
        torch.manual_seed(generation.seed)
        model = MODELS.build(load_config(str(tmp_path / "run/plain.py")).model)
        weights.append(model.network.conv1.weight)
    for k in range(1, len(weights)):
        assert (weights[k] - weights[k - 1]).abs().mean() > 0.01


def test_a_given_teacher_takes_the_place_of_generation_0(tmp_path):
    checkpoint = tmp_path / "mine.pth"
    torch.save({}, checkpoint)
    line = plan(tmp_path, 2, teacher=str(checkpoint))
    assert line[0].job is None and line[0].checkpoint == checkpoint
    assert line[1].job.needs == () and line[2].job.needs == ("gen1",)
    assert option(line[1].job, "distill.teacher.checkpoint") == str(checkpoint)
    with pytest.raises(CheckpointError, match="--teacher"):
        plan(tmp_path, teacher=str(tmp_path / "none.pth"))


def test_options_of_the_teacher_stay(tmp_path):
    cfg = load_config(str(config(tmp_path)))
    cfg.distill.teacher = dict(config="x.py", checkpoint="x.pth", precision="fp32")
    born_again.plan(cfg, 1, tmp_path / "run", ROOT)
    teacher = load_config(str(tmp_path / "run/distilled.py")).distill.teacher
    assert teacher.precision == "fp32" and teacher.config == str(tmp_path / "run/plain.py")


def test_each_generation_remembers_its_own_teacher(tmp_path):
    cfg = load_config(str(config(tmp_path)))
    cfg.distill.cache = dict(path="kept", views=1)
    line = born_again.plan(cfg, 2, tmp_path / "run", ROOT)
    assert [option(g.job, "distill.cache.path") for g in line[1:]] == ["kept/gen1", "kept/gen2"]


def test_a_folder_of_another_line_is_not_touched(tmp_path):
    line = plan(tmp_path, 1)
    born_again._check_settings(line, tmp_path / "run", None)
    born_again._check_settings(plan(tmp_path, 2), tmp_path / "run", None)  # it may be continued
    with pytest.raises(ConfigError, match="--fresh"):
        born_again._check_settings(plan(tmp_path, 1, seed=1), tmp_path / "run", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(distill=None), "has no distill entry"),
        (dict(distill=dict(pairs=[])), "has no distill entry"),
        (dict(distill=dict(pairs=[dict()], teachers=dict(a=dict()))), "several distill.teachers"),
        (dict(task="gan"), "no config of task='classification'"),
    ],
)
def test_what_no_generation_can_be_made_of(tmp_path, capsys, changes, message):
    path = config(tmp_path, **changes)
    code = born_again.main(ROOT, [str(path), "--work-dir", str(tmp_path / "run")])
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run/gen0").exists()


def test_the_figures_are_those_of_the_predictions(tmp_path):
    """Of three networks with random weights, and of their ensembles, by hand."""
    line = plan(tmp_path, 3)
    cfg = load_config(str(tmp_path / "run/plain.py"))
    probabilities = []
    for generation in line:
        torch.manual_seed(generation.seed)
        model = MODELS.build(copy.deepcopy(cfg.model))
        generation.checkpoint.parent.mkdir(parents=True)
        torch.save({"state_dict": model.state_dict()}, generation.checkpoint)
        logits, labels = born_again.validation_logits(cfg, generation.checkpoint)
        assert len(logits) == len(labels) == 100
        probabilities.append(logits.softmax(1))
    found = born_again.evaluate(line, cfg)

    def right(p: torch.Tensor) -> float:
        return 100 * (p.argmax(1) == labels).float().mean().item()

    assert [r["generation"] for r in found["generations"]] == [0, 1, 2, 3]
    for row, p in zip(found["generations"], probabilities, strict=True):
        assert row["top1"] == pytest.approx(right(p))
        among = sum(int(y) in row_.topk(5)[1].tolist() for row_, y in zip(p, labels, strict=True))
        assert row["top5"] == pytest.approx(among)
    assert [r["of"] for r in found["ensembles"]] == [[1, 2], [1, 2, 3]]
    for row in found["ensembles"]:
        mean = torch.stack([probabilities[k] for k in row["of"]]).mean(0)
        assert row["top1"] == pytest.approx(right(mean))
    text = born_again.markdown(found)
    assert text.count("\n| ") == 6 and "| ensemble of generations 1 to 3 |" in text
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_the_command_trains_them_one_after_the_other(tmp_path):
    """Two generations, then one more; with a learning rate of 0 each checkpoint is its start."""
    path, run = config(tmp_path), tmp_path / "run"

    def command(generations: int) -> str:
        words = [sys.executable, str(ROOT / "tools/born_again.py"), str(path)]
        words += ["--work-dir", str(run), "--generations", str(generations)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command(1)
    first = run / "gen1/epoch_1.pth"
    written = first.stat().st_mtime_ns
    assert "ensemble of generations 1 to 2" in command(2)
    assert first.stat().st_mtime_ns == written  # it was not trained again
    files = [run / f"gen{k}/epoch_1.pth" for k in range(3)]
    found = [read_mm_checkpoint(str(file)) for file in files]
    starts = [each["state_dict"]["conv1.weight"] for each in found]
    assert (starts[0] - starts[1]).abs().mean() > 0.01
    assert (starts[1] - starts[2]).abs().mean() > 0.01
    assert "distill" not in found[0]
    for k in (1, 2):
        assert found[k]["meta"]["iter"] == found[0]["meta"]["iter"] > 0
        teacher = found[k]["distill"]["teachers"]["teacher"]
        assert teacher["sha256"] == file_sha256(files[k - 1])
    results = json.loads((run / born_again.RESULTS_FILE).read_text())
    assert len(results["generations"]) == 3 and len(results["ensembles"]) == 1
    assert (run / "born_again.md").read_text() == born_again.markdown(results)
