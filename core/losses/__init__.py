"""Distillation losses: one file a method, a pure function and a thin module in each.

============================= =================================================== ==============
function                      what is matched                                     from
============================= =================================================== ==============
bounded_regression            box error, until better than the teacher            Chen 2017
feature_imitation             feature maps, anywhere or within a mask             Chen 2017, PKD
hint                          a guided layer and a hint layer                     FitNets 2015
kl_div                        softened class probabilities                        Hinton 2014
localization_distillation     distributions of box edges                          LD 2022
weighted_soft_cross_entropy   class probabilities, background heavier             Chen 2017
============================= =================================================== ==============

Every function is `loss(student, teacher, ...) -> scalar`: a sum over what is compared, a mean over
the positions, computed in float32 (float64 stays), the teacher detached. There is no weight of the
term inside; that belongs to the recipe.

To add one: write `core/losses/<method>.py` with the function and its module after the pattern of
`hint.py` (use `matched_pair`, `full_precision` and `weighted_mean`), name both below, add one line
of sample inputs to `tests/core/losses/test_contract.py`, which then runs the shared contract on
it, and pin it to the paper in `tests/core/losses/test_<method>.py`.
"""

from .bounded_regression import BoundedRegression, bounded_regression
from .feature_imitation import FeatureImitation, feature_imitation
from .hint import Hint, hint
from .kl_div import KLDivergence, kl_div
from .localization_distillation import LocalizationDistillation, localization_distillation
from .weighted_soft_cross_entropy import WeightedSoftCrossEntropy, weighted_soft_cross_entropy

__all__ = [
    "BoundedRegression",
    "FeatureImitation",
    "Hint",
    "KLDivergence",
    "LocalizationDistillation",
    "WeightedSoftCrossEntropy",
    "bounded_regression",
    "feature_imitation",
    "hint",
    "kl_div",
    "localization_distillation",
    "weighted_soft_cross_entropy",
]
