from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

pytest.importorskip("rich")

from rich.console import Console

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.common.demo import DemoOptions, DemoTask, Metric, run_demo
from taskdistill.tasks.common.demo import report as page
from taskdistill.tasks.common.demo.jobs import Job, JobFailed, fingerprint
from taskdistill.tasks.common.demo.report import Gallery, Picture
from taskdistill.tasks.common.demo.run import _common_length, print_tables
from taskdistill.tasks.common.demo.task import run_name

FAKE = Path(__file__).with_name("fake_train.py")
QUALITY = Metric("quality", "quality")

# Does what the fake does, in the folder it is told, and keeps what else it is told.
TRAIN = f"""
import argparse, json, subprocess, sys
parser = argparse.ArgumentParser()
parser.add_argument("--work-dir")
parser.add_argument("--epochs")
parser.add_argument("--seed")
parser.add_argument("--teacher")
args = parser.parse_args()
with open(args.work_dir + "/options.json", "w") as file:
    json.dump([args.seed, args.teacher], file)
command = [sys.executable, {str(FAKE)!r}, args.work_dir, "--epochs", args.epochs]
sys.exit(subprocess.run(command).returncode)
"""

Settings = dict[str, Any]


class FakeTask(DemoTask[Settings]):
    """Configs in JSON: the width of a network, and a teacher where it has one."""

    name = "fake"
    folder = "fake/demo"
    title = "A fake demo"
    metrics = (QUALITY,)
    packages = ("torch",)
    latency_note = "one passage"
    sample = "passage"
    suffix = ".json"
    evaluation = "'evaluate'"

    def load_config(self, path: Path) -> Settings:
        return {**json.loads(path.read_text()), "path": path}

    def plain(self, cfg: Settings) -> Settings:
        return {key: value for key, value in cfg.items() if key != "distill"}

    def sources(self, cfg: Settings) -> tuple[str, str]:
        return cfg["path"].read_text(), "with a base" if "distill" in cfg else ""

    def training_job(
        self,
        role: str,
        seed: int,
        configs: Mapping[str, Settings],
        options: DemoOptions,
        teacher: Job | None,
    ) -> Job:
        name, length = run_name(role, seed), options.epochs or 3
        work_dir = options.work_dir / name
        arguments = ("--work-dir", str(work_dir), "--epochs", str(length), "--seed", str(seed))
        if teacher is not None:
            arguments += ("--teacher", str(teacher.checkpoint))
        return Job(
            name=name,
            command=(sys.executable, str(options.root / "tools" / "train.py"), *arguments),
            work_dir=work_dir,
            length=length,
            checkpoint=work_dir / f"epoch_{length}.pth",
            metric="quality",
            signature=fingerprint({"cfg": self.plain(configs[role])["width"], "seed": seed}),
        )

    def prepare(self, cfg: Settings) -> str:
        return "Data: none."

    def load(self, cfg: Settings, checkpoint: Path) -> nn.Module:
        assert checkpoint.read_text() == "weights" and "distill" not in cfg
        return nn.Conv2d(3, cfg["width"], 1)

    def forward_call(self, model: nn.Module, cfg: Settings) -> Callable[[], object]:
        return lambda: model(torch.zeros(1, 3, 4, 4))

    predict_call = forward_call

    def gallery(self, cfg: Settings, models: Mapping[str, nn.Module]) -> Gallery:
        return Gallery(["truth", *models], [[Picture(b"", 8, 8)] * (1 + len(models))])


class Several(FakeTask):
    variants = {"first": "+ first", "second": "+ second", "both": "+ both"}
    class_figure = "Quality"

    def class_metrics(self, cfg: Settings) -> list[Metric]:
        assert cfg["width"] == 2
        names = ("sky", "road", "sea")
        return [Metric(f"quality.{name}", name, digits=2) for name in names]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tree" / "configs" / "fake" / "demo"
    folder.mkdir(parents=True)
    for name, content in (
        ("teacher", {"width": 8}),
        ("student", {"width": 2}),
        ("distilled", {"width": 2, "distill": {"teacher": "elsewhere"}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    tools = tmp_path / "tree" / "tools"
    tools.mkdir()
    (tools / "train.py").write_text(TRAIN)
    return tmp_path / "tree"


def options(root: Path, **changes) -> DemoOptions:
    base = DemoOptions(root, root.parent / "out", command="python tools/demo.py --task fake")
    return replace(base, **changes)


def page_text(html: str) -> str:
    """Return what a reader of the page sees."""
    return re.sub(r"<[^>]*>", " ", html.partition("<body>")[2])


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
    for part in ("on the validation passages", "for one validation passage.", "training passages"):
        assert part in html
    assert "image" not in page_text(html)
    inherits = re.findall(r"<summary>Config (\w+).json, with all it inherits</summary>", html)
    assert inherits == ["distilled"]
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
    assert told == ["1", str(work_dir / "teacher" / "epoch_3.pth")]
    assert json.loads((work_dir / "alone-1" / "options.json").read_text()) == ["1", None]

    more, text = run(root, seeds=3)
    assert text.count("already finished") == 5
    assert text.count("starts on") == 2


GAINS = {"teacher": 0.5, "alone": 0.0, "first": -0.1, "second": 0.2, "both": 0.1}


@pytest.fixture
def several(root: Path) -> Path:
    """Configs of three variants, and a training script whose figures depend on the run."""
    folder = root / "configs" / "fake" / "demo"
    for name in Several.variants:
        shutil.copy(folder / "distilled.json", folder / f"{name}.json")
    (folder / "distilled.json").unlink()
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
    for part in ("Quality of each class", "Config both.json", "second-1", "side by side"):
        assert part in html
    # Terms of the two variants that logged any, each in a diagram of its own.
    captions = re.findall(r'alt="(Raw[^"]*)"', html)
    assert captions == [f"Raw and weighted distillation terms over training: + {name}."
                        for name in ("first", "both")]  # fmt: skip

    # The variant is what its run says, not what its name looks like.
    told = json.loads((path.parent / "both-1" / "options.json").read_text())
    assert told == ["1", str(path.parent / "teacher" / "epoch_3.pth")]


def test_a_wide_table_wraps_its_headings_before_its_figures():
    table = page.Table(
        ["model", "mIoU", "training time (alone = 1)", "gap recovered (mIoU)"],
        [["student alone", "44.55 ± 0.57", "1.00", "12 %"]],
    )
    for width, whole in ((100, True), (55, True), (30, False)):
        out = io.StringIO()
        print_tables(Console(file=out, width=width), table)
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


def test_runs_of_each_role_and_seed(several):
    task = Several()
    configs = task.load_configs(several / "configs" / "fake" / "demo")
    jobs = task.plan(configs, options(several, seeds=2))
    assert [job.name for job in jobs] == [
        *("teacher", "alone-0", "alone-1", "first-0", "first-1"),
        *("second-0", "second-1", "both-0", "both-1"),
    ]
    for job in jobs:
        assert job.name.partition("-")[0] == job.role
        assert job.exclusive == (job.role == "teacher")
        learns = job.role in Several.variants
        assert job.needs == (("teacher",) if learns else ())
        assert ("--teacher" in job.command) == learns
    with pytest.raises(ConfigError, match="--seeds 0"):
        task.plan(configs, options(several, seeds=0))
    with pytest.raises(ConfigError, match=r"absent.teacher.json, and it is not there"):
        task.load_configs(several / "absent")


def test_a_missing_figure_is_an_error(root):
    task = FakeTask()
    task.metrics = (QUALITY, Metric("elegance", "elegance"))  # type: ignore[misc]
    with pytest.raises(
        ConfigError, match="has no figure 'elegance'; it has .*'quality'.*Check 'evaluate'"
    ):
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
    monkeypatch.setattr(tool, "stop_as_by_ctrl_c", lambda: None)
    return tool.main(argv)


@pytest.mark.parametrize("name", sorted(load_tool().TASKS))
def test_each_task_has_what_it_names(name):
    tool = load_tool()
    module, _, attribute = tool.TASKS[name].partition(":")
    needed = {
        "classification": "torchvision",
        "detection": "mmdet",
        "segmentation": "mmseg",
        "gan": "torchmetrics",
        "nlp": "transformers",
    }
    pytest.importorskip(needed[module.split(".")[2]])
    task = getattr(importlib.import_module(module), attribute)()
    assert task.name == name
    for role in (role for role in task.roles() if role.config):
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
    teacher, alone, before = (
        SimpleNamespace(length=length, role=role, unit="epoch")
        for length, role in ((16, "teacher"), (10, "alone"), (3, "pre-trained"))
    )
    jobs: list[Any] = [before, teacher, alone]
    assert _common_length(jobs) == "10 epochs (the teacher 16 epochs)"
    alone.length = 16
    assert _common_length(jobs) == "16 epochs"
    for job in jobs:
        job.unit = "iteration"
    assert _common_length(jobs) == "16 iterations"


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
        return {"width": 4}

    def deployed(self, model):
        return nn.Linear(1, model.out_channels, bias=False)

    def further_sections(self, jobs, models):
        assert list(models) == ["teacher", "student alone", "student distilled"]
        assert [model.out_channels for model in models.values()] == [8, 2, 2]
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
    assert "Config distilled.json" in html and "Config found" not in html


class Prepared(FakeTask):
    """A run in front of the teacher, compared with nothing: it has a figure of its own."""

    def plan(self, configs, options):
        jobs = super().plan(configs, options)
        first = replace(
            jobs[0],
            name="before",
            role="before",
            metric="perplexity",
            work_dir=options.work_dir / "before",
            checkpoint=options.work_dir / "before" / "epoch_3.pth",
            command=tuple(part.replace("/out/teacher", "/out/before") for part in jobs[0].command),
        )
        return [first, replace(jobs[0], needs=("before",)), *jobs[1:]]

    def gallery(self, cfg, models):
        return None


def test_a_run_that_is_not_compared_needs_its_own_figure_alone(root):
    (root / "tools" / "train.py").write_text(
        TRAIN.replace("sys.exit(subprocess.run(command).returncode)", "")
        + """
import pathlib
subprocess.run(command, check=True)
if args.work_dir.endswith("before"):
    path = next(pathlib.Path(args.work_dir).glob("*/vis_data/scalars.json"))
    path.write_text(path.read_text().replace("quality", "perplexity"))
"""
    )
    path, _ = run(root, Prepared)
    figures = json.loads((path.parent / "results.json").read_text())
    assert list(figures["scores"]) == ["teacher", "alone", "distilled"]
    assert list(figures["seconds"])[0] == "before"
    # And where nothing can be shown, there is no heading for it.
    assert "What the models see" not in path.read_text()


def test_tables_and_report_need_no_training_framework():
    code = """
import sys
for name in ("mmengine", "mmcv", "mmdet", "mmseg", "transformers"):
    sys.modules[name] = None
import taskdistill.tasks.common.compare, taskdistill.tasks.common.demo as demo
print(demo.run_demo.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "taskdistill.tasks.common.demo.run"
