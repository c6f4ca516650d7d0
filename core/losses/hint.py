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

    The regressor r is not in here: `student` is its output. Put an adapter in front; the paper's
    convolutional regressor is the adapter kind `"fitnets"`, with the hint's non-linearity
    `"fitnets_relu"`.

    The paper trains in two stages: first the student up to the guided layer, with the regressor
    and by this loss alone; then, without the regressor, the whole student on labels and softened
    outputs. Common code does both at once, and adds the mean without the half, times 100. Which
    layer to take: the middle one; the deeper the hint, the less freedom is left to the student.
    Compare alike with alike: a regressor that ends in a ReLU can never reach the negative values
    of a hint taken in front of the teacher's ReLU.

    The paper's loss is a sum over the elements of a sample, C * H * W times this value
    (averaged over the batch); the mean keeps a weight valid when the crop size changes. Without
    the half it is :func:`feature_imitation`. (The lecture speaks of matching weights; in the paper
    it is activations. For weights see :func:`weight_matching`.)

    Args:
        student: Output of the regressor: (B, C, H, W), (B, T, C) or (N, C).
        teacher: Hint layer, the same shape.
        weight: One number a position: (B, H, W), (B, T) or (N,).
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in squared units of the feature. No second derivatives: backward with
        `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If the shapes differ, an axis is missing, there are no channels, or the weight
            does not fit.

    Reference:
        Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, section on hint-based
        training (arXiv 1412.6550).

    Lecture:
        Intermediate weights

    When it helps:
        A student deeper and thinner than its teacher, which is hard to train from the output
        alone: the hint gives its lower half something to aim at.

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
