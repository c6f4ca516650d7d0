"""Distilling encoder language models of transformers, in the way its users work.

- :class:`DistillationCallback`: makes a plain ``Trainer`` distil.
- :mod:`.recipes`: layer maps and ready recipes (TinyBERT, MiniLM, MobileBERT).
- :func:`student_from_teacher`: a student that starts as some of its teacher's layers.
- :mod:`.models`: IB-BERT, the teacher of MobileBERT, registered with the Auto classes.
- :mod:`.data`: texts and metrics of the command line.
"""

from . import models
from .callback import DistillationCallback, DistillationTrainer
from .students import student_from_teacher

__all__ = ["DistillationCallback", "DistillationTrainer", "models", "student_from_teacher"]
