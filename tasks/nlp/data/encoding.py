"""Text into tokens: what every task asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ....core.errors import ConfigError, DataError
from .arguments import DataArguments

__all__ = ["Frame", "check_texts", "check_tokenizer", "encode_rows", "padding"]


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around one or two sequences.

    Args:
        before: In front of the first.
        between: Between both.
        after: Behind the last.
        types: Token types of a pair's two halves; ``None`` where the tokenizer has none.

    Example:
        >>> frame = Frame((2,), (3,), (3,), (0, 1))
        >>> frame.single([7, 8])
        [2, 7, 8, 3]
        >>> frame.pair([7], [8, 9])
        ([2, 7, 3, 8, 9, 3], [0, 0, 0, 1, 1, 1])
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int] | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Read it off an encoded pair."""
        encoded = tokenizer("a", "b", return_special_tokens_mask=True)
        ids: list[int] = encoded["input_ids"]
        special: list[int] = encoded["special_tokens_mask"]
        sides = encoded.sequence_ids()
        first, second = sides.index(0), sides.index(1)
        first_end = len(sides) - sides[::-1].index(0)
        second_end = len(sides) - sides[::-1].index(1)
        runs = ((0, first), (first_end, second), (second_end, len(ids)))
        before, between, after = (
            tuple(i for i, is_special in zip(ids[a:b], special[a:b], strict=True) if is_special)
            for a, b in runs
        )
        kinds = encoded.get("token_type_ids")
        return cls(before, between, after, (kinds[first], kinds[second]) if kinds else None)

    def single(self, ids: Sequence[int]) -> list[int]:
        """One sequence with its special tokens."""
        return [*self.before, *ids, *self.after]

    def pair(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
        """Two sequences with their special tokens, and the token types."""
        head = [*self.before, *first, *self.between]
        tail = [*second, *self.after]
        one, two = self.types or (0, 0)
        return head + tail, [one] * len(head) + [two] * len(tail)

    @property
    def single_cost(self) -> int:
        """How many tokens it adds to one sequence."""
        return len(self.before) + len(self.after)

    @property
    def pair_cost(self) -> int:
        """How many tokens it adds to two sequences."""
        return self.single_cost + len(self.between)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> None:
    """Whether the task can be done with a tokenizer.

    Raises:
        ConfigError: If it is a slow one, has no padding token, has no mask token where words are
            masked, or is for shorter texts than ``max_length``.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{name} is a tokenizer in plain Python, which cannot say where in a text its tokens "
            "are. Take one of the `tokenizers` library: AutoTokenizer gives it by default."
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"{name} has no padding token, so that no batch can be made: set tokenizer.pad_token."
        )
    if args.kind in ("masked_lm", "pretraining") and tokenizer.mask_token_id is None:
        raise ConfigError(
            f"{name} has no mask token, which task {args.task!r} needs: take the tokenizer of a "
            "model that was pre-trained with masks."
        )
    if args.max_length > tokenizer.model_max_length:
        raise ConfigError(
            f"max_length={args.max_length} is longer than the {tokenizer.model_max_length} tokens "
            f"that {name} says its model takes."
        )


def padding(args: DataArguments) -> dict[str, Any]:
    """How a collator pads: the arguments ``padding`` and ``max_length``."""
    if args.pad_to_max_length:
        return {"padding": "max_length", "max_length": args.max_length}
    return {"padding": True}


def check_texts(texts: Sequence[str | None], column: str) -> None:
    """Whether every row has a text.

    Raises:
        DataError: If one has none.
    """
    if None in texts:
        raise DataError(
            f"A row has nothing in column {column!r}; expected text in every row. Rows without it "
            "have to be left out."
        )


def encode_rows(
    rows: Dataset,
    function: Callable[..., dict[str, list[Any]]],
    args: DataArguments,
    *,
    one_process: bool = False,
    with_indices: bool = False,
) -> Dataset:
    """Replace all columns by what a function makes of batches of rows.

    Args:
        rows: What it gets.
        function: From lists by column to lists by column; may return more or fewer rows.
        args: For the number of processes.
        one_process: For what depends on how the rows fall into batches.
        with_indices: Give the function the rows' numbers as well.
    """
    return rows.map(
        function,
        batched=True,
        with_indices=with_indices,
        remove_columns=rows.column_names,
        num_proc=None if one_process else args.preprocessing_workers,
        desc="tokenising",
    )
