from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertTokenizer

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.nlp.data import DataArguments, Prepared, prepare_data


def prepare(tokenizer: BertTokenizer, task: str, folder: Path, **sets: dict) -> Prepared:
    options = {name: sets.pop(name) for name in list(sets) if not isinstance(sets[name], dict)}
    rows = DatasetDict({name: Dataset.from_dict(columns) for name, columns in sets.items()})
    rows.save_to_disk(folder / "data")
    return prepare_data(
        DataArguments(task, dataset_name=str(folder / "data"), **options), tokenizer
    )


def test_a_header_less_tsv_of_sst2(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("the cat sat\t1\na dog\t0\nit was good\t1\n")
    (tmp_path / "dev.tsv").write_text("a mat\t0\n")
    args = DataArguments(
        "sst2",
        train_file=str(tmp_path / "train.tsv"),
        validation_file=str(tmp_path / "dev.tsv"),
        column_names=["sentence", "label"],
    )
    prepared = prepare_data(args, tokenizer)
    assert prepared.config == {
        "num_labels": 2,
        "id2label": {0: "negative", 1: "positive"},
        "label2id": {"negative": 0, "positive": 1},
        "problem_type": "single_label_classification",
    }
    assert prepared.train is not None
    assert prepared.train[0]["input_ids"] == tokenizer("the cat sat")["input_ids"]
    assert prepared.train["labels"][:] == [1, 0, 1]
    assert (prepared.metric, prepared.greater_is_better) == ("accuracy", True)
    assert prepared.text == "sentences: 3 train, 1 validation; 2 classes (negative, positive)"
    batch = prepared.collator([prepared.train[0], prepared.train[1]])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["labels"].tolist() == [1, 0]


def test_pairs_are_joined_cut_and_padded(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    columns = {"premise": ["the cat sat " * 9], "hypothesis": ["a dog"], "label": ["no"]}
    prepared = prepare(
        tokenizer, "classification", tmp_path, train=columns, max_length=16, pad_to_max_length=True
    )
    [row] = list(prepared.train or ())
    assert len(row["input_ids"]) == 16
    assert row["input_ids"][-3:] == tokenizer("a dog")["input_ids"][1:]
    assert set(row["token_type_ids"]) == {0, 1}
    short = {key: row[key][:4] for key in ("input_ids", "token_type_ids", "attention_mask")}
    assert prepared.collator([short])["input_ids"].shape == (1, 16)


def test_names_of_classes_are_sorted(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    train = {"text": ["a", "b", "c"], "label": ["z", "x", "y"]}
    prepared = prepare(
        tokenizer,
        "classification",
        tmp_path,
        train=train,
        validation={"text": ["a"], "label": ["y"]},
    )
    assert prepared.config["id2label"] == {0: "x", 1: "y", 2: "z"}
    assert prepared.train is not None and prepared.train["labels"][:] == [2, 0, 1]
    assert isinstance(prepared.validation, Dataset)
    assert prepared.validation["labels"][:] == [1]


def test_two_sets_may_number_the_same_names_differently(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    def rows(*names: str) -> Dataset:
        features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
        return Dataset.from_dict({"text": ["a", "b"], "label": ["no", "yes"]}, features=features)

    DatasetDict({"train": rows("no", "yes"), "validation": rows("yes", "no")}).save_to_disk(
        tmp_path / "both"
    )
    args = DataArguments("classification", dataset_name=str(tmp_path / "both"))
    prepared = prepare_data(args, tokenizer)
    assert isinstance(prepared.validation, Dataset)
    assert prepared.validation["labels"][:] == [0, 1]


def test_real_numbers_are_scores(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "label": [0.5, 2.0]}
    prepared = prepare(tokenizer, "classification", tmp_path, train=columns)
    assert prepared.config["problem_type"] == "regression"
    assert prepared.config["num_labels"] == 1
    assert prepared.train is not None
    batch = prepared.collator(list(prepared.train))
    assert batch["labels"].dtype == torch.float32


def test_stsb_predicts_scores_whatever_their_type(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    columns = {"sentence1": ["a"], "sentence2": ["b"], "label": [3]}
    secret = {**columns, "label": [-1]}
    prepared = prepare(tokenizer, "stsb", tmp_path, train=columns, test=secret)
    assert prepared.metric == "spearmanr"
    assert prepared.test is not None and "labels" not in prepared.test.column_names


def test_secret_labels_of_a_test_set_are_left_out(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    train = {"sentence": ["a", "b"], "label": [0, 1]}
    test = {"sentence": ["a"], "label": [-1]}
    prepared = prepare(tokenizer, "cola", tmp_path, train=train, test=test)
    assert prepared.test is not None and "labels" not in prepared.test.column_names
    assert prepared.metric == "matthews_correlation"
    with pytest.raises(DataError, match="Row 0 of validation has no label"):
        prepare(tokenizer, "cola", tmp_path / "other", train=train, validation=test)


def test_mnli_has_two_validation_sets(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    columns = {"premise": ["a"], "hypothesis": ["b"], "label": [2]}
    prepared = prepare(
        tokenizer,
        "mnli",
        tmp_path,
        train=columns,
        validation_matched=columns,
        validation_mismatched=columns,
    )
    assert isinstance(prepared.validation, dict)
    assert list(prepared.validation) == ["matched", "mismatched"]
    assert prepared.metric == "matched_accuracy"
    assert prepared.config["num_labels"] == 3


def test_fewer_samples_are_the_first(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    columns = {"text": ["a", "b", "c"], "label": [0, 1, 1]}
    prepared = prepare(
        tokenizer,
        "classification",
        tmp_path,
        train=columns,
        validation=columns,
        max_train_samples=2,
        max_eval_samples=1,
    )
    assert prepared.train is not None and isinstance(prepared.validation, Dataset)
    assert prepared.train["labels"][:] == [0, 1]
    assert len(prepared.validation) == 1


def test_part_of_a_set_has_the_classes_of_the_whole(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    columns = {"text": list("abcd"), "label": ["x", "x", "y", "z"]}
    few = prepare(tokenizer, "classification", tmp_path / "few", train=columns, max_train_samples=1)
    cut = prepare(
        tokenizer, "classification", tmp_path / "cut", train=columns, validation_split=0.5
    )
    assert few.config["num_labels"] == cut.config["num_labels"] == 3
    assert few.train is not None and few.train["labels"][:] == [0]


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"text": ["a"], "label": [["x", "y"]]}, {}, ConfigError, "several labels a row"),
        ({"text": ["a"], "klass": [0]}, {}, DataError, "no column 'label'.*'text', 'klass'"),
        ({"text": ["a"], "label": [0]}, {"label_column": "y"}, DataError, "no column 'y'"),
        ({"text": ["a", None], "label": [0, 1]}, {}, DataError, "nothing in column 'text'"),
        ({"text": ["a"], "label": [None]}, {}, DataError, "No row has a label"),
    ],
)
def test_rows_that_cannot_be_learnt(
    tokenizer: BertTokenizer,
    tmp_path: Path,
    columns: dict,
    options: dict,
    error: type,
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        prepare(tokenizer, "classification", tmp_path, train=columns, **options)


def test_labels_unseen_in_training_are_said(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation has the labels 'c'"):
        prepare(
            tokenizer,
            "classification",
            tmp_path,
            train={"text": ["a", "b"], "label": ["a", "b"]},
            validation={"text": ["a"], "label": ["c"]},
        )


def test_a_file_without_a_header_is_suspected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("the cat sat\t1\na dog\t0\n")
    args = DataArguments("sst2", train_file=str(tmp_path / "a.tsv"))
    with pytest.raises(DataError, match="'the cat sat', '1'.*give column_names"):
        prepare_data(args, tokenizer)
