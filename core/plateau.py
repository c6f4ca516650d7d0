"""When a figure has stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, did_you_mean

__all__ = ["Plateau"]

_KEYS = ("patience", "monitor", "min_delta")


@dataclass
class Plateau:
    """Tell when a figure that should fall no longer does.

    Args:
        patience: Looks in a row without progress after which it has come to a plateau.
        monitor: Name of the figure.
        min_delta: What counts as progress: less than the best so far by this share of it.

    Example:
        >>> plateau = Plateau(patience=2)
        >>> [plateau.reached(value) for value in (1.0, 0.5, 0.5, 0.6)]
        [False, False, False, True]
    """

    patience: int
    monitor: str = "loss"
    min_delta: float = 1e-3
    best: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)

    @classmethod
    def from_config(cls, stage: str, config: Mapping[str, Any]) -> Plateau:
        """Make one from the ``plateau`` of a stage.

        Raises:
            ConfigError: If an option is unknown or out of range.
        """
        where = f"plateau of stage {stage!r}"
        if not isinstance(config, Mapping):
            raise ConfigError(f"{where} is {config!r}; expected dict(patience=...).")
        for key in config:
            if key not in _KEYS:
                raise ConfigError(f"{where} has no {key!r}.{did_you_mean(key, _KEYS)}")
        patience = config.get("patience")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ConfigError(f"{where} has patience={patience!r}; expected 1 or more epochs.")
        delta = config.get("min_delta", 1e-3)
        if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not 0 <= delta < 1:
            raise ConfigError(f"{where} has min_delta={delta!r}; expected a share in [0, 1).")
        return cls(**config)

    def reached(self, value: float) -> bool:
        """Look at the figure once more; say whether it has been flat for long enough."""
        if self.best == math.inf or value < self.best - self.min_delta * abs(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience
