"""Sentences, or pairs of them, with a class or a score each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, Value
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ....core.errors import ConfigError, DataError
from .arguments import DataArguments
from .columns import find_text_columns, first_of, require_column, require_text
from .encoding import check_texts, encode_rows, padding
from .glue import GLUE
from .labels import Labels, is_label
from .metrics import classification_metrics, regression_metrics
from .prepared import Prepared
from .reading import logits_only
from .sources import Splits

__all__ = ["prepare_classification"]


def prepare_classification(
    args: DataArguments, splits: Splits, tokenizer: PreTrainedTokenizerBase
) -> Prepared:
    """Tokenise sentences or pairs, number their labels, and choose what is measured.

    Labels that are strings or integers are classes, real numbers are scores to predict.

    Args:
        args: What the data are.
        splits: Their rows.
        tokenizer: A fast one.

    Raises:
        ConfigError: If a row has several labels.
        DataError: If a column is missing, or a label is unknown.
    """
    # Classes are those of the whole set: part of it may lack a rare one.
    first = next(iter(splits.each().values()))
    texts = find_text_columns(first, args)
    label = _label_column(first, args)
    names, is_score = _kind_of_label(first, label, args)
    if is_score:
        labels = None
        config: dict[str, Any] = {
            "num_labels": 1,
            "id2label": {0: "score"},
            "label2id": {"score": 0},
            "problem_type": "regression",
        }
        metrics = GLUE[args.task].metrics if args.task in GLUE else ("spearmanr", "pearson")
    else:
        labels = Labels.of(_values(first, label), names)
        config = {**labels.config, "problem_type": "single_label_classification"}
        metrics = GLUE[args.task].metrics if args.task in GLUE else ("accuracy", "f1_macro")

    splits = splits.with_validation(args.validation_split).limited(args)

    def encode(rows: Dataset, name: str) -> Dataset:
        for column in texts:
            require_text(rows, column)
        rows = _with_labels(rows, label, labels, name)
        function = partial(
            _encode,
            texts=texts,
            labelled="labels" in rows.column_names,
            tokenizer=tokenizer,
            max_length=args.max_length,
        )
        return encode_rows(rows, function, args)

    done = splits.map(encode)
    several = next(iter(done.validation), "")
    return Prepared(
        model_class="AutoModelForSequenceClassification",
        config=config,
        train=done.train,
        validation=done.for_trainer,
        test=done.test,
        collator=DataCollatorWithPadding(tokenizer, **padding(args)),
        compute_metrics=(regression_metrics if is_score else classification_metrics)(metrics),
        preprocess_logits_for_metrics=logits_only,
        metric=f"{several}_{metrics[0]}" if several else metrics[0],
        greater_is_better=True,
        text=_text(splits.each(), texts, labels),
    )


def _label_column(rows: Dataset, args: DataArguments) -> str:
    if args.label_column != "label":
        return require_column(rows, args.label_column)
    return first_of(rows, ("label", "labels"))


def _kind_of_label(rows: Dataset, column: str, args: DataArguments) -> tuple[Sequence[str], bool]:
    """The names of the classes where they are known, and whether it is a score instead."""
    feature = rows.features[column]
    glue = GLUE.get(args.task)
    if glue is not None and not glue.labels:
        return (), True
    if isinstance(feature, ClassLabel):
        return feature.names, False
    if not isinstance(feature, Value):
        raise ConfigError(
            f"Column {column!r} holds {feature}: several labels a row. One label a row can be "
            "learnt: a string or an integer for a class, a real number for a score."
        )
    if glue is not None:
        return glue.labels, False
    return (), feature.dtype.startswith("float")


def _values(rows: Dataset, column: str) -> list[Any]:
    values = rows[column][:]
    return [int(value) if isinstance(value, bool) else value for value in values]


def _with_labels(rows: Dataset, column: str, labels: Labels | None, name: str) -> Dataset:
    """The rows with a column ``labels``; without one where a test set keeps them secret."""
    if column not in rows.column_names and name == "test":
        return rows
    values = _values(rows, require_column(rows, column))
    if labels is None:
        wrong = [v for v in values if v is not None and not isinstance(v, (int, float))]
        if wrong:
            raise DataError(f"{name} has the score {wrong[0]!r} in {column!r}; expected a number.")
        numbers: list[Any] = [None if v is None or v != v else float(v) for v in values]
        secret = name == "test" and all(v is None or v < 0 for v in numbers)
    else:
        if isinstance(rows.features[column], ClassLabel):
            names = rows.features[column].names
            values = [names[v] if is_label(v) else None for v in values]
            values = _in_terms_of(labels, values)
        numbers = list(labels.encode(values, name))
        secret = name == "test" and all(v is None for v in numbers)
    rest = rows.remove_columns([c for c in (column, "labels") if c in rows.column_names])
    if secret:
        return rest
    if None in numbers:
        raise DataError(
            f"Row {numbers.index(None)} of {name} has no label in column {column!r}. Rows without "
            "one have to be left out."
        )
    feature = Value("float32" if labels is None else "int64")
    return rest.add_column("labels", numbers, feature=feature)  # pyright: ignore[reportCallIssue]


def _in_terms_of(labels: Labels, names: list[str | None]) -> list[Any]:
    """Names of a ClassLabel as the labels' own values, so that two sets may number differently."""
    value_of = dict(zip(labels.names, labels.values, strict=True))
    return [None if name is None else value_of.get(name, name) for name in names]


def _encode(
    batch: dict[str, list[Any]],
    texts: Sequence[str],
    labelled: bool,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, list[Any]]:
    for column in texts:
        check_texts(batch[column], column)
    pair = batch[texts[1]] if len(texts) > 1 else None
    encoded = tokenizer(batch[texts[0]], pair, truncation=True, max_length=max_length)
    return {**encoded, "labels": batch["labels"]} if labelled else dict(encoded)


def _text(sets: dict[str, Dataset], texts: Sequence[str], labels: Labels | None) -> str:
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in sets.items())
    what = "sentences" if len(texts) == 1 else "pairs of sentences"
    if labels is None:
        return f"{what}: {counts}; a score each"
    names = labels.names if len(labels.names) <= 8 else (*labels.names[:7], "...")
    return f"{what}: {counts}; {len(labels.names)} classes ({', '.join(names)})"
