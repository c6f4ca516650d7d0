from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset
from transformers import BertConfig, BertTokenizer, Trainer, TrainingArguments

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.nlp.data import DataArguments, prepare_data, topic_datasets, training_texts

SQUAD = [
    {
        "question": "who ran",
        "context": "the cat sat on a mat . a dog ran in it",
        "answers": {"text": ["a dog"], "answer_start": [23]},
    }
]
FILES = {
    "sst2": ("a.json", [{"sentence": "it was good", "label": 1}, {"sentence": "bad", "label": 0}]),
    "stsb": ("a.json", [{"sentence1": "a cat", "sentence2": "a dog", "label": 2.5}] * 3),
    "token_classification": ("a.json", [{"tokens": ["ada", "sat"], "ner_tags": ["B-P", "O"]}]),
    "question_answering": ("a.json", SQUAD),
    "masked_lm": ("a.txt", "The cat sat.\n\nA dog ran.\n"),
    "pretraining": ("a.txt", "The cat sat. It was good.\n\nA dog ran. Was it bad?\n" * 9),
}


@pytest.mark.parametrize("task", FILES)
def test_the_plain_trainer_trains_and_measures_every_task(
    task: str, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    name, content = FILES[task]
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    args = DataArguments(
        task, train_file=str(file), validation_file=str(file), max_length=24, doc_stride=4
    )
    prepared = prepare_data(args, tokenizer)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        **prepared.config,
    )
    trainer = Trainer(
        getattr(transformers, prepared.model_class).from_config(config),
        TrainingArguments(
            str(tmp_path / "run"),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        data_collator=prepared.collator,
        compute_metrics=prepared.compute_metrics,
        preprocess_logits_for_metrics=prepared.preprocess_logits_for_metrics,
    )
    trainer.train()
    scores = trainer.evaluate()
    assert f"eval_{prepared.metric}" in scores
    assert all(value == value for value in scores.values())
    if "eval_perplexity" in scores:
        assert scores["eval_perplexity"] > 1


@pytest.mark.parametrize("task", ["classification", "masked_lm", "pretraining"])
def test_the_embedded_corpus(task: str, tokenizer: BertTokenizer) -> None:
    args = DataArguments(task, dataset_name="pydoc_topics", max_train_samples=9, max_length=64)
    prepared = prepare_data(args, tokenizer)
    assert prepared.train is not None and len(prepared.train) == 9
    assert isinstance(prepared.validation, Dataset) and len(prepared.validation) > 20


def test_the_embedded_corpus_is_not_for_every_task(tokenizer: BertTokenizer) -> None:
    args = DataArguments("question_answering", dataset_name="pydoc_topics")
    with pytest.raises(ConfigError, match="no data for task 'question_answering'"):
        prepare_data(args, tokenizer)


@pytest.mark.parametrize("task", FILES)
def test_texts_of_the_training_set(task: str, tmp_path: Path) -> None:
    name, content = FILES[task]
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    found = list(training_texts(DataArguments(task, train_file=str(file))))
    expected: dict[str, Any] = {
        "sst2": ["it was good", "bad"],
        "stsb": ["a cat"] * 3 + ["a dog"] * 3,
        "token_classification": ["ada sat"],
        "question_answering": [SQUAD[0]["question"], SQUAD[0]["context"]],
        "masked_lm": ["The cat sat.", "A dog ran."],
        "pretraining": [
            "The cat sat. It was good.",
            "A dog ran. Was it bad?\nThe cat sat. It was good.",
        ],
    }
    assert found[: len(expected[task])] == expected[task]


def test_texts_to_validate_on_are_not_read() -> None:
    args = DataArguments("classification", dataset_name="pydoc_topics")
    assert not set(training_texts(args)) & set(topic_datasets()["validation"]["text"])


def test_texts_cut_off_for_validation_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"row {i}\t{i % 2}\n" for i in range(20)))
    args = DataArguments(
        "sst2",
        train_file=str(tmp_path / "a.tsv"),
        column_names=["sentence", "label"],
        validation_split=0.25,
        max_train_samples=10,
    )
    assert len(list(training_texts(args))) == 10


def test_without_a_training_set_there_are_no_texts(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a", "label": 0}]')
    args = DataArguments("classification", validation_file=str(tmp_path / "a.json"))
    with pytest.raises(ConfigError, match="has no training set"):
        list(training_texts(args))


def test_a_missing_file_is_said_before_anything_is_tokenised(tokenizer: BertTokenizer) -> None:
    with pytest.raises(DataError, match="There is no file 'nowhere.tsv'"):
        prepare_data(DataArguments("sst2", train_file="nowhere.tsv"), tokenizer)
