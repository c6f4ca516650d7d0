"""New batch-norm statistics for validation and checkpoints; training as if nothing had happened."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

sys.path.insert(0, str(Path(__file__).parents[1]))  # saved_runs

from saved_runs import assert_equal, curves

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.core.recalibration import recalibrate, statistics
from taskdistill.tasks.classification.hooks import classifier_of
from taskdistill.tasks.classification.recalibration import RecalibrateHook

BASE = [dict(type="PartnersHook"), dict(type="RepeatableHook")]
OURS = dict(type="RecalibrateHook", batches=2)


@HOOKS.register_module(force=True)
class WatchHook(Hook):
    """What a validation is made with, and what a step begins with."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.validated: list[dict[str, torch.Tensor]] = []
        self.steps: list[Any] = []

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 0:
            self.validated.append(statistics(classifier_of(runner.model).network))

    def before_train_epoch(self, runner: Any) -> None:
        # Without RepeatableHook: what is drawn next, by anyone.
        states = (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )
        self.steps.append((states, statistics(classifier_of(runner.model).network)))


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def running(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if "running" in k}


@pytest.mark.parametrize("repeatable", [True, False])
def test_training_goes_on_as_if_nothing_had_happened(
    tiny_data: Any, tmp_path: Path, repeatable: bool
) -> None:
    hooks = [dict(type="PartnersHook"), dict(type="WatchHook")]
    if repeatable:
        hooks.append(dict(type="RepeatableHook"))
    drops = tiny_data.model(drops=[dict(type="Dropout", p=0.3)])  # draws in the model
    runners = [
        tiny_data.train(tiny_data.config(drops, custom_hooks=[*hooks, *more]), tmp_path / name)
        for name, more in (("with", [OURS]), ("without", []))
    ]
    ours, theirs = (load(tmp_path / name / "epoch_2.pth") for name in ("with", "without"))
    assert_equal(ours["optimizer"], theirs["optimizer"])
    assert_equal(
        {k: v for k, v in ours["state_dict"].items() if "running" not in k},
        {k: v for k, v in theirs["state_dict"].items() if "running" not in k},
    )
    mine, plain = (
        next(h for h in runner.hooks if isinstance(h, WatchHook)).steps for runner in runners
    )
    assert_equal(mine, plain)
    train = {k: v for k, v in curves(ours).items() if k in curves(theirs)}
    assert_equal(train, curves(theirs))
    # What training itself would have saved is kept beside.
    assert_equal(
        ours["recalibration"]["statistics"],
        {k: v for k, v in theirs["state_dict"].items() if "running" in k or "num_b" in k},
    )


def test_what_is_saved_was_validated_and_belongs_to_the_weights(
    tiny_data: Any, tmp_path: Path
) -> None:
    checkpoint = dict(type="CheckpointHook", interval=1, save_best="accuracy/top1", rule="greater")
    entries = tiny_data.config(custom_hooks=[*BASE, OURS, dict(type="WatchHook")])
    entries["default_hooks"]["checkpoint"] = checkpoint
    runner = tiny_data.train(entries, tmp_path)
    watch = next(h for h in runner.hooks if isinstance(h, WatchHook))
    for epoch, validated in enumerate(watch.validated, 1):
        assert_equal(
            running(load(tmp_path / f"epoch_{epoch}.pth")["state_dict"]), running(validated)
        )
    best = next(tmp_path.glob("best_*.pth"))
    known = [running(v) for v in watch.validated]
    assert any(
        all(torch.equal(v, running(load(best)["state_dict"])[k]) for k, v in one.items())
        for one in known
    )
    # By hand, on the images that were taken.
    network = tiny_data.build().network
    network.load_state_dict(load(tmp_path / "epoch_2.pth")["state_dict"])
    before = running(statistics(network))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:16]
    data = runner.train_dataloader.dataset
    model = classifier_of(runner.model)
    batches = [
        model.data_preprocessor(
            {
                "inputs": torch.stack([data[i]["inputs"] for i in part]),
                "data_samples": torch.zeros(8),
            },
            False,
        )["inputs"]
        for part in order.view(2, 8).tolist()
    ]
    recalibrate(network, batches)
    assert_equal(running(statistics(network)), before)


