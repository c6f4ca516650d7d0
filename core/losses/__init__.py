"""Distillation losses: one file a method, a pure function and a thin module in each.

Every function is `loss(student, teacher, ...) -> scalar`: a sum over what is compared, a mean over
the positions, computed in float32 (float64 stays), the teacher detached. There is no weight of the
term inside; that belongs to the recipe. docs/losses.md has all of them with formula and source in
one table, made from the docstrings by `tools/loss_table.py`.

`set_backend` and `backend` choose how they are computed: eagerly (default), compiled, or by the
formula through autograd, which alone can be differentiated twice.

To add one: write `core/losses/<method>.py` with the function and its module after the pattern of
`l2_logits.py`; name both below; add one entry to SAMPLES in `tests/core/losses/test_contract.py`,
which then runs the shared contract on it; pin it to the paper in
`tests/core/losses/test_<method>.py`; run `python tools/loss_table.py`. A module whose method does
not ask for equal widths says `any_channels = True`, and is then given no projection. What several
methods share lies in the files with a leading underscore:

======================= =========================================================================
`_reduction`            shapes, precision, the mean over positions, checks of options
`_backend`, `_autograd` which body computes a loss; gradients formed by hand
`_rows`, `_row_kl`      losses of logits, block by block, with the gradient beside the value
`_gram`                 distances of Gram matrices, on the side where they are small
`_maps`                 energies and norms of feature maps
`_pairs`                relations between samples, from one centred Gram matrix
`_sequence`             layers, padding and attention in tiles
======================= =========================================================================
"""

from ._backend import backend, set_backend
from .activation_boundaries import (
    ActivationBoundaries,
    activation_boundaries,
    boundary_disagreement,
)
from .adversarial import DiscriminatorLoss, GeneratorLoss, discriminator_loss, generator_loss
from .attention_map import AttentionMap, attention_map
from .attention_qk import AttentionQK, attention_qk
from .attention_transfer import AttentionTransfer, attention_transfer
from .bounded_regression import BoundedRegression, bounded_regression
from .channel_wise_distillation import ChannelWiseDistillation, channel_wise_distillation
from .confidence_weighted_cross_entropy import (
    ConfidenceWeightedCrossEntropy,
    confidence_weighted_cross_entropy,
)
from .cross_entropy_kl_div import CrossEntropyKLDivergence, cross_entropy_kl_div
from .decoupled_kd import DecoupledKD, decoupled_kd
from .dist import DIST, dist
from .factor_transfer import (
    FactorTransfer,
    ParaphrasedFactorTransfer,
    Paraphraser,
    Translator,
    factor_transfer,
    paraphraser_loss,
)
from .feature_imitation import FeatureImitation, feature_imitation
from .focal_global import FocalGlobal, box_weights, focal_global
from .focal_kl_div import FocalKLDivergence, focal_kl_div
from .fsp import FSP, fsp
from .gradient_attention_transfer import (
    GradientAttentionTransfer,
    gradient_attention_transfer,
    gradient_symmetry,
    loss_gradient,
)
from .gradient_penalty import GradientPenalty, gradient_penalty
from .hidden_state_transfer import HiddenStateTransfer, hidden_state_transfer
from .hint import Hint, hint
from .holistic import Holistic, holistic, holistic_critic
from .kl_div import KLDivergence, kl_div
from .l2_logits import L2Logits, l2_logits
from .linear_kl_div import LinearKLDivergence, linear_kl_div
from .localization_distillation import LocalizationDistillation, localization_distillation
from .logit_standardisation import (
    LogitStandardisation,
    logit_standardisation,
    standardise_logits,
)
from .neuron_selectivity import NeuronSelectivity, neuron_selectivity
from .pair_wise import PairWise, pair_wise
from .pearson_distance import PearsonDistance, pearson_distance
from .permuted_dark_knowledge import PermutedDarkKnowledge, permuted_dark_knowledge
from .pixel_wise import PixelWise, pixel_wise
from .projected_imitation import ProjectedImitation, projected_imitation
from .reconstruction import Reconstruction, reconstruction
from .rkd_angle import RKDAngle, rkd_angle
from .rkd_distance import RKDDistance, rkd_distance
from .self_attention_relations import SelfAttentionRelations, self_attention_relations
from .similarity_preserving import SimilarityPreserving, similarity_preserving
from .soft_cross_entropy import SoftCrossEntropy, soft_cross_entropy
from .top_k_kl_div import (
    SparseLogits,
    TopKKLDivergence,
    sparse_logits,
    top_k_kl_div,
)
from .weight_matching import WeightMatching, weight_matching
from .weighted_soft_cross_entropy import WeightedSoftCrossEntropy, weighted_soft_cross_entropy

__all__ = [
    "ActivationBoundaries",
    "AttentionMap",
    "AttentionQK",
    "AttentionTransfer",
    "BoundedRegression",
    "ChannelWiseDistillation",
    "ConfidenceWeightedCrossEntropy",
    "CrossEntropyKLDivergence",
    "DIST",
    "DecoupledKD",
    "DiscriminatorLoss",
    "FSP",
    "FactorTransfer",
    "FeatureImitation",
    "FocalGlobal",
    "FocalKLDivergence",
    "GeneratorLoss",
    "GradientAttentionTransfer",
    "GradientPenalty",
    "HiddenStateTransfer",
    "Hint",
    "Holistic",
    "KLDivergence",
    "L2Logits",
    "LinearKLDivergence",
    "LocalizationDistillation",
    "LogitStandardisation",
    "NeuronSelectivity",
    "PairWise",
    "ParaphrasedFactorTransfer",
    "Paraphraser",
    "PearsonDistance",
    "PermutedDarkKnowledge",
    "PixelWise",
    "ProjectedImitation",
    "RKDAngle",
    "RKDDistance",
    "Reconstruction",
    "SelfAttentionRelations",
    "SimilarityPreserving",
    "SoftCrossEntropy",
    "SparseLogits",
    "TopKKLDivergence",
    "Translator",
    "WeightMatching",
    "WeightedSoftCrossEntropy",
    "activation_boundaries",
    "attention_map",
    "attention_qk",
    "attention_transfer",
    "backend",
    "boundary_disagreement",
    "bounded_regression",
    "box_weights",
    "channel_wise_distillation",
    "confidence_weighted_cross_entropy",
    "cross_entropy_kl_div",
    "decoupled_kd",
    "discriminator_loss",
    "dist",
    "factor_transfer",
    "feature_imitation",
    "focal_global",
    "focal_kl_div",
    "fsp",
    "generator_loss",
    "gradient_attention_transfer",
    "gradient_penalty",
    "gradient_symmetry",
    "hidden_state_transfer",
    "hint",
    "holistic",
    "holistic_critic",
    "kl_div",
    "l2_logits",
    "linear_kl_div",
    "localization_distillation",
    "logit_standardisation",
    "loss_gradient",
    "neuron_selectivity",
    "pair_wise",
    "paraphraser_loss",
    "pearson_distance",
    "permuted_dark_knowledge",
    "pixel_wise",
    "projected_imitation",
    "reconstruction",
    "rkd_angle",
    "rkd_distance",
    "self_attention_relations",
    "set_backend",
    "similarity_preserving",
    "soft_cross_entropy",
    "sparse_logits",
    "standardise_logits",
    "top_k_kl_div",
    "weight_matching",
    "weighted_soft_cross_entropy",
]
