"""Detection data: the embedded digit scenes, BCCD, and checks on any COCO annotation file.

Importing it registers the two datasets in mmdet by name.
"""

from .datasets import BCCD, DigitScenes

__all__ = ["BCCD", "DigitScenes"]
