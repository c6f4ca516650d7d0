"""A corpus that every Python carries: the texts of its own help, as passages with a theme.

``pydoc_data.topics`` holds some 80 chapters of the language and library reference, real English
prose of about 40 000 words. Which theme a passage is from is a task of six classes, and the
chapters are documents to pre-train on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pydoc_data.topics import topics as _TOPICS
from typing import Literal

from datasets import ClassLabel, Dataset, Features, Value

from ....core.errors import DataError
from .sentences import sentences

__all__ = ["THEMES", "Passage", "topic_datasets", "topic_documents", "topic_passages"]

THEMES: dict[str, tuple[str, ...]] = {
    "builtin_types": (
        "string-methods",
        "truth",
        "typesmapping",
        "typesseq",
        "typesseq-mutable",
    ),
    "data_model": (
        "attribute-access",
        "bltin-code-objects",
        "bltin-ellipsis-object",
        "bltin-null-object",
        "bltin-type-objects",
        "callable-types",
        "context-managers",
        "customization",
        "numeric-types",
        "objects",
        "sequence-types",
        "specialattrs",
        "specialnames",
        "types",
        "typesfunctions",
        "typesmethods",
        "typesmodules",
    ),
    "execution": (
        "debugger",
        "dynamic-features",
        "exceptions",
        "execmodel",
        "import",
        "naming",
    ),
    "expressions": (
        "atom-identifiers",
        "attribute-references",
        "await",
        "binary",
        "bitwise",
        "booleans",
        "calls",
        "comparisons",
        "conversions",
        "dict",
        "exprlists",
        "in",
        "lambda",
        "lists",
        "operator-summary",
        "power",
        "shifting",
        "slicings",
        "subscriptions",
        "unary",
        "yield",
    ),
    "literals_and_formatting": (
        "atom-literals",
        "floating",
        "formatstrings",
        "id-classes",
        "identifiers",
        "imaginary",
        "integers",
        "numbers",
        "strings",
    ),
    "statements": (
        "assert",
        "assignment",
        "async",
        "augassign",
        "break",
        "class",
        "compound",
        "continue",
        "del",
        "else",
        "for",
        "function",
        "global",
        "if",
        "nonlocal",
        "pass",
        "raise",
        "return",
        "try",
        "while",
        "with",
    ),
}
"""The topics of each theme. A topic that is not here belongs to none: its text is left to
pre-training."""

_SHORTEST = 30  # words of a passage
_LONGEST_SENTENCE = 60
_PARTS = 5  # one of them is for validation

_WORD = re.compile(r"[\"'(\[]*[A-Za-z][A-Za-z'-]*[\"')\]]*[.,;:!?)]*")
_BULLET = re.compile(r"^(?:[*-]|\d+\.|\[\d+\])\s+")
_HISTORY = re.compile(r"^(?:Changed|New|Added|Deprecated|Removed)\b.{0,20}\bversion\b")


@dataclass(frozen=True)
class Passage:
    """Some sentences that follow one another.

    Args:
        text: The sentences.
        topic: The chapter they are from.
        theme: Its theme; ``None`` where the topic has none.
        split: ``"train"`` or ``"validation"``: decided by the text alone, so that a passage is on
            the same side on every machine and under every seed.
    """

    text: str
    topic: str
    theme: str | None
    split: Literal["train", "validation"]


def topic_passages(topics: Mapping[str, str] | None = None) -> list[Passage]:
    """Cut chapters into passages of at least 30 words, on the borders of sentences.

    Grammar, code, tables, headings and notes on versions are left out. Some chapters contain
    others; of those a sentence counts once, for the shortest chapter it is in, so that no two
    passages share one.

    Args:
        topics: Text by topic; by default those of the running Python.

    Example:
        >>> text = "The first of these sentences has exactly eleven words in all. "
        >>> text += "The next has eleven words as well, but other ones. "
        >>> topic_passages({"for": text + text})  # said twice is said once: too short
        []
    """
    topics = _TOPICS if topics is None else topics
    theme_of = {topic: theme for theme, names in THEMES.items() for topic in names}
    seen: set[str] = set()
    passages = []
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        for text in _passages(_fresh(_sentences(topics[topic]), seen)):
            passages.append(Passage(text, topic, theme_of.get(topic), _side(text)))
    return passages


def topic_datasets(topics: Mapping[str, str] | None = None) -> dict[str, Dataset]:
    """The classification task: ``text``, ``label`` (a theme), ``topic``; about a fifth to validate.

    Args:
        topics: Text by topic; by default those of the running Python.

    Raises:
        DataError: If a theme has no passage on either side.
    """
    passages = [passage for passage in topic_passages(topics) if passage.theme]
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=list(THEMES)),
            "topic": Value("string"),
        }
    )
    sets = {}
    for split in ("train", "validation"):
        chosen = [passage for passage in passages if passage.split == split]
        empty = set(THEMES) - {passage.theme for passage in chosen}
        if empty:
            raise DataError(
                f"The topics of this Python's pydoc_data give no passage for {split} of the themes "
                f"{', '.join(sorted(empty))}: are its help texts installed?"
            )
        rows = {
            "text": [passage.text for passage in chosen],
            "label": [passage.theme for passage in chosen],
            "topic": [passage.topic for passage in chosen],
        }
        sets[split] = Dataset.from_dict(rows, features=features)
    return sets


def topic_documents(topics: Mapping[str, str] | None = None) -> dict[str, Dataset]:
    """The corpus to pre-train on: a chapter is a document (``text``), a passage one of its lines.

    The sides are those of :func:`topic_datasets`, so that nothing pre-trained on is validated on.

    Args:
        topics: Text by topic; by default those of the running Python.

    Raises:
        DataError: If there is no passage.
    """
    documents: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}}
    for passage in topic_passages(topics):
        documents[passage.split].setdefault(passage.topic, []).append(passage.text)
    if not all(documents.values()):
        raise DataError(
            "The topics of this Python's pydoc_data give no passages: are its help texts installed?"
        )
    return {
        split: Dataset.from_dict({"text": ["\n".join(lines) for lines in chapters.values()]})
        for split, chapters in documents.items()
    }


def _side(text: str) -> Literal["train", "validation"]:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "train" if number % _PARTS else "validation"


def _sentences(text: str) -> Iterator[str]:
    """The sentences of the prose in a chapter."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = _BULLET.sub("", " ".join(block.split()))
        paragraph = re.sub(r"[‘’]", "'", paragraph)
        paragraph = re.sub(r"[“”]", '"', paragraph)
        paragraph = re.sub(r"\*+([^*\s][^*]*)\*+", r"\1", paragraph)  # emphasis
        paragraph = re.sub(r"\s\[\d+\]", "", paragraph)  # footnotes
        if _is_prose(paragraph):
            yield from sentences(paragraph)


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < 6 or "::=" in paragraph or ">>>" in paragraph or _HISTORY.match(paragraph):
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    return plain >= 0.7 * len(words) and paragraph[-1] in ".:;!?)"


def _fresh(parts: Iterator[str], seen: set[str]) -> Iterator[str]:
    for sentence in parts:
        if sentence not in seen and len(sentence.split()) <= _LONGEST_SENTENCE:
            seen.add(sentence)
            yield sentence


def _passages(parts: Iterator[str]) -> Iterator[str]:
    current: list[str] = []
    for sentence in parts:
        current.append(sentence)
        if sum(len(part.split()) for part in current) >= _SHORTEST:
            yield " ".join(current)
            current = []
