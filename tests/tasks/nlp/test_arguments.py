"""Flags over a config over defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.arguments import (
    DEFAULTS,
    DistillArguments,
    ModelArguments,
    parse,
    teacher_names,
)

CONFIG = """
task: sst2
train_file: train.tsv
output_dir: runs/${task}
learning_rate: 1e-3
num_train_epochs: 2
lowercase: false
model_config: {model_type: bert, hidden_size: 8}
vocab_size: 100
distill: {teacher: runs/teacher, recipe: {name: logits, temperature: 4.0}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(CONFIG)
    return str(path)


def read(config: str, *flags: str):
    return parse(["--config", config, "--use_cpu=true", *flags])


def test_a_config_says_it_all(config: str):
    run = read(config)
    assert run.data.task == "sst2" and run.data.train_file == "train.tsv"
    assert run.model.model_config == {"model_type": "bert", "hidden_size": 8}
    assert not run.model.lowercase
    assert run.distill == {
        "teacher": "runs/teacher",
        "recipe": {"name": "logits", "temperature": 4.0},
    }
    assert run.training.learning_rate == 1e-3 and run.training.num_train_epochs == 2.0
    assert run.training.output_dir == "runs/sst2"
    assert not run.resume and not run.overwrite and run.eval_only is None


def test_flags_win_and_objects_are_merged(config: str):
    run = read(
        config,
        *("--learning-rate", "2", "--lowercase", "--task", "mrpc", "--resume"),
        *("--model_config", '{"hidden_size": 16}', "--distill", '{"recipe": {"weight": 0.5}}'),
    )
    assert run.training.learning_rate == 2.0 and run.model.lowercase and run.resume
    assert run.training.output_dir == "runs/mrpc"
    assert run.model.model_config == {"model_type": "bert", "hidden_size": 16}
    assert run.distill is not None
    assert run.distill["recipe"] == {"name": "logits", "temperature": 4.0, "weight": 0.5}
    assert run.given["learning_rate"] == 2.0 and "weight_decay" not in run.given


def test_a_flag_replaces_its_alternatives(config: str):
    run = read(config, "--model", "runs/a", "--vocab_file", "v.txt", "--dataset_name", "d")
    assert run.model.model == "runs/a" and run.model.model_config is None
    assert run.model.vocab_file == "v.txt" and run.model.vocab_size is None
    assert run.data.dataset_name == "d" and run.data.train_file is None
    run = read(config, "--train_file", "b.tsv", "--validation_file", "c.tsv")
    assert run.data.files == {"train": "b.tsv", "validation": "c.tsv"}


def test_null_takes_a_key_back(config: str, tmp_path: Path):
    assert read(config, "--distill", "null").distill is None
    child = tmp_path / "child.yaml"
    child.write_text(
        "_base_: own.yaml\nlearning_rate: null\ndistill: {recipe: {temperature: null}}\n"
    )
    run = read(str(child))
    assert run.training.learning_rate == 5e-5
    assert run.distill == {"teacher": "runs/teacher", "recipe": {"name": "logits"}}


def test_defaults_where_nothing_is_said(tmp_path: Path):
    run = parse(["--task", "sst2", "--output_dir", str(tmp_path), "--use_cpu"])
    assert run.training.report_to == [] and run.training.save_total_limit == 2
    assert run.training.eval_strategy == "epoch" and run.training.save_strategy == "epoch"
    assert not set(DEFAULTS) & set(run.given)


def test_the_output_folder_is_named_after_the_config(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text("task: sst2\n")
    assert read(str(path)).training.output_dir == "work_dirs/own"
    with pytest.raises(ConfigError, match="No --output_dir is given"):
        parse(["--task", "sst2"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lerning_rate", "3"], "no flag '--lerning_rate'. Did you mean '--learning_rate'"),
        (["--learning-rat=3"], "Did you mean '--learning_rate'"),
        (["--learning", "3"], "no flag '--learning'"),
        (["extra"], "no flag 'extra'"),
        (["--learning_rate", "x"], "invalid float value: 'x'"),
        (["--eval_strategy", "sometimes"], "invalid choice: 'sometimes'"),
        (["--distill", "{x"], "distill is '{x', which is no JSON"),
        (["--distill", "[1]"], r"expected a mapping"),
        (["--resume", "--overwrite"], "take one"),
        (["--resume", "--resume_from_checkpoint", "a"], "leave out --resume"),
        (["--vocab_file", "a", "--tokenizer", "b"], "tokenizer and vocab_file are given"),
        (["--model", "a", "--model_config", "{}"], "model and model_config are given"),
        (["--logging_steps", "0"], "non-zero --logging_steps"),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "save and eval strategy to match"),
        (["--distill", '{"teacher": null, "techer": "a"}'], "Should 'techer' be that"),
    ],
)
def test_flags_that_cannot_be_meant(config: str, flags: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read(config, *flags)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'. Did you mean 'learning_rate'"),
        ("learning_rate: high", "learning_rate of config .* is 'high'; expected float"),
        ("max_steps: 2.5", "max_steps of config .* is 2.5; expected int"),
        ("fp16: 1", "fp16 of config .* is 1; expected bool"),
        ("text_columns: sentence", "text_columns of config .* is 'sentence'; expected list"),
        ("model_config: [bert]", "model_config of config"),
        ("resume: true", "unknown key 'resume'"),
        ("optim: adamm", "adamm"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path: Path, line: str, message: str):
    path = tmp_path / "own.yaml"
    path.write_text(f"task: sst2\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        read(str(path))


def test_a_task_has_to_be_named(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text("learning_rate: 1\n")
    with pytest.raises(ConfigError, match="No task is given"):
        read(str(path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_told(config: str):
    with pytest.raises(ConfigError, match="fp16 needs a GPU.*take bf16"):
        read(config, "--fp16")
    assert read(config, "--bf16").training.bf16


def test_help_lists_every_key_and_our_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in (
        "--config",
        "--eval_only",
        "--task",
        "--model_from_teacher",
        "--distill",
        "--bf16",
    ):
        assert flag in text
    assert "(default: epoch)" in " ".join(text.split())


def test_sources_of_a_model_exclude_one_another():
    with pytest.raises(ConfigError, match="model_config and model_from_teacher are given"):
        ModelArguments(model_config={}, model_from_teacher={})


def test_teachers_are_found_wherever_they_are_named():
    assert teacher_names({"teacher": "a"}) == ["a"]
    assert teacher_names({"teacher": {"path": "a", "precision": "bf16"}}) == ["a"]
    assert teacher_names({"teachers": {"x": "a", "y": {"path": "b"}}}) == ["a", "b"]
    assert DistillArguments(None).distill is None
    with pytest.raises(ConfigError, match="no teacher"):
        DistillArguments({"recipe": "tinybert"})
