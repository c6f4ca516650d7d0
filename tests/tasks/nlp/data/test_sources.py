from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.nlp.data import DataArguments
from taskdistill.tasks.nlp.data.sources import Splits, load_splits


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_tsv_without_header_keeps_quotes_and_words_that_look_like_nothing(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "a.tsv", 'he said " no\t1\nnull\t0\n"quoted" and "\t1\nNA\t0\n')
    args = DataArguments("classification", train_file=file, column_names=["sentence", "label"])
    rows = load_splits(args).train
    assert rows is not None
    assert rows["sentence"][:] == ['he said " no', "null", '"quoted" and "', "NA"]
    assert rows["label"][:] == [1, 0, 1, 0]


def test_a_csv_reads_its_quotes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'text,label\n"one, two",a\nthree,b\n')
    rows = load_splits(DataArguments("classification", train_file=file)).train
    assert rows is not None
    assert rows[:] == {"text": ["one, two", "three"], "label": ["a", "b"]}


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "arrow", "txt"])
def test_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    rows = Dataset.from_dict({"text": ["a", "b"]})
    if kind == "parquet":
        rows.to_parquet(path)
    elif kind == "arrow":
        rows.save_to_disk(tmp_path / "saved")
        path = next((tmp_path / "saved").glob("*.arrow"))
    elif kind == "txt":
        write(path, "a\nb\n")
    else:
        rows.to_json(path, lines=kind == "jsonl")
    read = load_splits(DataArguments("masked_lm", train_file=str(path))).train
    assert read is not None and read["text"][:] == ["a", "b"]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    DatasetDict(train=rows, validation=rows, test=rows).save_to_disk(tmp_path / "dict")
    splits = load_splits(DataArguments("sst2", dataset_name=str(tmp_path / "dict")))
    assert list(splits.each()) == ["train", "validation", "test"]
    rows.save_to_disk(tmp_path / "one")
    splits = load_splits(DataArguments("sst2", dataset_name=str(tmp_path / "one")))
    assert list(splits.each()) == ["train"]


def test_mnli_validates_on_both_sets(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [0]})
    names = ["train", "validation_matched", "validation_mismatched", "test_matched"]
    DatasetDict({name: rows for name in names}).save_to_disk(tmp_path / "mnli")
    splits = load_splits(DataArguments("mnli", dataset_name=str(tmp_path / "mnli")))
    assert list(splits.validation) == ["matched", "mismatched"]
    assert splits.test is not None
    assert isinstance(splits.for_trainer, dict)


def test_a_validation_set_is_cut_off_without_overlap_and_always_the_same() -> None:
    rows = Dataset.from_dict({"n": list(range(50))})
    one, two = (Splits(rows, {}, None).with_validation(0.2) for _ in range(2))
    assert one.train is not None and two.train is not None
    held = one.validation[""]["n"][:]
    assert len(held) == 10
    assert sorted([*one.train["n"], *held]) == list(range(50))
    assert two.validation[""]["n"][:] == held


def test_a_validation_set_that_is_there_stays() -> None:
    rows = Dataset.from_dict({"n": [1, 2]})
    splits = Splits(rows, {"": rows}, None)
    assert splits.with_validation(0.5) is splits


def test_a_validation_share_that_leaves_nothing_is_said() -> None:
    rows = Dataset.from_dict({"n": [1, 2]})
    with pytest.raises(DataError, match="leaves one side empty"):
        Splits(rows, {}, None).with_validation(0.1)


@pytest.mark.parametrize(
    ("name", "text", "changes", "error", "message"),
    [
        ("missing.tsv", None, {}, DataError, "There is no file"),
        ("a.xlsx", "x", {}, ConfigError, "ends in '.xlsx'; known are .csv"),
        ("a.tsv", "", {}, DataError, "has no rows"),
        ("a.txt", "", {}, DataError, "has no rows"),
        ("a.csv", "text,label\n", {}, DataError, "has no rows"),
        ("a.csv", "a,b\n1,2\n3,4,5\n", {}, DataError, "cannot be read as csv.*line 3"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', {}, DataError, "cannot be read as jsonl"),
        ("a.tsv", "s\tlabel\nx\t1\n", {"column_names": ["s", "label"]}, ConfigError, "header"),
        ("a.tsv", "x\t1\n", {"column_names": ["s"]}, ConfigError, "are 1, but .* 2 columns"),
        ("a.json", "[]", {"column_names": ["s"]}, ConfigError, "for csv and tsv"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, text: str | None, changes: dict, error: type, message: str
) -> None:
    file = tmp_path / name
    if text is not None:
        write(file, text)
    args = DataArguments("classification", train_file=str(file), **changes)
    with pytest.raises(error, match=message):
        load_splits(args)


def test_a_hub_name_without_network_says_what_to_do() -> None:
    args = DataArguments("sst2")
    with pytest.raises(DataError, match="not on this disk.*'nyu-mll/glue', 'sst2'.*save_to_disk"):
        load_splits(args)


def test_splits_of_other_names_are_said(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a"]})
    DatasetDict(unsupervised=rows).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="has the splits unsupervised"):
        load_splits(DataArguments("masked_lm", dataset_name=str(tmp_path / "d")))


def test_nested_and_flat_questions_are_read_alike(tmp_path: Path) -> None:
    answer = {"text": "cat", "answer_start": 4}
    nested = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": "the cat",
                        "qas": [
                            {"id": "1", "question": "who?", "answers": [answer]},
                            {"id": "2", "question": "why?", "answers": [], "is_impossible": True},
                        ],
                    }
                ]
            }
        ]
    }
    flat = [
        {
            "id": "1",
            "question": "who?",
            "context": "the cat",
            "answers": {"text": ["cat"], "answer_start": [4]},
        },
        {
            "id": "2",
            "question": "why?",
            "context": "the cat",
            "answers": {"text": [], "answer_start": []},
        },
    ]
    contents = {
        "nested": json.dumps(nested),
        "flat": json.dumps(flat),
        "data": json.dumps({"data": flat}),
        "lines": "\n".join(map(json.dumps, flat)),
    }
    read = []
    for name, text in contents.items():
        file = write(tmp_path / f"{name}.json", text)
        rows = load_splits(DataArguments("question_answering", train_file=file)).train
        assert rows is not None
        read.append(rows.to_list())
    assert all(rows == flat for rows in read)


@pytest.mark.data
def test_every_row_of_sst2() -> None:
    folder = Path(os.environ["TASKDISTILL_DATA"], "sst2")
    args = DataArguments(
        "sst2",
        train_file=str(folder / "train.tsv"),
        validation_file=str(folder / "dev.tsv"),
        test_file=str(folder / "test.tsv"),
        column_names=["sentence", "label"],
    )
    counts = {name: len(rows) for name, rows in load_splits(args).each().items()}
    assert counts == {"train": 6920, "validation": 872, "test": 1821}
