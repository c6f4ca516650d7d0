from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
pytest.importorskip("rich")

from mmengine.config import Config
from rich.console import Console

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.openmm.demo import DemoOptions, DemoTask, Metric, run_demo
from taskdistill.tasks.openmm.demo import report as page
from taskdistill.tasks.openmm.demo.comparison import make_roles
from taskdistill.tasks.openmm.demo.jobs import JobFailed
from taskdistill.tasks.openmm.demo.report import Gallery, Picture
from taskdistill.tasks.openmm.demo.run import (
    _print,
    load_configs,
    option_text,
    plan,
    shortened,
    signature,
    training_length,
)

FAKE = Path(__file__).with_name("fake_train.py")
QUALITY = Metric("quality", "quality")
ROLES = make_roles(DemoTask.variants)

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


class Several(FakeTask):
    variants = {"first": "+ first", "second": "+ second", "both": "+ both"}
    class_figure = "Quality"

    def class_metrics(self, cfg: Config) -> list[Metric]:
        assert cfg.model.width == 2
        names = ("sky", "road", "sea")
        return [Metric(f"quality.{name}", name, digits=2) for name in names]


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


def run(root: Path, task: type[DemoTask] = FakeTask, **changes) -> tuple[Path, str]:
    out = io.StringIO()
    console = Console(file=out, width=120)
    return run_demo(task(), options(root, **changes), console), out.getvalue()


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
    assert set(figures) == {
        *("scores", "parameters", "macs", "latency_ms", "gap_recovered", "seconds")
    }
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


GAINS = {"teacher": 0.5, "alone": 0.0, "first": -0.1, "second": 0.2, "both": 0.1}


