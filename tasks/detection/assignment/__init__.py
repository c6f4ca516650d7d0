"""Label assignment distillation (Nguyen et al. 2022): a teacher that says where the objects are."""

from __future__ import annotations

from .distillation import Assignment
from .labels import flat_targets, taught_labels
from .paa import paa_loss
from .probabilistic import probabilistic_assignment
from .taught import TaughtAssigner

__all__ = [
    "Assignment",
    "TaughtAssigner",
    "flat_targets",
    "flat_targets",
    "paa_loss",
    "probabilistic_assignment",
    "taught_labels",
]
