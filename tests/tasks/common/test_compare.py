from __future__ import annotations

import importlib.util
import io
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from rich.console import Console

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.common import compare
from taskdistill.tasks.common.compare import (
    CompareOptions,
    Comparison,
    Cost,
    Entry,
    Row,
    find_configs,
    lower_is_better,
    name_configs,
    plot,
    results_table,
    run_comparison,
    split_evaluation,
)
from taskdistill.tasks.common.demo import Metric
from taskdistill.tasks.common.demo.jobs import Job, JobFailed

FAKE = Path(__file__).with_name("fake_run.py")
ROOT = Path(__file__).resolve().parents[3]
PNG = b"\x89PNG\r\n\x1a\n"

Figures = Mapping[str, float]


class Fake:
    """A config whose training is a script that writes the figures it is told."""

    def __init__(
        self,
        root: Path,
        figures: Callable[[int], Figures],
        *flags: str,
        cost: Cost | None = None,
        signature: str = "one",
        warning: str = "",
    ) -> None:
        self.root, self.figures, self.flags, self.signature = root, figures, flags, signature
        self.path = root / "configs" / "fake.py"
        self.given = cost or Cost(1200, 34_600, "one image of 3x8x8")
        self.warning = warning

    def command(self, work_dir: Path, seed: int, *flags: str) -> tuple[str, ...]:
        figures = ("--figures", json.dumps(self.figures(seed)))
        journal = ("--journal", str(self.root / "journal"))
        return (sys.executable, str(FAKE), str(work_dir), *figures, *journal, *flags)

    def training(self, name: str, work_dir: Path, seed: int, metric: str) -> Job:
        tool = "--tool" in self.flags
        flags = tuple(flag.replace("SEED", str(seed)) for flag in self.flags)
        return Job(
            name=name,
            command=self.command(work_dir, seed, *flags),
            work_dir=work_dir,
            length=2,
            checkpoint=work_dir / ("result.json" if tool else "epoch_2.pth"),
            metric=metric,
            signature=f"{self.signature} {seed}",
        )

    def evaluation(self, name: str, work_dir: Path, checkpoint: Path, metric: str) -> Job:
        return Job(
            name=name,
            command=self.command(work_dir, 0, "--evaluate"),
            work_dir=work_dir,
            length=1,
            checkpoint=checkpoint,
            metric=metric,
            signature=self.signature,
        )

    def caution(self) -> str:
        return self.warning

    def cost(self, checkpoint: Path) -> Cost:
        assert checkpoint.is_file()
        return self.given


def top1(*values: float) -> Callable[[int], Figures]:
    return lambda seed: {"accuracy/top1": values[seed], "accuracy/top5": 90.0}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The queue looks after its children twice a second; these take less.
    queue = compare.JobQueue
    faster = {"poll": 0.02, "grace": 2.0}
    monkeypatch.setattr(compare, "JobQueue", lambda *a, **k: queue(*a, **{**k, **faster}))
    monkeypatch.setattr(compare, "plot", lambda *_: b"")  # of no interest to most
    (tmp_path / "teacher.pth").write_text("weights")
    return tmp_path


def run(root: Path, entries: Sequence[Entry], **changes) -> tuple[Comparison, str]:
    text = io.StringIO()
    given = {"out": root / "out", "seeds": 2, "command": "the command", **changes}
    comparison = run_comparison(entries, CompareOptions(**given), Console(file=text, width=200))
    return comparison, text.getvalue()


def journal(root: Path) -> list[str]:
    return sorted((root / "journal").read_text().split())


def written(root: Path) -> dict:
    return json.loads((root / "out" / "comparison.json").read_text())


# -- the whole course ------------------------------------------------------------------------------


