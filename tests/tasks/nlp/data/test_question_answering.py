from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import BertTokenizer, EvalPrediction

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.nlp.data import DataArguments, Prepared, prepare_data

# 12 words, each one token; the answer is the words 9 and 10, counted from 0.
CONTEXT = "the cat sat on a mat . a dog ran in it"
START = CONTEXT.index("ran")


def question(**changes: Any) -> dict[str, Any]:
    given = {"text": ["ran in"], "answer_start": [START]}
    return {"id": "1", "question": "who ran", "context": CONTEXT, "answers": given, **changes}


def prepare(
    tokenizer: BertTokenizer, folder: Path, *rows: dict[str, Any], **options: Any
) -> Prepared:
    data = Dataset.from_list(list(rows))
    DatasetDict(train=data, validation=data).save_to_disk(folder / "data")
    options = {"max_length": 18, "doc_stride": 2, **options}
    args = DataArguments("question_answering", dataset_name=str(folder / "data"), **options)
    return prepare_data(args, tokenizer)


def logits(prepared: Prepared, best: dict[int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Zeros, and in some windows 9 at a start and an end."""
    assert isinstance(prepared.validation, Dataset)
    starts = np.zeros((len(prepared.validation), 40), dtype=np.float32)
    ends = starts.copy()
    for window, (start, end) in best.items():
        starts[window, start] = ends[window, end] = 9.0
    return starts, ends


def right_labels(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(prepared.validation, Dataset)
    columns = ("start_positions", "end_positions")
    return tuple(np.array(prepared.validation[name]) for name in columns)


def test_windows_overlap_and_mark_the_answer_where_all_of_it_is(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    prepared = prepare(tokenizer, tmp_path, question(), max_length=15, doc_stride=2)
    assert prepared.train is not None
    shown = [tokenizer.decode(row["input_ids"]) for row in prepared.train]
    head = "[CLS] who ran [SEP] "
    # 15 tokens: CLS, 2 of the question, 2 SEP and 10 of the context, the last 2 of them again.
    assert shown == [
        head + "the cat sat on a mat. a dog ran [SEP]",
        head + "dog ran in it [SEP]",
    ]
    assert prepared.train["start_positions"][:] == [0, 5]
    assert prepared.train["end_positions"][:] == [0, 6]
    assert prepared.text == "questions on a context: 1 train (2 windows), 1 validation (2 windows)"


def test_a_question_without_an_answer_points_at_cls(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    none = question(answers={"text": [], "answer_start": []})
    prepared = prepare(tokenizer, tmp_path, question(), {**none, "id": "2"}, max_length=64)
    assert prepared.train is not None
    assert prepared.train["start_positions"][:] == [4 + 9, 0]
    assert prepared.train["end_positions"][:] == [4 + 10, 0]


def test_part_of_a_word_takes_the_tokens_it_is_in(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    row = question(context="a qxyz .", answers={"text": ["xy"], "answer_start": [3]})
    prepared = prepare(tokenizer, tmp_path, row)
    [window] = list(prepared.train or ())
    span = window["input_ids"][window["start_positions"] : window["end_positions"] + 1]
    assert tokenizer.convert_ids_to_tokens(span) == ["##x", "##y"]


def test_the_trainer_sees_columns_of_the_model_alone(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    prepared = prepare(tokenizer, tmp_path, question())
    assert isinstance(prepared.validation, Dataset)
    assert set(prepared.validation.column_names) == {
        "input_ids",
        "token_type_ids",
        "attention_mask",
        "start_positions",
        "end_positions",
    }


def test_figures_are_of_questions_not_of_windows(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, tmp_path, question(), max_length=15, doc_stride=2)
    assert prepared.compute_metrics is not None
    labels = right_labels(prepared)
    right = EvalPrediction(logits(prepared, {1: (5, 6)}), labels)
    assert prepared.compute_metrics(right) == {"exact_match": 100.0, "f1": 100.0}
    half = EvalPrediction(logits(prepared, {1: (5, 5)}), labels)
    assert prepared.compute_metrics(half) == {
        "exact_match": 0.0,
        "f1": pytest.approx(100 * 2 / 3),
    }


def test_the_rules_of_version_2_hold_where_a_question_has_no_answer(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    none = question(id="2", answers={"text": [], "answer_start": []})
    prepared = prepare(tokenizer, tmp_path, question(), none, max_length=64)
    assert prepared.compute_metrics is not None
    guess = EvalPrediction(logits(prepared, {0: (13, 14), 1: (0, 0)}), right_labels(prepared))
    assert prepared.compute_metrics(guess)["f1_unanswerable"] == 100.0
    assert prepared.compute_metrics(guess)["f1"] == 100.0


def test_windows_out_of_order_are_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, tmp_path, question(), max_length=15, doc_stride=2)
    assert prepared.compute_metrics is not None
    starts, ends = right_labels(prepared)
    shuffled = EvalPrediction(logits(prepared, {}), (starts[::-1], ends[::-1]))
    with pytest.raises(DataError, match="in their order"):
        prepared.compute_metrics(shuffled)


def test_long_questions_are_cut_so_that_windows_move_on(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    prepared = prepare(tokenizer, tmp_path, question(question="  who " + "the cat " * 50))
    for row in prepared.train or ():
        assert len(row["input_ids"]) <= 18
        assert sum(kind == 0 for kind in row["token_type_ids"]) == 2 + (18 - 2 - 3 - 8)


@pytest.mark.parametrize(
    ("row", "options", "error", "message"),
    [
        (
            question(answers={"text": ["ran"], "answer_start": [START + 1]}),
            {},
            DataError,
            "'ran' is not at letter",
        ),
        ({"question": "q", "context": "c"}, {}, DataError, "no column 'answers'"),
        ({"question": "q", "passage": "c"}, {}, DataError, "no column 'context'"),
        (question(), {"text_columns": ["question"]}, ConfigError, "and the context's"),
        (question(), {"max_length": 16, "doc_stride": 8}, ConfigError, "no room for a question"),
    ],
)
def test_what_cannot_be_answered(
    tokenizer: BertTokenizer,
    tmp_path: Path,
    row: dict[str, Any],
    options: dict[str, Any],
    error: type,
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        prepare(tokenizer, tmp_path, row, **options)


def test_padding_on_the_left_is_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    tokenizer.padding_side = "left"
    try:
        with pytest.raises(ConfigError, match="padding_side='right'"):
            prepare(tokenizer, tmp_path, question())
    finally:
        tokenizer.padding_side = "right"


def test_two_questions_of_one_id_are_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="same id"):
        prepare(tokenizer, tmp_path, question(), question())
