"""Student and discriminator in training: who steps when, what is kept, what survives."""

import copy
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
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from saved_runs import assert_equal, curves

from taskdistill.core.errors import NonFiniteLossError
from taskdistill.tasks.openmm import cli
from taskdistill.tasks.openmm.hooks import SIDE_ENTRY
from taskdistill.tasks.openmm.optim import CRITIC, STUDENT
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

TRAIN = Path(__file__).parents[3] / "tools" / "train.py"
CRITIC_FIGURES = ("loss_critic_maps", "critic_maps_penalty", "critic_maps_margin")


def optimizers(seg, model, **distill) -> Any:
    """Both optimizers of a distilled model, as the runner builds them."""
    config = seg.config(distill=seg.distill(**distill))
    return build_optim_wrapper(model, seg.wrap(config, seg.folder).optim_wrapper)


def critic_of(model):
    return dict(model.distiller.losses["maps"].named_parameters())


def trained_with_student(model):
    return [*model.student.parameters(), *model.distiller.partner_parameters()]


def copied(parameters):
    return [p.detach().clone() for p in parameters]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- one step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_the_critic_steps_after_the_student(seg, steps):
    model = seg.distilled(critic=dict(steps=steps))
    wrappers = optimizers(seg, model, critic=dict(steps=steps))
    order = []
    for name in (STUDENT, CRITIC):
        wrappers[name].optimizer.register_step_post_hook(lambda *_, name=name: order.append(name))
    for _ in range(3):
        figures = model.train_step(seg.packed(), wrappers)
    assert order == ([STUDENT] + [CRITIC] * steps) * 3
    assert {"loss", "loss_kd_maps", "kd_maps_raw", *CRITIC_FIGURES} <= set(figures)
    # The critic's loss is none of the student's.
    own = [v for k, v in figures.items() if "loss" in k and k != "loss" and "critic" not in k]
    torch.testing.assert_close(figures["loss"], torch.stack([v.sum() for v in own]).sum())


def test_neither_step_reaches_the_other_network(seg):
    model = seg.distilled()
    wrappers = optimizers(seg, model)
    ours, critic = trained_with_student(model), list(critic_of(model).values())
    assert len({id(p) for p in [*ours, *critic]}) == len(ours) + len(critic)
    seen = {}

    def between(*_):
        seen["critic"], seen["ours"] = copied(critic), copied(ours)
        seen["critic's gradients"] = [p.grad for p in critic]

    def before_critic(*_):
        seen["our gradients"] = [p.grad for p in ours]
        seen["gradients"] = copied([p.grad for p in critic])

    wrappers[STUDENT].optimizer.register_step_post_hook(between)
    wrappers[CRITIC].optimizer.register_step_pre_hook(before_critic)
    before = copied(ours), copied(critic)
    model.train_step(seg.packed(), wrappers)
    assert same(seen["critic"], before[1]) and set(seen["critic's gradients"]) == {None}
    assert not same(seen["ours"], before[0])
    assert same(copied(ours), seen["ours"]) and set(seen["our gradients"]) == {None}
    assert not same(copied(critic), before[1])
    assert all(gradient.isfinite().all() for gradient in seen["gradients"])


def test_the_students_step_is_the_one_without_the_critics_step(seg):
    """Its own and its terms' gradients and nothing else, bit by bit."""
    first, second = (seg.distilled() for _ in range(2))
    second.load_state_dict(first.state_dict())
    wrappers = optimizers(seg, first)
    alone = optimizers(seg, second)[STUDENT]
    torch.manual_seed(1)
    first.train_step(seg.packed(), wrappers)
    torch.manual_seed(1)
    BaseModel.train_step(second, seg.packed(), alone)
    assert same(trained_with_student(first), trained_with_student(second))
    assert not same(critic_of(first).values(), critic_of(second).values())


# -- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_config(seg):
    """Dropout in the model, augmentation, an adapter, and all three structured terms."""
    return seg.config(distill=seg.distill(critic=dict(optimizer=dict(type="Adam", lr=1e-3))))


def ema_config(config):
    hooks = [dict(type="StopHook"), dict(type="EMAHook", momentum=0.3)]
    return {**copy.deepcopy(config), "custom_hooks": hooks}


