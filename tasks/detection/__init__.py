"""Detection on mmdet: the adapter to its heads, and the data sets that come along.

Importing it registers both by name.
"""

from .data.datasets import BCCD, DigitScenes
from .dense import DenseHeadAdapter

__all__ = ["BCCD", "DenseHeadAdapter", "DigitScenes"]
