"""Every ready config is read whole, and every recipe trained for real: tiny files and models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertForPreTraining

from taskdistill.tasks.nlp.arguments import parse, teacher_names
from taskdistill.tasks.nlp.build import build_model
from taskdistill.tasks.nlp.cli import train
from taskdistill.tasks.nlp.data import Prepared, train_wordpiece
from taskdistill.tasks.nlp.recipes import Shape, make_plan

ROOT = Path(__file__).resolve().parents[3] / "configs" / "nlp"
CONFIGS = sorted(ROOT.rglob("*.yaml"))
MODEL_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "masked_lm": "AutoModelForMaskedLM",
    "pretraining": "AutoModelForPreTraining",
}
BASE_SHAPE = Shape(12, 12)  # of BERT-base, which every hub name here is


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKDISTILL_DATA", "external")
        return _read(path)


def _read(path: Path) -> Any:
    run = parse(["--config", str(path), "--use_cpu"])
    if not run.data.files and run.data.dataset_name is None and run.data.kind == run.data.task:
        run = parse(["--config", str(path), "--use_cpu", "--train_file", "corpus.txt"])
    return run


def made(run: Any) -> nn.Module | None:
    """The student of a config from scratch, without memory for its weights."""

    class Vocabulary:
        pad_token_id = 0

        def __len__(self) -> int:
            return run.model.vocab_size or 30522

    if run.model.model_config is None:
        return None
    prepared = Prepared(
        MODEL_CLASSES[run.data.kind], {}, None, None, None, dict, None, None, "", True, ""
    )
    with torch.device("meta"):
        return build_model(run.model, run.data, prepared, Vocabulary())


def shape_of(model_name: str, folders: dict[str, Any]) -> Shape:
    """The shape of what a config starts from or learns from: of the hub, or of another config."""
    # The teacher's config is one for all tasks, and says sst2.
    run = folders.get(model_name.removesuffix("/model").replace("/stsb/", "/sst2/"))
    if run is None:
        assert model_name.startswith("bert-base"), f"no config writes {model_name}"
        return BASE_SHAPE
    assert model_name.endswith("/model")
    if run.model.model_from_teacher is not None:
        return Shape(6, 12)
    student = made(run)
    return shape_of(run.model.model, folders) if student is None else Shape.of(student.config)


@pytest.fixture(scope="module")
def folders() -> dict[str, Any]:
    """Every config by its output folder."""
    found: dict[str, Any] = {}
    for path in CONFIGS:
        run = read(path)
        assert run.training.output_dir not in found, f"{path} writes where another does"
        found[run.training.output_dir] = run
    return found


def test_there_are_configs():
    assert {path.parent.name for path in CONFIGS} >= {
        "glue",
        "mlm",
        "mobilebert",
        "squad",
        "tinybert",
        "token_classification",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_config_reads_and_fits_together(path: Path, folders: dict[str, Any]):
    run = read(path)
    run.data.check()
    assert run.training.output_dir.startswith("work_dirs/")
    if run.model.model is not None:
        shape_of(run.model.model, folders)
    model = made(run)
    if run.distill is None:
        return
    if model is not None:
        student = Shape.of(model.config)
    elif run.model.model is not None:
        student = shape_of(run.model.model, folders)
    else:
        student = Shape(6, 12)
    names = list(run.distill.get("teachers", ["teacher"]))
    of = dict(zip(names, teacher_names(run.distill), strict=True))
    recipe = {k: v for k, v in run.distill.items() if k not in ("teacher", "teachers")}
    teachers = {key: shape_of(value, folders) for key, value in of.items()}
    plan = make_plan(recipe, student, teachers)
    assert plan.recipe.pairs


def test_mobilebert_and_its_teacher_have_the_sizes_of_the_paper():
    sizes = {}
    for part in ("teacher", "progressive"):
        model = made(read(ROOT / "mobilebert" / f"{part}.yaml"))
        assert model is not None
        body = model.base_model
        sizes[part] = sum(p.numel() for p in body.embeddings.parameters()) + sum(
            p.numel() for p in body.encoder.parameters()
        )
    assert sizes == {"teacher": 294_205_184, "progressive": 25_359_104}


# -- trained for real ------------------------------------------------------------------------------

WORDS = "the old dog saw a small cat near our red house and ran to it over green grass".split()


def sentence(number: int, length: int = 8) -> str:
    return " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(length))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small file for every task."""
    folder = tmp_path_factory.mktemp("files")
    sentences = [sentence(i) for i in range(24)]
    texts = {
        "sst2.tsv": "sentence\tlabel\n"
        + "".join(f"{s}\t{i % 2}\n" for i, s in enumerate(sentences)),
        "stsb.tsv": "sentence1\tsentence2\tlabel\n"
        + "".join(f"{s}\t{s}\t{i % 5}.5\n" for i, s in enumerate(sentences)),
        "ner.conll": "\n\n".join(
            "\n".join(f"{word} {'B-PER' if word == 'dog' else 'O'}" for word in s.split())
            for s in sentences
        ),
        "corpus.txt": "\n\n".join("\n".join(sentences[i : i + 4]) for i in range(0, 24, 4)),
        "squad.json": json.dumps(
            {"data": [{"paragraphs": [_paragraph(i, s) for i, s in enumerate(sentences)]}]}
        ),
    }
    for file, text in texts.items():
        (folder / file).write_text(text)
    return {file.partition(".")[0]: str(folder / file) for file in texts}


