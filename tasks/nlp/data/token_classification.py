"""A tag for every word: named entities, parts of speech."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value
from transformers import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from ....core.errors import DataError
from .arguments import DataArguments
from .columns import first_of, require_column
from .encoding import encode_rows, padding
from .entities import entity_scores, marks_entities
from .labels import Labels
from .prepared import Prepared
from .reading import chosen_classes
from .sources import Splits

__all__ = ["IGNORED", "prepare_token_classification"]

IGNORED = -100
"""The label of a token that is not learnt; torch's cross-entropy leaves it out."""

_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "label", "pos_tags")

_log = logging.getLogger(__name__)


def prepare_token_classification(
    args: DataArguments, splits: Splits, tokenizer: PreTrainedTokenizerBase
) -> Prepared:
    """Tokenise lists of words, and give each word's tag to the first of its tokens.

    The other tokens of a word and special tokens are not learnt. Words behind ``max_length`` are
    cut off, and counted neither as found nor as missed; the log says how many.

    Args:
        args: What the data are.
        splits: Rows with a list of words and a list of tags.
        tokenizer: A fast one.

    Raises:
        DataError: If a column is missing or no list, or words and tags differ in number.
    """
    # Tags are those of the whole set: part of it may lack a rare one.
    first = next(iter(splits.each().values()))
    words = args.text_columns[0] if args.text_columns else first_of(first, _WORDS)
    given = args.label_column != "label"
    tags = require_column(first, args.label_column) if given else first_of(first, _TAGS)
    labels = Labels.of(_all_tags(first, tags), _names(first, tags))
    splits = splits.with_validation(args.validation_split).limited(args)
    encode = partial(
        _encode_set, args=args, words=words, tags=tags, labels=labels, tokenizer=tokenizer
    )
    done = splits.map(encode)
    of_entities = marks_entities(labels.names)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in splits.each().items())
    return Prepared(
        model_class="AutoModelForTokenClassification",
        config=labels.config,
        train=done.train,
        validation=done.for_trainer,
        test=done.test,
        collator=DataCollatorForTokenClassification(tokenizer, **padding(args)),
        compute_metrics=partial(_metrics, names=labels.names, of_entities=of_entities),
        preprocess_logits_for_metrics=chosen_classes,
        metric="f1" if of_entities else "accuracy",
        greater_is_better=True,
        text=f"sentences of tagged words: {counts}; {len(labels.names)} tags",
    )


def _names(rows: Dataset, column: str) -> Sequence[str]:
    feature = getattr(rows.features[column], "feature", None)
    return feature.names if isinstance(feature, ClassLabel) else ()


def _all_tags(rows: Dataset, column: str) -> set[Any]:
    feature = rows.features[column]
    if not isinstance(feature, List) or not isinstance(feature.feature, (Value, ClassLabel)):
        raise DataError(f"Column {column!r} holds {feature}; expected a list of tags a row.")
    return {tag for row in rows[column] for tag in row}


def _encode_set(
    rows: Dataset,
    name: str,
    args: DataArguments,
    words: str,
    tags: str,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    require_column(rows, words)
    require_column(rows, tags)
    _all_tags(rows, tags)
    if not isinstance(rows.features[words], List):
        raise DataError(f"Column {words!r} holds {rows.features[words]}; expected a list of words.")
    function = partial(
        _encode,
        name=name,
        words=words,
        tags=tags,
        labels=labels,
        tokenizer=tokenizer,
        max_length=args.max_length,
    )
    encoded = encode_rows(rows, function, args)
    lost = sum(encoded["lost"])
    if lost:
        _log.warning(
            "%d words of %s lie behind max_length=%d and are left out of training and scores.",
            lost,
            name,
            args.max_length,
        )
    return encoded.remove_columns("lost")


def _encode(
    batch: dict[str, list[Any]],
    name: str,
    words: str,
    tags: str,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, list[Any]]:
    encoded = tokenizer(
        batch[words], is_split_into_words=True, truncation=True, max_length=max_length
    )
    aligned, lost = [], []
    for index, (row_words, row_tags) in enumerate(zip(batch[words], batch[tags], strict=True)):
        if len(row_words) != len(row_tags):
            raise DataError(
                f"A row of {name} has {len(row_words)} words and {len(row_tags)} tags: {row_words}."
            )
        numbers = labels.encode(row_tags, name)
        if None in numbers:
            raise DataError(f"A word of {name} has no tag: {row_words}.")
        inside = encoded.word_ids(index)
        aligned.append(_first_tokens(inside, numbers))
        seen = [word for word in inside if word is not None]
        lost.append(len(row_words) - 1 - max(seen, default=-1))
    return {**encoded, "labels": aligned, "lost": lost}


def _first_tokens(word_of: Sequence[int | None], numbers: Sequence[Any]) -> list[int]:
    """The tag at the first token of each word, :data:`IGNORED` elsewhere."""
    labels, before = [], None
    for word in word_of:
        labels.append(IGNORED if word is None or word == before else numbers[word])
        before = word
    return labels


def _metrics(
    prediction: EvalPrediction, names: tuple[str, ...], of_entities: bool
) -> dict[str, float]:
    chosen = np.asarray(prediction.predictions)
    labels = np.asarray(prediction.label_ids)
    kept = labels != IGNORED
    scores = {"accuracy": float((chosen == labels)[kept].mean()) if kept.any() else 0.0}
    if not of_entities:
        return scores

    def tags(numbers: np.ndarray) -> list[list[str]]:
        return [[names[n] for n in row[k]] for row, k in zip(numbers, kept, strict=True)]

    return {**entity_scores(tags(chosen), tags(labels)), **scores}
