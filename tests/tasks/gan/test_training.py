"""Whole runs: what is kept, what survives a kill, precision, averaging, two processes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from saved_runs import assert_equal, curves

from taskdistill.core.errors import CheckpointError, NonFiniteLossError
from taskdistill.tasks.gan.hooks import SIDE_ENTRY
from taskdistill.tasks.openmm import cli
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

TRAIN = Path(__file__).parents[3] / "tools" / "train.py"


def assert_same_end(first: Path, second: Path) -> dict[str, Any]:
    one, two = (read_mm_checkpoint(str(path)) for path in (first, second))
    assert_equal(curves(one), curves(two), "curves")
    for entry in ("state_dict", "optimizer", "param_schedulers", SIDE_ENTRY, "distill"):
        assert_equal(one.get(entry), two.get(entry), entry)
    return one


def kind(gan: Any, name: str) -> dict[str, Any]:
    """A run of each sort, with everything that has a state."""
    if name == "cyclegan":
        return gan.config(gan.model("CycleGAN", pool=5), unpaired=True)
    if name == "pix2pix":
        wide = dict(gan.thin, dropout=0.3)
        return gan.config(gan.model(generator=wide, objective="hinge", pool=3))
    init = dict(generator="teacher", discriminator="teacher")
    if name == "distilled":
        teacher = gan.teacher("CycleGAN")
        model = gan.model("ImageTranslator", dict(gan.thin, dropout=0.3), pool=3)
        distill = gan.distill(teacher=teacher, init=init)
        return gan.config(model, unpaired=True, distill=distill)
    lines = [
        dict(
            student=f"generator.model.{index}",
            loss="FeatureImitation",
            adapter="sliced",
            name=f"layer{index}",
        )
        for index in (9, 12)
    ]
    model = gan.model(generator=gan.super, objective="hinge")
    return gan.config(model, distill=gan.distill(*lines, init=init))


KINDS = ("pix2pix", "cyclegan", "distilled", "supernet")


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_run_resumes_as_if_nothing_had_happened(gan, tmp_path, name):
    """Killed within the second epoch; everything bit for bit, image pools and all."""
    config = kind(gan, name)
    gan.train(config, tmp_path / "whole")
    path, killed = gan.write(config), tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, str(TRAIN), path, "--work-dir", str(killed)],
        env={**gan.env, "STOP_AFTER": "5"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (killed / "epoch_1.pth").exists() and not (killed / "epoch_2.pth").exists()
    options = ["--cfg-options", f"experiment_name=resumed_{name}"]
    cli.train([path, "--work-dir", str(killed), "--resume", *options])
    end = assert_same_end(killed / "epoch_2.pth", tmp_path / "whole" / "epoch_2.pth")
    found = curves(end)
    assert {len(values) for values in found.values()} == {6}
    assert {"lr", "discriminator.lr", "loss"} <= set(found)
    assert len(set(found["loss"])) == 6
    pools = end[SIDE_ENTRY]["pools"].values()
    assert (
        sum(len(pool["images"]) for pool in pools)
        == ({"pix2pix": 3, "cyclegan": 10, "distilled": 3, "supernet": 0}[name])
    )


def test_what_a_checkpoint_holds(gan, tmp_path):
    runner = gan.train(kind(gan, "distilled"), tmp_path)
    checkpoint = read_mm_checkpoint(str(tmp_path / "epoch_2.pth"))
    plain = gan.build(gan.model("ImageTranslator", dict(gan.thin, dropout=0.3)))
    assert list(checkpoint["state_dict"]) == list(plain.state_dict())
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    assert set(checkpoint["optimizer"]) == {"generator", "discriminator"}
    kept = checkpoint[SIDE_ENTRY]["discriminators"]["discriminator"]
    for key, value in runner.model.student.discriminator.state_dict().items():
        assert torch.equal(kept[key], value)
    adapters = {name.split(".")[1] for name in checkpoint["distill"]["adapters"]}
    assert adapters == {"down"}
    # The adapters are trained with the generator.
    groups = checkpoint["optimizer"]["generator"]["param_groups"]
    assert len(groups) == 2 and len(groups[1]["params"]) == 2
    assert "DistilledModel" not in checkpoint["meta"]["cfg"]
    assert "taskdistill.tasks.gan" in (tmp_path / "student_config.py").read_text()


def test_the_students_own_config_needs_no_distillation(gan, tmp_path):
    gan.train(kind(gan, "distilled"), tmp_path)
    cli.test(
        [str(tmp_path / "student_config.py"), str(tmp_path / "epoch_2.pth")]
        + ["--work-dir", str(tmp_path / "test"), "--cfg-options", "experiment_name=own_config"]
    )
    figures = next((tmp_path / "test").glob("*/*.json")).read_text()
    assert '"SmallFD"' in figures and '"PSNR"' in figures


def test_resuming_from_a_bare_generator_is_refused(gan, tmp_path):
    bare = tmp_path / "net_G.pth"
    torch.save({"state_dict": gan.build(gan.model()).state_dict(), "meta": {}}, bare)
    config = gan.config(resume=True, load_from=str(bare))
    with pytest.raises(CheckpointError, match="without the discriminator"):
        gan.train(config, tmp_path / "run")
    gan.train(gan.config(load_from=str(bare)), tmp_path / "run")


def test_resuming_with_another_discriminator_is_refused(gan, tmp_path):
    gan.train(gan.config(), tmp_path / "run")
    other = gan.model()
    other["discriminator"]["width"] = 8
    path = str(tmp_path / "run" / "epoch_1.pth")
    with pytest.raises(CheckpointError, match="not those of this config"):
        gan.train(gan.config(other, resume=True, load_from=path), tmp_path / "other")


def test_the_average_is_deployed_and_changes_nothing_in_training(gan, tmp_path):
    config = kind(gan, "distilled")
    gan.train(config, tmp_path / "plain")
    config["custom_hooks"] = [dict(type="EMAHook", momentum=0.3)]
    runner = gan.train(config, tmp_path / "ema")
    one, two = (
        read_mm_checkpoint(str(tmp_path / name / "epoch_2.pth")) for name in ("plain", "ema")
    )
    assert_equal(curves(one), curves(two))
    assert_equal(one[SIDE_ENTRY], two[SIDE_ENTRY])
    names = list(one["state_dict"])
    assert list(two["state_dict"]) == names
    assert {f"module.{name}" for name in names} | {"steps"} == set(two["ema_state_dict"])
    weight = "generator.model.1.weight"
    assert torch.equal(two["ema_state_dict"][f"module.{weight}"], runner.model.state_dict()[weight])
    assert not torch.equal(two["state_dict"][weight], runner.model.state_dict()[weight])


@pytest.mark.parametrize("name", KINDS)
def test_mixed_precision(gan, tmp_path, name):
    path = gan.write(kind(gan, name))
    options = ["train_cfg.max_epochs=1", f"experiment_name=mixed_{name}"]
    cli.train([path, "--work-dir", str(tmp_path), "--amp", "--cfg-options", *options])
    checkpoint = read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))
    values = [v for values in curves(checkpoint).values() for v in values]
    assert all(abs(value) < 1e3 for value in values)
    assert {t.dtype for t in checkpoint["state_dict"].values()} == {torch.float32}
    full = gan.train(kind(gan, name), tmp_path / "full")
    first = curves(read_mm_checkpoint(str(Path(full.work_dir) / "epoch_1.pth")))["loss"][0]
    assert curves(checkpoint)["loss"][0] != first
    assert curves(checkpoint)["loss"][0] == pytest.approx(first, rel=0.05)


def test_gradients_are_accumulated_for_both(gan, tmp_path):
    """Two epochs of three batches: every second one is a step."""
    config = gan.config()
    config["optim_wrapper"]["accumulative_counts"] = 2
    runner = gan.runner(config, tmp_path)
    order, make = [], runner.build_optim_wrapper

    def build(*args: Any) -> Any:
        wrappers = make(*args)
        for name in ("generator", "discriminator"):
            wrappers[name].optimizer.register_step_post_hook(lambda *_, n=name: order.append(n))
        return wrappers

    runner.build_optim_wrapper = build
    runner.train()
    assert order == ["discriminator", "generator"] * 3


def test_training_by_iterations_resumes_equal_too(gan, tmp_path):
    config = gan.config(
        gan.model("CycleGAN", pool=5),
        unpaired=True,
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=6, val_interval=6),
        param_scheduler=[dict(type="LinearLR", start_factor=1.0, end_factor=0.1, by_epoch=False)],
        log_processor=dict(type="LogProcessor", window_size=1, by_epoch=False),
    )
    config["default_hooks"]["checkpoint"] = dict(type="CheckpointHook", interval=3, by_epoch=False)
    config["train_dataloader"]["sampler"] = dict(type="InfiniteSampler", shuffle=True)
    gan.train(config, tmp_path / "whole")
    half = str(tmp_path / "whole" / "iter_3.pth")
    gan.train({**config, "resume": True, "load_from": half}, tmp_path / "resumed")
    assert_same_end(tmp_path / "resumed" / "iter_6.pth", tmp_path / "whole" / "iter_6.pth")


def test_a_discriminator_that_diverges_ends_the_run_and_leaves_the_last_checkpoint(gan, tmp_path):
    runner = gan.runner(kind(gan, "distilled"), tmp_path)

    class Spoil(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter == 4:
                with torch.no_grad():
                    runner.model.student.discriminator.model[0].weight.fill_(torch.inf)

    runner.register_hook(Spoil())
    with pytest.raises(NonFiniteLossError, match="step 5 not finite: .*loss_G_gan"):
        runner.train()
    assert sorted(p.name for p in tmp_path.glob("*.pth*")) == ["epoch_1.pth"]
    checkpoint = read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


# -- two processes -------------------------------------------------------------------------------

RANKS = """
import os

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class GanRankHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        inner = getattr(runner.model, "module", runner.model)
        if inner is not runner.model:
            assert not runner.model.find_unused_parameters
            assert dist.get_world_size() == 2 and dist.get_backend() == "gloo"
        rank = dist.get_rank() if dist.is_initialized() else 0
        student = getattr(inner, "student", inner)
        found = dict(student=inner.state_dict(), rest=student.adversary_state())
        if hasattr(inner, "distiller"):
            found["adapters"] = inner.distiller.state_dict()
        torch.save(found, os.path.join(runner.work_dir, f"step{runner.iter + 1}_rank{rank}.pt"))