def test_a_comparison_from_runs_to_files(root, monkeypatch):
    monkeypatch.setattr(compare, "plot", plot)
    entries = [
        Entry("teacher", Fake(root, top1(80.0)), root / "teacher.pth"),
        Entry("alone", Fake(root, top1(70.0, 72.0))),
        Entry("kd", Fake(root, top1(73.0, 74.0), cost=Cost(problem="no such operator"))),
    ]
    comparison, text = run(root, entries, gap="teacher", title="Ways to distil")
    assert journal(root) == ["alone-0", "alone-1", "kd-0", "kd-1", "teacher"]
    assert not comparison.failed

    table = results_table(comparison)
    assert table.columns[:4] == ["config", "seeds", "accuracy/top1 ↑", "difference"]
    assert table.columns[-1] == "gap recovered (accuracy/top1)"
    teacher, alone, kd = table.rows
    assert teacher[:4] == ["teacher", "evaluated", "80.00", "+9.00 ± 1.41"]
    assert alone[:4] == ["alone", "2", "71.00 ± 1.41", ""]
    # Seed by seed +3 and +2, whatever the seeds do to both.
    assert kd[:4] == ["kd", "2", "73.50 ± 0.71", "+2.50 ± 0.71"]
    assert alone[4:7] == ["1.20 k", "34.6 k", "1.00"] and kd[4:6] == ["n/a", "n/a"]
    assert teacher[6] == "" and float(kd[6]) > 0
    assert [row[-1] for row in table.rows] == ["", "", "28 %"]  # (73.5 - 71) / (80 - 71)
    assert table.strong == 2

    markdown = (root / "out" / "comparison.md").read_text()
    assert markdown.startswith("# Ways to distil\n\n| config | seeds |")
    assert "Compared by accuracy/top1, the first validation figure that all runs have." in markdown
    assert "kd: parameters or MACs cannot be had (no such operator)." in markdown
    assert "MACs: for one image of 3x8x8;" in markdown and "    the command" in markdown
    assert "+2.50 ± 0.71" in text and "Ways to distil" in text

    figures = written(root)
    assert figures["baseline"] == "alone" and figures["gap"] == "teacher"
    assert figures["lower_is_better"] == {"accuracy/top1": False}
    by_name = {row["name"]: row for row in figures["rows"]}
    score = by_name["kd"]["metrics"]["accuracy/top1"]
    assert score["by_seed"] == {"0": 73.0, "1": 74.0} and score["mean"] == 73.5
    assert score["difference"] == 2.5
    assert score["difference_deviation"] == pytest.approx(statistics.stdev([3.0, 2.0]))
    assert score["gap_recovered"] == pytest.approx(2.5 / 9.0, abs=1e-6)
    assert by_name["teacher"]["seconds"] is None and by_name["alone"]["relative_time"] == 1.0
    assert (root / "out" / "comparison.png").read_bytes().startswith(PNG)


def test_what_is_done_is_not_repeated_and_more_is_added(root):
    entries = [Entry("a", Fake(root, top1(1.0, 2.0, 3.0)))]
    run(root, entries)
    first = written(root)
    _, text = run(root, entries)
    assert journal(root) == ["a-0", "a-1"] and text.count("already finished") == 2
    assert written(root) == first
    entries.append(Entry("b", Fake(root, top1(1.0, 2.0, 3.0))))
    comparison, _ = run(root, entries, seeds=3, metrics=["accuracy/top5"])
    assert journal(root) == ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"]
    assert comparison.row("a").scores == {"accuracy/top5": {0: 90.0, 1: 90.0, 2: 90.0}}


def test_a_run_that_stopped_goes_on_where_it_was(root):
    bad = Fake(root, top1(1.0, 2.0), "--fail-at", "2")
    with pytest.raises(JobFailed, match="(?s)No run finished.*the trouble is here"):
        run(root, [Entry("a", bad)], seeds=1)
    assert not (root / "out" / "comparison.md").exists()
    comparison, text = run(root, [Entry("a", Fake(root, top1(1.0, 2.0)))], seeds=1)
    assert "a-0: continues" in text
    assert [row["step"] for row in comparison.row("a").curves[0]] == [1, 2]
    assert len(list((root / "out" / "runs" / "a-0").glob("*/vis_data"))) == 2


def test_a_changed_config_is_noticed_and_its_old_runs_are_kept(root):
    run(root, [Entry("a", Fake(root, top1(1.0, 2.0))), Entry("b", Fake(root, top1(1.0, 2.0)))])
    changed = Fake(root, top1(3.0, 4.0), signature="two")
    for times in (1, 2):
        entries = [Entry("a", changed), Entry("b", Fake(root, top1(1.0, 2.0)))]
        comparison, text = run(root, entries)
        assert text.count("its config has changed") == (2 if times == 1 else 0)
    assert comparison.row("a").scores["accuracy/top1"] == {0: 3.0, 1: 4.0}
    assert journal(root) == ["a-0", "a-0", "a-1", "a-1", "b-0", "b-1"]
    assert (root / "out" / "runs" / "a-1.before-1" / "epoch_2.pth").is_file()


