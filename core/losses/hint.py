"""The hint of FitNets (Romero et al. 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from .feature_imitation import feature_imitation


def hint(
    student: Tensor,
    teacher: Tensor,
    *,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Half the mean squared difference between a guided layer and the teacher's hint layer.

    .. math:: L = \frac{1}{2} \, \mathrm{mean} \, (t - r(s))^2

    The regressor r is not in here: `student` is its output. Put an adapter in front.

    The paper's equation 3 is a sum over the elements of a sample, C * H * W times this value
    (averaged over the batch); the mean keeps a weight valid when the crop size changes. Without
    the half it is :func:`feature_imitation`.

    Args:
        student: Output of the regressor: (B, C, H, W), (B, T, C) or (N, C).
        teacher: Hint layer, the same shape.
        weight: One number a position: (B, H, W), (B, T) or (N,).
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in squared units of the feature.

    Raises:
        ShapeError: If the shapes differ, an axis is missing, there are no channels, or the weight
            does not fit.

    Reference:
        Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, equation 3 (arXiv 1412.6550).

    Example:
        >>> import torch
        >>> hint(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 2.0)).item()
        2.0
    """
    return 0.5 * feature_imitation(student, teacher, mask=weight, total=total)


class Hint(nn.Module):
    """Module form of :func:`hint`.

    Example:
        >>> import torch
        >>> Hint()(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item()
        0.5
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return hint(student, teacher, weight=weight, total=total)
