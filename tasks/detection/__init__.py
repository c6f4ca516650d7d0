"""Detection on mmdet: adapters to its detectors, and the data sets that come along.

Importing it registers them by name.
"""

from .adapter import DetectionAdapter
from .data.datasets import BCCD, DigitScenes
from .dense import DenseHeadAdapter
from .heads import (
    BinnedATSSHead,
    BinnedFCOSHead,
    BinnedRetinaHead,
    BinnedShared2FCBBoxHead,
)
from .queries import QueryAdapter
from .two_stage import TwoStageAdapter

__all__ = [
    "BCCD",
    "BinnedATSSHead",
    "BinnedFCOSHead",
    "BinnedRetinaHead",
    "BinnedShared2FCBBoxHead",
    "DenseHeadAdapter",
    "DetectionAdapter",
    "DigitScenes",
    "QueryAdapter",
    "TwoStageAdapter",
]