@pytest.fixture(scope="module")
def runs(seg, run_config, tmp_path_factory):
    """One run without and one with EMA, uninterrupted."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {"plain": run_config, "ema": ema_config(run_config)}
    return {name: seg.train(config, folder / name) for name, config in configs.items()}


def assert_same_end(first, second):
    first, second = (read_mm_checkpoint(str(p)) for p in (first, second))
    assert_equal(curves(first), curves(second), "curves")
    for entry in ("state_dict", "optimizer", "param_schedulers", SIDE_ENTRY):
        assert_equal(first[entry], second[entry], entry)
    return first


def test_critic_and_its_optimizer_are_kept_beside_the_student(seg, runs):
    runner = runs["plain"]
    checkpoint = read_mm_checkpoint(str(Path(runner.work_dir) / "epoch_2.pth"))
    plain = seg.build(seg.model())
    assert list(checkpoint["state_dict"]) == list(plain.state_dict())
    side = checkpoint[SIDE_ENTRY]["adapters"]
    assert {name.split(".")[1] for name in side} == {"features", "maps"}
    for name, value in critic_of(runner.model).items():
        assert torch.equal(side[f"losses.maps.{name}"], value), name
    assert set(checkpoint["optimizer"]) == {STUDENT, CRITIC}
    moments = checkpoint["optimizer"][CRITIC]["state"]
    assert len(moments) == len(critic_of(runner.model)) > 5
    assert all(state["step"] == 6 for state in moments.values())
    # But for biases that no loss depends on: a WGAN's score, keys of an attention.
    assert sum(not state["exp_avg"].any() for state in moments.values()) <= 2
    assert set(checkpoint["param_schedulers"]) == {STUDENT, CRITIC}
    # Both rates went down by the polynomial, each from its own.
    found = curves(checkpoint)
    assert len(found["lr"]) == 6 and {len(found[name]) for name in CRITIC_FIGURES} == {6}
    for name, first in (("lr", 0.01), ("critic.lr", 1e-3)):
        assert_polynomial(found[name], first)


def assert_polynomial(rates, first):
    """mmengine's goes down to 0 at the last step."""
    expected = [first * (1 - step / 5) ** 0.9 for step in range(6)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected), rtol=1e-5, atol=1e-9)


def test_an_ema_averages_the_student_beside_which_the_critic_stays_what_it_is(seg, runs):
    runner = runs["ema"]
    checkpoint = read_mm_checkpoint(str(Path(runner.work_dir) / "epoch_2.pth"))
    names = list(seg.build(seg.model()).state_dict())
    assert {f"module.{name}" for name in names} | {"steps"} == set(checkpoint["ema_state_dict"])
    weight = "decode_head.conv_seg.weight"
    # mmengine saves the average in the student's place, and the student in the average's.
    trained = checkpoint["ema_state_dict"][f"module.{weight}"]
    assert torch.equal(trained, runner.model.state_dict()[weight])
    assert not torch.equal(trained, checkpoint["state_dict"][weight])
    # Averaging changes nothing in training.
    other = read_mm_checkpoint(str(Path(runs["plain"].work_dir) / "epoch_2.pth"))
    assert_equal(curves(checkpoint), curves(other))
    assert_equal(checkpoint[SIDE_ENTRY], other[SIDE_ENTRY])


