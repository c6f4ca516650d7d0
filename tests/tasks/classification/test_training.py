"""Whole runs of every kind: what is kept, what survives an interruption, stages, two processes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from saved_runs import RANK_HOOK, assert_equal, curves

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core.errors import CheckpointError, ConfigError, TapError
from taskdistill.tasks.classification.models import CifarResNet
from taskdistill.tasks.openmm import cli
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

ROOT = Path(__file__).parents[3]
SMALL = dict(type="CifarResNet", depth=8, widths=(4, 8, 8), num_classes=3)
WIDE = dict(SMALL, widths=(8, 8, 16))


@HOOKS.register_module(force=True)
class InterruptHook(Hook):
    """Raise after so many steps, as a power cut would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.steps:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    network = CifarResNet(8, widths=(8, 8, 16), num_classes=3)
    torch.save({"state_dict": network.state_dict()}, path)
    return str(path)


def distill(teacher: str, *pairs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return dict(teacher=dict(network=WIDE, checkpoint=teacher), pairs=list(pairs), **options)


PLATEAU = dict(patience=1, min_delta=0.5)
KD = dict(student="outputs.logits", loss="KLDivergence", temperature=4.0)
# Factor transfer, whole: a stage on the paraphraser alone, then one on the student; and a hint, so
# that an adapter is held and let go.
STAGED = dict(
    pairs=[
        dict(student="layer3", loss="ParaphrasedFactorTransfer"),
        dict(student="layer2", loss="Hint", adapter="conv1x1", stage="hint"),
        dict(KD, stage="kd", start=2, stop=4, weight=4.0, final_weight=1.0),
    ],
    stages=[
        dict(name="paraphrase", until=1, task_weight=0.0, train=[]),
        dict(name="hint", until=2, task_weight=0.0, freeze=["layer3", "linear"]),
        dict(name="kd"),
    ],
)


def kind(tiny_data: Any, teacher: str, name: str) -> dict[str, Any]:
    """A run of each sort, four epochs, with everything that has a state."""
    model = dict(network=SMALL, drops=[dict(type="Dropout", p=0.2)])
    if name == "staged":
        options = dict(STAGED)
        entry = distill(teacher, *options.pop("pairs"), **options)
        built = tiny_data.model(**model)
    else:
        entry = distill(teacher, KD) if name in ("netaug", "mutual") else None
        built = {
            "plain": lambda: tiny_data.model(**model),
            "mutual": lambda: tiny_data.model("MutualClassifier", peers=2, **model),
            "orders": lambda: tiny_data.model(
                "MutualClassifier", order="different", update="sequential", **model
            ),
            "one": lambda: tiny_data.model(
                "OneClassifier", at="layer3", ramp_up=3.0, size=(3, 8, 8), **model
            ),
            "byot": lambda: tiny_data.model(
                "SelfTaughtClassifier",
                exits=["layer1", "layer2"],
                features="layer3",
                size=(3, 8, 8),
                **model,
            ),
            "netaug": lambda: tiny_data.model(
                "AugmentedClassifier",
                **{**model, "network": dict(SMALL, shortcut="B")},
                width=(1.0, 1.5, 2.0),
                expansion=(1.0, 2.0),
                expand_only=2,
            ),
        }[name]()
    entries: dict[str, Any] = dict(
        task="classification",
        custom_hooks=[],
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=2),
    )
    if entry is not None:
        entries["distill"] = entry
    return tiny_data.config(built, **entries)


KINDS = ("plain", "staged", "mutual", "orders", "one", "byot", "netaug")


@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(tiny_data, teacher, tmp_path, name):
    """Stopped in the middle of an epoch (and of a stage); bit for bit, partners and all."""
    config = kind(tiny_data, teacher, name)
    tiny_data.train(config, tmp_path / "whole")
    stopped = copy.deepcopy(config)
    stopped["custom_hooks"] = [dict(type="InterruptHook", steps=8)]  # an epoch has three steps
    with pytest.raises(KeyboardInterrupt):
        tiny_data.train(stopped, tmp_path / "parts")
    resumed = dict(config, resume=True, load_from=str(tmp_path / "parts" / "epoch_2.pth"))
    tiny_data.train(resumed, tmp_path / "parts")
    one, two = (read_mm_checkpoint(str(tmp_path / w / "epoch_4.pth")) for w in ("whole", "parts"))
    assert_equal(curves(one), curves(two), "curves")
    for entry in ("state_dict", "optimizer", "param_schedulers", "distill", "classification"):
        assert_equal(one.get(entry), two.get(entry), entry)
    assert len(set(curves(one)["loss"])) == 12
    # The plain network loads it where nothing else is known.
    shortcut = "B" if name == "netaug" else "A"
    plain = CifarResNet(8, widths=(4, 8, 8), num_classes=3, shortcut=shortcut)
    plain.load_state_dict(one["state_dict"], strict=True)


def test_stages_train_what_they_say(tiny_data, teacher, tmp_path):
    config = kind(tiny_data, teacher, "staged")
    torch.manual_seed(0)
    runner = tiny_data.train(config, tmp_path)
    files = [read_mm_checkpoint(str(tmp_path / f"epoch_{n}.pth")) for n in (1, 2, 3)]
    states = [file["state_dict"] for file in files]

    def changed(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
        return {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}

    assert changed(states[0], states[1]) == {"conv1", "bn1", "layer1", "layer2"}
    assert changed(states[1], states[2]) == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "linear")
    }
    sides = [file["distill"]["adapters"] for file in files]
    moved = [
        {".".join(n.split(".")[1:3]) for n in a if not torch.equal(a[n], b[n])}
        for a, b in zip(sides, sides[1:], strict=False)
    ]
    # The paraphraser only in the first stage; the hint's adapter only in the second.
    both = {"paraphrased_factor_transfer.translator"}
    assert moved[0] == both | {"hint.0"}
    assert moved[1] == both
    first = curves(files[0])
    assert set(first["loss_cls"]) == {0.0}
    assert runner.model.distiller.recipe.task_weight is not None


