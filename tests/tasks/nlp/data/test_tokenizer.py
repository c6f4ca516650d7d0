from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.nlp.data import tokenizer_from_vocab, topic_passages, train_wordpiece

TEXTS = ["the lowest tower is lower than the newest tower", "newer towers are never low"] * 2
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def entries(tokenizer: object) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def test_special_tokens_and_letters_come_first() -> None:
    found = entries(train_wordpiece(TEXTS, 60))
    assert found[:5] == SPECIAL
    letters = sorted({letter for text in TEXTS for letter in text if letter != " "})
    assert found[5 : 5 + len(letters)] == letters
    assert len(found) <= 60


def test_the_same_texts_give_the_same_vocabulary() -> None:
    # The trainer's hash maps are in another order every time, within a process too.
    texts = [passage.text for passage in topic_passages()]
    first = train_wordpiece(texts, 2000).get_vocab()
    assert len(first) == 2000
    assert all(train_wordpiece(texts, 2000).get_vocab() == first for _ in range(5))


def test_case_is_kept_where_it_matters() -> None:
    assert "T" in train_wordpiece(["Tor Tor"], 20, lowercase=False).get_vocab()
    assert "T" not in train_wordpiece(["Tor Tor"], 20).get_vocab()
    assert train_wordpiece(["tor tor"], 20).tokenize("TÖR") == ["tor"]


def test_it_is_saved_whole(tmp_path: Path) -> None:
    made = train_wordpiece(TEXTS, 60, lowercase=False)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert entries(loaded) == entries(made)
    pair = ("the lowest", "Newer tower")
    assert loaded(*pair)["input_ids"] == made(*pair)["input_ids"]
    assert loaded.is_fast and loaded.mask_token == "[MASK]"


def test_a_vocabulary_file(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[unused0]", *SPECIAL[1:], "low", "##er"]) + "\n")
    tokenizer = tokenizer_from_vocab(file)
    assert tokenizer("Lower")["input_ids"] == [3, 6, 7, 4]
    assert tokenizer.pad_token_id == 0
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded("Lower")["input_ids"] == [3, 6, 7, 4]
    assert tokenizer_from_vocab(file, lowercase=False)("Lower")["input_ids"] == [3, 2, 4]


def test_vocabularies_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="vocab_size=10 is too small.* entries already"):
        train_wordpiece(TEXTS, 10)
    with pytest.raises(DataError, match="no words in the texts"):
        train_wordpiece(["", "  "], 10)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "There is no vocabulary file"),
        (["[PAD]", "a"], r"lacks \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ([*SPECIAL, "a", "a"], "the entry 'a' more than once"),
    ],
)
def test_files_that_are_no_vocabulary(
    tmp_path: Path, lines: list[str] | None, message: str
) -> None:
    file = tmp_path / "vocab.txt"
    if lines is not None:
        file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        tokenizer_from_vocab(file)


@pytest.mark.data
def test_berts_own_vocabulary() -> None:
    file = Path(os.environ["TASKDISTILL_DATA"], "sst2", "bert_uncased_vocab.txt")
    tokenizer = tokenizer_from_vocab(file)
    assert len(tokenizer) == 30522
    assert tokenizer("Hello world")["input_ids"] == [101, 7592, 2088, 102]