def test_fresh_runs_all_again_and_leaves_other_files(root):
    entries = [Entry("a", Fake(root, top1(1.0, 2.0)))]
    run(root, entries)
    (root / "out" / "mine.txt").write_text("kept")
    run(root, entries, fresh=True)
    assert journal(root) == ["a-0", "a-0", "a-1", "a-1"]
    assert (root / "out" / "mine.txt").exists()


# -- failures --------------------------------------------------------------------------------------


def test_a_failed_run_is_listed_and_the_rest_compared(root):
    one = Fake(root, top1(5.0, 6.0))
    one.training = lambda *given: Fake(  # type: ignore[method-assign]
        root, top1(5.0, 6.0), *(("--fail-at", "1") if given[2] == 0 else ())
    ).training(*given)
    entries = [
        Entry("alone", Fake(root, top1(1.0, 2.0))),
        Entry("half", one),
        Entry("nan", Fake(root, top1(9.0, 9.0), "--nan")),
        Entry("ill", Fake(root, top1(math.nan, 4.0))),
    ]
    comparison, text = run(root, entries)
    assert list(comparison.failed) == ["half-0", "nan-0", "nan-1", "ill-0"]
    assert "ValueError: the trouble is here" in comparison.failed["half-0"]
    assert "ended with loss = nan, not finite first at iteration 10" in comparison.failed["nan-1"]
    assert "validation ends with accuracy/top1 = nan" in comparison.failed["ill-0"]
    rows = {row[0]: row[1:4] for row in results_table(comparison).rows}
    assert rows["half"] == ["1 of 2", "6.00", "+4.00"]  # to seed 1 of the baseline
    assert rows["nan"] == ["0 of 2", "failed", ""]
    assert rows["ill"] == ["1 of 2", "4.00", "+2.00"]
    assert comparison.best is comparison.row("half")
    markdown = (root / "out" / "comparison.md").read_text()
    assert "Failed: half-0, nan-0, nan-1, ill-0." in markdown
    assert "        ValueError: the trouble is here" in markdown
    assert "half-0: failed; the others go on" in text


def test_a_failed_baseline_leaves_no_differences(root, monkeypatch):
    monkeypatch.setattr(compare, "plot", plot)
    entries = [
        Entry("alone", Fake(root, top1(1.0, 2.0), "--fail-at", "1")),
        Entry("kd", Fake(root, top1(3.0, 5.0))),
    ]
    comparison, _ = run(root, entries)
    (alone, kd) = results_table(comparison).rows
    assert alone[1:4] == ["0 of 2", "failed", ""] and kd[1:4] == ["2", "4.00 ± 1.41", ""]
    assert (root / "out" / "comparison.png").read_bytes().startswith(PNG)


def test_a_tool_that_writes_its_own_result(root):
    entries = [
        Entry("alone", Fake(root, top1(1.0, 2.0))),
        Entry("generations", Fake(root, top1(3.0, 4.5), "--tool")),
    ]
    comparison, _ = run(root, entries)
    assert comparison.row("generations").scores["accuracy/top1"] == {0: 3.0, 1: 4.5}
    stored = json.loads((root / "out" / "runs" / "generations-1" / "result.json").read_text())
    assert stored["generations"] == [0.1, 0.2]  # what else the tool wrote stays
    run(root, entries)
    assert journal(root) == ["alone-0", "alone-1", "generations-0", "generations-1"]


# -- metrics ---------------------------------------------------------------------------------------


def test_a_metric_that_is_not_there_ends_the_runs_at_the_first_validation(root):
    entries = [Entry("a", Fake(root, top1(1.0, 2.0), "--seconds", "60"))]
    with pytest.raises(ConfigError) as caught:
        run(root, entries, metrics=["accuracy/top"], jobs=1)
    message = str(caught.value)
    assert "has no figure 'accuracy/top'; it has accuracy/top1, accuracy/top5." in message
    assert "accuracy/top1" in message.partition("Did you mean")[2]
    assert journal(root) == ["a-0"]
    # What was trained serves the metric that was meant.
    entries = [Entry("a", Fake(root, top1(1.0, 2.0)))]
    _, text = run(root, entries, metrics=["accuracy/top1"])
    assert "a-0: continues" in text