def _paragraph(number: int, context: str) -> dict[str, Any]:
    answer = context.split()[2]
    question = {
        "id": str(number),
        "question": "which word",
        "answers": [{"text": answer, "answer_start": context.index(f" {answer}") + 1}],
    }
    return {"context": context, "qas": [question]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What stands for BERT-base: its kind, four layers, twelve heads, a few numbers wide."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tokenizer = train_wordpiece([sentence(i) for i in range(24)], vocab_size=90)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=32,
    )
    BertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


def trained(config: str, output: Path, file: str, **changes: Any) -> list[dict[str, float]]:
    """Train a config for a few steps on a small file, and return the rows of its course."""
    flags: dict[str, Any] = {
        "output_dir": output,
        "train_file": file,
        "validation_file": file,
        "validation_split": None,
        "max_length": 32,
        "doc_stride": 8,
        "max_steps": 2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "disable_tqdm": "true",
        "use_cpu": "true",
        **changes,
    }
    words = ["--config", str(ROOT / config)]
    for key, value in flags.items():
        if value is not None:
            words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    figures = train(words)
    assert math.isfinite(figures["val_loss"])
    model = AutoModel.from_pretrained(output / "model")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return [json.loads(line) for line in (output / "scalars.jsonl").read_text().splitlines()]


def terms(rows: list[dict[str, float]]) -> set[str]:
    """Names of the distillation terms in the training rows, each finite."""
    found: set[str] = set()
    for row in rows:
        for key, value in row.items():
            if key.startswith("loss_kd_"):
                assert math.isfinite(value) and math.isfinite(row[f"kd_{key[8:]}_raw"])
                found.add(key[8:])
    return found


def half(base: str) -> dict[str, Any]:
    return {"teacher": base}


@pytest.mark.parametrize(
    ("folder", "file", "figure", "expected"),
    [
        ("glue", "sst2", "accuracy", {"kl_divergence"}),
        ("squad", "squad", "f1", {"kl_divergence", "kl_divergence_2"}),
        ("token_classification", "ner", "f1", {"kl_divergence"}),
    ],
)
def test_teacher_student_and_distilled(
    folder: str,
    file: str,
    figure: str,
    expected: set[str],
    base: str,
    files: dict[str, str],
    tmp_path: Path,
):
    rows = trained(f"{folder}/teacher.yaml", tmp_path / "teacher", files[file], model=base)
    assert figure in rows[-1]
    start = {"model_from_teacher": half(base)}
    rows = trained(f"{folder}/student.yaml", tmp_path / "student", files[file], **start)
    assert not terms(rows)
    start["distill"] = {"teacher": str(tmp_path / "teacher" / "model")}
    rows = trained(f"{folder}/distilled.yaml", tmp_path / "distilled", files[file], **start)
    assert terms(rows) == expected and figure in rows[-1]
    assert len(AutoModel.from_pretrained(tmp_path / "distilled" / "model").encoder.layer) == 2


def test_regression_compares_scores(base: str, files: dict[str, str], tmp_path: Path):
    task = {"task": "stsb"}
    trained("glue/teacher.yaml", tmp_path / "teacher", files["stsb"], model=base, **task)
    rows = trained(
        "glue/distilled.yaml",
        tmp_path / "distilled",
        files["stsb"],
        model_from_teacher=half(base),
        distill={"teacher": str(tmp_path / "teacher" / "model")},
        **task,
    )
    assert terms(rows) == {"l2_logits"} and "spearmanr" in rows[-1]


