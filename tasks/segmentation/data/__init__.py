"""Segmentation data: the embedded digit scenes and CamVid.

Importing it registers the two datasets in mmseg by name.
"""

from .datasets import CamVid, DigitScenes

__all__ = ["CamVid", "DigitScenes"]