def test_a_metric_that_finished_runs_lack(root):
    entries = [Entry("a", Fake(root, top1(1.0, 2.0)))]
    run(root, entries)
    with pytest.raises(ConfigError, match="has no figure 'mIoU'; it has accuracy/top1"):
        run(root, entries, metrics=["accuracy/top1", "mIoU"])


def test_the_first_figure_that_all_have(root):
    def other(seed: int) -> Figures:
        return {"mIoU": 0.5, "accuracy/top5": 80.0}

    entries = [Entry("a", Fake(root, top1(1.0, 2.0))), Entry("b", Fake(root, other))]
    comparison, _ = run(root, entries)
    assert [metric.key for metric in comparison.metrics] == ["accuracy/top5"]
    entries[1] = Entry("b", Fake(root, lambda seed: {"mIoU": 0.5}, signature="two"))
    with pytest.raises(ConfigError, match="no validation figure that all runs have .a-0: accuracy"):
        run(root, entries)


def test_directions_and_digits_of_several_metrics(root):
    def figures(seed: int) -> Figures:
        return {"val_loss": 0.5 - 0.125 * seed, "accuracy/top1": 50.0, "agreement": 0.25}

    entries = [Entry("a", Fake(root, figures)), Entry("b", Fake(root, lambda s: figures(s + 1)))]
    names = ["val_loss", "accuracy/top1", "agreement"]
    comparison, _ = run(root, entries, metrics=names, lower=["agreement"], baseline="b")
    assert [metric.lower_is_better for metric in comparison.metrics] == [True, False, True]
    table = results_table(comparison)
    assert table.columns[2:8:2] == ["val_loss ↓", "accuracy/top1 ↑", "agreement ↓"]
    assert table.rows[0][2:4] == ["0.438 ± 0.088", "+0.125 ± 0.000"]
    assert table.rows[0][4:6] == ["50.00 ± 0.00", "+0.00 ± 0.00"]
    assert table.strong == 1  # the lower loss
    comparison, _ = run(root, entries, metrics=names[:1], higher=["val_loss"])
    assert results_table(comparison).strong == 0


def test_names_that_tell_a_direction():
    lower = ("val/FID", "SmallFD", "loss", "val_loss", "top1_error", "val/L1", "perplexity", "WER")
    higher = ("accuracy/top1", "mIoU", "coco/bbox_mAP", "PSNR", "f1_macro", "blossom/x", "bleu")
    assert all(map(lower_is_better, lower))
    assert not any(map(lower_is_better, higher))


# -- figures ---------------------------------------------------------------------------------------

METRIC = Metric("score", "score", digits=1)


def make(name: str, trained: bool = True, **scores: float) -> Row:
    by_seed = {int(seed[1:]): value for seed, value in scores.items()}
    return Row(name, f"{name}.py", trained, {"score": by_seed} if by_seed else {})


def test_differences_are_taken_seed_by_seed():
    rows = [
        make("base", s0=10.0, s1=20.0, s2=30.0),
        make("same", s0=11.0, s1=21.0, s2=31.0),
        make("part", s1=25.0),
        make("other", s7=50.0),
        make("none"),
        make("given", trained=False, s0=40.0),
    ]
    comparison = Comparison(rows, [METRIC], "base", 3)
    found = {row.name: comparison.difference(row, METRIC) for row in rows}
    same = found["same"]
    # Far more alike than the spread of either: 10.
    assert same is not None and (same.mean, same.deviation) == (1.0, 0.0)
    assert found["part"] is not None and found["part"].values == (5.0,)
    assert found["other"] is not None and found["other"].mean == 30.0
    assert found["other"].deviation is None
    assert found["base"] is found["none"] is None
    given = found["given"]
    assert given is not None and (given.mean, given.deviation) == (20.0, 10.0)
    # And the other way round, from a single figure to each run.
    comparison = replace(comparison, baseline="given")
    base = comparison.difference(rows[0], METRIC)
    assert base is not None and base.values == (-30.0, -20.0, -10.0)


