"""Labels weighted by how sure the teacher is (Furlanello et al. 2018, CWTM)."""

from __future__ import annotations

from torch import Tensor, nn

from ._reduction import class_axis, full_precision, matched_pair
from .cross_entropy_kl_div import cross_entropy_kl_div


def confidence_weighted_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    dim: int = 1,
) -> Tensor:
    r"""Cross-entropy with the labels, each sample weighted by its teacher's largest probability.

    .. math:: L = - \sum_s \frac{w_s}{\sum_u w_u} \log p^s_{s, y_s}, \qquad w_s = \max_c p^t_{s, c}

    where the sums go over the samples (positions) of the batch. Nothing of the teacher's
    probabilities but the largest is used: the paper asks with it whether a teacher helps by
    weighing examples or by what it says about the wrong classes. A teacher that is equally sure of
    all leaves the plain cross-entropy.

    The weights are normalised within the batch, so the value is no mean over samples of what each
    would give alone, and there is no further weight; it still does not grow with their number.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        target: Class indices, the shape of the logits without `dim`.
        ignore_index: Positions with this target are left out, of the normaliser too.
        dim: Axis of the classes; -1 for (B, T, K).

    Returns:
        A scalar >= 0, in nats. No second derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, `target` does not have one number a position, `dim` is no
            axis, or there is a single class.
        ConfigError: If `target` is not of an integer type or (on the CPU) holds a number that is no
            class.

    Reference:
        Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born-Again Neural Networks, ICML 2018,
        section "Dark Knowledge Under the Light" (arXiv 1805.04770).

    Lecture:
        Output logits

    When it helps:
        To find out what a teacher adds: the gain that is left here comes from the weight of the
        samples alone. Seldom as much as the whole distribution gives.

    Example:
        >>> import torch
        >>> student = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> teacher = torch.tensor([[9.0, 0.0], [0.0, 0.0]])  # sure, and not at all
        >>> target = torch.tensor([0, 1])
        >>> round(confidence_weighted_cross_entropy(student, teacher, target).item(), 4)
        0.3157
        >>> round(confidence_weighted_cross_entropy(student, 0 * teacher, target).item(), 4)
        0.41
    """
    with full_precision(student):
        _, sure = matched_pair(student, teacher)
        axis = class_axis(student, dim, "softmax")
        # The largest probability, as exp(z_max - logsumexp z).
        confidence = (sure.amax(axis) - sure.logsumexp(axis)).exp()
        return cross_entropy_kl_div(
            student,
            teacher,
            target,
            alpha=0.0,
            ignore_index=ignore_index,
            dim=dim,
            weight=confidence,
        )


class ConfidenceWeightedCrossEntropy(nn.Module):
    """Module form of :func:`confidence_weighted_cross_entropy`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = ConfidenceWeightedCrossEntropy()
        >>> logits, target = torch.zeros(3, 2), torch.tensor([0, 1, 0])
        >>> round(loss(logits, logits, target).item(), 4)
        0.6931
    """

    def __init__(self, *, ignore_index: int = -100, dim: int = 1) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.dim = dim

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return confidence_weighted_cross_entropy(
            student, teacher, target, ignore_index=self.ignore_index, dim=self.dim
        )

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, dim={self.dim}"
