"""The data sets within a loader's config, whatever they are wrapped in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["inner_datasets"]


def inner_datasets(config: Any) -> Iterator[Mapping[str, Any]]:
    """Give the configs of the data sets that wrappers (repeat, concatenate, seed) hold.

    Args:
        config: The ``dataset`` of a loader; anything else gives nothing.

    Example:
        >>> inner = dict(type="Pairs")
        >>> wrapped = dict(type="RepeatDataset", times=2, dataset=inner)
        >>> both = dict(type="ConcatDataset", datasets=[inner, wrapped])
        >>> [each["type"] for each in inner_datasets(both)]
        ['Pairs', 'Pairs']
    """
    if isinstance(config, Mapping):
        inner = [config[key] for key in ("dataset", "datasets") if key in config]
        for item in inner:
            yield from inner_datasets(item)
        if not inner and "type" in config:
            yield config
    elif isinstance(config, (list, tuple)):
        for item in config:
            yield from inner_datasets(item)
