from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import BertTokenizer

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data import DataArguments, Prepared, prepare_data
from taskdistill.tasks.nlp.data.pretraining import make_pairs

# Sentence s of document d is the tokens 100 d + 10 s + 0, 1, 2.
DOCUMENTS = [[[100 * d + 10 * s + t for t in range(3)] for s in range(9)] for d in range(40)]
PAIRS = list(make_pairs(DOCUMENTS, 16, random.Random(0)))


def document_of(piece: list[int]) -> set[int]:
    return {token // 100 for token in piece}


def test_a_second_piece_follows_or_is_from_another_document() -> None:
    for first, second, label in PAIRS:
        assert len(document_of(first)) == len(document_of(second)) == 1
        assert (document_of(first) != document_of(second)) == bool(label)
        if label == 0:
            assert first[-1] < second[0]
    assert 0.4 < sum(label for *_, label in PAIRS) / len(PAIRS) < 0.6


def test_following_pieces_are_next_to_one_another() -> None:
    untouched = [(a, b) for a, b, label in PAIRS if not label and len(a) + len(b) < 16]
    assert untouched
    for first, second in untouched:
        assert second[0] - first[-1] == 10 - 2


def test_pairs_fill_the_length_and_never_more() -> None:
    lengths = [len(first) + len(second) for first, second, _ in PAIRS]
    assert max(lengths) == 16
    assert sum(length == 16 for length in lengths) > len(lengths) / 2
    assert all(first and second for first, second, _ in PAIRS)


def test_one_document_has_only_following_pieces() -> None:
    pairs = list(make_pairs(DOCUMENTS[:1], 16, random.Random(0)))
    assert pairs and all(label == 0 for *_, label in pairs)


def test_a_single_sentence_makes_no_pair() -> None:
    assert list(make_pairs([[[1, 2]], [[3]]], 16, random.Random(0))) == []


TEXT = "The cat sat on a mat. A dog ran in the park.\nWas it good? No one knew.\n"


def prepare(
    tokenizer: BertTokenizer, folder: Path, text: str, seed: int = 0, **options: Any
) -> Prepared:
    (folder / "a.txt").write_text(text)
    file = str(folder / "a.txt")
    args = DataArguments("pretraining", train_file=file, validation_file=file, **options)
    return prepare_data(args, tokenizer, seed=seed)


def test_columns_are_those_of_the_heads(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    prepared = prepare(tokenizer, tmp_path, f"{TEXT}\n" * 8, max_length=20)
    assert prepared.model_class == "AutoModelForPreTraining"
    assert prepared.train is not None and isinstance(prepared.validation, Dataset)
    columns = {"input_ids", "token_type_ids", "attention_mask", "next_sentence_label"}
    assert set(prepared.train.column_names) == columns
    assert set(prepared.validation.column_names) == {*columns, "labels"}
    for row in prepared.train:
        tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert tokens[0] == "[CLS]" and tokens.count("[SEP]") == 2 and len(tokens) <= 20
        first = tokens.index("[SEP]") + 1
        assert row["token_type_ids"] == [0] * first + [1] * (len(tokens) - first)
    batch = prepared.collator([prepared.train[i] for i in range(4)])
    assert set(batch) == {*columns, "labels"}
    assert batch["next_sentence_label"].shape == (4,)


def test_the_seed_draws_training_pairs_and_leaves_validation_alone(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    one, two, three = (prepare(tokenizer, tmp_path, f"{TEXT}\n" * 8, seed) for seed in (1, 2, 1))
    assert one.train is not None and two.train is not None and three.train is not None
    assert isinstance(one.validation, Dataset) and isinstance(two.validation, Dataset)
    assert one.train[:] == three.train[:]
    assert one.train[:] != two.train[:]
    assert one.validation[:] == two.validation[:]


def test_texts_that_make_no_pairs(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'train' is one document.*blank lines"):
        prepare(tokenizer, tmp_path, f"\n{TEXT}\n")
    with pytest.raises(DataError, match="its documents are single sentences"):
        prepare(tokenizer, tmp_path, "the cat\n\na dog\n")
