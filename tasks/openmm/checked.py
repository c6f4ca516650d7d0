"""Training that stops at a loss which is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from ...core.distiller import check_finite
from .steps import training_progress

__all__ = ["CheckedModel"]


class CheckedModel(BaseModel):
    """mmengine's model, but for a NaN or an infinity among its losses: that ends the run."""

    def parse_losses(self, losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, after stopping at one that is not finite.

        Raises:
            NonFiniteLossError: Names the losses and the step.
        """
        total, figures = super().parse_losses(losses)  # type: ignore[arg-type]
        terms = {name: value for name, value in figures.items() if name != "loss"}
        check_finite(terms, training_progress().step + 1)
        return total, figures
