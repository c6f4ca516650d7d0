from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import BertTokenizer

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data import DataArguments, Prepared, prepare_data

LINES = ["the cat sat on a mat .", "a dog ran in the big park .", "was it good ?", "yes"]


def prepare(
    tokenizer: BertTokenizer, folder: Path, text: str, seed: int = 0, **options: Any
) -> Prepared:
    (folder / "a.txt").write_text(text)
    file = str(folder / "a.txt")
    args = DataArguments("masked_lm", train_file=file, validation_file=file, **options)
    return prepare_data(args, tokenizer, seed=seed)


def test_blocks_hold_all_tokens_in_their_order(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, tmp_path, "\n".join(LINES), max_length=11)
    ids = tokenizer(LINES, add_special_tokens=False)["input_ids"]
    sep, cls = tokenizer.sep_token_id, tokenizer.cls_token_id
    stream = [token for line in ids for token in (*line, sep)][:-1]
    assert prepared.train is not None
    blocks = prepared.train["input_ids"][:]
    assert all(block[0] == cls and block[-1] == sep for block in blocks)
    assert [len(block) for block in blocks] == [11] * (len(stream) // 9) + [2 + len(stream) % 9]
    assert [token for block in blocks for token in block[1:-1]] == stream
    assert prepared.text == "blocks of at most 11 tokens: 3 train, 3 validation"


def test_line_by_line(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    text = "\n\n".join(LINES)
    prepared = prepare(tokenizer, tmp_path, text, max_length=8, line_by_line=True)
    assert prepared.train is not None
    expected = [tokenizer(line, truncation=True, max_length=8)["input_ids"] for line in LINES]
    assert prepared.train["input_ids"][:] == expected


def test_validation_is_masked_once_whatever_the_seed(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    one, two = (prepare(tokenizer, tmp_path, "\n".join(LINES), seed) for seed in (1, 2))
    assert isinstance(one.validation, Dataset) and isinstance(two.validation, Dataset)
    assert one.validation[:] == two.validation[:]
    assert "labels" in one.validation.column_names
    assert one.train is not None and "labels" not in one.train.column_names
    rows = list(one.train)
    assert one.collator(rows)["labels"].tolist() != two.collator(rows)["labels"].tolist()


def test_what_decides_and_which_head(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, tmp_path, "\n".join(LINES))
    assert prepared.model_class == "AutoModelForMaskedLM"
    assert (prepared.metric, prepared.greater_is_better) == ("perplexity", False)


def test_samples_are_blocks(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, tmp_path, "\n".join(LINES), max_length=10, max_train_samples=2)
    assert prepared.train is not None and len(prepared.train) == 2


def test_text_of_blanks_alone_is_said(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text in column 'text'"):
        prepare(tokenizer, tmp_path, " \n\n  \n")
