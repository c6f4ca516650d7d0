"""Adversarial objectives: how a discriminator and a generator are scored against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError
from ._reduction import check_choice, compute_dtype, full_precision, weighted_mean

Objective = Literal["lsgan", "vanilla", "hinge", "wgan"]
Scores = Tensor | Sequence[Tensor]


def discriminator_loss(
    real: Scores | None = None,
    fake: Scores | None = None,
    *,
    objective: Objective = "lsgan",
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> Tensor:
    r"""What a discriminator minimises: real samples score high, generated ones low.

    .. math:: L = \mathbb{E}_{x}\, r(D(x)) + \mathbb{E}_{z}\, f(D(G(z)))

    with the terms of the objective, for a score d, the real label a and the fake label b:

    =========== ================================== ==================================
    objective   r(d)                               f(d)
    =========== ================================== ==================================
    `"lsgan"`   :math:`(d - a)^2`                  :math:`(d - b)^2`
    `"vanilla"` cross-entropy of sigmoid(d) with a cross-entropy of sigmoid(d) with b
    `"hinge"`   :math:`\max(0, 1 - d)`             :math:`\max(0, 1 + d)`
    `"wgan"`    :math:`-d`                         :math:`d`
    =========== ================================== ==================================

    Scores are raw numbers (logits), never probabilities. The mean goes over all scores of a tensor,
    so that a patch discriminator counts as much as one with a single score; over several scales,
    over their means. Either side may be had alone: a real batch of another size than the fake one,
    or two backward passes.

    The LSGAN paper has half of this, and so has the code of CycleGAN, pix2pix and GAN compression,
    which multiplies the sum of the two terms by 0.5 with every objective.

    Args:
        real: Scores of real samples, any shape, or one tensor a scale. None leaves the term out.
        fake: Scores of generated samples, which the generator's graph must not hang on: detach
            the samples before they are scored.
        objective: See above.
        real_label: a; 0.9 smooths the labels on one side. For `"vanilla"` a probability.
        fake_label: b.

    Returns:
        A scalar. With `"wgan"` it may be negative, and only a bounded slope of the discriminator
        bounds it (see :func:`gradient_penalty`).

    Raises:
        ConfigError: If the objective is unknown, a label is out of range, or labels are given to
            an objective without any.
        ShapeError: If both sides are None, or a list of scales is empty.

    Reference:
        Goodfellow et al.: Generative Adversarial Nets, NeurIPS 2014, section 3 (arXiv 1406.2661);
        Mao et al.: Least Squares Generative Adversarial Networks, ICCV 2017 (arXiv 1611.04076);
        Lim, Ye: Geometric GAN, 2017 (arXiv 1705.02894) for the hinge; Arjovsky, Chintala, Bottou:
        Wasserstein Generative Adversarial Networks, ICML 2017 (arXiv 1701.07875).

    Lecture:
        Generative adversarial networks

    When it helps:
        To train the discriminator that tells a student's output from the teacher's or from real
        data. The least-squares form is the usual one for image translation, the hinge for large
        generators.

    Example:
        >>> import torch
        >>> real, fake = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.0]])
        >>> discriminator_loss(real, fake).item()
        0.125
        >>> discriminator_loss(fake=[fake, fake + 2], objective="hinge").item()
        2.0
    """
    _check(objective, real_label=(real_label, 1.0), fake_label=(fake_label, 0.0))
    if real is None and fake is None:
        raise ShapeError("a discriminator needs scores: give real, fake, or both.")
    terms = []
    if real is not None:
        terms.append(_mean(real, objective, real_label, sign=1))
    if fake is not None:
        terms.append(_mean(fake, objective, fake_label, sign=-1))
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def generator_loss(
    fake: Scores, *, objective: Objective = "lsgan", real_label: float = 1.0
) -> Tensor:
    r"""What a generator minimises: that its samples score like real ones.

    .. math:: L = \mathbb{E}_{z}\, g(D(G(z)))

    with :math:`g(d) = (d - a)^2` for `"lsgan"`, the cross-entropy of sigmoid(d) with a for
    `"vanilla"`, and :math:`-d` for `"hinge"` and `"wgan"`. The vanilla form is the non-saturating
    one, :math:`-\log \sigma(d)`, which keeps a gradient where the discriminator is sure; the
    minimax game of the same paper has :math:`\log(1 - \sigma(d))`.

    Scores are averaged as in :func:`discriminator_loss`.

    Args:
        fake: Scores of generated samples, any shape, or one tensor a scale.
        objective: `"lsgan"`, `"vanilla"`, `"hinge"` or `"wgan"`.
        real_label: a, what the generator wants its samples to be taken for.

    Returns:
        A scalar. The LSGAN paper has half of the `"lsgan"` value, common code has this.

    Raises:
        ConfigError: If the objective is unknown, the label is out of range, or a label is given
            to an objective without any.
        ShapeError: If a list of scales is empty.

    Reference:
        As for :func:`discriminator_loss`; Goodfellow et al. 2014, section 3 for the
        non-saturating form.

    Lecture:
        Generative adversarial networks

    When it helps:
        Where many outputs are right and a distance to the teacher's one would average them: image
        generation and translation, and segmentation maps as a whole.

    Example:
        >>> import torch
        >>> generator_loss(torch.tensor([[0.0, 0.5]])).item()
        0.625
        >>> generator_loss(torch.tensor([[0.0, 0.5]]), objective="hinge").item()
        -0.25
    """
    _check(objective, real_label=(real_label, 1.0))
    # Samples that score well: the discriminator's term for real ones, but for the hinge's bound.
    return _mean(fake, "wgan" if objective == "hinge" else objective, real_label, sign=1)


def _mean(scores: Scores, objective: Objective, label: float, sign: int) -> Tensor:
    """Average over the scales; `sign` is 1 where a high score is wanted."""
    scales = [scores] if isinstance(scores, Tensor) else list(scores)
    if not scales:
        raise ShapeError("scores of several scales need at least one tensor, got an empty list.")
    means = []
    for scale in scales:
        if not isinstance(scale, Tensor):
            raise ShapeError(
                "scores must be a tensor or a list of one tensor a scale, got a list with a "
                f"{type(scale).__name__}. Leave features beside the scores out."
            )
        with full_precision(scale):
            means.append(
                weighted_mean(_values(scale.to(compute_dtype(scale)), objective, label, sign))
            )
    return means[0] if len(means) == 1 else torch.stack(means).mean()


def _values(scores: Tensor, objective: Objective, label: float, sign: int) -> Tensor:
    if objective == "lsgan":
        return (scores - label).square()
    if objective == "vanilla":
        return -(label * F.logsigmoid(scores) + (1 - label) * F.logsigmoid(-scores))
    if objective == "hinge":
        return F.relu(1 - sign * scores)
    return -sign * scores


def _check(objective: str, **labels: tuple[float, float]) -> None:
    """Raise ConfigError for an unknown objective or for labels (value, default) it cannot use."""
    check_choice("objective", objective, get_args(Objective))
    for name, (label, default) in labels.items():
        if objective in ("hinge", "wgan") and label != default:
            raise ConfigError(
                f"objective={objective!r} has no labels, got {name}={label}. Leave it out, or use "
                "'lsgan' or 'vanilla'."
            )
        if objective == "vanilla" and not 0 <= label <= 1:
            raise ConfigError(f"{name} must be a probability for 'vanilla', got {label}.")
        if not math.isfinite(label):
            raise ConfigError(f"{name} must be a finite number, got {label}.")


class DiscriminatorLoss(nn.Module):
    """Module form of :func:`discriminator_loss`, same arguments and defaults.

    Example:
        >>> import torch
        >>> DiscriminatorLoss(objective="wgan")(torch.ones(2), torch.zeros(3)).item()
        -1.0
    """

    def __init__(
        self,
        *,
        objective: Objective = "lsgan",
        real_label: float = 1.0,
        fake_label: float = 0.0,
    ) -> None:
        super().__init__()
        _check(objective, real_label=(real_label, 1.0), fake_label=(fake_label, 0.0))
        self.objective: Objective = objective
        self.real_label = real_label
        self.fake_label = fake_label

    def forward(self, real: Scores | None = None, fake: Scores | None = None) -> Tensor:
        return discriminator_loss(
            real,
            fake,
            objective=self.objective,
            real_label=self.real_label,
            fake_label=self.fake_label,
        )

    def extra_repr(self) -> str:
        return (
            f"objective={self.objective!r}, real_label={self.real_label}, "
            f"fake_label={self.fake_label}"
        )


class GeneratorLoss(nn.Module):
    """Module form of :func:`generator_loss`, same arguments and defaults.

    Example:
        >>> import torch
        >>> GeneratorLoss(objective="wgan")(torch.ones(2)).item()
        -1.0
    """

    def __init__(self, *, objective: Objective = "lsgan", real_label: float = 1.0) -> None:
        super().__init__()
        _check(objective, real_label=(real_label, 1.0))
        self.objective: Objective = objective
        self.real_label = real_label

    def forward(self, fake: Scores) -> Tensor:
        return generator_loss(fake, objective=self.objective, real_label=self.real_label)

    def extra_repr(self) -> str:
        return f"objective={self.objective!r}, real_label={self.real_label}"
