"""Running text as documents, which is what pre-training reads."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import Dataset, Features, Value

from ....core.errors import DataError
from .arguments import PYDOC_TOPICS, DataArguments
from .columns import find_text_columns
from .encoding import check_texts
from .sources import Splits, load_splits
from .topics import topic_documents

__all__ = ["documents", "load_documents"]

_FEATURES = Features({"text": Value("string")})


def load_documents(args: DataArguments) -> Splits:
    """Read the texts that the arguments name as documents, one a row (``text``).

    A validation set is cut off by whole documents.

    Raises:
        ConfigError: See :func:`.sources.load_splits`.
        DataError: The same, or if there is no text in them.
    """
    args.check()
    if args.dataset_name == PYDOC_TOPICS:
        chapters = topic_documents()
        return Splits(chapters["train"], {"": chapters["validation"]}, None)

    def as_documents(rows: Dataset, name: str) -> Dataset:
        return documents(rows, find_text_columns(rows, args)[0])

    return load_splits(args).map(as_documents).with_validation(args.validation_split)


def documents(rows: Dataset, column: str) -> Dataset:
    """Join rows to documents, of which blank rows are the borders.

    Where no row is blank, every row is a document.

    Args:
        rows: Lines of text files for example.
        column: Where the text is.

    Raises:
        DataError: If a row has no text, or all are blank.
    """
    blank = filled = False
    for text in _texts(rows, column):
        blank |= not text.strip()
        filled |= bool(text.strip())
    if not filled:
        raise DataError(f"There is no text in column {column!r}: all of its rows are blank.")
    return Dataset.from_generator(
        _documents,
        features=_FEATURES,
        gen_kwargs={"rows": rows, "column": column, "borders": blank},
    )  # pyright: ignore[reportReturnType]  (a stream is made on request alone)


def _documents(rows: Dataset, column: str, borders: bool) -> Iterator[dict[str, str]]:
    lines: list[str] = []
    for text in _texts(rows, column):
        if text.strip():
            lines.append(text.strip())
        if lines and not (borders and text.strip()):
            yield {"text": "\n".join(lines)}
            lines = []
    if lines:
        yield {"text": "\n".join(lines)}


def _texts(rows: Dataset, column: str) -> Iterator[str]:
    for batch in rows.select_columns(column).iter(batch_size=1000):
        texts = dict(batch)[column]
        check_texts(texts, column)
        yield from texts
