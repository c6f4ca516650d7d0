"""Neuron selectivity transfer: the distributions of channel maps (Huang & Wang 2017)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ._autograd import forbid_second_derivatives
from ._backend import plain
from ._gram import gram_distance, inverse_norm, same_positions, unit
from ._reduction import check_choice, full_precision, weighted_mean

Kernel = Literal["polynomial", "linear", "gaussian"]


def neuron_selectivity(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Kernel = "polynomial",
    degree: int = 2,
    offset: float = 0.0,
    bandwidth: float | None = None,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy between the channels of student and teacher.

    .. math:: L = \frac{1}{C_t^2} \sum_{i,i'} k(t_i, t_{i'}) + \frac{1}{C_s^2} \sum_{j,j'}
        k(s_j, s_{j'}) - \frac{2}{C_t C_s} \sum_{i,j} k(t_i, s_j)

    where :math:`s_j` is channel j of the student, flattened over space and divided by its L2 norm,
    and likewise :math:`t_i`. The channels are samples of what neurons select, in no order, and as
    many or few as each side has. A channel of zeros stays zeros and gets no gradient.

    * `"polynomial"`: :math:`k(x, y) = (x^\top y + c)^d`. With d = 2 and c = 0 this compares the
      Gram matrices over the positions.
    * `"linear"`: :math:`k(x, y) = x^\top y`, the squared distance between the two mean maps.
    * `"gaussian"`: :math:`k(x, y) = \exp(-\lVert x - y \rVert^2 / 2 \sigma^2)`.

    Published codes compute the polynomial kernel with the defaults below and the same means over
    pairs of channels and over samples: no factor lies between. The paper's total loss multiplies
    this term with half of its weight.

    The polynomial (d = 2, c = 0) and linear kernels compute their gradients by hand, without
    second derivatives. With float32 and different widths the value of the polynomial kernel has an
    absolute error of some 1e-8 where student and teacher nearly agree; its gradient keeps
    its digits. Where TF32 is switched on for matrix products it applies here too.

    Args:
        student: (B, C_s, H, W).
        teacher: (B, C_t, H, W); the channels may differ.
        kernel: `"polynomial"`, `"linear"` or `"gaussian"`.
        degree: d of the polynomial kernel. Common code takes 2.
        offset: c of the polynomial kernel. Common code takes 0.
        bandwidth: sigma of the Gaussian kernel. None: sigma squared is the mean squared distance
            of all pairs of two different channels of student and teacher together, sample by
            sample and taken for a constant by the gradient.
        weight: One number a sample, (B,).
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar >= 0, without a unit; 0 if the maps are equal up to the order of the channels and
        their (positive) scale.

    Raises:
        ShapeError: If batch, height or width differ, or there are no channels.
        ConfigError: If the kernel is unknown, the degree no whole number >= 1, the offset negative
            or the bandwidth not above 0.

    Reference:
        Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017
        (arXiv 1707.01219).

    Lecture:
        Intermediate features

    When it helps:
        Student and teacher share a resolution but not their widths, and where a neuron looks
        matters more than how strongly it answers.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # each channel its position
        >>> student = torch.tensor([[[[2.0, 0.0]], [[2.0, 0.0]]]])  # both the same one
        >>> round(neuron_selectivity(student, teacher).item(), 4)
        0.5
        >>> round(neuron_selectivity(3 * teacher.flip(1), teacher).item(), 4)
        0.0
    """
    _check_options(kernel, degree, offset, bandwidth)
    with full_precision(student):
        student, teacher = same_positions(student, teacher)
        s, t = student.flatten(2), teacher.flatten(2)
        if kernel == "linear":
            values = _linear(s, t)
        elif kernel == "polynomial" and degree == 2 and offset == 0:
            # The mean of squares of C x C products is |S^T S / C|^2 over the positions.
            values = gram_distance(s, t, scales=(1 / s.shape[1], 1 / t.shape[1]), axis=2)
        else:
            values = _by_pairs(s, t, kernel, degree, offset, bandwidth)
        return weighted_mean(values, weight, total)


def _check_options(kernel: str, degree: int, offset: float, bandwidth: float | None) -> None:
    check_choice("kernel", kernel, get_args(Kernel))
    if degree != int(degree) or degree < 1:
        raise ConfigError(f"degree must be a whole number >= 1, got {degree}.")
    if not 0 <= offset < math.inf:
        raise ConfigError(f"offset must be a finite number >= 0, got {offset}.")
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise ConfigError(f"bandwidth must be a finite number > 0 or None, got {bandwidth}.")


