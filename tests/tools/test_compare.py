"""tools/compare.py with real training; what it makes of the runs has tests of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("rich")

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "compare.py"

# What a user's own package might hold: a model of ten numbers and its data.
PARTS = """
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module()
class Points(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 4, generator=generator)
        self.y = (self.x.sum(dim=1) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return dict(inputs=self.x[index], data_samples=self.y[index])


@MODELS.register_module()
class Line(BaseModel):
    def __init__(self, broken=False):
        super().__init__()
        self.fc = torch.nn.Linear(4, 2)
        self.broken = broken

    def forward(self, inputs, data_samples=None, mode="tensor"):
        logits = self.fc(inputs)
        if self.broken:
            raise ValueError("the model is broken")
        if mode == "loss":
            return dict(loss=torch.nn.functional.cross_entropy(logits, data_samples))
        return logits.argmax(dim=1)


@METRICS.register_module()
class Right(BaseMetric):
    def process(self, data_batch, data_samples):
        for answer, truth in zip(data_samples, data_batch["data_samples"]):
            self.results.append(float(answer == truth))

    def compute_metrics(self, results):
        return dict(right=100 * sum(results) / len(results))
"""

CONFIG = """
custom_imports = dict(imports=["compared_parts"])
model = dict(type="Line")
_collate = dict(type="default_collate")
_loader = dict(batch_size=8, num_workers=0, collate_fn=_collate, dataset=dict(type="Points"))
train_dataloader = dict(**_loader, sampler=dict(type="DefaultSampler", shuffle=True))
val_dataloader = test_dataloader = dict(
    **_loader, sampler=dict(type="DefaultSampler", shuffle=False)
)
val_evaluator = test_evaluator = dict(type="Right")
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.5))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1))
del _loader, _collate
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "compared_parts.py").write_text(PARTS)
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "fast.py").write_text(CONFIG)
    slow = "_base_ = 'fast.py'\noptim_wrapper = dict(optimizer=dict(lr=1e-4))\n"
    (configs / "slow.py").write_text(slow)
    return tmp_path


def call(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(TOOL), *map(str, arguments), "--out", str(folder / "out")]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


def figures(folder: Path) -> dict[str, dict]:
    rows = json.loads((folder / "out" / "comparison.json").read_text())["rows"]
    return {row["name"]: row for row in rows}


def test_help_needs_no_framework():
    done = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--lower-is-better" in done.stdout and "NAME=CONFIG,CHECKPOINT" in done.stdout


@pytest.mark.slow
def test_real_runs_of_the_training_tool(folder):
    asked = (folder / "configs", "--seeds", 2, "--epochs", 2)
    done = call(folder, *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = figures(folder)
    fast, slow = (rows[name]["metrics"]["right"] for name in ("fast", "slow"))
    assert fast["mean"] > slow["mean"] and fast["mean"] > 80
    assert slow["difference"] == pytest.approx(slow["mean"] - fast["mean"])
    assert slow["by_seed"]["0"] != slow["by_seed"]["1"]  # another start
    assert rows["fast"]["parameters"] is None or rows["fast"]["parameters"] == 10
    assert "Compared by right" in (folder / "out" / "comparison.md").read_text()
    checkpoint = folder / "out" / "runs" / "fast-1" / "epoch_2.pth"
    written = checkpoint.stat().st_mtime_ns

    # Again, with one more that fails and a checkpoint that is evaluated: nothing is repeated.
    broken = folder / "configs" / "broken.py"
    broken.write_text("_base_ = 'fast.py'\nmodel = dict(broken=True)\n")
    given = f"given={folder / 'configs' / 'fast.py'},{checkpoint}"
    done = call(folder, *asked, "--evaluate", given, "--baseline", "slow", "--gap", "given")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the model is broken" in done.stdout
    again = figures(folder)
    assert checkpoint.stat().st_mtime_ns == written
    assert again["fast"]["metrics"]["right"]["by_seed"] == fast["by_seed"]
    assert again["given"]["metrics"]["right"]["mean"] == fast["by_seed"]["1"]
    assert set(again["broken"]["failed"]) == {"broken-0", "broken-1"}
    assert again["fast"]["metrics"]["right"]["gap_recovered"] is not None


@pytest.mark.slow
def test_demo_configs(folder):
    pytest.importorskip("torchmetrics")
    demo = ROOT / "configs" / "gan" / "demo"
    done = call(folder, demo / "student.py", demo / "teacher.py", "--seeds", 1, "--epochs", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = figures(folder)
    assert rows["student"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["student"]["macs"] < rows["teacher"]["macs"]
    assert "epoch_1.pth" in {path.name for path in (folder / "out").glob("runs/student-0/*.pth")}