def test_tinybert_from_a_general_student_to_a_task(
    base: str, files: dict[str, str], tmp_path: Path
):
    small = {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 16}
    rows = trained(
        "tinybert/general.yaml",
        tmp_path / "general",
        files["corpus"],
        model_config=small,
        distill={"teacher": base},
    )
    general = terms(rows)
    assert len(general) >= 2
    trained("glue/teacher.yaml", tmp_path / "teacher", files["sst2"], model=base)
    rows = trained(
        "tinybert/task.yaml",
        tmp_path / "task",
        files["sst2"],
        model=tmp_path / "general" / "model",
        max_steps=-1,
        num_train_epochs=2,
        distill={
            "teacher": str(tmp_path / "teacher" / "model"),
            "recipe": {"intermediate": 1},
        },
    )
    layers, predictions = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    active = [{key for key in terms([row]) if row[f"loss_kd_{key}"] > 0} for row in rows]
    assert terms(layers) and terms(predictions)
    assert active[0] and active[-2] and not active[0] & active[-2]


def test_masked_words_learnt_in_the_way_of_distilbert(
    base: str, files: dict[str, str], tmp_path: Path
):
    trained("mlm/teacher.yaml", tmp_path / "teacher", files["corpus"], model=base)
    rows = trained(
        "mlm/distilled.yaml",
        tmp_path / "distilled",
        files["corpus"],
        model_from_teacher={"teacher": base, "number": 2},
        distill={"teacher": str(tmp_path / "teacher" / "model")},
    )
    assert terms(rows) == {"kl_divergence", "hidden_state_transfer"}
    assert rows[-1]["perplexity"] > 1


@pytest.mark.parametrize(("config", "heads"), [("minilm", None), ("minilmv2", 6)])
def test_minilm(config: str, heads: int | None, base: str, files: dict[str, str], tmp_path: Path):
    distill: dict[str, Any] = {"teacher": base}
    if heads is not None:
        distill["recipe"] = {"relation_heads": heads}
    small = {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 16}
    rows = trained(
        f"mlm/{config}.yaml",
        tmp_path / config,
        files["corpus"],
        model_config=small,
        distill=distill,
    )
    assert len(terms(rows)) == (2 if heads is None else 1)


@pytest.fixture(scope="module")
def ib_bert(
    base: str, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A tiny IB-BERT, pre-trained for two steps, and the sizes of its student."""
    folder = tmp_path_factory.mktemp("ib_bert")
    datasets.disable_progress_bars()
    shared = {
        "hidden_size": 16,
        "embedding_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    rows = trained(
        "mobilebert/teacher.yaml",
        folder / "teacher",
        files["corpus"],
        tokenizer=base,
        model_config={**shared, "intra_bottleneck_size": 24, "intermediate_size": 32},
    )
    assert "val_loss" in rows[-1]
    student = {**shared, "intra_bottleneck_size": 8, "intermediate_size": 16}
    return {"teacher": str(folder / "teacher" / "model"), "student": student, "tokenizer": base}


@pytest.mark.parametrize(
    ("strategy", "options", "steps"),
    [
        ("progressive", {"steps_per_layer": 1}, 3),
        ("joint", {"transfer_steps": 1}, 2),
        ("auxiliary", {}, 1),
    ],
)
def test_mobilebert_learns_from_ib_bert(
    strategy: str,
    options: dict[str, int],
    steps: int,
    ib_bert: dict[str, Any],
    files: dict[str, str],
    tmp_path: Path,
):
    rows = trained(
        f"mobilebert/{strategy}.yaml",
        tmp_path / strategy,
        files["corpus"],
        tokenizer=ib_bert["tokenizer"],
        model_config=ib_bert["student"],
        distill={"teacher": ib_bert["teacher"], "recipe": options},
        max_steps=steps,
    )
    active = [
        {key for key in terms([row]) if row[f"loss_kd_{key}"] > 0} for row in rows if "loss" in row
    ]
    assert len(active) == steps
    assert {"mlm", "next_sentence"} <= active[-1]
    if strategy != "auxiliary":
        assert not active[0] & active[-1]


def test_mobilebert_is_fine_tuned_as_a_plain_bert(
    ib_bert: dict[str, Any], files: dict[str, str], tmp_path: Path
):
    rows = trained(
        "mobilebert/finetune.yaml", tmp_path / "a", files["sst2"], model=ib_bert["teacher"]
    )
    assert "accuracy" in rows[-1]
