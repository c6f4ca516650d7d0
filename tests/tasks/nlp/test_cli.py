"""The command line: what a run reads, leaves behind, and goes on from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from taskdistill.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DistillError,
    TeacherError,
)
from taskdistill.tasks.nlp.cli import run, train

ROOT = Path(__file__).resolve().parents[3]
WORDS = {"good": ["fine", "great", "warm", "bright"], "bad": ["dull", "poor", "cold", "grey"]}


def sentences(count: int, shift: int) -> str:
    lines = []
    for i in range(count):
        label = list(WORDS)[(i + shift) % 2]
        words = [WORDS[label][(i * 3 + j * (1 + i % 3) + shift) % 4] for j in range(5)]
        lines.append(f"{' '.join(words)}\t{label}\n")
    return "text\tlabel\n" + "".join(lines)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Two epochs of four steps of a small BERT from scratch, with a teacher of its own making."""
    (tmp_path / "train.tsv").write_text(sentences(32, 0))
    (tmp_path / "dev.tsv").write_text(sentences(12, 1))
    settings = {
        "task": "classification",
        "train_file": "train.tsv",
        "validation_file": "dev.tsv",
        "output_dir": "run",
        "max_length": 16,
        "model_config": {
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 16,
        },
        "vocab_size": 80,
        "learning_rate": 5e-3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return settings


def go(*flags: str) -> dict[str, float]:
    return train(["--config", "config.yaml", *flags])


def rows(folder: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "scalars.jsonl").read_text().splitlines()]


def weights(folder: str = "run") -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "model", "model.safetensors"))


def distilled(tmp_path: Path, *flags: str) -> dict[str, float]:
    """Train the teacher, and then a distilled student with an adapter."""
    if not (tmp_path / "teacher").exists():
        go("--output_dir", "teacher", "--num_train_epochs", "1")
    pairs = [
        {"student": "outputs.logits", "loss": "KLDivergence", "temperature": 2.0},
        {"student": "outputs.hidden_states[-1]", "loss": "HiddenStateTransfer"},
    ]
    distill = {"teacher": "teacher/model", "pairs": pairs, "task_weight": 0.5}
    small = {"hidden_size": 8, "num_hidden_layers": 1}
    return go(
        *("--model_config", json.dumps(small), "--distill", json.dumps(distill)),
        *("--tokenizer", "teacher/model", *flags),
    )


def test_a_run_leaves_a_model_figures_and_its_course(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = go()
    assert results == json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["step"] == 8 and results["epoch"] == 2.0 and 0 <= results["accuracy"] <= 1
    model = AutoModelForSequenceClassification.from_pretrained("run/model")
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained("run/model"))
    training = [row for row in rows() if "loss" in row]
    validation = [row for row in rows() if "loss" not in row]
    assert [row["step"] for row in training] == list(range(1, 9))
    assert [row["epoch"] for row in training] == [i / 4 for i in range(1, 9)]
    assert all("lr" in row for row in training)
    assert [row["step"] for row in validation] == [1, 2]
    assert all(row.keys() >= {"step", "val_loss", "accuracy"} for row in validation)
    assert validation[-1]["accuracy"] == results["accuracy"]
    shown = capsys.readouterr().out
    assert f"{results['accuracy']:.4f}" in shown and str(Path("run", "model")) in shown


