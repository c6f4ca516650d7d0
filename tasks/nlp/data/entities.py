"""Entities in sequences of tags, and how many of them are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["entities", "entity_scores", "marks_entities"]


def marks_entities(names: Iterable[str]) -> bool:
    """Whether tags mark entities (``B-PER``, ``I-PER``, ``O``), and do not stand for themselves.

    Example:
        >>> marks_entities(["O", "B-PER", "I-PER"]), marks_entities(["NOUN", "VERB"])
        (True, False)
    """
    names = list(names)
    fitting = all(re.fullmatch(r"O|[BIES](-.+)?", name) for name in names)
    return fitting and any(name != "O" for name in names)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of one sentence: type, first word, and the word behind the last.

    An entity begins at ``B`` or ``S``; at ``I`` or ``E`` as well where none of that type is open,
    as the shared tasks' script counts. It ends before the next beginning, at ``O``, and with ``E``
    or ``S``.

    Args:
        tags: One a word, in IOB2 (IOB1 and IOBES are understood too).

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-ORG"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('ORG', 5, 6), ('PER', 0, 2)]

    Reference:
        Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 Shared Task, 2003
        (``conlleval``).
    """
    found: set[tuple[str, int, int]] = set()
    start, kind = 0, None  # of the open entity
    for index, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        begins = mark in ("B", "S") or (mark in ("I", "E") and name != kind)
        if kind is not None and (begins or mark == "O"):
            found.add((kind, start, index))
            kind = None
        if begins:
            start, kind = index, name
        if kind is not None and mark in ("E", "S"):
            found.add((kind, start, index + 1))
            kind = None
    return found


def entity_scores(
    predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of entities: a hit has the very span and the type.

    Args:
        predicted: Tags by sentence.
        right: The right ones.

    Returns:
        Each 0 where there is nothing to count.

    Example:
        >>> entity_scores([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "B-LOC"]])
        {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """
    hits = proposed = there = 0
    for ours, theirs in zip(predicted, right, strict=True):
        found, wanted = entities(ours), entities(theirs)
        hits += len(found & wanted)
        proposed += len(found)
        there += len(wanted)
    return {
        "precision": hits / proposed if proposed else 0.0,
        "recall": hits / there if there else 0.0,
        "f1": 2 * hits / (proposed + there) if proposed + there else 0.0,
    }
