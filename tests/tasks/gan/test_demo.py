from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from taskdistill.tasks.common.cost import count_macs, count_parameters
from taskdistill.tasks.common.demo import DemoOptions, run_demo
from taskdistill.tasks.gan.demo import GanDemo, MapsTable, RestyleDemo, picture
from taskdistill.tasks.openmm import load_config

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cfg(gan):
    return load_config(gan.write(gan.config()))


def test_shows_input_truth_and_each_model_and_counts_the_generator_alone(gan, cfg, tmp_path):
    task = GanDemo()
    assert "12 images for training, 4 for validation" in task.prepare(cfg)
    models = {}
    for seed, label in enumerate(("teacher", "student alone", "student distilled")):
        built = gan.build(gan.model(), seed)
        torch.save({"state_dict": built.state_dict()}, tmp_path / f"{seed}.pth")
        models[label] = task.load(cfg, tmp_path / f"{seed}.pth")
    gallery = task.gallery(cfg, models)
    assert gallery.headings == ["input", "target", *models]
    assert [len(row) for row in gallery.rows] == [5] * 4
    # The pictures are what the models make of the input, with its error below.
    with torch.no_grad():
        fake = models["student alone"].val_step(gan.data(1, split="val"))[0].fake
    with Image.open(io.BytesIO(gallery.rows[0][3].png)) as shown:
        assert torch.equal(torch.tensor(list(shown.getdata())).T.reshape(3, 16, 16), fake.int())
    target = gan.data(1, split="val")["data_samples"][0].target.float()
    assert gallery.rows[0][3].note == f"L1 {(fake.float() - target).abs().mean() / 255:.4f}"
    assert gallery.rows[0][0].pixelated
    model = models["teacher"]
    assert count_parameters(task.deployed(model)) == count_parameters(model.generator)
    assert count_macs(task.forward_call(model, cfg)) == count_macs(
        lambda: model.generator(torch.zeros(1, 3, 16, 16))
    )


def test_a_grey_picture_is_shown_in_three_channels():
    shown = picture(torch.zeros(1, 400, 400, dtype=torch.uint8), "note")
    assert (shown.width, shown.height, shown.pixelated, shown.note) == (400, 400, False, "note")


@pytest.mark.parametrize("task", [GanDemo, RestyleDemo, MapsTable])
def test_shipped_configs_are_what_the_demo_compares(task):
    configs = task().load_configs(ROOT / "configs" / task.folder)
    widths = {name: c.model.generator.width for name, c in configs.items()}
    assert widths["alone"] == widths["distilled"] < widths["teacher"]
    assert configs["alone"].train_cfg.max_epochs == configs["distilled"].train_cfg.max_epochs


def test_the_maps_table_searches_for_each_seed(tmp_path):
    task = MapsTable()
    folder = ROOT / "configs" / task.folder
    configs = task.load_configs(folder)
    options = DemoOptions(ROOT, tmp_path, seeds=2)
    jobs = task.plan(configs, options)
    found = task.further_jobs(folder, configs, jobs, options)
    assert [job.name for job in found] == [
        *("supernet-0", "search-0", "searched-0", "supernet-1", "search-1", "searched-1")
    ]
    supernet, search, tuned = found[3:]
    assert supernet.needs == ("teacher",) and search.needs == ("supernet-1",)
    assert tuned.needs == ("search-1",) and tuned.after == ("supernet-1", "search-1")
    assert search.after == ("supernet-1",)
    teacher = f"distill.teacher.checkpoint={jobs[0].checkpoint}"
    assert teacher in supernet.command and teacher in tuned.command
    assert str(supernet.checkpoint) in search.command
    assert "randomness.seed=1" in supernet.command
    assert [job.role for job in found[:3]] == ["supernet", "search", "searched"]
    # The budget of the search is far below one fifth of the teacher, and what the student costs.
    cfg = load_config(str(folder / "supernet.py"))
    assert float(cfg.search.budget.removesuffix("x")) < 0.2


@pytest.mark.slow
def test_the_whole_pipeline_of_the_maps_table(gan, tmp_path, monkeypatch):
    """Teacher, student, distilled, once-for-all network, search, fine-tuning, table and report."""
    root, folder = tmp_path / "tree", tmp_path / "tree" / "configs" / "gan" / "tiny"
    folder.mkdir(parents=True)
    (root / "tools").symlink_to(ROOT / "tools")
    monkeypatch.setenv("PYTHONPATH", gan.env["PYTHONPATH"])
    lines = [dict(student="generator.model.9", loss="FeatureImitation", name="down")]
    link = dict(config="set by the demo", checkpoint="set by the demo")
    gan.write(gan.config(gan.model(generator=gan.wide)), folder / "teacher.py")
    gan.write(gan.config(), folder / "student.py")
    distill = dict(teacher=link, pairs=lines, probe_size=16)
    gan.write(gan.config(distill=distill), folder / "distilled.py")
    sliced = dict(distill, pairs=[dict(lines[0], adapter="sliced")])
    search = dict(
        budget="0.5x",
        method="evolutionary",
        population=4,
        generations=1,
        shape=[16, 16],
        finetune_epochs=1,
    )
    supernet = gan.config(gan.model(generator=gan.super), distill=sliced, search=search)
    supernet["train_cfg"]["val_interval"] = 1  # the fine-tuning's single epoch has one too
    gan.write(supernet, folder / "supernet.py")

    class Tiny(MapsTable):
        folder = "gan/tiny"
        metrics = MapsTable.metrics[:3]

    console = Console(file=io.StringIO(), width=160)
    path = run_demo(Tiny(), DemoOptions(root, tmp_path / "out", command="tiny"), console)
    figures = json.loads((path.parent / "results.json").read_text())
    assert list(figures["scores"]) == ["teacher", "alone", "distilled", "search", "searched"]
    assert all(len(s["SmallFD"]) == 1 for s in figures["scores"].values())
    summary = json.loads((path.parent / "search-0" / "search.json").read_text())
    best = summary["best"]["channels"]
    channels = [int(c) for c in best.split("_")] if isinstance(best, str) else best
    assert set(channels) <= {4, 6}
    assert figures["macs"]["search"] == figures["macs"]["searched"]
    assert figures["scores"]["search"]["SmallFD"] == [
        pytest.approx(summary["best"]["metrics"]["SmallFD"], rel=1e-3)
    ]
    assert figures["macs"]["searched"] == summary["best"]["macs"] <= figures["macs"]["teacher"] / 2
    html = path.read_text()
    assert "Searching the once-for-all network" in html and "searched, fine-tuned" in html
    # Once more: nothing is trained again.
    out = io.StringIO()
    run_demo(Tiny(), DemoOptions(root, tmp_path / "out", command="tiny"), Console(file=out))
    assert out.getvalue().count("already finished") == 6