def test_a_stage_that_comes_to_a_plateau_ends_early_and_stays_ended(tiny_data, teacher, tmp_path):
    """A learning rate of 0: nothing falls by half, so the first stage ends after two epochs."""
    entry = distill(
        teacher,
        dict(KD, stage="second"),
        dict(student="layer2", loss="Hint", stage="first"),
        stages=[
            dict(name="first", until=100, plateau=dict(PLATEAU, monitor="kd_hint_raw")),
            dict(name="second"),
        ],
    )
    config = kind(tiny_data, teacher, "plain")
    config |= dict(distill=entry, optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)))
    config["train_dataloader"]["dataset"]["transforms"] = []
    config["model"].pop("drops")
    tiny_data.train(config, tmp_path / "whole")
    found = curves(read_mm_checkpoint(str(tmp_path / "whole" / "epoch_4.pth")))
    active = [value > 0 for value in found["kd_kl_divergence_raw"]]
    assert active == [False] * 6 + [True] * 6
    log = next((tmp_path / "whole").glob("*/*.log")).read_text()
    assert "Stage 'first' ends after epoch 2: kd_hint_raw has not fallen for 1 epochs" in log
    # Resumed from before and from behind the end.
    for epoch in (1, 3):
        last = str(tmp_path / "whole" / f"epoch_{epoch}.pth")
        tiny_data.train(dict(config, resume=True, load_from=last), tmp_path / f"from{epoch}")
        again = curves(read_mm_checkpoint(str(tmp_path / f"from{epoch}" / "epoch_4.pth")))
        assert_equal(again, found, f"from {epoch}")


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (dict(plateau=dict(patience=1, monitor="kd_hnt_raw")), ConfigError, "watches 'kd_hnt_raw'"),
        (dict(freeze=["layer9"]), TapError, r"Stage 'first', freeze=\['layer9'\]"),
    ],
)
def test_stages_that_cannot_be_meant(tiny_data, teacher, tmp_path, stage, error, message):
    pair = dict(student="layer2", loss="Hint", name="hint")
    stages = [dict(name="first", until=3, **stage), dict(name="second")]
    config = kind(tiny_data, teacher, "plain")
    config |= dict(distill=distill(teacher, pair, stages=stages))
    with pytest.raises(error, match=message):
        tiny_data.train(config, tmp_path)


def test_a_plateau_is_looked_for_by_epochs(tiny_data, teacher, tmp_path):
    stages = [dict(name="a", until=3, plateau=dict(patience=1)), dict(name="b")]
    config = kind(tiny_data, teacher, "plain")
    config |= dict(distill=distill(teacher, KD, stages=stages, unit="step"))
    with pytest.raises(ConfigError, match="'a' ends at a plateau.*unit='epoch'"):
        tiny_data.train(config, tmp_path)


def test_other_partners_are_not_resumed(tiny_data, teacher, tmp_path):
    tiny_data.train(kind(tiny_data, teacher, "one"), tmp_path / "one")
    config = kind(tiny_data, teacher, "one")
    config["model"]["branches"] = 1
    config |= dict(resume=True, load_from=str(tmp_path / "one" / "epoch_2.pth"))
    with pytest.raises(CheckpointError, match="partners kept with the checkpoint"):
        tiny_data.train(config, tmp_path / "other")


def test_the_students_own_config_needs_no_teacher(tiny_data, teacher, tmp_path):
    config = kind(tiny_data, teacher, "mutual")
    for key in ("dataloader", "evaluator"):
        config[f"test_{key}"] = config[f"val_{key}"]
    tiny_data.train(dict(config, test_cfg=dict(type="TestLoop")), tmp_path)
    own = (tmp_path / "student_config.py").read_text()
    assert "distill" not in own.replace("taskdistill", "")
    cli.test(
        [str(tmp_path / "student_config.py"), str(tmp_path / "epoch_4.pth")]
        + ["--work-dir", str(tmp_path / "test"), "--cfg-options", "experiment_name=own_classifier"]
    )
    figures = json.loads(next((tmp_path / "test").glob("*/*.json")).read_text().splitlines()[-1])
    assert "accuracy/top1" in figures


@pytest.mark.slow
@pytest.mark.parametrize("name", ["staged", "mutual", "one", "byot", "netaug"])
def test_two_processes_agree(tiny_data, teacher, tmp_path, name):
    config = kind(tiny_data, teacher, name)
    plain = name in ("one", "byot")
    hook = RANK_HOOK
    if plain:  # there is no teacher to look at
        lines = hook.splitlines()
        hook = "\n".join(line for line in lines if "teacher" not in line)
    (tmp_path / "rank_hook.py").write_text(hook)
    config["custom_imports"] = dict(imports=["taskdistill.tasks.classification", "rank_hook"])
    config["custom_hooks"] = [dict(type="RankHook")]
    from mmengine.config import Config

    path = tmp_path / f"{name}.py"
    Config(config).dump(str(path))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(ROOT / "tools" / "train.py"), str(path), "--launcher", "pytorch"]
        + ["--work-dir", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / "run" / f"rank{rank}.json").read_text())
        assert found == dict(backend="gloo", world=2, equal=True, finite=True)
