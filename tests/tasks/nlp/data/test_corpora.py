from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data import DataArguments
from taskdistill.tasks.nlp.data.corpora import documents, load_documents


def texts(rows: Dataset | None) -> list[str]:
    assert rows is not None
    return rows["text"][:]


def test_blank_rows_are_borders_of_documents() -> None:
    rows = Dataset.from_dict({"t": ["", "a ", "b", " ", "", "c", ""]})
    assert texts(documents(rows, "t")) == ["a\nb", "c"]


def test_without_blank_rows_every_row_is_a_document() -> None:
    assert texts(documents(Dataset.from_dict({"t": ["a", "b"]}), "t")) == ["a", "b"]


def test_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\nTwo.\n\nThree.\n")
    splits = load_documents(DataArguments("masked_lm", train_file=str(tmp_path / "a.txt")))
    assert texts(splits.train) == ["One.\nTwo.", "Three."]


def test_validation_is_cut_off_by_whole_documents(tmp_path: Path) -> None:
    lines = [f"{i} a\n{i} b\n" for i in range(10)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    args = DataArguments("masked_lm", train_file=str(tmp_path / "a.txt"), validation_split=0.2)
    splits = load_documents(args)
    held = texts(splits.validation[""])
    assert len(held) == 2
    assert sorted([*texts(splits.train), *held]) == [f"{i} a\n{i} b" for i in range(10)]


def test_the_embedded_corpus_has_a_validation_set() -> None:
    splits = load_documents(DataArguments("masked_lm", dataset_name="pydoc_topics"))
    assert len(texts(splits.train)) > 50
    assert list(splits.validation) == [""]


def test_rows_without_text_are_said() -> None:
    with pytest.raises(DataError, match="nothing in column 't'"):
        documents(Dataset.from_dict({"t": ["a", None]}), "t")
