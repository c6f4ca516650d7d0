"""From logits of windows to the answers of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["best_answers"]

_CLS = -2  # offset of the token that says that there is no answer


def best_answers(
    contexts: Mapping[str, str],
    windows: Sequence[tuple[str, np.ndarray]],
    starts: np.ndarray,
    ends: np.ndarray,
    *,
    may_be_none: bool,
    candidates: int = 20,
    longest: int = 30,
    threshold: float = 0.0,
) -> dict[str, str]:
    """The best span of every question.

    A span scores the logit of its start plus that of its end, and the best over all windows wins.
    That there is no answer scores what CLS does, in the window where that is least.

    Args:
        contexts: The text, by question.
        windows: Per window the question and its tokens' places in the context, shape
            ``(tokens, 2)``: from and to; ``(-1, -1)`` is none, ``(-2, -2)`` marks CLS.
        starts: Logits of starts, shape ``(windows, length)``; what is behind a window's tokens is
            padding.
        ends: Logits of ends, the same.
        may_be_none: Whether a question may have no answer (SQuAD 2.0).
        candidates: How many of the best starts are tried with as many of the best ends.
        longest: Tokens of the longest answer.
        threshold: By how much no answer has to score above the best span.

    Returns:
        The answer by question; ``""`` where there is none.

    Example:
        >>> places = np.array([(-2, -2), (-1, -1), (0, 3), (4, 7)])
        >>> best_answers({"q": "the cat"}, [("q", places)], np.array([[0, 9, 1, 2.0]]),
        ...              np.array([[0, 9, 1, 2.0]]), may_be_none=False)
        {'q': 'cat'}

    Reference:
        Devlin et al., BERT, NAACL 2019, sections 4.2 and 4.3.
    """
    best: dict[str, tuple[float, str]] = {name: (-np.inf, "") for name in contexts}
    none = dict.fromkeys(contexts, np.inf)
    for (name, where), start, end in zip(windows, starts, ends, strict=True):
        start, end = start[: len(where)], end[: len(where)]
        [cls] = np.flatnonzero(where[:, 0] == _CLS)
        none[name] = min(none[name], float(start[cls] + end[cls]))
        inside = np.flatnonzero(where[:, 0] >= 0)
        firsts = inside[np.argsort(-start[inside], kind="stable")[:candidates]]
        lasts = inside[np.argsort(-end[inside], kind="stable")[:candidates]]
        scores = start[firsts][:, None] + end[lasts][None, :]
        length = lasts[None, :] - firsts[:, None] + 1
        scores = np.where((length >= 1) & (length <= longest), scores, -np.inf)
        if scores.size and scores.max() > best[name][0]:
            row, column = np.unravel_index(scores.argmax(), scores.shape)
            span = slice(where[firsts[row], 0], where[lasts[column], 1])
            best[name] = (float(scores.max()), contexts[name][span])
    return {
        name: "" if may_be_none and none[name] > score + threshold else text
        for name, (score, text) in best.items()
    }