def _by_pairs(
    s: Tensor, t: Tensor, kernel: Kernel, degree: int, offset: float, bandwidth: float | None
) -> Tensor:
    """The three means over pairs of channels, for any kernel of the dot products."""
    s, t = unit(s, 2), unit(t, 2)
    # Squared lengths: 1, and 0 for a channel of zeros.
    lengths = [x.detach().square().sum(2).round() for x in (s, t)]
    if kernel == "gaussian" and bandwidth is not None:
        rate = -0.5 / bandwidth**2
    elif kernel == "gaussian":
        variance = _mean_distance(s.detach(), t)
        # Where all channels are alike but for rounding, that must not become the unit of distance.
        spread = variance > 1024 * torch.finfo(s.dtype).eps
        rate = -0.5 / torch.where(spread, variance, 1.0).reshape(-1, 1, 1)

    def mean(a: int, b: int) -> Tensor:
        dots = (s, t)[a] @ (s, t)[b].mT
        if kernel == "polynomial":
            return (dots + offset).pow(int(degree)).mean((1, 2))
        distances = lengths[a][:, :, None] + lengths[b][:, None, :] - 2 * dots
        return (rate * distances).exp().mean((1, 2))

    values = mean(0, 0) + mean(1, 1) - 2 * mean(0, 1)
    # Below 0 by rounding only, which must not show, nor stop the gradient.
    return values + (values.clamp_min(0) - values).detach()


def _mean_distance(s: Tensor, t: Tensor) -> Tensor:
    """Mean squared distance of two different channels out of all, of every sample."""
    count = s.shape[1] + t.shape[1]
    squares = s.square().sum((1, 2)) + t.square().sum((1, 2))
    mean_length = (s.sum(1) + t.sum(1)).square().sum(1) / count
    return 2 * (squares - mean_length) / (count - 1)


def _linear(s: Tensor, t: Tensor) -> Tensor:
    """The linear kernel needs the mean maps only, no pairs."""
    mean_t = _mean_map(t, inverse_norm(t, 2))
    if plain():
        return (unit(s, 2).mean(1, keepdim=True) - mean_t).square().sum((1, 2))
    return _MeanMapDistance.apply(s, mean_t)  # type: ignore


def _mean_map(feature: Tensor, inverse: Tensor) -> Tensor:
    return torch.bmm(inverse.mT / feature.shape[1], feature)


class _MeanMapDistance(torch.autograd.Function):
    """Squared distance of the mean normalised map from the teacher's, (B, 1, P).

    Keeps the student's feature, which its graph keeps anyway, and one small number a channel and a
    position; the normalised maps never exist.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, mean_t: Tensor) -> Tensor:
        inverse = inverse_norm(student, 2)
        difference = _mean_map(student, inverse) - mean_t
        ctx.save_for_backward(student, inverse, difference)
        return difference.square().sum((1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        forbid_second_derivatives()
        student, inverse, difference = ctx.saved_tensors
        with full_precision(student):
            outer = difference * (2 * grad[:, None, None] / student.shape[1])
            along = torch.bmm(student, outer.mT) * inverse.pow(3)
            return (student * -along).baddbmm_(inverse, outer), None


class NeuronSelectivity(nn.Module):
    """Module form of :func:`neuron_selectivity`, same arguments and defaults.

    Example:
        >>> import torch
        >>> NeuronSelectivity()(torch.ones(1, 3, 4, 4), torch.ones(1, 5, 4, 4)).item() < 1e-6
        True
    """

    any_channels: ClassVar[bool] = True
    per_position: ClassVar[bool] = False  # a weight is one a sample

    def __init__(
        self,
        *,
        kernel: Kernel = "polynomial",
        degree: int = 2,
        offset: float = 0.0,
        bandwidth: float | None = None,
    ) -> None:
        super().__init__()
        _check_options(kernel, degree, offset, bandwidth)
        self.kernel: Kernel = kernel
        self.degree = degree
        self.offset = offset
        self.bandwidth = bandwidth

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return neuron_selectivity(
            student,
            teacher,
            kernel=self.kernel,
            degree=self.degree,
            offset=self.offset,
            bandwidth=self.bandwidth,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        if self.kernel == "polynomial":
            return f"kernel='polynomial', degree={self.degree}, offset={self.offset}"
        if self.kernel == "gaussian":
            return f"kernel='gaussian', bandwidth={self.bandwidth}"
        return "kernel='linear'"