def test_a_run_that_is_resumed_is_the_same(tiny_data: Any, tmp_path: Path) -> None:
    tiny_data.train(tiny_data.config(custom_hooks=[*BASE, OURS]), tmp_path / "whole")
    path = tmp_path / "whole" / "epoch_1.pth"
    resumed = tiny_data.config(custom_hooks=[*BASE, OURS], resume=True, load_from=str(path))
    tiny_data.train(resumed, tmp_path / "resumed")
    one, two = (load(tmp_path / name / "epoch_2.pth") for name in ("whole", "resumed"))
    for key in ("state_dict", "optimizer", "recalibration"):
        assert_equal(one[key], two[key], key)


def test_iterations_in_place_of_epochs(tiny_data: Any, tmp_path: Path) -> None:
    """A checkpoint after step 2 belongs to the weights of step 2, not of the validation before."""
    entries = tiny_data.config(
        custom_hooks=[*BASE, OURS, dict(type="WatchHook")],
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=3, val_interval=1),
    )
    entries["default_hooks"]["checkpoint"] = dict(type="CheckpointHook", interval=1, by_epoch=False)
    entries["train_dataloader"]["sampler"] = dict(type="InfiniteSampler", shuffle=True)
    runner = tiny_data.train(entries, tmp_path)
    watch = next(h for h in runner.hooks if isinstance(h, WatchHook))
    for step, validated in enumerate(watch.validated, 1):
        assert_equal(running(load(tmp_path / f"iter_{step}.pth")["state_dict"]), running(validated))
    assert len(watch.validated) == 3


def test_worker_processes_give_the_same_statistics(tiny_data: Any, tmp_path: Path) -> None:
    states = []
    for workers in (0, 2):
        entries = tiny_data.config(custom_hooks=[*BASE, OURS])
        entries["train_dataloader"].update(num_workers=workers, persistent_workers=workers > 0)
        entries["train_cfg"]["max_epochs"] = 1
        tiny_data.train(entries, tmp_path / str(workers))
        states.append(load(tmp_path / str(workers) / "epoch_1.pth")["state_dict"])
    assert_equal(*states)


def test_a_later_evaluation_is_of_what_was_saved(tiny_data: Any, tmp_path: Path) -> None:
    entries = tiny_data.config(custom_hooks=[*BASE, OURS])
    tiny_data.train(entries, tmp_path / "run")
    path = tmp_path / "run" / "epoch_2.pth"
    entries.update(load_from=str(path), custom_hooks=[*BASE, OURS, dict(type="WatchHook")])
    runner = tiny_data.runner(entries, tmp_path / "val")
    runner.val()
    watch = next(h for h in runner.hooks if isinstance(h, WatchHook))
    assert_equal(running(watch.validated[0]), running(load(path)["state_dict"]))


@pytest.mark.parametrize(("batches", "count"), [(1, 1), (100, 3), (0.5, 2), (1.0, 3), (0.01, 1)])
def test_how_many_batches(tiny_data: Any, tmp_path: Path, batches: Any, count: int) -> None:
    """Of 24 images in batches of 8 there are three."""
    entries = tiny_data.config(custom_hooks=BASE)
    runner = tiny_data.runner(entries, tmp_path)
    runner.train_loop  # noqa: B018 - builds the loader
    hook = RecalibrateHook(batches)
    found = list(hook._images(runner, classifier_of(runner.model)))
    assert [len(images) for images in found] == [8] * count


@pytest.mark.parametrize("wrong", [0, -1, 0.0, 1.5, True, "all"])
def test_wrong_numbers_of_batches(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="batches is"):
        RecalibrateHook(wrong)