@pytest.mark.slow
def test_resume_after_kill_equals_the_uninterrupted_run(seg, runs, run_config, tmp_path):
    path, work_dir = seg.write(run_config), tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, str(TRAIN), path, "--work-dir", str(work_dir)],
        env={**seg.env, "STOP_AFTER": "5"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (work_dir / "epoch_1.pth").exists() and not (work_dir / "epoch_2.pth").exists()
    options = ["--cfg-options", "experiment_name=resumed_after_kill"]
    cli.train([path, "--work-dir", str(work_dir), "--resume", *options])
    reference = Path(runs["plain"].work_dir) / "epoch_2.pth"
    end = assert_same_end(work_dir / "epoch_2.pth", reference)
    found = curves(end)
    assert {len(found[name]) for name in ("loss", "loss_kd_maps", *CRITIC_FIGURES)} == {6}
    assert len(set(found["critic_maps_margin"])) == 6


def test_training_by_iterations_resumes_equal_too(seg, tmp_path):
    config = seg.iteration_config(distill=seg.distill(critic=dict(steps=2)))
    seg.train(config, tmp_path / "whole")
    half = str(tmp_path / "whole" / "iter_3.pth")
    seg.train({**config, "resume": True, "load_from": half}, tmp_path / "resumed")
    end = assert_same_end(tmp_path / "resumed" / "iter_6.pth", tmp_path / "whole" / "iter_6.pth")
    assert_polynomial(curves(end)["critic.lr"], 4e-4)


def test_mixed_precision_leaves_the_critic_in_full(seg, runs, run_config, tmp_path):
    options = ["train_cfg.max_epochs=1", "experiment_name=mixed_precision"]
    arguments = [seg.write(run_config), "--work-dir", str(tmp_path), "--amp"]
    cli.train([*arguments, "--cfg-options", *options])
    checkpoint = read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))
    figures = curves(checkpoint)
    assert all(abs(value) < 1e3 for name in CRITIC_FIGURES for value in figures[name])
    tensors = [*checkpoint["state_dict"].values(), *checkpoint[SIDE_ENTRY]["adapters"].values()]
    assert all(t.isfinite().all() and t.dtype in (torch.float32, torch.int64) for t in tensors)
    # Before the first step there is no difference but that of the precision.
    full = read_mm_checkpoint(str(Path(runs["plain"].work_dir) / "epoch_1.pth"))
    first, second = figures["loss"][0], curves(full)["loss"][0]
    assert first != second and abs(first / second - 1) < 0.02


def test_gradients_are_accumulated_for_both(seg, tmp_path):
    """Two epochs of three batches: every second one is a step."""
    config = seg.config(distill=seg.distill())
    config["optim_wrapper"]["accumulative_counts"] = 2
    runner = seg.runner(config, tmp_path)
    order = []
    make = runner.build_optim_wrapper

    def build(*args):
        wrappers = make(*args)
        for name in (STUDENT, CRITIC):
            optimizer = wrappers[name].optimizer
            optimizer.register_step_post_hook(lambda *_, name=name: order.append(name))
        return wrappers

    runner.build_optim_wrapper = build
    runner.train()
    assert order == [STUDENT, CRITIC] * 3


def test_a_critic_that_begins_later(seg, tmp_path):
    pairs = [seg.pixels, {**seg.maps, "start": 1}]
    runner = seg.train(seg.config(distill=seg.distill(*pairs)), tmp_path)
    first, last = (
        read_mm_checkpoint(str(Path(runner.work_dir) / f"epoch_{n}.pth")) for n in (1, 2)
    )
    found = curves(last)
    assert found["loss_kd_maps"][:3] == [0, 0, 0] and all(found["loss_kd_maps"][3:])
    assert {len(found[name]) for name in CRITIC_FIGURES} == {3}
    assert not first["optimizer"][CRITIC]["state"] and last["optimizer"][CRITIC]["state"]
    fresh = seg.wrap(seg.config(distill=seg.distill(*pairs)), tmp_path)
    assert fresh.param_scheduler[CRITIC][0].end == 2


# -- a critic that diverges ----------------------------------------------------------------------


def finite(tensors):
    return all(tensor.isfinite().all() for tensor in tensors)


def _spoil_rate(model, wrappers):
    wrappers[CRITIC].optimizer.param_groups[0]["lr"] = 1e25


def _spoil_weight(model, wrappers):
    """Before the student's step, which meets it first."""
    _set_nan(critic_of(model)["critic.score.weight"])


def _spoil_weight_between(model, wrappers):
    weight = critic_of(model)["critic.score.weight"]
    wrappers[STUDENT].optimizer.register_step_post_hook(lambda *_: _set_nan(weight))


def _spoil_gradient(model, wrappers):
    critic_of(model)["critic.score.weight"].register_hook(lambda gradient: gradient * torch.inf)


