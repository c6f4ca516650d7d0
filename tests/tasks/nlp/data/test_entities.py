from __future__ import annotations

import pytest

from taskdistill.tasks.nlp.data.entities import entities, entity_scores, marks_entities


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-A I-A I-A", {("A", 0, 3)}),
        ("B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("B-A I-B", {("A", 0, 1), ("B", 1, 2)}),  # another type ends one and begins one
        ("O I-A I-A", {("A", 1, 3)}),  # IOB1
        ("I-A O I-A", {("A", 0, 1), ("A", 2, 3)}),
        ("I-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("S-A B-B I-B E-B I-B", {("A", 0, 1), ("B", 1, 4), ("B", 4, 5)}),  # IOBES
        ("E-A E-A", {("A", 0, 1), ("A", 1, 2)}),
        ("B-A-1 I-A-1", {("A-1", 0, 2)}),
        ("B I O", {("", 0, 2)}),
    ],
)
def test_where_entities_begin_and_end(tags: str, expected: set) -> None:
    assert entities(tags.split()) == expected


def test_scores_counted_by_hand() -> None:
    right = ["B-PER I-PER O B-LOC", "O B-ORG O B-ORG"]
    predicted = ["B-PER I-PER O B-ORG", "O B-ORG O O"]
    scores = entity_scores([p.split() for p in predicted], [r.split() for r in right])
    # Proposed 3, there 4, right in span and type 2.
    assert scores == {"precision": 2 / 3, "recall": 2 / 4, "f1": pytest.approx(4 / 7)}


def test_a_span_too_short_is_no_hit_and_nothing_at_all_scores_nothing() -> None:
    assert entity_scores([["B-A", "O"]], [["B-A", "I-A"]])["f1"] == 0.0
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_spans_of_two_sentences_are_not_confused() -> None:
    assert entity_scores([["B-A"], ["O"]], [["O"], ["B-A"]])["f1"] == 0.0


def test_what_tags_mean() -> None:
    assert marks_entities(["O", "B-X", "I-X"]) and marks_entities(["B", "I", "O"])
    assert not marks_entities(["NN", "O"])
    assert not marks_entities(["O"])
