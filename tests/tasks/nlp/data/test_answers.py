from __future__ import annotations

import numpy as np

from taskdistill.tasks.nlp.data.answers import best_answers

NOWHERE = (-1, -1)
CONTEXT = {"q": "one two three four"}
FIRST = np.array([(-2, -2), NOWHERE, (0, 3), (4, 7), (8, 13), NOWHERE])
SECOND = np.array([(-2, -2), NOWHERE, (8, 13), (14, 18), NOWHERE])


def logits(*places: tuple[int, float]) -> np.ndarray:
    values = np.full(8, -5.0)
    for place, value in places:
        values[place] = value
    return values


def answer(*windows: tuple[np.ndarray, np.ndarray, np.ndarray], **options: object) -> str:
    found = best_answers(
        CONTEXT,
        [("q", places) for places, _, _ in windows],
        np.array([start for _, start, _ in windows]),
        np.array([end for _, _, end in windows]),
        **{"may_be_none": False, **options},
    )
    return found["q"]


def test_the_best_span_of_all_windows_wins() -> None:
    assert (
        answer(
            (FIRST, logits((2, 1)), logits((3, 1))),
            (SECOND, logits((2, 2)), logits((3, 2))),
        )
        == "three four"
    )


def test_a_span_ends_behind_its_start_and_is_no_longer_than_allowed() -> None:
    window = (FIRST, logits((4, 9), (2, 3)), logits((2, 8), (4, 4)))
    # Start 4 with end 2 scores 17, but is backwards; 4 to 4 scores 13 and 2 to 2 11.
    assert answer(window) == "three"
    window = (FIRST, logits((2, 9)), logits((4, 9), (2, 1)))
    assert answer(window) == "one two three"
    assert answer(window, longest=2) == "one"


def test_what_is_no_context_is_never_an_answer() -> None:
    window = (FIRST, logits((1, 9), (3, 1)), logits((5, 9), (7, 9), (3, 1)))
    assert answer(window) == "two"


def test_no_answer_wins_where_it_may() -> None:
    window = (FIRST, logits((0, 5), (3, 1)), logits((0, 5), (3, 1)))
    assert answer(window) == "two"
    assert answer(window, may_be_none=True) == ""
    assert answer(window, may_be_none=True, threshold=8.0) == "two"


def test_no_answer_scores_as_in_the_window_that_says_so_least() -> None:
    sure = (FIRST, logits((0, 9)), logits((0, 9)))
    found = (SECOND, logits((0, 1), (3, 2)), logits((0, 1), (3, 2)))
    assert answer(sure, found, may_be_none=True) == "four"


def test_a_window_without_any_context_answers_nothing() -> None:
    window = (np.array([(-2, -2), NOWHERE]), logits((0, 1)), logits((0, 1)))
    assert answer(window) == ""
