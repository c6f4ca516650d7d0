"""The demos of language models: runs, figures of cost, report."""

from __future__ import annotations

import io
import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForSequenceClassification, BertConfig

from taskdistill.core.errors import CheckpointError, ConfigError, DataError
from taskdistill.tasks.common.cost import count_macs, count_parameters
from taskdistill.tasks.common.demo import DemoOptions, run_demo
from taskdistill.tasks.common.demo.jobs import Job, final_metrics
from taskdistill.tasks.nlp.build import build_tokenizer
from taskdistill.tasks.nlp.demo import (
    NlpConfig,
    NlpDemo,
    NlpTask,
    Sst2Table,
    shortened,
    training_length,
)

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "configs" / "nlp" / "demo"


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def configs() -> dict[str, NlpConfig]:
    return NlpDemo().load_configs(FOLDER)


@pytest.fixture(scope="module")
def task(configs: dict[str, NlpConfig]) -> NlpDemo:
    task = NlpDemo()
    text = task.prepare(configs["alone"])
    assert "validation; 6 classes" in text and "tokens, as many as the median" in text
    return task


def options(tmp_path: Path, **changes) -> DemoOptions:
    return replace(DemoOptions(ROOT, tmp_path), **changes)


def by_name(jobs: list[Job]) -> dict[str, Job]:
    return {job.name: job for job in jobs}


def flag(job: Job, name: str) -> str:
    return job.command[job.command.index(f"--{name}") + 1]


def config(tmp_path: Path, text: str, base: str = "student") -> NlpConfig:
    path = tmp_path / "changed.yaml"
    path.write_text(f"_base_: {FOLDER / base}.yaml\n{text}\n")
    return NlpDemo().load_config(path)


# -- plan ------------------------------------------------------------------------------------------


def test_the_teacher_is_pretrained_first_and_teaches_every_seed(configs, tmp_path):
    jobs = NlpDemo().plan(configs, options(tmp_path, seeds=2))
    names = ["pretraining", "teacher", "alone-0", "alone-1", "distilled-0", "distilled-1"]
    assert [job.name for job in jobs] == names
    runs = by_name(jobs)
    before, teacher = runs["pretraining"], runs["teacher"]
    assert teacher.needs == teacher.after == ("pretraining",) and teacher.exclusive
    assert flag(teacher, "model") == str(tmp_path / "pretraining" / "model")
    assert before.metric == "mlm_accuracy" and before.role == "pretraining"
    assert runs["alone-1"].needs == () and runs["alone-1"].role == "alone"
    assert "--distill" not in runs["alone-1"].command
    distilled = runs["distilled-1"]
    assert distilled.needs == ("teacher",) and flag(distilled, "seed") == "1"
    assert json.loads(flag(distilled, "distill")) == {"teacher": str(tmp_path / "teacher/model")}
    assert distilled.checkpoint == tmp_path / "distilled-1" / "model" / "model.safetensors"
    assert {job.metric for job in jobs[1:]} == {"accuracy"}


def test_how_the_teacher_is_loaded_stays(configs, tmp_path):
    cfg = config(tmp_path, "distill: {teacher: {path: elsewhere, precision: bf16}}", "distilled")
    jobs = NlpDemo().plan({**configs, "distilled": cfg}, options(tmp_path))
    told = json.loads(flag(by_name(jobs)["distilled-0"], "distill"))
    assert told == {"teacher": {"path": str(tmp_path / "teacher" / "model")}}


def test_signature_is_of_what_decides_the_outcome(configs, tmp_path):
    def signatures(**changes) -> list[str]:
        jobs = NlpDemo().plan(configs, options(tmp_path, **changes))
        return [job.signature for job in jobs]

    first = signatures(seeds=2)
    assert len(set(first)) == 6
    assert first == signatures(seeds=2, work_dir=tmp_path / "other")
    assert not set(first) & set(signatures(seeds=2, epochs=2))

    def alone(text: str) -> str:
        changed = {**configs, "alone": config(tmp_path, text)}
        return by_name(NlpDemo().plan(changed, options(tmp_path)))["alone-0"].signature

    assert alone("output_dir: elsewhere\nlogging_steps: 7") == first[2]
    assert alone("learning_rate: 9e-4") != first[2]


