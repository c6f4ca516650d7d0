from __future__ import annotations

import pytest
from transformers import HfArgumentParser

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.data import GLUE, DataArguments


def test_flags_are_made_of_it() -> None:
    line = "--task mnli --text_columns a b --max_length 32 --validation_split 0.1"
    [args] = HfArgumentParser(DataArguments).parse_args_into_dataclasses(line.split())
    assert args.text_columns == ["a", "b"]
    assert args.max_length == 32
    assert args.validation_split == 0.1
    assert args.pad_to_max_length is False


def test_every_glue_task_is_classification_and_needs_no_data_said() -> None:
    for name in GLUE:
        args = DataArguments(name)
        args.check()
        assert args.kind == "classification"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "clasification"}, "Did you mean 'classification'"),
        ({"train_file": "a.tsv", "dataset_name": "x"}, "exclude one another"),
        ({}, "has no data"),
        ({"dataset_name": "x", "text_columns": ["a", "b", "c"]}, "one column, or two"),
        ({"dataset_name": "x", "max_length": 2}, "max_length=2 is too small"),
        ({"dataset_name": "x", "max_train_samples": 0}, "max_train_samples=0 is too small"),
        ({"dataset_name": "x", "validation_split": 1.0}, "validation_split=1.0 is no share"),
        (
            {"task": "question_answering", "dataset_name": "x", "doc_stride": 128},
            "never move on",
        ),
    ],
)
def test_what_cannot_be_meant_is_said(changes: dict, message: str) -> None:
    args = DataArguments(**{"task": "classification", **changes})
    with pytest.raises(ConfigError, match=message):
        args.check()
