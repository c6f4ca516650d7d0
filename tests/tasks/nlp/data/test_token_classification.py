from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertTokenizer, EvalPrediction

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data import DataArguments, Prepared, prepare_data


def prepare(tokenizer: BertTokenizer, rows: Dataset, folder: Path, **options: object) -> Prepared:
    rows.save_to_disk(folder / "data")
    args = DataArguments("token_classification", dataset_name=str(folder / "data"), **options)
    return prepare_data(args, tokenizer)


NAMES = {"tokens": [["ada", "xyz", "sat"], ["it"]], "ner_tags": [["B-P", "I-P", "O"], ["O"]]}


def test_a_tag_is_the_first_tokens(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, Dataset.from_dict(NAMES), tmp_path)
    assert prepared.config["id2label"] == {0: "B-P", 1: "I-P", 2: "O"}
    assert prepared.train is not None
    row = prepared.train[0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens == ["[CLS]", "ada", "x", "##y", "##z", "sat", "[SEP]"]
    assert row["labels"] == [-100, 0, 1, -100, -100, 2, -100]


def test_a_batch_pads_labels_too(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, Dataset.from_dict(NAMES), tmp_path)
    batch = prepared.collator(list(prepared.train or ()))
    assert batch["labels"][1].tolist() == [-100, 2, -100, -100, -100, -100, -100]


def test_numbers_of_a_class_label_keep_their_names(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    features = Features(
        {
            "tokens": List(Value("string")),
            "tags": List(ClassLabel(names=["O", "B-P"])),
        }
    )
    rows = Dataset.from_dict({"tokens": [["it", "sat"]], "tags": [[0, 1]]}, features=features)
    prepared = prepare(tokenizer, rows, tmp_path)
    assert prepared.config["id2label"] == {0: "O", 1: "B-P"}
    assert prepared.train is not None and prepared.train[0]["labels"] == [-100, 0, 1, -100]


def test_figures_of_entities(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, Dataset.from_dict(NAMES), tmp_path)
    assert prepared.metric == "f1" and prepared.compute_metrics is not None
    labels = np.array([[-100, 0, 1, -100, 2], [-100, 0, 2, 2, -100]])
    chosen = np.array([[1, 0, 1, 0, 2], [0, 2, 0, 2, 0]])
    assert prepared.compute_metrics(EvalPrediction(chosen, labels)) == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "accuracy": pytest.approx(4 / 6),
    }


def test_tags_that_are_no_entities_have_accuracy_alone(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    rows = Dataset.from_dict({"words": [["it", "sat"]], "pos_tags": [["PRON", "VERB"]]})
    prepared = prepare(tokenizer, rows, tmp_path)
    assert prepared.metric == "accuracy" and prepared.compute_metrics is not None
    scores = prepared.compute_metrics(EvalPrediction(np.array([[0, 0]]), np.array([[0, 1]])))
    assert scores == {"accuracy": 0.5}


def test_part_of_a_set_has_the_tags_of_the_whole(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"tokens": [["it"], ["sat"]], "tags": [["O"], ["B-P"]]})
    prepared = prepare(tokenizer, rows, tmp_path, max_train_samples=1)
    assert prepared.config["num_labels"] == 2
    assert prepared.train is not None and prepared.train[0]["labels"] == [-100, 1, -100]


def test_a_conll_file(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_text("ada B-P\nsat O\n\nit O\n")
    prepared = prepare_data(DataArguments("token_classification", train_file=str(file)), tokenizer)
    assert prepared.train is not None and len(prepared.train) == 2
    assert prepared.text == "sentences of tagged words: 2 train; 2 tags"


def test_words_that_are_cut_off_are_logged(
    tokenizer: BertTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Dataset.from_dict({"tokens": [["it"] * 10, ["it"]], "tags": [["O"] * 10, ["O"]]})
    with caplog.at_level(logging.WARNING):
        prepare(tokenizer, rows, tmp_path, max_length=8)
    assert "4 words of train lie behind max_length=8" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": [["a", "b"]], "tags": [["O"]]}, "2 words and 1 tags"),
        ({"tokens": [["a"]], "tags": ["O"]}, "'tags' holds .*expected a list of tags"),
        ({"tokens": ["a"], "tags": [["O"]]}, "'tokens' holds .*expected a list of words"),
        ({"text": ["a"], "tags": [["O"]]}, "no column 'tokens'"),
        ({"tokens": [["a"]]}, "no column 'ner_tags'"),
    ],
)
def test_rows_that_cannot_be_learnt(
    tokenizer: BertTokenizer, tmp_path: Path, columns: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(tokenizer, Dataset.from_dict(columns), tmp_path)
