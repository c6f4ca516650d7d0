"""Segmentation on mmseg: the adapter to its networks, data sets, and a metric.

Importing it registers them by name.
"""

from .adapter import SegmentorAdapter
from .data.datasets import CamVid, DigitScenes
from .metrics import ClassIoU

__all__ = ["CamVid", "ClassIoU", "DigitScenes", "SegmentorAdapter"]
