"""Correlation of predictions within samples and within classes (DIST, Huang et al. 2022)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ._autograd import by_hand, wants_gradient, with_gradient
from ._reduction import check_temperature, class_axis, full_precision, matched_pair, soften


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
    dim: int = 1,
    eps: float = 0.0,
) -> Tensor:
    r"""One minus the Pearson correlation of the probabilities, over classes and over samples.

    .. math:: L = \frac{\beta}{B} \sum_b \left(1 - r(p^s_{b \cdot}, p^t_{b \cdot})\right)
              + \frac{\gamma}{K} \sum_c \left(1 - r(p^s_{\cdot c}, p^t_{\cdot c})\right)

    with the correlation :math:`r` of :math:`p = \mathrm{softmax}(z / T)`. The first part
    (inter-class, :math:`\beta` = `inter`) compares the classes within each sample, the second
    (intra-class, :math:`\gamma` = `intra`) the samples within each class. A correlation asks for
    the same ranking and proportions, not for the same probabilities.

    Where one side is constant there is no correlation: it counts as 0 (the loss as 1) without a
    gradient. Where both are, they agree (the loss is 0); so a single sample has no intra-class
    part.

    The official code differs in two ways: it multiplies by :math:`T^2`, which the paper's formula
    does not (correlations do not shrink with the temperature: put the factor into the weight of
    the term); and it adds 1e-8 to the product of the two norms, which switches off classes whose
    probabilities are tiny in the whole batch (`eps=1e-8`).

    The intra-class part relates the samples of a batch, so there is no weight of single positions.
    On maps every pixel is a sample.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        inter: Weight of the part over the classes; 1 by default, as in the official code.
        intra: Weight of the part over the samples; the same.
        temperature: T; 1 by default, as in the official code.
        dim: Axis of the classes; -1 for (B, T, K).
        eps: Added to the product of the norms of the centred probabilities; 0 for the paper, 1e-8
            for the official code.

    Returns:
        A scalar in [0, 2 (inter + intra)]; 0 at equality if `eps` is 0. There are no second
        derivatives, unless under the reference backend.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or there is a single class.
        ConfigError: If the temperature is not above 0, or `inter`, `intra` or `eps` negative.

    Reference:
        Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, sections
        on inter-class and on intra-class relations (arXiv 2205.10536).

    Lecture:
        Output logits

    When it helps:
        When the teacher is much stronger than the student, which then cannot reach its
        probabilities, but can follow which classes and samples it prefers.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> round(dist(teacher.flip(1), teacher, intra=0.0).item(), 4)
        1.8671
        >>> dist(teacher, teacher).item()
        0.0
    """
    _check_options(inter, intra, temperature, eps)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, "softmax")
        rows, teacher = (z.movedim(axis, -1).reshape(-1, z.shape[axis]) for z in (student, teacher))
        if not len(rows):
            return rows.sum() * 0.0
        log_t = soften(teacher, temperature).log_softmax(1)
        parts = [(share, dim) for share, dim in ((inter, 1), (intra, 0)) if share]
        if not by_hand():
            log_s = soften(rows, temperature).log_softmax(1)
            values = [share * _distance(log_s, log_t, dim, eps)[0] for share, dim in parts]
            return sum(values, rows.sum() * 0.0)
        log_s = soften(rows.detach(), temperature).log_softmax(1)
        value, slope = rows.new_zeros(()), torch.zeros_like(log_s)
        for share, dim in parts:
            distance, s, t, kept = _distance(log_s, log_t, dim, eps)
            value = value + share * distance
            if wants_gradient(rows):
                slope.add_(_slope(s, t, kept, dim), alpha=share / rows.numel())
        # Through the logarithm of the softmax.
        slope.addcmul_(log_s.exp_(), slope.sum(1, keepdim=True), value=-1).div_(temperature)
        return with_gradient(value, (rows,), (slope,))


class _Scores(NamedTuple):
    scores: Tensor  # the probabilities brought to mean 0 and variance 1
    mean: Tensor  # what their mean was, in standard deviations
    norm: Tensor  # log of the norm of the centred probabilities
    live: Tensor  # which ones vary at all


def _distance(
    log_s: Tensor, log_t: Tensor, dim: int, eps: float
) -> tuple[Tensor, _Scores, _Scores, tuple[Tensor, Tensor]]:
    """The mean of 1 - r of exp(log_s) and exp(log_t) along an axis, and what its slope needs."""
    s, t = _standardise(log_s, dim), _standardise(log_t, dim)
    # Half a squared distance instead of 1 - r: exactly 0 at equality and never below.
    distance = 0.5 * (s.scores - t.scores).square().mean(dim, keepdim=True)
    kept = torch.ones_like(distance)
    if eps:
        # n / (n + eps), from the logarithm of n.
        kept = torch.sigmoid(s.norm + t.norm - math.log(eps))
    both = s.live & t.live
    correlation = 1 - distance
    distance = torch.where(both, 1 - correlation * kept if eps else distance, (s.live != t.live))
    slopes = torch.where(both, kept, 0.0), torch.where(both, correlation * kept.square(), 0.0)
    return distance.mean(), s, t, slopes


def _standardise(log_p: Tensor, dim: int) -> _Scores:
    """Relative to the largest, so that probabilities far below the smallest float count as well."""
    top = log_p.detach().amax(dim, keepdim=True)
    p = (log_p - top).exp()
    mean = p.mean(dim, keepdim=True)
    centred = p - mean
    variance = centred.square().mean(dim, keepdim=True)
    # Below this only rounding varies, and dividing would blow it up.
    live = variance > (16 * torch.finfo(p.dtype).eps) ** 2
    inverse = torch.where(live, variance, torch.inf).rsqrt()
    norm = 0.5 * (torch.where(live, variance, 1.0) * log_p.shape[dim]).log() + top
    return _Scores(centred * inverse, mean * inverse, norm, live)


def _slope(s: _Scores, t: _Scores, kept: tuple[Tensor, Tensor], dim: int) -> Tensor:
    """Derivative in log_s of the distances, times the number that each is made of.

    That is -(a z_t - b z_s) p / sigma with the scores z, a and b being 1 and r without an eps.
    Overwrites the scores.
    """
    of_teacher, of_student = kept
    slope = t.scores.mul_(-of_teacher).addcmul_(s.scores, of_student)
    return slope.mul_(s.scores.add_(s.mean))


def _check_options(inter: float, intra: float, temperature: float, eps: float) -> None:
    check_temperature(temperature)
    for name, value in (("inter", inter), ("intra", intra), ("eps", eps)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be a finite number >= 0, got {value}.")


class DIST(nn.Module):
    """Module form of :func:`dist`, same arguments and defaults.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> DIST()(logits, logits).item()
        0.0
    """

    def __init__(
        self,
        *,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: float = 1.0,
        dim: int = 1,
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        _check_options(inter, intra, temperature, eps)
        self.inter = inter
        self.intra = intra
        self.temperature = temperature
        self.dim = dim
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return dist(
            student,
            teacher,
            inter=self.inter,
            intra=self.intra,
            temperature=self.temperature,
            dim=self.dim,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"inter={self.inter}, intra={self.intra}, temperature={self.temperature}, "
            f"dim={self.dim}, eps={self.eps}"
        )