def test_epochs_of_every_run_and_of_its_schedules(configs, tmp_path):
    jobs = NlpDemo().plan(configs, options(tmp_path, epochs=2))
    assert {job.length for job in jobs} == {2}
    assert {flag(job, "num_train_epochs") for job in jobs} == {"2"}
    text = """
num_train_epochs: 8
warmup_steps: 40
distill:
  stages: [{name: a, until: 4}, {name: b}]
  pairs: [{student: outputs.logits, loss: KLDivergence, weight: 3.0, warmup: 2, stage: b}]
"""
    assert shortened(config(tmp_path, text, "distilled"), 2) == {
        "num_train_epochs": 2,
        "warmup_steps": 10,
        "distill": {
            "stages": [{"name": "a", "until": 1.0}, {"name": "b"}],
            "pairs": [
                {
                    "student": "outputs.logits",
                    "loss": "KLDivergence",
                    "weight": 3.0,
                    "warmup": 0.5,
                    "stage": "b",
                }
            ],
        },
    }
    ready = "distill: {stages: null, pairs: null, recipe: {name: tinybert, intermediate: 6}}"
    ready = f"num_train_epochs: 8\n{ready}"
    assert shortened(config(tmp_path, ready, "distilled"), 4)["distill"] == {
        "recipe": {"name": "tinybert", "intermediate": 3.0}
    }


@pytest.mark.parametrize(
    "text", ["max_steps: 30", "num_train_epochs: 2.5", "eval_strategy: steps\neval_steps: 5"]
)
def test_a_run_that_is_no_number_of_epochs_is_told(text, tmp_path):
    with pytest.raises(ConfigError, match="whole number of epochs"):
        training_length(config(tmp_path, text))


def test_schedules_in_steps_cannot_be_shortened(configs, tmp_path):
    cfg = config(tmp_path, "distill: {unit: step}", "distilled")
    with pytest.raises(ConfigError, match=r"--epochs 2 does not apply.*counts steps"):
        shortened(cfg, 2)
    with pytest.raises(ConfigError, match="not positive"):
        shortened(configs["alone"], 0)


# -- configs ---------------------------------------------------------------------------------------


def test_student_is_the_same_alone_and_distilled(configs):
    alone, distilled = (dict(configs[name].settings) for name in ("alone", "distilled"))
    assert distilled.pop("distill") and "distill" not in alone
    assert alone.pop("output_dir") != distilled.pop("output_dir")
    assert alone == distilled


def test_the_vocabulary_is_the_same_in_every_run(configs):
    first = NlpDemo().load_config(FOLDER / "pretraining.yaml")
    words = [build_tokenizer(cfg.run.model, cfg.run.data) for cfg in (first, configs["alone"])]
    assert words[0].get_vocab() == words[1].get_vocab() and len(words[0]) == 2000


def test_sources_are_the_file_and_all_it_inherits(configs):
    text, whole = NlpDemo().sources(configs["distilled"])
    assert text == (FOLDER / "distilled.yaml").read_text() and "pydoc_topics" not in text
    assert yaml.safe_load(whole)["dataset_name"] == "pydoc_topics"
    first = NlpDemo().load_config(FOLDER / "pretraining.yaml")
    assert NlpDemo().sources(first)[1] == ""


# -- models ----------------------------------------------------------------------------------------


