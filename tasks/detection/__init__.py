"""Detection on mmdet: the adapter to its heads, and the data sets that come along.

Importing it registers both by name.
"""

from .data import datasets as _datasets  # registers them
from .dense import DenseHeadAdapter

__all__ = ["DenseHeadAdapter"]
