from __future__ import annotations

import pytest

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data.labels import Labels


def test_integers_keep_their_order_and_strings_are_sorted() -> None:
    assert Labels.of([10, 2, 2]).names == ("2", "10")
    assert Labels.of(["10", "2"]).names == ("10", "2")


def test_known_names_number_both_names_and_numbers() -> None:
    names = ["no", "yes"]
    assert Labels.of(["yes", "yes"], names).encode(["yes", "no"], "train") == [1, 0]
    assert Labels.of([1, 1], names).encode([1, 0], "train") == [1, 0]


def test_the_config_speaks_both_ways() -> None:
    assert Labels.of(["b", "a"]).config == {
        "num_labels": 2,
        "id2label": {0: "a", 1: "b"},
        "label2id": {"a": 0, "b": 1},
    }


def test_secret_labels_are_none() -> None:
    assert Labels.of([0, 1]).encode([-1, None, 1], "test") == [None, None, 1]


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([-1, None], (), "No row has a label"),
        (["a", 1], (), "all strings or all integers.*int, str"),
        ([0, 2], ("a", "b"), r"labels 2, but the classes are a, b \(0 to 1\)"),
        (["c"], ("a", "b"), "labels 'c', but the classes are a, b"),
    ],
)
def test_labels_that_cannot_be_meant(values: list, names: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Labels.of(values, names)


def test_labels_that_training_does_not_have_are_named() -> None:
    with pytest.raises(DataError, match="validation has the labels 'c'.* it has 'a', 'b'"):
        Labels.of(["a", "b"]).encode(["a", "c"], "validation")