def test_the_settings_left_behind_repeat_the_run(config: dict[str, Any], tmp_path: Path):
    first = go("--seed", "7")
    again = train(["--config", "run/settings.yaml", "--output_dir", "again"])
    assert again["val_loss"] == first["val_loss"]
    for key, value in weights("again").items():
        assert torch.equal(value, weights()[key])


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    config: dict[str, Any], tmp_path: Path, with_teacher: bool
):
    command = (lambda *f: distilled(tmp_path, *f)) if with_teacher else go
    whole = command("--output_dir", "whole")
    shutil.copytree("whole", "run")
    for name in ("checkpoint-8", "model"):
        shutil.rmtree(Path("run", name))
    Path("run", "all_results.json").unlink()
    Path("run", "scalars.jsonl").unlink()
    resumed = command("--output_dir", "run", "--resume")
    assert resumed["val_loss"] == whole["val_loss"]
    assert rows() == rows("whole")
    for key, value in weights().items():
        assert torch.equal(value, weights("whole")[key]), key
    if with_teacher:
        assert all("loss_kd_kl_divergence" in row for row in rows() if "loss" in row)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_small_batches_accumulated_are_one_large_batch(
    config: dict[str, Any], tmp_path: Path, with_teacher: bool
):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config["model_config"].update(dropout)
    config.update(optim="sgd", num_train_epochs=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = (lambda *f: distilled(tmp_path, *f)) if with_teacher else go
    command("--output_dir", "large")
    small = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]
    command("--output_dir", "small", *small)
    for one, other in zip(rows("small"), rows("large"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_named_checkpoint_is_gone_on_from(config: dict[str, Any]):
    whole = go("--output_dir", "whole")
    resumed = go("--resume_from_checkpoint", "whole/checkpoint-4")
    assert resumed["val_loss"] == whole["val_loss"]
    with pytest.raises(CheckpointError, match="'whole/checkpoint-5' to resume from"):
        go("--output_dir", "c", "--resume_from_checkpoint", "whole/checkpoint-5")


def test_resuming_where_nothing_is_starts_afresh(config: dict[str, Any]):
    assert go("--resume", "--num_train_epochs", "1")["step"] == 4


def test_a_run_is_not_written_over_unasked(config: dict[str, Any], tmp_path: Path):
    go("--num_train_epochs", "1")
    before = (tmp_path / "run" / "all_results.json").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        go()
    with pytest.raises(DistillError):  # told before anything is deleted
        go("--overwrite", "--train_file", "absent.tsv")
    assert (tmp_path / "run" / "all_results.json").read_bytes() == before
    assert go("--overwrite")["step"] == 8
    assert not (tmp_path / "run" / "checkpoint-2").exists()


def test_a_run_that_failed_early_may_simply_be_started_again(config: dict[str, Any]):
    with pytest.raises(ConfigError, match="max_length"):
        go("--max_length", "32")
    assert go()["step"] == 8


def test_evaluation_alone_gives_the_figures_of_training(config: dict[str, Any], tmp_path: Path):
    figures = go()
    course = (tmp_path / "run" / "scalars.jsonl").read_bytes()
    for folder in ("run/model", "run/checkpoint-8"):
        alone = go("--eval_only", folder)
        assert alone == {key: figures[key] for key in alone} and "accuracy" in alone
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text()) == alone
    assert (tmp_path / "run" / "scalars.jsonl").read_bytes() == course
    with pytest.raises(CheckpointError, match="neither a folder"):
        go("--eval_only", "run/modle")


def test_the_best_checkpoint_is_chosen_by_the_task_s_own_figure(
    config: dict[str, Any], tmp_path: Path
):
    flags = ["--task", "masked_lm", "--train_file", "train.txt", "--validation_split", "0.3"]
    (tmp_path / "train.txt").write_text("\n\n".join(sentences(24, 0).split("\n")))
    config.pop("validation_file")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    figures = go(*flags, "--load_best_model_at_end")
    newest = max(Path("run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    best = min(row["perplexity"] for row in rows() if "perplexity" in row)
    assert state["best_metric"] == best == figures["perplexity"]


def test_without_validation_data_nothing_is_evaluated(config: dict[str, Any], tmp_path: Path):
    config.pop("validation_file")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    results = go("--num_train_epochs", "1")
    assert "accuracy" not in results and all("loss" in row for row in rows())
    for flags in (["--eval_strategy", "epoch"], ["--load_best_model_at_end"]):
        with pytest.raises(ConfigError, match="no validation data; give validation_file"):
            go("--output_dir", "b", *flags)
    with pytest.raises(DataError, match="no validation data to evaluate on"):
        go("--eval_only", "run/model")
    assert "accuracy" in go("--output_dir", "c", "--validation_split", "0.25")


def test_a_teacher_can_be_left_out_by_a_flag(config: dict[str, Any], tmp_path: Path):
    alone = go("--output_dir", "alone")
    config["distill"] = {"teacher": "alone/model", "recipe": "logits"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert go("--distill", "null")["val_loss"] == alone["val_loss"]
    assert not any("loss_kd_kl_divergence" in row for row in rows())


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--train_file", "absent.tsv"], DataError, "train_file 'absent.tsv' does not exist"),
        (["--vocab_file", "absent.txt"], DataError, "vocab_file 'absent.txt' does not exist"),
        (["--model", "absent"], CheckpointError, "'absent' cannot be read"),
        (["--distill", '{"teacher": "absent"}'], TeacherError, "teacher of distill: .*'absent'"),
        (["--task", "clasification"], ConfigError, "Did you mean 'classification'"),
    ],
)
def test_what_is_missing_is_told_before_data_are_read(
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    error: type[DistillError],
    message: str,
):
    monkeypatch.setattr("taskdistill.tasks.nlp.cli.prepare_data", lambda *_, **__: pytest.fail())
    with pytest.raises(error, match=message):
        go(*flags)
    assert not Path("run").exists()


def test_errors_end_in_one_message_and_an_interruption_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
):
    def mistaken(argv: object) -> None:
        raise ConfigError("no such thing")

    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    for command, code, text in (
        (mistaken, 2, "ConfigError: no such thing"),
        (interrupted, 130, "--resume continues"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(command)
        assert stop.value.code == code and text in capsys.readouterr().err


def test_the_tool_needs_nothing_of_the_mm_libraries(config: dict[str, Any], tmp_path: Path):
    blocked = ("mmengine", "mmcv", "mmdet", "mmseg", "rich", "matplotlib", "jinja2")
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked!r})); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    tool = [sys.executable, "-c", code, str(ROOT / "tools" / "train_nlp.py")]
    done = subprocess.run(
        [*tool, "--config", "confg.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "ConfigError" in done.stderr and "Did you mean 'config.yaml'" in done.stderr
