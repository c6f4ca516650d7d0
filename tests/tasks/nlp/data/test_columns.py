from __future__ import annotations

import pytest
from datasets import Dataset

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data import DataArguments
from taskdistill.tasks.nlp.data.columns import find_text_columns, first_of, require_text


def rows(*names: str) -> Dataset:
    return Dataset.from_dict({name: ["a"] for name in names} | {"label": [0]})


@pytest.mark.parametrize(
    ("task", "there", "found"),
    [
        ("classification", ["text"], ("text",)),
        ("classification", ["sentence2", "sentence1"], ("sentence1", "sentence2")),
        ("classification", ["premise", "hypothesis", "sentence"], ("premise", "hypothesis")),
        ("classification", ["review"], ("review",)),
        ("qnli", ["sentence", "question", "context"], ("question", "sentence")),
    ],
)
def test_usual_names_are_found(task: str, there: list[str], found: tuple[str, ...]) -> None:
    args = DataArguments(task, dataset_name="x")
    assert find_text_columns(rows(*there), args) == found


def test_what_is_said_is_taken() -> None:
    args = DataArguments("sst2", text_columns=["b", "a"])
    assert find_text_columns(rows("a", "b", "sentence"), args) == ("b", "a")


def test_columns_that_cannot_be_guessed_are_shown() -> None:
    args = DataArguments("classification", dataset_name="x")
    with pytest.raises(DataError, match="'left', 'right', 'label' has a usual name.*column_names"):
        find_text_columns(rows("left", "right"), args)


def test_a_column_that_is_not_there_and_one_that_is_no_text() -> None:
    with pytest.raises(DataError, match="no column 'setence'.*Did you mean 'sentence'"):
        require_text(rows("sentence"), "setence")
    with pytest.raises(DataError, match="'label' holds .*int64.*expected text"):
        require_text(rows("sentence"), "label")
    with pytest.raises(DataError, match="no column 'tokens'"):
        first_of(rows("text"), ("tokens", "words"))
