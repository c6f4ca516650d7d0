from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
pytest.importorskip("rich")

from mmengine.config import Config
from rich.console import Console

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.openmm.demo import DemoOptions, DemoTask, Metric, run_demo
from taskdistill.tasks.openmm.demo.jobs import JobFailed
from taskdistill.tasks.openmm.demo.report import Gallery, Picture
from taskdistill.tasks.openmm.demo.run import (
    Outcome,
    load_configs,
    option_text,
    plan,
    quantity,
    results_table,
    shortened,
    signature,
    summary_sentence,
    training_length,
)

FAKE = Path(__file__).with_name("fake_train.py")
QUALITY = Metric("quality", "quality")

# Accepts what tools/train.py accepts, and does what the fake does.
TRAIN = f"""
import argparse, json, subprocess, sys
parser = argparse.ArgumentParser()
parser.add_argument("config")
parser.add_argument("--work-dir")
parser.add_argument("--resume", action="store_true")
parser.add_argument("--cfg-options", nargs="+")
args = parser.parse_args()
assert args.resume
epochs = [o.partition("=")[2] for o in args.cfg_options if o.startswith("train_cfg.max_epochs")]
with open(args.work_dir + "/options.json", "w") as file:
    json.dump(args.cfg_options, file)
command = [sys.executable, {str(FAKE)!r}, args.work_dir, "--epochs", *(epochs or ["3"])]
sys.exit(subprocess.run(command).returncode)
"""


class FakeTask(DemoTask):
    name = "fake"
    folder = "fake/demo"
    title = "A fake demo"
    metrics = (QUALITY,)
    packages = ("torch",)
    latency_note = "one image"

    def prepare(self, cfg: Config) -> str:
        return "Data: none."

    def load(self, cfg: Config, checkpoint: Path) -> nn.Module:
        assert checkpoint.read_text() == "weights"
        return nn.Conv2d(3, cfg.model.width, 1)

    def forward_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        return lambda: model(torch.zeros(1, 3, 4, 4))

    predict_call = forward_call

    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> Gallery:
        return Gallery(["truth", *models], [[Picture(b"", 8, 8)] * (1 + len(models))])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tree" / "configs" / "fake" / "demo"
    folder.mkdir(parents=True)
    schedule = "dict(type='OneCycleLR', eta_max=0.1, total_steps=3, end=3)"
    common = f"train_cfg = dict(max_epochs=3)\nparam_scheduler = [{schedule}]\n"
    (folder / "teacher.py").write_text(common + "model = dict(width=8)\n")
    (folder / "student.py").write_text(common + "model = dict(width=2)\n")
    distill = "distill = dict(teacher=dict(checkpoint='elsewhere'))\n"
    (folder / "distilled.py").write_text("_base_ = 'student.py'\n" + distill)
    tools = tmp_path / "tree" / "tools"
    tools.mkdir()
    (tools / "train.py").write_text(TRAIN)
    return tmp_path / "tree"


def options(root: Path, **changes) -> DemoOptions:
    base = DemoOptions(root, root.parent / "out", command="python tools/demo.py --task fake")
    return replace(base, **changes)


def run(root: Path, **changes) -> tuple[Path, str]:
    out = io.StringIO()
    console = Console(file=out, width=120)
    return run_demo(FakeTask(), options(root, **changes), console), out.getvalue()


def test_from_nothing_to_the_report(root):
    path, text = run(root, seeds=2)
    work_dir = root.parent / "out"
    assert path == work_dir / "report.html"
    assert str(path) in text.replace("\n", "")
    assert "0.300 ± 0.000" in text
    html = path.read_text()
    for part in ("A fake demo", "python tools/demo.py --task fake", "Each seed", "distilled-1"):
        assert part in html
    figures = json.loads((work_dir / "results.json").read_text())
    assert figures["scores"]["alone"]["quality"] == pytest.approx([0.3, 0.3])
    assert figures["parameters"] == {"teacher": 32, "alone": 8, "distilled": 8}
    assert figures["macs"]["teacher"] == 16 * 3 * 8
    assert figures["gap_recovered"] == {"quality": None}
    assert "| student distilled | 0.300" in (work_dir / "results.md").read_text()

    told = json.loads((work_dir / "distilled-1" / "options.json").read_text())
    teacher = work_dir / "teacher" / "epoch_3.pth"
    assert told == [
        "randomness.seed=1",
        f"distill.teacher.config={root / 'configs' / 'fake' / 'demo' / 'teacher.py'}",
        f"distill.teacher.checkpoint={teacher}",
    ]
    assert json.loads((work_dir / "alone-1" / "options.json").read_text()) == ["randomness.seed=1"]

    more, text = run(root, seeds=3)
    assert text.count("already finished") == 5
    assert text.count("starts on") == 2


def test_fresh_forgets_what_the_demo_made(root):
    run(root)
    (root.parent / "out" / "mine.txt").write_text("kept")
    _, text = run(root, fresh=True)
    assert "already finished" not in text
    assert (root.parent / "out" / "mine.txt").exists()


def test_a_moved_work_folder_is_still_valid(root):
    run(root)
    shutil.move(root.parent / "out", root.parent / "elsewhere")
    _, text = run(root, work_dir=root.parent / "elsewhere")
    assert text.count("already finished") == 3


def test_a_failed_run_leaves_no_report(root):
    (root / "tools" / "train.py").write_text("raise SystemExit('no such luck')")
    with pytest.raises(JobFailed, match="no such luck"):
        run(root)
    assert not (root.parent / "out" / "report.html").exists()


