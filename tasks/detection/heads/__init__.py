"""Heads that say a distribution over bins for each of a box's four numbers.

Importing it registers them in mmdet by name: ``BinnedRetinaHead``, ``BinnedATSSHead``,
``BinnedFCOSHead`` and, for two-stage detectors, ``BinnedShared2FCBBoxHead``.
"""

from __future__ import annotations

from .binned import BinnedATSSHead, BinnedFCOSHead, BinnedRetinaHead
from .binned_roi import BinnedShared2FCBBoxHead
from .bins import Bins, is_binned

__all__ = [
    "BinnedATSSHead",
    "BinnedFCOSHead",
    "BinnedRetinaHead",
    "BinnedShared2FCBBoxHead",
    "Bins",
    "is_binned",
]