def _set_nan(weight):
    with torch.no_grad():
        weight.view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "step", "words"),
    [
        (_spoil_rate, 5, "loss_kd_maps="),
        (_spoil_weight, 4, "loss_kd_maps=nan"),
        (_spoil_weight_between, 4, "loss_critic_maps=nan"),
        (_spoil_gradient, 4, "gradient of critic_maps="),
    ],
)
def test_a_diverging_critic_ends_the_run_and_leaves_the_last_checkpoint(
    seg, tmp_path, spoil, step, words
):
    config = seg.config(distill=seg.distill(seg.pixels, seg.maps))
    config["param_scheduler"] = []
    runner = seg.runner(config, tmp_path)

    class Spoil(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                spoil(runner.model, runner.optim_wrapper)

    runner.register_hook(Spoil())
    with pytest.raises(NonFiniteLossError, match=f"step {step} not finite: .*{words}"):
        runner.train()
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    for name, value in critic_of(runner.model).items():
        spoilt = "weight" in spoil.__name__ and name == "critic.score.weight"
        assert (value.isfinite().all(), value.isnan().sum()) == (
            (False, 1) if spoilt else (True, 0)
        )
    assert sorted(p.name for p in tmp_path.glob("*.pth*")) == ["epoch_1.pth"]
    checkpoint = read_mm_checkpoint(str(tmp_path / "epoch_1.pth"))
    seg.build(seg.model()).load_state_dict(checkpoint["state_dict"], strict=True)
    kept = [*checkpoint["state_dict"].values(), *checkpoint[SIDE_ENTRY]["adapters"].values()]
    assert all(value.isfinite().all() for value in kept)


# -- two processes -------------------------------------------------------------------------------

# Without what depends on how the batch is divided: batch statistics and random numbers.
RANKS = """
import os

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class RankHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        inner = getattr(runner.model, "module", runner.model)
        if runner.iter == 0:
            for module in inner.student.modules():
                if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                    module.p = 0.0
        for module in inner.student.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        inner = getattr(runner.model, "module", runner.model)
        if inner is not runner.model:
            assert not runner.model.find_unused_parameters
            assert dist.get_world_size() == 2 and dist.get_backend() == "gloo"
        rank = dist.get_rank() if dist.is_initialized() else 0
        found = dict(student=inner.state_dict(), rest=inner.distiller.state_dict())
        path = os.path.join(runner.work_dir, f"step{runner.iter + 1}_rank{rank}.pt")
        torch.save(found, path)
"""


@pytest.mark.slow
def test_two_processes_train_one_student_and_one_critic(seg, tmp_path, monkeypatch):
    """As one process does with the batches of both; a second critic begins later."""
    (tmp_path / "ranks.py").write_text(RANKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = dict(penalty=0.0)  # its mixtures are random
    pairs = [seg.pixels, seg.affinity, {**seg.maps, **plain}, seg.features]
    pairs.append({**seg.maps, **plain, "start": 1, "name": "later"})
    config = seg.config(distill=seg.distill(*pairs), custom_hooks=[dict(type="RankHook")])
    config["custom_imports"]["imports"].append("ranks")
    loader = config["train_dataloader"]
    loader["dataset"]["pipeline"] = [loader["dataset"]["pipeline"][i] for i in (0, 1, 6)]
    loader["sampler"]["shuffle"] = False
    path = seg.write(config)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", str(TRAIN), path, "--launcher", "pytorch"]
    env = {**seg.env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{seg.env['PYTHONPATH']}"}
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path / "two")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    loader["batch_size"] = 8
    importlib.import_module("ranks")
    seg.train(config, tmp_path / "one")
    later = []
    for step in (1, 2, 3, 4):  # 12 pictures in batches of 8, twice
        first, second = (torch.load(tmp_path / "two" / f"step{step}_rank{r}.pt") for r in (0, 1))
        assert_equal(first, second, f"step {step}")
        alone = torch.load(tmp_path / "one" / f"step{step}_rank0.pt")
        for part, values in alone.items():
            for name, value in values.items():
                text = f"{part}, {name}, step {step}"
                torch.testing.assert_close(
                    first[part][name],
                    value,
                    rtol=1e-5,
                    atol=1e-5,
                    msg=lambda m, t=text: f"{t}: {m}",
                )
        later.append(first["rest"]["losses.later.critic.score.weight"])
    assert torch.equal(later[0], later[1]) and not torch.equal(later[1], later[2])
    checkpoint = read_mm_checkpoint(str(tmp_path / "two" / "epoch_2.pth"))
    seg.build(seg.model()).load_state_dict(checkpoint["state_dict"], strict=True)
    assert checkpoint["meta"]["iter"] == 4
    assert not torch.distributed.is_initialized()