def test_fewer_epochs_scale_the_schedule(root):
    configs = load_configs(root / "configs" / "fake" / "demo")
    job = plan(configs, options(root, epochs=1), "quality")[0]
    assert job.length == 1
    assert job.checkpoint.name == "epoch_1.pth"
    found = set(job.command[job.command.index("--cfg-options") + 1 :])
    assert found == {
        "randomness.seed=0",
        "train_cfg.max_epochs=1",
        "param_scheduler.0.total_steps=1",
        "param_scheduler.0.end=1",
    }


def test_shortened_handles_milestones_and_a_single_schedule():
    cfg = Config(
        dict(
            train_cfg=dict(max_epochs=12),
            param_scheduler=dict(type="MultiStepLR", begin=0, milestones=[8, 11]),
        )
    )
    assert shortened(cfg, 6) == {
        "train_cfg.max_epochs": 6,
        "param_scheduler.milestones": [4, 6],
    }
    assert option_text("param_scheduler.milestones", [4, 6]) == "param_scheduler.milestones=[4,6]"


def test_what_cannot_be_trained_is_refused(root):
    with pytest.raises(ConfigError, match="train_cfg.max_epochs"):
        shortened(Config(dict(train_cfg=dict(max_iters=100))), 3)
    with pytest.raises(ConfigError, match="expected train_cfg"):
        training_length(Config(dict(train_cfg=None)))
    assert training_length(Config(dict(train_cfg=dict(max_iters=100)))) == 100
    configs = load_configs(root / "configs" / "fake" / "demo")
    with pytest.raises(ConfigError, match="--seeds 0"):
        plan(configs, options(root, seeds=0), "quality")
    with pytest.raises(ConfigError, match=r"absent.teacher.py"):
        load_configs(root / "absent")


def test_signature_follows_what_decides_the_outcome():
    cfg = Config(dict(model=dict(width=8), work_dir="a"))
    same = signature(cfg, {"randomness.seed": 0})
    cfg.work_dir = "b"
    assert signature(cfg, {"randomness.seed": 0}) == same
    assert signature(cfg, {"randomness.seed": 1}) != same
    assert "randomness" not in cfg
    cfg.model.width = 9
    assert signature(cfg, {"randomness.seed": 0}) != same


def test_a_missing_figure_is_an_error(root):
    task = FakeTask()
    task.metrics = (QUALITY, Metric("elegance", "elegance"))  # type: ignore[misc]
    with pytest.raises(ConfigError, match="has no figure 'elegance'; it has .*'quality'"):
        run_demo(task, options(root), Console(file=io.StringIO()))


def outcome(teacher: float, alone: list[float], distilled: list[float]) -> Outcome:
    return Outcome(
        {
            "teacher": {"quality": [teacher]},
            "alone": {"quality": alone},
            "distilled": {"quality": distilled},
        },
        {"teacher": 3_140_000, "alone": 220_000, "distilled": 220_000},
        {"teacher": 10**9, "alone": 10**8, "distilled": 10**8},
        {"teacher": 20.0, "alone": 5.0, "distilled": 5.04},
    )


def test_table():
    table = results_table(outcome(0.4, [0.1, 0.3], [0.25, 0.25]), [QUALITY])
    assert table.rows[0] == ["teacher", "0.400", "3.14 M", "1.00 G", "20.0 ms", ""]
    assert table.rows[1][1] == "0.200 ± 0.141"
    assert table.rows[2] == [
        "student distilled",
        "0.250 ± 0.000",
        "220 k",
        "100 M",
        "5.0 ms",
        "25 %",
    ]


@pytest.mark.parametrize(
    ("teacher", "distilled", "said"),
    [(0.4, 0.3, "recovers 50 % of the gap"), (0.4, 0.1, "did not help"), (0.1, 0.3, "no gap")],
)
def test_summary_says_what_came_out(teacher, distilled, said):
    text = summary_sentence(outcome(teacher, [0.2], [distilled]), QUALITY, "12 epochs", 1)
    assert said in text
    assert "means over" not in text
    assert "0.200 quality" in text


def test_quantity_rounds_over_the_border():
    assert quantity(999) == "999"
    assert quantity(999_999) == quantity(1_000_000) == "1.00 M"
    assert quantity(9_996) == "10.0 k"


def run_cli(argv: list[str], monkeypatch, task=FakeTask) -> int:
    """Run tools/demo.py's main with the fake task in place of detection."""
    import importlib.util

    path = Path(__file__).parents[4] / "tools" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo_tool", path)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setitem(sys.modules, "fake_module", SimpleNamespace(Task=task))
    monkeypatch.setitem(tool.TASKS, "detection", "fake_module:Task")
    monkeypatch.setattr(tool.signal, "signal", lambda *args: None)
    return tool.main(argv)


def test_command_line(tmp_path, monkeypatch, capsys):
    status = run_cli(["--work-dir", str(tmp_path / "w")], monkeypatch)
    assert status == 1
    assert "Expected the demo's config" in capsys.readouterr().err

    class Stopped(FakeTask):
        def __init__(self):
            raise KeyboardInterrupt

    assert run_cli(["--work-dir", str(tmp_path / "a b")], monkeypatch, Stopped) == 130
    said = capsys.readouterr().err
    assert f"python tools/demo.py --work-dir '{tmp_path / 'a b'}'" in said
    for bad in (["--seeds", "0"], ["--jobs", "many"], ["--task", "cooking"]):
        with pytest.raises(SystemExit):
            run_cli(bad, monkeypatch)
