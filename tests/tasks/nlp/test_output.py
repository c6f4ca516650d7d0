"""Whose an output folder is, and where a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoModel, BertConfig, BertModel, Trainer, TrainingArguments

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.data import train_wordpiece
from taskdistill.tasks.nlp.output import (
    MODEL,
    SETTINGS,
    check_output,
    claim,
    last_checkpoint,
    save_model,
)


def checkpoint(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


@pytest.mark.parametrize("resume", [False, True])
def test_an_absent_or_empty_folder_is_free(tmp_path: Path, resume: bool):
    check_output(tmp_path / "absent", resume=resume)
    (tmp_path / "console.log").touch()
    (tmp_path / ".lock").touch()
    check_output(tmp_path, resume=resume)


def test_a_run_is_resumed_or_overwritten_and_nothing_else(tmp_path: Path):
    claim(tmp_path, {"task": "sst2"})
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume.*--overwrite"):
        check_output(tmp_path)
    check_output(tmp_path, resume=True)
    check_output(tmp_path, overwrite=True)


def test_what_is_no_run_is_let_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="'thesis.tex' and is no run's"):
            check_output(tmp_path, overwrite=overwrite)
    check_output(tmp_path, resume=True)  # nothing there would be written over
    (tmp_path / MODEL).mkdir()
    with pytest.raises(ConfigError, match="'model', but no run that wrote it"):
        check_output(tmp_path, resume=True)


def test_overwriting_deletes_what_a_run_wrote(tmp_path: Path):
    claim(tmp_path, {"seed": 1})
    checkpoint(tmp_path, 3)
    for name in ("scalars.jsonl", "all_results.json", "notes.txt"):
        (tmp_path / name).touch()
    claim(tmp_path, {"seed": 2, "distill": {"teacher": "é"}}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", SETTINGS]
    written = yaml.safe_load((tmp_path / SETTINGS).read_text(encoding="utf-8"))
    assert written == {"seed": 2, "distill": {"teacher": "é"}}


def test_the_newest_complete_checkpoint_is_gone_on_from(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    expected = checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 30, state=None)  # killed while it was written
    checkpoint(tmp_path, 40, state='{"epo')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(expected)


def test_the_model_is_saved_whole_and_replaced(tmp_path: Path):
    tokenizer = train_wordpiece(["a few words", "a few more"], vocab_size=40)
    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "old").touch()
    model = BertModel(config)
    save_model(Trainer(model, args, processing_class=tokenizer), tmp_path / MODEL)
    assert sorted(path.name for path in (tmp_path / MODEL).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]
    loaded = AutoModel.from_pretrained(tmp_path / MODEL)
    assert loaded.state_dict().keys() == model.state_dict().keys()