@pytest.fixture
def several(root: Path) -> Path:
    """Configs of three variants, and a training script whose figures depend on the run."""
    folder = root / "configs" / "fake" / "demo"
    for name in Several.variants:
        shutil.copy(folder / "distilled.py", folder / f"{name}.py")
    (folder / "distilled.py").unlink()
    (root / "tools" / "train.py").write_text(
        TRAIN.replace("sys.exit(subprocess.run(command).returncode)", "")
        + f"""
import pathlib
work_dir = pathlib.Path(args.work_dir)
role, _, seed = work_dir.name.partition("-")
subprocess.run(command, check=True)
path = next(work_dir.glob("*/vis_data/scalars.json"))
rows = [json.loads(line) for line in path.read_text().splitlines()]
for row in rows:
    if "quality" in row:
        row["quality"] += {GAINS}[role] + 0.01 * int(seed or 0)
        row["quality.sky"] = 2 * row["quality"]
        if role != "both":
            row["quality.road"] = 0.25
    elif role in ("first", "both"):
        row |= {{f"loss_kd_{{role}}": 0.1, f"kd_{{role}}_raw": 0.2}}
path.write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
    )
    return root


def test_several_variants(several):
    class Watching(Several):
        galleries: ClassVar[list[list[str]]] = []

        def gallery(self, cfg, models):
            self.galleries.append(list(models))
            return super().gallery(cfg, models)

    path, text = run(several, Watching, seeds=2)
    assert Watching.galleries == [["teacher", "student alone", "+ second"]]
    said = "the best of 3 distilled variants, “+ second”, reaches 0.505, and the teacher"
    assert said in " ".join(text.split())

    figures = json.loads((path.parent / "results.json").read_text())
    assert figures["best"] == "second"
    assert list(figures["scores"]) == ["teacher", "alone", "first", "second", "both"]
    assert figures["scores"]["both"]["quality"] == pytest.approx([0.4, 0.41])
    gaps = figures["gap_recovered_by_variant"]
    assert figures["gap_recovered"] == gaps["second"]
    assert gaps["first"]["quality"] == pytest.approx(-0.1 / 0.495, abs=1e-5)
    assert figures["training_time"]["alone"] == 1.0
    seconds = figures["seconds"]
    expected = (seconds["both-0"] + seconds["both-1"]) / (seconds["alone-0"] + seconds["alone-1"])
    assert figures["training_time"]["both"] == pytest.approx(expected)
    assert figures["class_scores"]["second"]["quality.sky"] == pytest.approx([1.0, 1.02])
    assert figures["class_scores"]["both"]["quality.road"] == [None, None]

    markdown = (path.parent / "results.md").read_text()
    assert "| + second | 0.505 ± 0.007 |" in markdown
    classes = markdown[markdown.index("Quality of each class:") :].splitlines()
    assert classes[2] == "| class | teacher | student alone | + first | + second | + both |"
    assert classes[4] == "| sky | 1.60 | 0.61 ± 0.01 | 0.41 ± 0.01 | 1.01 ± 0.01 | 0.81 ± 0.01 |"
    assert classes[5].endswith("| 0.25 ± 0.00 | n/a |")
    assert classes[6] == "| sea | n/a | n/a | n/a | n/a | n/a |"
    assert "n/a: the validation has no such figure" in classes[8]
    assert "Quality of each class" in text

    html = path.read_text()
    for part in ("Quality of each class", "Config both.py", "second-1", "side by side"):
        assert part in html
    # Terms of the two variants that logged any, each in a diagram of its own.
    captions = re.findall(r'alt="(Raw[^"]*)"', html)
    assert captions == [f"Raw and weighted distillation terms over training: + {name}."
                        for name in ("first", "both")]  # fmt: skip

    # The variant is what its run says, not what its name looks like.
    told = json.loads((path.parent / "both-1" / "options.json").read_text())
    assert told[0] == "randomness.seed=1"
    assert told[1].startswith("distill.teacher.config=")


def test_runs_of_each_variant(several):
    roles = make_roles(Several.variants)
    configs = load_configs(several / "configs" / "fake" / "demo", roles)
    jobs = plan(configs, options(several, seeds=2), "quality")
    assert [job.role for job in jobs] == [
        *("teacher", "alone", "alone", "first", "first", "second", "second", "both", "both")
    ]
    assert [job.name for job in jobs][:4] == ["teacher", "alone-0", "alone-1", "first-0"]
    for job in jobs:
        assert job.needs == (("teacher",) if job.role in Several.variants else ())
        # By its own config, of which tools/test.py takes the student's part.
        own = "student.py" if job.role == "alone" else f"{job.role}.py"
        assert Path(job.evaluate[2]).name == own


def test_a_wide_table_wraps_its_headings_before_its_figures():
    table = page.Table(
        ["model", "mIoU", "training time (alone = 1)", "gap recovered (mIoU)"],
        [["student alone", "44.55 ± 0.57", "1.00", "12 %"]],
    )
    for width, whole in ((100, True), (55, True), (30, False)):
        out = io.StringIO()
        _print(Console(file=out, width=width), table)
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert any("44.55 ± 0.57" in line for line in lines) == whole
        assert any("training time (alone = 1)" in line for line in lines) == (width == 100)


def test_class_figures_that_no_run_has_are_an_error(root):
    class Wrong(FakeTask):
        def class_metrics(self, cfg):
            return [Metric("IoU.sky", "sky")]

    with pytest.raises(ConfigError, match="No validation has the figure 'IoU.sky'.*'quality'"):
        run(root, Wrong)


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
    configs = load_configs(root / "configs" / "fake" / "demo", ROLES)
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
    short = Config(dict(train_cfg=dict(max_epochs=9), param_scheduler=dict(begin=4, end=9)))
    assert shortened(short, 1) == {
        "train_cfg.max_epochs": 1,
        "param_scheduler.begin": 0,
        "param_scheduler.end": 1,
    }
    assert option_text("param_scheduler.milestones", [4, 6]) == "param_scheduler.milestones=[4,6]"


def test_what_cannot_be_trained_is_refused(root):
    with pytest.raises(ConfigError, match="train_cfg.max_epochs"):
        shortened(Config(dict(train_cfg=dict(max_iters=100))), 3)
    with pytest.raises(ConfigError, match="expected train_cfg"):
        training_length(Config(dict(train_cfg=None)))
    assert training_length(Config(dict(train_cfg=dict(max_iters=100)))) == 100
    configs = load_configs(root / "configs" / "fake" / "demo", ROLES)
    with pytest.raises(ConfigError, match="--seeds 0"):
        plan(configs, options(root, seeds=0), "quality")
    with pytest.raises(ConfigError, match=r"absent.teacher.py"):
        load_configs(root / "absent", ROLES)


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


def load_tool() -> ModuleType:
    """Import tools/demo.py."""
    path = Path(__file__).parents[4] / "tools" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo_tool", path)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def run_cli(argv: list[str], monkeypatch, task=FakeTask) -> int:
    """Run tools/demo.py's main with the fake task in place of detection."""
    tool = load_tool()
    monkeypatch.setitem(sys.modules, "fake_module", SimpleNamespace(Task=task))
    monkeypatch.setitem(tool.TASKS, "detection", "fake_module:Task")
    monkeypatch.setattr(tool.signal, "signal", lambda *args: None)
    return tool.main(argv)


@pytest.mark.parametrize("name", sorted(load_tool().TASKS))
def test_each_task_has_what_it_names(name):
    tool = load_tool()
    module, _, attribute = tool.TASKS[name].partition(":")
    needed = {"detection": "mmdet", "segmentation": "mmseg", "gan": "torchmetrics"}
    pytest.importorskip(needed[module.split(".")[2]])
    task = getattr(importlib.import_module(module), attribute)
    assert task.name == name
    for role in make_roles(task.variants):
        assert (tool.ROOT / "configs" / task.folder / role.config).is_file()


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


def test_the_teachers_length_is_said_where_it_is_another():
    from types import SimpleNamespace

    from mmengine.config import Config

    from taskdistill.tasks.openmm.demo.run import _common_length

    cfg = Config(dict(train_cfg=dict(max_epochs=16)))
    teacher, alone, other = (
        SimpleNamespace(length=length, role=role)
        for length, role in ((16, "teacher"), (10, "alone"), (3, "found"))
    )
    assert _common_length([teacher, alone, other], cfg) == "10 epochs (the teacher 16 epochs)"
    alone.length = 16
    assert _common_length([teacher, alone], cfg) == "16 epochs"


class Derived(FakeTask):
    """One more network, made by a run that needs the distilled student's."""

    derived = {"found": "found"}

    def further_jobs(self, folder, configs, jobs, options):
        base = next(job for job in jobs if job.name == "distilled-0")
        work_dir = options.work_dir / "found-0"
        moved = {str(base.work_dir): str(work_dir)}
        return [
            replace(
                base,
                name="found-0",
                role="found",
                work_dir=work_dir,
                checkpoint=work_dir / base.checkpoint.name,
                command=tuple(moved.get(part, part) for part in base.command),
                needs=(base.name,),
                after=(base.name,),
            )
        ]

    def derived_config(self, role, job):
        assert (role, job.name) == ("found", "found-0") and job.checkpoint.is_file()
        return Config(dict(model=dict(width=4)))

    def deployed(self, model):
        return nn.Linear(1, model.out_channels, bias=False)

    def further_sections(self, jobs):
        return [page.Section("Found by", text=", ".join(job.name for job in jobs))]


def test_a_variant_whose_network_comes_out_of_other_runs(root):
    path, text = run(root, Derived)
    figures = json.loads((path.parent / "results.json").read_text())
    assert list(figures["scores"]) == ["teacher", "alone", "distilled", "found"]
    assert figures["parameters"] == {"teacher": 8, "alone": 2, "distilled": 2, "found": 4}
    assert figures["macs"]["found"] == 16 * 3 * 4
    seconds = figures["seconds"]
    expected = (seconds["distilled-0"] + seconds["found-0"]) / seconds["alone-0"]
    assert figures["training_time"]["found"] == pytest.approx(expected)
    html = path.read_text()
    assert "Found by" in html and "teacher, alone-0, distilled-0, found-0" in html
    assert "Config distilled.py" in html and "Config found" not in html
