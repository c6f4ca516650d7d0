from __future__ import annotations

from pathlib import Path

import pytest

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data.conll import read_conll


def test_first_and_last_column_of_every_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("-DOCSTART- -X- -X- O\n\nAda NNP I-NP B-PER\n. . O O\n\n\nYes\tUH\tO\n")
    assert read_conll(file)[:] == {
        "tokens": [["Ada", "."], ["Yes"]],
        "ner_tags": [["B-PER", "O"], ["O"]],
    }


def test_a_word_without_a_tag_is_said_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Ada B-PER\nwrote\n")
    with pytest.raises(DataError, match="line 2 has the single column 'wrote'"):
        read_conll(file)


def test_a_file_without_sentences_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n-DOCSTART- O\n\n")
    with pytest.raises(DataError, match="has no rows"):
        read_conll(file)
