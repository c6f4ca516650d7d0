from __future__ import annotations

from pathlib import Path

import pytest

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data.squad import read_squad, squad_scores


def test_scores_counted_by_hand() -> None:
    answers = {"1": ["The Norman Conquest"], "2": ["1066", "in 1066"], "3": ["blue"]}
    found = {"1": "norman conquest!", "2": "year 1066", "3": "red"}
    # 1: equal without the article; 2: against "in 1066" 1 of 2 words each way, against "1066" 2/3.
    assert squad_scores(found, answers) == {
        "exact_match": pytest.approx(100 / 3),
        "f1": pytest.approx(100 * (1 + 2 / 3) / 3),
    }


def test_questions_without_an_answer_want_none() -> None:
    answers = {"1": ["cat"], "2": [], "3": []}
    scores = squad_scores({"1": "cat", "2": "", "3": "dog"}, answers)
    assert scores == {
        "exact_match": pytest.approx(200 / 3),
        "f1": pytest.approx(200 / 3),
        "exact_match_answerable": 100.0,
        "f1_answerable": 100.0,
        "exact_match_unanswerable": 50.0,
        "f1_unanswerable": 50.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [', "cannot be read as json"),
        ("3", "holds int; expected a list of questions"),
        ("[3]", "lists int"),
        ("[]", "has no questions"),
        ('[{"id": "7", "question": "q", "context": "c"}]', "question '7' has no 'answers'"),
        ('[{"question": "q", "answers": {"text": []}, "context": "c"}]', "no 'answer_start'"),
    ],
)
def test_files_that_are_no_questions(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_squad(file)
