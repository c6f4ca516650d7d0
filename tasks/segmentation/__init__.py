"""Segmentation on mmseg: the adapter to its networks, data sets, and a metric.

Importing it registers them by name.
"""

from .adapter import SegmentorAdapter

__all__ = ["SegmentorAdapter"]