def save(task: NlpDemo, folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """Write a tiny classifier of passages."""
    torch.manual_seed(seed)
    data = task._data(None)
    config = BertConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=96,
        id2label=dict(enumerate(data.names)),
        label2id={name: i for i, name in enumerate(data.names)},
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder / "model.safetensors"


def test_load_is_strict_and_made_for_attention_maps(task, configs, tmp_path):
    model = task.load(configs["alone"], save(task, tmp_path / "model"))
    assert not model.training and model.config._attn_implementation == "eager"
    other = json.loads((tmp_path / "model" / "config.json").read_text())
    other["num_hidden_layers"] = 3
    (tmp_path / "model" / "config.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r"lacks.*layer\.2"):
        task.load(configs["alone"], tmp_path / "model" / "model.safetensors")


def test_cost_is_that_of_the_passage_of_median_length(task, configs, tmp_path):
    model = task.load(configs["alone"], save(task, tmp_path / "model"))
    data = task._data(None)
    length = len(data.batch(data.median())["input_ids"][0])
    words = data.tokenizer(data.texts[data.median()])["input_ids"]
    assert data.batch(data.median())["input_ids"][0].tolist() == words
    lengths = data.lengths()
    assert sum(n < length for n in lengths) <= len(lengths) / 2
    assert sum(n > length for n in lengths) <= len(lengths) / 2
    linear = 4 * 8 * 8 + 2 * 8 * 8  # per token and layer: attention's four maps and two of width 8
    attention = 2 * length * 8
    expected = 2 * length * (linear + attention) + 8 * 8 + 8 * 6  # pooler and classifier
    assert count_macs(task.forward_call(model, configs["alone"])) == expected
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())
    assert 0 <= task.predict_call(model, configs["alone"])() < 6


def test_answers_and_attention_in_the_report(task, tmp_path, configs):
    models = {
        label: task.load(configs["alone"], save(task, tmp_path / label, layers, seed))
        for label, layers, seed in (("teacher", 4, 0), ("student alone", 2, 1), ("best", 2, 2))
    }
    data = task._data(None)
    answers, attention = NlpTask.further_sections(task, [], models)
    (table,) = answers.tables
    assert table.columns == ["passage", "truth", "teacher", "student alone", "best"]
    assert len(table.rows) == 10 and all(len(row[0]) <= 160 for row in table.rows)
    assert table.rows[0][0].removesuffix(" ...") in data.texts[0]
    for row in table.rows:
        for said in row[2:]:
            assert said.removesuffix(" ✗") in data.names
            assert said.endswith(" ✗") == (said.removesuffix(" ✗") != row[1])
    assert len(attention.figures) == 2
    for figure in attention.figures:
        assert figure.png.startswith(b"\x89PNG") and "student alone" in figure.alt
    (table,) = attention.tables
    assert table.columns[1:] == ["layer 1, teacher's 2", "layer 2, teacher's 4"]
    assert [row[0] for row in table.rows] == ["student alone", "best"]
    assert all(0 < float(cell) < 1 for row in table.rows for cell in row[1:])


def test_a_task_without_classes_is_told(tmp_path):
    cfg = NlpDemo().load_config(FOLDER / "pretraining.yaml")
    with pytest.raises(ConfigError, match="classes to tell apart"):
        NlpDemo().prepare(cfg)


# -- SST-2 -----------------------------------------------------------------------------------------


def test_sst2_says_where_it_looks_for_its_data(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKDISTILL_DATA", raising=False)
    with pytest.raises(DataError, match=r"TASKDISTILL_DATA is not set.*sst2/ with train.tsv"):
        Sst2Table().load_configs(tmp_path)
    monkeypatch.setenv("TASKDISTILL_DATA", str(tmp_path))
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text("")
    with pytest.raises(DataError, match=r"sst2 lacks test.tsv, bert_uncased_vocab.txt; expected"):
        Sst2Table().load_configs(tmp_path)


def test_sst2_compares_three_ways_to_distil_one_student(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKDISTILL_DATA", str(tmp_path))
    (tmp_path / "sst2").mkdir()
    for name in Sst2Table.FILES:
        (tmp_path / "sst2" / name).write_text("")
    found = Sst2Table().load_configs(ROOT / "configs" / "nlp" / "sst2")
    assert list(found) == ["teacher", "alone", "logits", "hidden", "attention"]
    assert found["alone"].run.data.train_file == str(tmp_path / "sst2" / "train.tsv")
    jobs = Sst2Table().plan(found, options(tmp_path))
    assert [job.name for job in jobs[1:]] == ["alone-0", "logits-0", "hidden-0", "attention-0"]
    assert [job.needs for job in jobs] == [(), (), *[("teacher",)] * 3]
    students = [{**cfg.settings, "output_dir": ""} for cfg in list(found.values())[1:]]
    for student in students[1:]:
        assert student.pop("distill") and student == students[0]


# -- all of it -------------------------------------------------------------------------------------

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    """Pre-training, teacher, student, distilled, table and report; a second time, nothing runs."""
    root, folder = tmp_path / "tree", tmp_path / "tree" / "configs" / "nlp" / "demo"
    folder.mkdir(parents=True)
    (root / "tools").symlink_to(ROOT / "tools")
    few = {"max_eval_samples": 24, "num_train_epochs": 1}
    for name in ("pretraining", "teacher", "student", "distilled"):
        changed = {"_base_": str(FOLDER / f"{name}.yaml"), **few}
        if name != "teacher":
            changed["model_config"] = TINY
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(changed))
    path, text = run(root, tmp_path)
    figures = json.loads((path.parent / "results.json").read_text())
    assert list(figures["scores"]) == ["teacher", "alone", "distilled"]
    for scores in figures["scores"].values():
        assert 0 <= scores["accuracy"][0] <= 1 and 0 <= scores["f1_macro"][0] <= 1
    html = path.read_text()
    for part in (
        "What the models say",
        "What the layers attend to",
        "The teacher&#39;s pre-training",
        "Config pretraining.yaml",
        "Distillation terms",
    ):
        assert part in html
    assert "hold no such term" not in html
    assert run(root, tmp_path)[1].count("already finished") == 4

    # The separate evaluation, which is run where the last one was cut off, says the same.
    job = by_name(NlpDemo().plan(NlpDemo().load_configs(folder), DemoOptions(root, path.parent)))[
        "distilled-0"
    ]
    before = final_metrics(job)
    (job.work_dir / "scalars.jsonl").unlink()
    assert before is not None and final_metrics(job) is None
    assert subprocess.run(job.evaluate, capture_output=True, timeout=300).returncode == 0
    after = final_metrics(job)
    assert after is not None and math.isclose(after["accuracy"], before["accuracy"])


def run(root: Path, tmp_path: Path) -> tuple[Path, str]:
    out = io.StringIO()
    console = Console(file=out, width=160)
    demo = DemoOptions(root, tmp_path / "out", command="python tools/demo.py --task nlp")
    return run_demo(NlpDemo(), demo, console), out.getvalue()
