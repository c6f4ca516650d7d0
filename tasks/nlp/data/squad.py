"""SQuAD's own file format, and the scores of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ....core.errors import DataError

__all__ = ["read_squad", "squad_scores"]

_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)


def read_squad(path: Path) -> Dataset:
    """Read questions with their contexts and answers.

    Args:
        path: A JSON file: SQuAD's own (``{"data": [{"paragraphs": ...}]}``, version 1.1 or 2.0),
            or rows with ``question``, ``context``, ``answers`` and perhaps ``id``: a list of them,
            a list under ``"data"``, or one a line.

    Returns:
        The columns ``id``, ``question``, ``context``, ``answers`` (``text``, ``answer_start``;
        both empty where there is no answer).

    Raises:
        DataError: If the file is no JSON or a question lacks something.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise DataError(f"{path} cannot be read as json: {error}") from error
    entries = content.get("data", [content]) if isinstance(content, Mapping) else content
    if not isinstance(entries, list):
        raise DataError(f"{path} holds {type(entries).__name__}; expected a list of questions.")
    rows: dict[str, list[Any]] = {name: [] for name in _FEATURES}
    for number, row in enumerate(_flattened(entries, path)):
        try:
            answers = row["answers"]
            if isinstance(answers, Mapping):
                pair = {key: list(answers[key]) for key in ("text", "answer_start")}
            else:
                pair = {key: [a[key] for a in answers] for key in ("text", "answer_start")}
            rows["question"].append(row["question"])
            rows["context"].append(row["context"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: question {row.get('id', number)!r} has no {error}; expected question, "
                "context and answers with text and answer_start."
            ) from error
        rows["answers"].append(pair)
        rows["id"].append(str(row.get("id", number)))
    if not rows["id"]:
        raise DataError(f"{path} has no questions.")
    return Dataset.from_dict(rows, features=_FEATURES)


def _flattened(entries: Sequence[Any], path: Path) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise DataError(f"{path} lists {type(entry).__name__}; expected questions as objects.")
        if "paragraphs" not in entry:
            yield dict(entry)
            continue
        for paragraph in entry["paragraphs"]:
            for question in paragraph.get("qas", ()):
                yield {**question, "context": paragraph.get("context")}


def squad_scores(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Exact match and F1 of words, in per cent, as SQuAD's evaluation scripts count them.

    Args:
        predictions: The predicted answer by question; ``""`` says that there is none.
        answers: The right answers by question; none where the question has no answer.

    Returns:
        ``exact_match`` and ``f1``, the mean over all questions; where some have an answer and some
        have none, of both kinds apart as well (``f1_answerable``, ``f1_unanswerable``, ...).

    Example:
        >>> squad_scores({"1": "the cat"}, {"1": ["A cat!", "some tabby cat"]})
        {'exact_match': 100.0, 'f1': 100.0}

    Reference:
        Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016;
        Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018.
    """
    with_answer = [name for name in answers if answers[name]]
    without = [name for name in answers if not answers[name]]
    scores = _scores(predictions, answers, list(answers))
    if with_answer and without:
        for kind, names in (("answerable", with_answer), ("unanswerable", without)):
            for metric, value in _scores(predictions, answers, names).items():
                scores[f"{metric}_{kind}"] = value
    return scores


def _scores(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, float]:
    # Imported here: it takes seconds, and the other tasks do without.
    from torchmetrics.functional.text import squad

    # "" is the answer to a question that has none: it matches the prediction "" alone.
    scores = squad(
        [{"id": name, "prediction_text": predictions[name]} for name in names],
        [
            {"id": name, "answers": {"text": list(answers[name]) or [""], "answer_start": []}}
            for name in names
        ],
    )
    return {name: float(scores[name]) for name in ("exact_match", "f1")}
