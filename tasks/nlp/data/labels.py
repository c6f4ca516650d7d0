"""Labels of classes: their names, and their numbers in the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ....core.errors import DataError

__all__ = ["Labels"]


@dataclass(frozen=True)
class Labels:
    """The classes of a task.

    Args:
        values: The labels as the data have them, in the order of the model's classes.
        names: What each is called.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[Any], names: Sequence[str] = ()) -> Labels:
        """Find the classes among labels: names sorted, numbers in their order.

        Args:
            values: Labels, all strings or all integers; ``None`` and negative numbers are none.
            names: What the classes are called in their order, where that is known. The labels are
                these names then, or their numbers.

        Raises:
            DataError: If there are none, both kinds are mixed, or ``names`` do not have them.

        Example:
            >>> Labels.of(["pos", "neg", "pos"]).names
            ('neg', 'pos')
            >>> Labels.of([5, 1, 3]).config["id2label"]
            {0: '1', 1: '3', 2: '5'}
            >>> Labels.of([0, 1], ["bad", "good"]).encode([1, 0, -1], "label")
            [1, 0, None]
        """
        found = {value for value in values if is_label(value)}
        if not found:
            raise DataError("No row has a label.")
        kinds = {type(value) for value in found}
        if kinds not in ({str}, {int}):
            raise DataError(
                "Labels have to be all strings or all integers, but there are "
                f"{', '.join(sorted(kind.__name__ for kind in kinds))}."
            )
        if not names:
            ordered = tuple(sorted(found))
            return cls(ordered, tuple(map(str, ordered)))
        numbers = kinds == {int}
        known = tuple(range(len(names))) if numbers else tuple(names)
        strange = found - set(known)
        if strange:
            raise DataError(
                f"There are the labels {_shown(strange)}, but the classes are "
                f"{', '.join(names)}{f' (0 to {len(names) - 1})' if numbers else ''}."
            )
        return cls(known, tuple(names))

    def encode(self, values: Sequence[Any], where: str) -> list[int | None]:
        """The model's numbers of labels; ``None`` where there is no label.

        Args:
            values: Labels as the data have them.
            where: What to call the set in an error.

        Raises:
            DataError: If a label is none of the classes.
        """
        number = {value: index for index, value in enumerate(self.values)}
        unseen = {value for value in values if is_label(value) and value not in number}
        if unseen:
            raise DataError(
                f"{where} has the labels {_shown(unseen)}, which the training set does not have; "
                f"it has {_shown(self.values)}."
            )
        return [number[value] if is_label(value) else None for value in values]

    @property
    def config(self) -> dict[str, Any]:
        """What the model's config says of them."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }


def is_label(value: Any) -> bool:
    """Whether it is a label; a negative number says that it is kept secret, as in GLUE's tests."""
    return value is not None and not (isinstance(value, int) and value < 0)


def _shown(values: Iterable[Any], limit: int = 10) -> str:
    values = sorted(values, key=str)
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(repr, values[:limit])) + more
