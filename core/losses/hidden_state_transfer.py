"""Transfer of the hidden states of a transformer (MobileBERT, Sun et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, ShapeError
from ._reduction import check_choice, full_precision, matched_pair, weighted_mean
from ._sequence import Layers, check_mask, layer_pairs, mean_over_layers

Normalize = Literal["layer_norm"]


def hidden_state_transfer(
    student: Layers,
    teacher: Layers,
    *,
    normalize: Normalize | None = None,
    mean_weight: float = 0.0,
    variance_weight: float = 0.0,
    mask: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Mean squared difference of hidden states, and of what a layer norm takes out of them.

    .. math:: L = \frac{1}{T} \sum_i \Big[ \frac{1}{H} \sum_h (s_{ih} - t_{ih})^2
        + \beta (\mu^s_i - \mu^t_i)^2 + \gamma \, \lvert v^s_i - v^t_i \rvert \Big]

    over T tokens and H features, with the mean :math:`\mu_i` and the variance :math:`v_i` (divided
    by H) of the features of a token.

    The paper's loss is the plain difference. It also says that the difference can be taken apart
    into that of the normalised features and that of their statistics, which its published code
    does: `normalize="layer_norm"` compares the states after a layer norm without scale and shift
    (epsilon 1e-5; a constant token becomes 0), and the two other terms then bring back what the
    norm takes out. In its units the code's loss is 100/24 of this one summed over 24 layers, thus
    100 times the mean over layers returned here; its factors of the statistics, 5000 for the mean
    and 5 for the variance, stand beside that 100, so they are `mean_weight=50` and
    `variance_weight=0.05` here. The code compares the statistics of a layer with those of all of
    the teacher's layers, which reads like a slip and is not repeated, and it counts padding.

    Args:
        student: (B, T, H), or a tuple of such, one a layer, whose losses are averaged.
        teacher: The same shapes; use an adapter where the widths differ.
        normalize: `"layer_norm"`, or None for the plain difference.
        mean_weight: :math:`\beta`, how much the squared difference of means counts.
        variance_weight: :math:`\gamma`, how much the absolute difference of variances counts.
        mask: (B, T), 1 for tokens and 0 for padding; other numbers weigh the tokens.
        total: Normaliser in place of `sum(mask)`, or of the number of tokens.

    Returns:
        A scalar >= 0, in squared units of the states (no unit with `normalize` alone).

    Raises:
        ShapeError: If the shapes differ or are not (B, T, H), the mask does not fit, or the sides
            have different numbers of layers.
        ConfigError: If `normalize` is unknown or a weight is not a finite number >= 0.

    Reference:
        Sun et al.: MobileBERT, ACL 2020, section 3.5, "feature map transfer" (arXiv 2004.02984).
        Jiao et al.: TinyBERT, Findings of EMNLP 2020, equation 8 (arXiv 1909.10351), the plain
        difference behind a linear adapter.

    Lecture:
        Language models

    When it helps:
        For a student with as many layers as are matched and states as wide as the teacher's, or a
        linear adapter to them; it trains every layer by itself, long before the output is right.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 5.0]]])
        >>> hidden_state_transfer(student, teacher).item()
        5.0
        >>> hidden_state_transfer(student, teacher, mean_weight=1.0, variance_weight=1.0).item()
        12.0
    """
    check_hidden_options(normalize, mean_weight, variance_weight)
    values = []
    for s, t in layer_pairs(student, teacher):
        with full_precision(s):
            s, t = matched_pair(s, t)
            if s.ndim != 3 or s.shape[2] == 0:
                raise ShapeError(f"hidden states must be (B, T, H), got shape {tuple(s.shape)}.")
            check_mask(mask, *s.shape[:2])
            value = _states(s, t, normalize, mask, total)
            if mean_weight or variance_weight:
                gaps = _statistics(s, t, mean_weight, variance_weight)
                value = value + weighted_mean(gaps, mask, total)
            values.append(value)
    return mean_over_layers(values)


def _states(
    student: Tensor,
    teacher: Tensor,
    normalize: Normalize | None,
    mask: Tensor | None,
    total: Tensor | float | None,
) -> Tensor:
    batch, tokens, width = student.shape
    if normalize == "layer_norm":
        student, teacher = F.layer_norm(student, [width]), F.layer_norm(teacher, [width])
    elif teacher.is_inference():
        teacher = teacher.clone()  # mse_loss keeps it until backward, which needs a normal tensor
    if mask is not None:
        squares = F.mse_loss(student, teacher, reduction="none").mean(2)
        return weighted_mean(squares, mask, total)
    summed = F.mse_loss(student, teacher, reduction="sum") / width
    return weighted_mean(summed, total=batch * tokens if total is None else total)


def _statistics(
    student: Tensor, teacher: Tensor, mean_weight: float, variance_weight: float
) -> Tensor:
    """The weighted gaps of the means and of the variances, one number a token."""
    means = (student.mean(2) - teacher.mean(2)).square()
    variances = (_variance(student) - _variance(teacher)).abs()
    return mean_weight * means + variance_weight * variances


def _variance(states: Tensor) -> Tensor:
    return (states - states.mean(2, keepdim=True)).square().mean(2)


def check_hidden_options(normalize: str | None, mean_weight: float, variance_weight: float) -> None:
    """Raise ConfigError unless the options of the loss are possible."""
    if normalize is not None:
        check_choice("normalize", normalize, ("layer_norm",))
    for name, value in (("mean_weight", mean_weight), ("variance_weight", variance_weight)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be a finite number >= 0, got {value}.")


class HiddenStateTransfer(nn.Module):
    """Module form of :func:`hidden_state_transfer`; `weight` is the function's `mask`.

    Example:
        >>> import torch
        >>> loss = HiddenStateTransfer(normalize="layer_norm")
        >>> loss(torch.zeros(1, 3, 4), torch.ones(1, 3, 4)).item()
        0.0
    """

    def __init__(
        self,
        *,
        normalize: Normalize | None = None,
        mean_weight: float = 0.0,
        variance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_hidden_options(normalize, mean_weight, variance_weight)
        self.normalize: Normalize | None = normalize
        self.mean_weight = mean_weight
        self.variance_weight = variance_weight

    def forward(
        self,
        student: Layers,
        teacher: Layers,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return hidden_state_transfer(
            student,
            teacher,
            normalize=self.normalize,
            mean_weight=self.mean_weight,
            variance_weight=self.variance_weight,
            mask=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return (
            f"normalize={self.normalize!r}, mean_weight={self.mean_weight}, "
            f"variance_weight={self.variance_weight}"
        )
