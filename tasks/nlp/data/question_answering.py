"""Questions whose answer is a span of a context: windows in, spans out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase

from ....core.errors import ConfigError, DataError
from .answers import best_answers
from .arguments import DataArguments
from .columns import require_column, require_text
from .encoding import Frame, encode_rows, padding
from .prepared import Prepared
from .reading import span_logits
from .sources import Splits
from .squad import squad_scores

__all__ = ["prepare_question_answering"]

_LONGEST_QUESTION = 64  # tokens, as in BERT's SQuAD runs
_LEAST_STEP = 8  # tokens that a window adds to the one before


def prepare_question_answering(
    args: DataArguments, splits: Splits, tokenizer: PreTrainedTokenizerBase
) -> Prepared:
    """Cut contexts into windows, each with its question, and mark the answer in every window.

    Windows overlap by ``doc_stride`` tokens. One that does not hold the whole answer points at its
    first special token (CLS), which is also how a question without an answer is learnt. Figures are
    of whole questions: the best span of all windows, over every right answer; the SQuAD 2.0 rules
    hold where a question of the validation set has no answer.

    Args:
        args: What the data are; ``text_columns`` are question and context.
        splits: Rows with ``question``, ``context``, ``answers`` and perhaps ``id``.
        tokenizer: A fast one, padding on the right.

    Raises:
        ConfigError: If windows would have no room, or the tokenizer has no CLS token.
        DataError: If a column is missing, or an answer is not where ``answer_start`` says.
    """
    _check(args, tokenizer)
    splits = splits.with_validation(args.validation_split).limited(args)
    columns = tuple(args.text_columns or ("question", "context"))
    for rows in splits.each().values():
        for column in columns:
            require_text(rows, column)
        require_column(rows, "answers")
    windows = splits.map(
        lambda rows, name: encode_rows(
            rows,
            partial(_encode, columns=columns, tokenizer=tokenizer, args=args),
            args,
            with_indices=True,
        )
    )
    trained = windows.map(lambda rows, name: rows.remove_columns(["offsets", "row"]))
    checked = None
    if splits.validation:
        [(key, rows)] = splits.validation.items()
        checked = _Questions.of(rows, windows.validation[key], columns[1])
    counts = ", ".join(
        f"{len(rows)} {name} ({len(windows.each()[name])} windows)"
        for name, rows in splits.each().items()
    )
    return Prepared(
        model_class="AutoModelForQuestionAnswering",
        config={},
        train=trained.train,
        validation=trained.for_trainer,
        test=trained.test,
        collator=DataCollatorWithPadding(tokenizer, **padding(args)),
        compute_metrics=checked.metrics if checked else None,
        preprocess_logits_for_metrics=span_logits,
        metric="f1",
        greater_is_better=True,
        text=f"questions on a context: {counts}",
    )


@dataclass(frozen=True)
class _Questions:
    """What answers are compared with.

    Args:
        contexts: The text, by question.
        answers: The right answers, by question; none where there is none.
        windows: Of which question each window is, and where its tokens are in the context.
        marks: The marked start of every window: tells whether windows come back in order.
    """

    contexts: dict[str, str]
    answers: dict[str, list[str]]
    windows: list[tuple[str, np.ndarray]]
    marks: np.ndarray

    @classmethod
    def of(cls, rows: Dataset, windows: Dataset, context: str) -> _Questions:
        count = len(rows)
        names = rows["id"][:] if "id" in rows.column_names else [str(i) for i in range(count)]
        if len(set(names)) < count:
            raise DataError("Two questions of the validation set have the same id.")
        return cls(
            dict(zip(names, rows[context], strict=True)),
            {name: list(a["text"]) for name, a in zip(names, rows["answers"], strict=True)},
            [
                (names[window["row"]], np.asarray(window["offsets"], dtype=np.int32))
                for window in map(dict, windows.select_columns(["row", "offsets"]))
            ],
            np.asarray(windows["start_positions"]),
        )

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Exact match and F1, from the logits ``(starts, ends)``, each ``(windows, length)``."""
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        starts, ends = logits
        if len(starts) != len(self.windows) or not np.array_equal(labels[0], self.marks):
            raise DataError(
                f"The predictions are of {len(starts)} windows; expected the {len(self.windows)} "
                "of the validation set in their order. Evaluate the whole set, unsorted."
            )
        found = best_answers(
            self.contexts,
            self.windows,
            starts,
            ends,
            may_be_none=not all(self.answers.values()),
        )
        return squad_scores(found, self.answers)


