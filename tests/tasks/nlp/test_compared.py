from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.common.cost import count_parameters
from taskdistill.tasks.nlp.compared import NlpContender, parse_options

ROOT = Path(__file__).resolve().parents[3]
STUDENT = ROOT / "configs" / "nlp" / "demo" / "student.yaml"
DISTILLED = STUDENT.with_name("distilled.yaml")


def flag(command: tuple[str, ...], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def test_a_run_is_told_seed_length_and_options(tmp_path):
    given = ["learning_rate=1e-3", "distill.task_weight=0.25"]
    contender = NlpContender(DISTILLED, ROOT, epochs=2, given=given)
    run = contender.training("kd-1", tmp_path / "kd-1", 1, "accuracy")
    assert flag(run.command, "seed") == "1" and flag(run.command, "num_train_epochs") == "2"
    assert float(flag(run.command, "learning_rate")) == 1e-3
    told = json.loads(flag(run.command, "distill"))
    assert told["task_weight"] == 0.25
    assert flag(run.command, "output_dir") == str(tmp_path / "kd-1") and "--resume" in run.command
    assert (run.length, run.metric) == (2, "accuracy")
    assert flag(run.evaluate, "eval_only") == str(tmp_path / "kd-1" / "model")
    assert float(flag(run.evaluate, "learning_rate")) == 1e-3


def test_the_signature_follows_options_seed_and_length(tmp_path):
    def made(seed: int = 0, **options) -> str:
        return NlpContender(STUDENT, ROOT, **options).training("a", tmp_path, seed, "").signature

    first = made()
    others = {made(1), made(epochs=2), made(given=["max_length=64"])}
    assert len(others - {first}) == 3
    assert made(given=["logging_steps=7"]) == first  # decides nothing


def test_options():
    assert parse_options(["a.b=1", "a.c=[1, 2]", "d=x"]) == {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    for wrong in ("a", "=1", "a..b=1"):
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_options([wrong])
    with pytest.raises(ConfigError, match="learning_rat"):
        NlpContender(STUDENT, ROOT, given=["learning_rat=1"])


def test_a_trained_model_is_evaluated_and_its_cost_taken_from_it(tmp_path):
    contender = NlpContender(STUDENT, ROOT)
    with pytest.raises(CheckpointError, match="no folder of a trained model"):
        contender.evaluation("teacher", tmp_path / "t", tmp_path, "")
    config = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=128,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "model")
    job = contender.evaluation("teacher", tmp_path / "t", tmp_path / "model", "accuracy")
    assert flag(job.command, "eval_only") == str(tmp_path / "model")
    assert flag(job.command, "output_dir") == str(tmp_path / "t" / "final" / "evaluation")
    assert job.checkpoint.is_file() and contender.caution() == ""
    cost = contender.cost(tmp_path / "model")
    assert cost.parameters == count_parameters(model) and cost.problem == ""
    length = int(cost.sample.split()[3])
    # Four projections of width 8, two of the feed-forward part, and scores and mixing of attention.
    per_token = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 8 * length
    assert cost.macs == length * per_token + 8 * 8 + 8 * 2  # and the pooler and the head
    assert contender.cost(tmp_path / "model" / "model.safetensors") == cost
    none = contender.cost(tmp_path / "elsewhere")
    assert none.parameters is None and "cannot be read" in none.problem
