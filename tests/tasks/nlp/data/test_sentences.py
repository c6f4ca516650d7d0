from __future__ import annotations

from taskdistill.tasks.nlp.data.sentences import sentences


def test_sentences_end_at_marks_and_lines() -> None:
    assert sentences('He said "no." She left! (Was it 3.5?) 7 came, e.g. we.\n\n Yes') == [
        'He said "no."',
        "She left!",
        "(Was it 3.5?)",
        "7 came, e.g. we.",
        "Yes",
    ]


def test_nothing_has_no_sentences() -> None:
    assert sentences(" \n") == []
