"""Networks that transformers does not have, as transformers classes.

Importing it registers them with transformers' Auto classes.
"""

from . import ib_bert

__all__ = ["ib_bert"]