def _check(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.padding_side != "right" or tokenizer.truncation_side != "right":
        raise ConfigError(
            f"{type(tokenizer).__name__} pads or cuts on the left; questions are answered with "
            "padding_side='right' and truncation_side='right'."
        )
    if tokenizer.cls_token_id is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no CLS token, which windows without the answer point "
            "at."
        )
    if args.text_columns is not None and len(args.text_columns) != 2:
        raise ConfigError(
            f"text_columns={args.text_columns}: expected the question's column and the context's."
        )
    if _room_for_question(args, tokenizer) < 1:
        raise ConfigError(
            f"max_length={args.max_length} leaves no room for a question beside "
            f"doc_stride={args.doc_stride}: take a longer max_length (384 with 128 is usual)."
        )


def _room_for_question(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest question with which windows still move on."""
    free = args.max_length - args.doc_stride - Frame.of(tokenizer).pair_cost - _LEAST_STEP
    return min(_LONGEST_QUESTION, free)


def _encode(
    batch: dict[str, list[Any]],
    indices: Sequence[int],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    args: DataArguments,
) -> dict[str, list[Any]]:
    questions, contexts = (batch[column] for column in columns)
    encoded = tokenizer(
        _shortened(questions, tokenizer, _room_for_question(args, tokenizer)),
        contexts,
        truncation="only_second",
        max_length=args.max_length,
        stride=args.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    row_of = encoded.pop("overflow_to_sample_mapping")
    offsets = encoded.pop("offset_mapping")
    starts, ends, shown = [], [], []
    for window, row in enumerate(row_of):
        # (-1, -1): no token of the context.
        inside = [
            list(offset) if side == 1 else [-1, -1]
            for offset, side in zip(offsets[window], encoded.sequence_ids(window), strict=True)
        ]
        cls = encoded["input_ids"][window].index(tokenizer.cls_token_id)
        span = _answer(batch["answers"][row], contexts[row])
        start, end = _tokens(inside, span) or (cls, cls)
        inside[cls] = [-2, -2]  # found again when answers are read
        starts.append(start)
        ends.append(end)
        shown.append(inside)
    return {
        **encoded,
        "start_positions": starts,
        "end_positions": ends,
        "offsets": shown,
        "row": [indices[row] for row in row_of],
    }


def _shortened(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[str]:
    """Questions of so many tokens at most. Blanks in front, as SQuAD has some, are taken off."""
    stripped = [question.strip() for question in questions]
    encoded = tokenizer(
        stripped, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return [
        question if len(offsets) <= length else question[: offsets[length - 1][1]]
        for question, offsets in zip(stripped, encoded["offset_mapping"], strict=True)
    ]


def _answer(answers: Mapping[str, Any], context: str) -> tuple[int, int] | None:
    """Where the first right answer is, in letters."""
    if not answers["text"]:
        return None
    text, start = answers["text"][0], answers["answer_start"][0]
    if context[start : start + len(text)] != text:
        raise DataError(
            f"The answer {text!r} is not at letter {start} of its context, where there is "
            f"{context[start : start + len(text)]!r}. Is answer_start counted in letters from 0?"
        )
    if not text.strip():
        return None
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip())


def _tokens(
    offsets: Sequence[Sequence[int]], span: tuple[int, int] | None
) -> tuple[int, int] | None:
    """First and last token of a span, where all of it is in the window."""
    if span is None:
        return None
    first, last = span
    start = [i for i, (a, b) in enumerate(offsets) if 0 <= a <= first < b]
    end = [i for i, (a, b) in enumerate(offsets) if 0 <= a < last <= b]
    return (start[0], end[-1]) if start and end else None
