"""Which columns hold the text and the labels, and whether they are there."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset, Value

from ....core.errors import DataError, did_you_mean
from .arguments import DataArguments
from .glue import GLUE

__all__ = ["find_text_columns", "first_of", "require_column", "require_text"]

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("text_a", "text_b"),
)
_SINGLE = ("sentence", "text")


def find_text_columns(rows: Dataset, args: DataArguments) -> tuple[str, ...]:
    """The text's column, or both of a pair: as said, as GLUE has it, or by a usual name.

    Raises:
        DataError: If a column is not there or holds no text, or none can be guessed.
    """
    named = tuple(args.text_columns or ())
    if not named and args.task in GLUE:
        named = GLUE[args.task].columns
    if not named:
        named = _guess(rows, args)
    for name in named:
        require_text(rows, name)
    return named


def _guess(rows: Dataset, args: DataArguments) -> tuple[str, ...]:
    for pair in _PAIRS:
        if set(pair) <= set(rows.column_names):
            return pair
    for name in _SINGLE:
        if name in rows.column_names:
            return (name,)
    strings = [
        name for name in rows.column_names if name != args.label_column and _is_text(rows, name)
    ]
    if len(strings) == 1:
        return (strings[0],)
    raise DataError(
        f"None of the columns {_shown(rows)} has a usual name for text: say which one it is with "
        "text_columns. If these are no names, the file has no header: give column_names."
    )


def first_of(rows: Dataset, names: Sequence[str]) -> str:
    """The first of some names that is a column.

    Raises:
        DataError: If none is.
    """
    for name in names:
        if name in rows.column_names:
            return name
    return require_column(rows, names[0])


def require_column(rows: Dataset, name: str) -> str:
    """The name itself, where there is such a column.

    Raises:
        DataError: If there is none; names those there are.
    """
    if name not in rows.column_names:
        raise DataError(
            f"There is no column {name!r}; the columns are {_shown(rows)}."
            f"{did_you_mean(name, rows.column_names)} If these are no names, the file has no "
            "header: give column_names."
        )
    return name


def require_text(rows: Dataset, name: str) -> str:
    """The name itself, where that column holds text.

    Raises:
        DataError: If there is none, or it holds something else.
    """
    require_column(rows, name)
    if not _is_text(rows, name):
        raise DataError(f"Column {name!r} holds {rows.features[name]}; expected text.")
    return name


def _is_text(rows: Dataset, name: str) -> bool:
    feature = rows.features[name]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _shown(rows: Dataset) -> str:
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in rows.column_names]
    return ", ".join(map(repr, names))