def test_images_are_not_mixed(tiny_data: Any, tmp_path: Path) -> None:
    preprocessor = dict(type="ClassifierPreprocessor", mixing=dict(type="MixUp"))
    model = tiny_data.model(data_preprocessor=preprocessor)
    runner = tiny_data.runner(tiny_data.config(model, custom_hooks=BASE), tmp_path)
    runner.train_loop  # noqa: B018
    found = next(iter(RecalibrateHook(1)._images(runner, classifier_of(runner.model))))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:8].tolist()
    data = runner.train_dataloader.dataset
    pixels = torch.stack([data[i]["inputs"] for i in order])
    assert torch.allclose(found * 255, pixels.float(), atol=1e-3)


def test_averages_of_weights_are_refused(tiny_data: Any, tmp_path: Path) -> None:
    entries = tiny_data.config(custom_hooks=[*BASE, OURS, dict(type="EMAHook")])
    with pytest.raises(ConfigError, match="EMAHook do not go together"):
        tiny_data.train(entries, tmp_path)


def test_statistics_of_another_network_are_refused(tiny_data: Any, tmp_path: Path) -> None:
    tiny_data.train(tiny_data.config(custom_hooks=[*BASE, OURS]), tmp_path)
    file = load(tmp_path / "epoch_1.pth")
    file["recalibration"]["statistics"]["bn1.running_mean"] = torch.zeros(5)
    torch.save(file, tmp_path / "mixed.pth")
    entries = tiny_data.config(
        custom_hooks=[*BASE, OURS], resume=True, load_from=str(tmp_path / "mixed.pth")
    )
    with pytest.raises(CheckpointError, match="bn1.running_mean in the 'recalibration' entry"):
        tiny_data.train(entries, tmp_path / "resumed")


# Two processes: the same networks are drawn, the statistics are averages, the weights stay equal.
RANKS = """
import sys
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import init_default_scope
import taskdistill.tasks.classification.classifier, taskdistill.tasks.classification.data
import taskdistill.tasks.classification.hooks, taskdistill.tasks.classification.metrics
import taskdistill.tasks.classification.models, taskdistill.tasks.classification.netaug
import taskdistill.tasks.classification.preprocessor
import taskdistill.tasks.classification.recalibration
from taskdistill.core.recalibration import recalibrate, statistics
from taskdistill.tasks.classification.hooks import classifier_of
from taskdistill.tasks.openmm.runner import build_runner

cfg = Config.fromfile(sys.argv[1])
runner = build_runner(cfg)
runner.train()
model = classifier_of(runner.model)
own = torch.cat([p.detach().flatten() for p in model.parameters()])
others = [torch.zeros_like(own) for _ in range(2)]
dist.all_gather(others, own)
assert torch.equal(*others)
hook = next(h for h in runner.hooks if type(h).__name__ == "RecalibrateHook")
images = list(hook._images(runner, model))
assert [len(i) for i in images] == [4]
recalibrate(model.network, images)
mine = statistics(model.network)["bn1.running_mean"]
both = [torch.zeros_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
assert not torch.equal(*both)
saved = torch.load(f"{cfg.work_dir}/epoch_1.pth", weights_only=False)["state_dict"]
torch.testing.assert_close(saved["bn1.running_mean"], (both[0] + both[1])[:4] / 2)
open(f"{cfg.work_dir}/ok{dist.get_rank()}", "w").close()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tiny_data: Any, tmp_path: Path) -> None:
    from mmengine.config import Config

    network = dict(type="CifarResNet", depth=8, num_classes=3, shortcut="B", widths=(4, 4, 4))
    model = tiny_data.model(
        "AugmentedClassifier", network=network, width=[1.0, 1.5], expansion=[1.0], expand_only=0
    )
    entries = tiny_data.config(
        model, custom_hooks=[*BASE, OURS], launcher="pytorch", work_dir=str(tmp_path / "run")
    )
    entries["train_dataloader"].update(
        batch_size=4,
        dataset=dict(type="SeededDataset", dataset=entries["train_dataloader"]["dataset"]),
    )
    entries["train_cfg"]["max_epochs"] = 1
    entries["env_cfg"] = dict(dist_cfg=dict(backend="gloo"))
    (tmp_path / "config.py").write_text(Config(entries).pretty_text)
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(tmp_path / "config.py")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "ok0").exists() and (tmp_path / "run" / "ok1").exists()