"""


def two_processes(gan: Any, config: dict, folder: Path, work_dir: Path) -> None:
    (folder / "gan_ranks.py").write_text(RANKS)
    config["custom_imports"]["imports"].append("gan_ranks")
    config["custom_hooks"] = [dict(type="GanRankHook")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", str(TRAIN), gan.write(config), "--launcher", "pytorch"]
    env = {**gan.env, "PYTHONPATH": f"{folder}{os.pathsep}{gan.env['PYTHONPATH']}"}
    done = subprocess.run(
        [*command, "--work-dir", str(work_dir)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paired", "distilled"])
def test_two_processes_train_as_one_does_with_the_batches_of_both(gan, tmp_path, monkeypatch, name):
    """Instance norm, no dropout, no augmentation: nothing depends on how the batch is divided."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # A small weight: the L1 term's gradient jumps where a difference changes its sign by rounding.
    model = gan.model(objective="lsgan", reconstruction=1.0)
    config = gan.config(model)
    if name == "distilled":
        init = dict(generator="teacher", discriminator="teacher")
        config = gan.config(model, distill=gan.distill(init=init))
    # Adam divides by a gradient's own size, and so magnifies what rounding makes of one that is 0
    # in exact arithmetic (of a bias in front of a norm).
    for player in ("generator", "discriminator"):
        config["optim_wrapper"][player] = dict(optimizer=dict(type="SGD", lr=0.02))
    loader = config["train_dataloader"]
    loader["sampler"]["shuffle"] = False
    loader["dataset"]["test_mode"] = True
    loader["batch_size"] = 3
    two_processes(gan, config, tmp_path, tmp_path / "two")
    loader["batch_size"] = 6
    importlib.import_module("gan_ranks")
    gan.train(config, tmp_path / "one")
    for step in (1, 2, 3, 4):  # 12 pictures in batches of 6, twice
        first, second = (torch.load(tmp_path / "two" / f"step{step}_rank{r}.pt") for r in (0, 1))
        assert_equal(first, second, f"step {step}")
        alone = torch.load(tmp_path / "one" / f"step{step}_rank0.pt")
        for part, values in (("student", first["student"]), *flat(first["rest"])):
            for key, value in values.items():
                other = alone["student"] if part == "student" else dict(flat(alone["rest"]))[part]
                torch.testing.assert_close(
                    value,
                    other[key],
                    rtol=1e-4,
                    atol=1e-5,
                    msg=lambda m, k=key, at=step: f"{k}, step {at}: {m}",
                )
    checkpoint = read_mm_checkpoint(str(tmp_path / "two" / "epoch_2.pth"))
    gan.build(gan.model()).load_state_dict(checkpoint["state_dict"], strict=True)
    assert checkpoint["meta"]["iter"] == 4


def flat(rest: dict[str, Any]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    return list(rest["discriminators"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supernet", "cyclegan"])
def test_two_processes_keep_all_players_alike(gan, tmp_path, name):
    """Sub-networks and image pools differ by process; the weights never do."""
    two_processes(gan, kind(gan, name), tmp_path, tmp_path / "two")
    for step in (1, 2, 3, 4):
        first, second = (torch.load(tmp_path / "two" / f"step{step}_rank{r}.pt") for r in (0, 1))
        assert_equal(first["student"], second["student"])
        assert_equal(flat(first["rest"]), flat(second["rest"]))
        assert_equal(first.get("adapters"), second.get("adapters"))