def test_share_of_the_gap():
    rows = [
        make("alone", s0=10.0, s1=20.0),
        make("teacher", trained=False, s0=25.0),
        make("kd", s0=15.0, s1=20.0),
        make("worse", s0=5.0, s1=15.0),
        make("none"),
    ]
    comparison = Comparison(rows, [METRIC], "alone", 2, gap="teacher")
    shares = [comparison.share(row, METRIC) for row in rows]
    assert shares == [None, None, 0.25, -0.5, None]
    # The other way round the teacher has an error that is higher: there is no gap.
    lower = replace(METRIC, lower_is_better=True)
    assert comparison.share(rows[2], lower) is None
    assert replace(comparison, gap=None).share(rows[2], METRIC) is None


def test_one_seed_has_no_spread_and_no_column_of_seeds(root):
    entries = [Entry("a", Fake(root, top1(1.0))), Entry("b", Fake(root, top1(1.5)))]
    comparison, _ = run(root, entries, seeds=1)
    table = results_table(comparison)
    assert table.columns[:3] == ["config", "accuracy/top1 ↑", "difference"]
    assert table.rows[1][1:3] == ["1.500", "+0.500"]
    assert "no telling it from chance" in (root / "out" / "comparison.md").read_text()


def test_an_evaluation_may_have_a_caution(root):
    given = Fake(root, top1(1.0), warning="evaluated on other data.")
    comparison, text = run(root, [Entry("given", given, root / "teacher.pth")])
    assert comparison.baseline == "given" and comparison.best is None
    assert "given: evaluated on other data." in text
    assert "time" not in " ".join(results_table(comparison).columns)


def test_the_diagram_shows_every_run(monkeypatch):
    drawn: list[tuple[str, list[float]]] = []
    errorbar, lines = Axes.errorbar, Axes.plot

    def spy_bar(self, x, y, **options):
        drawn.append(("mean", [x[0], options["xerr"] and options["xerr"][0]]))
        return errorbar(self, x, y, **options)

    def spy_plot(self, x, y, *rest, **options):
        drawn.append((options.get("label") or ".", [*map(float, y if "label" in options else x)]))
        return lines(self, x, y, *rest, **options)

    monkeypatch.setattr(Axes, "errorbar", spy_bar)
    monkeypatch.setattr(Axes, "plot", spy_plot)
    curve = [{"step": 1.0, "score": 5.0}, {"step": 2.0, "score": 10.0}]
    rows = [
        replace(make("base", s0=10.0, s1=20.0), curves={0: curve}),
        make("kd", s0=15.0, s1=25.0),
        make("given", trained=False, s0=40.0),
        make("none"),
    ]
    assert plot(Comparison(rows, [METRIC], "base", 2), "title").startswith(PNG)
    assert ("mean", [0.0, pytest.approx(statistics.stdev([10, 20]))]) in drawn
    assert ("mean", [5.0, 0.0]) in drawn and ("mean", [25.0, pytest.approx(7.0710678)]) in drawn
    assert (".", [5.0, 5.0]) in drawn and (".", [-5.0, 5.0]) in drawn
    assert ("base", [5.0, 10.0]) in drawn and ("given", [40.0, 40.0]) in drawn
    assert len([kind for kind, _ in drawn if kind == "mean"]) == 3
    # Without a single curve there is a diagram still.
    assert plot(Comparison([rows[1]], [METRIC], "kd", 2)).startswith(PNG)


# -- what cannot be meant --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ([], {}, "at least one config"),
        (["a", "a"], {}, "Two rows are called 'a'"),
        (["../a"], {}, "no name of a folder"),
        (["a"], {"seeds": 0}, "at least one seed"),
        (["alone", "kd"], {"baseline": "alon"}, r"--baseline 'alon' is none of.*Did you mean"),
        (["alone", "kd"], {"gap": "teacher"}, "--gap 'teacher' is none of alone, kd"),
        (["alone", "kd"], {"gap": "alone"}, "is the baseline itself"),
        (["a"], {"lower": ["x"], "higher": ["x"]}, "both lower and higher"),
        (["a"], {"metrics": ["mIoU"], "lower": ["mIou"]}, "'mIou' of --lower-is-better.*'mIoU'"),
    ],
)
def test_bad_requests_start_nothing(root, names, changes, message):
    entries = [Entry(name, Fake(root, top1(1.0, 2.0))) for name in names]
    with pytest.raises(ConfigError, match=message):
        run(root, entries, **changes)
    assert not (root / "journal").exists()


