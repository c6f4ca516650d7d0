"""Caches filled from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file

from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.tasks.nlp.cache_cli import main
from taskdistill.tasks.nlp.cli import train


def sentences(count: int) -> str:
    words = ("fine", "dull", "great", "poor", "warm", "cold", "bright")
    lines = [
        f"{' '.join(words[(i * (1 + j) + j) % 7] for j in range(2 + i % 5))}\t{i % 2}\n"
        for i in range(count)
    ]
    return "text\tlabel\n" + "".join(lines)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small student with a trained teacher, whose answers are to be kept."""
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    (tmp_path / "train.tsv").write_text(sentences(30))
    settings: dict[str, Any] = {
        "task": "classification",
        "train_file": "train.tsv",
        "output_dir": "teacher",
        "max_length": 12,
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
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    train(["--config", "config.yaml"])
    settings["distill"] = {
        "teacher": "teacher/model",
        "pairs": [
            {"student": "outputs.logits", "loss": "KLDivergence", "temperature": 2.0},
            {"student": "outputs.hidden_states[-1]", "loss": "HiddenStateTransfer"},
        ],
        "cache": {"path": "cache", "dtype": "fp32"},
    }
    settings.update(output_dir="run", tokenizer="teacher/model", num_train_epochs=2)
    del settings["vocab_size"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return settings


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "model", "model.safetensors"))


def test_it_fills_the_cache_that_training_then_reads(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    (forecast,) = main(["config.yaml", "--dry-run"])
    assert not Path("cache").exists()
    shown = capsys.readouterr().out
    assert "is missing" in shown and "1 of 1 files" in shown and "30" in shown
    with pytest.raises(CacheError, match="lacks 1 of 1 files"):
        main(["config.yaml", "--verify"])
    assert not Path("cache").exists()
    (written,) = main(["config.yaml"])
    assert (written.rows, written.missing) == (30, 1)
    assert written.bytes_total == forecast.bytes_total
    (verified,) = main(["config.yaml", "--verify", "--num_train_epochs", "5"])
    assert verified.missing == 0

    kept = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.*")}
    distill = {**config["distill"], "cache": {"build": False}}
    train(["--config", "config.yaml", "--distill", json.dumps(distill)])
    assert {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.*")} == kept
    live = {**config["distill"], "cache": None}
    train(["--config", "config.yaml", "--distill", json.dumps(live), "--output_dir", "live"])
    for name, value in weights("live").items():
        torch.testing.assert_close(weights("run")[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_cannot_be_meant_is_told_before_data_are_read(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("taskdistill.tasks.nlp.cli.prepare_data", lambda *_, **__: pytest.fail())
    none = json.dumps({**config["distill"], "cache": None})
    with pytest.raises(ConfigError, match="has no distill.cache"):
        main(["config.yaml", "--distill", none])
    typo = json.dumps({"cache": {"dtpye": "fp16"}})
    for command in (main, lambda argv: train(["--config", *argv])):
        with pytest.raises(ConfigError, match="Did you mean 'dtype'"):
            command(["config.yaml", "--distill", typo])
    with pytest.raises(ConfigError, match="no flag '--dry-rn'"):
        main(["config.yaml", "--dry-rn"])
    with pytest.raises(ConfigError, match="--eval_only asks no teacher"):
        main(["config.yaml", "--eval_only", "teacher/model"])