def test_find_configs(tmp_path):
    for name in ("kd/b.py", "kd/a.py", "kd/_base.py", "kd/c.yaml", "kd/notes.md", "kd/d/e.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kd = tmp_path / "kd"

    def found(*texts: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_configs(texts)]

    assert found(str(kd)) == ["kd/a.py", "kd/b.py", "kd/c.yaml"]
    assert found(str(kd / "b.py"), str(kd)) == ["kd/b.py", "kd/a.py", "kd/c.yaml"]
    assert found(str(kd / "*.py")) == ["kd/a.py", "kd/b.py"]
    assert found(str(kd / "**" / "*")) == ["kd/a.py", "kd/b.py", "kd/c.yaml", "kd/d/e.json"]
    assert found(str(kd / "_base.py")) == ["kd/_base.py"]  # asked for by its name
    with pytest.raises(ConfigError, match=r"no config .*aa.py.*Did you mean.*a.py"):
        found(str(kd / "aa.py"))
    with pytest.raises(ConfigError, match="is no config"):
        found(str(kd / "notes.md"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no config"):
        found(str(tmp_path / "empty"))


def test_names_of_configs(tmp_path):
    paths = [tmp_path / name for name in ("x/a/s.py", "y/a/s.py", "x/t.py")]
    assert name_configs(paths) == ["x-a-s", "y-a-s", "t"]
    assert name_configs(paths, ["p", "q", "r"]) == ["p", "q", "r"]
    with pytest.raises(ConfigError, match="2 names for 3 configs"):
        name_configs(paths, ["p", "q"])


def test_what_is_to_be_evaluated(tmp_path):
    config = tmp_path / "teacher.py"
    config.touch()
    found = split_evaluation(f"teacher={config},runs/epoch_9.pth")
    assert found == ("teacher", config, Path("runs/epoch_9.pth"))
    for text in ("teacher", f"teacher={config}", f"={config},x.pth", "teacher=,x.pth"):
        with pytest.raises(ConfigError, match="expected NAME=CONFIG,CHECKPOINT"):
            split_evaluation(text)


# -- the command -----------------------------------------------------------------------------------


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_tool", ROOT / "tools" / "compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    tool = load_tool()
    (root / "configs").mkdir()
    for name in ("alone", "kd", "bad"):
        (root / "configs" / f"{name}.py").touch()

    def read(path: Path, args: object) -> Fake:
        flags = ("--fail-at", "1") if path.stem == "bad" else ()
        return Fake(root, top1(70.0, 71.0), *flags)

    monkeypatch.setattr(tool, "_read", read)
    return tool


def test_command_line(root, tool, capsys):
    configs, out = str(root / "configs"), ["--out", str(root / "out")]
    alone = f"{configs}/alone.py"
    status = tool.main([alone, "--seeds", "1", "--names", "x", "--jobs", "auto", *out])
    assert status == 0
    said = capsys.readouterr().out
    assert "accuracy/top1" in said and "comparison.png" in said
    assert written(root)["command"].startswith(f"python tools/compare.py {alone} --seeds 1")
    teacher = f"teacher={alone},{root / 'teacher.pth'}"
    status = tool.main([configs, "--seeds", "1", "--evaluate", teacher, "--gap", "teacher", *out])
    assert status == 1  # bad.py
    assert [row["name"] for row in written(root)["rows"]] == ["teacher", "alone", "bad", "kd"]
    assert "bad-0 ended with 3" in capsys.readouterr().out


def test_command_line_errors(root, tool, capsys, monkeypatch):
    alone, out = str(root / "configs" / "alone.py"), ["--out", str(root / "a b")]
    assert tool.main([alone, "--metric", "mIoU", "--seeds", "2", *out]) == 1
    assert "has no figure 'mIoU'" in capsys.readouterr().err
    assert tool.main([str(root / "configs" / "alon.py")]) == 1
    assert "Did you mean 'alone.py'" in capsys.readouterr().err
    for bad in ([], [alone, "--seeds", "0"], [alone, "--jobs", "many"], [alone, "--epochs", "-1"]):
        with pytest.raises(SystemExit):
            tool.main(bad)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "_read", stopped)
    capsys.readouterr()
    assert tool.main([alone, *out]) == 130
    assert f"python tools/compare.py {alone} --out '{root / 'a b'}'" in capsys.readouterr().err
