"""Cross-entropy with the teacher's softened class probabilities (Hinton et al. 2014)."""

from __future__ import annotations

from torch import Tensor, nn

from ._reduction import (
    Activation,
    check_activation,
    check_temperature,
    class_axis,
    full_precision,
    matched_pair,
)
from ._row_kl import cross_entropy


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    dim: int = 1,
    activation: Activation = "softmax",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of the softened student with the softened teacher as target.

    .. math:: L = -T^2 \sum_c p^t_c \log p^s_c, \qquad p = \mathrm{softmax}(z / T)

    summed over the classes, averaged over the positions. It is :func:`kl_div` plus :math:`T^2`
    times the entropy of the teacher, which does not depend on the student: the gradient is the
    same, the value is not 0 at equality. Where the value is read by somebody, to see how far the
    student is, `kl_div` says more.

    With `activation="sigmoid"` each class is a yes/no question and both answers count: the binary
    cross-entropy with the teacher's probabilities as soft labels, summed over the classes.

    Other normalisations: the paper's own formula, with the factor :math:`T^2` that it asks for;
    code for Be Your Own Teacher uses this form at T = 3. Code without :math:`T^2` gives
    :math:`1 / T^2` times this value.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        temperature: T. The paper uses 1 to 20.
        dim: Axis of the classes; -1 for (B, T, K).
        activation: `"softmax"`, or `"sigmoid"` for independent classes.
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in nats (times T squared). No second derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or softmax gets a single class.
        ConfigError: If the temperature is not above 0 or the activation unknown.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS 2014 workshop,
        section 2 (arXiv 1503.02531).
        Zhang et al.: Be Your Own Teacher, ICCV 2019 (arXiv 1905.08094).

    Lecture:
        Output logits

    When it helps:
        Where :func:`kl_div` does, with the same gradient; choose it to compare values with code
        that logs a cross-entropy.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[5.0, 1.0]])
        >>> student = torch.tensor([[3.0, 2.0]])
        >>> round(soft_cross_entropy(student, teacher).item(), 4)
        0.3312
    """
    check_temperature(temperature)
    check_activation(activation)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, activation)
        loss = cross_entropy(axis, temperature, activation)
        return loss.mean(student, teacher, weight=weight, total=total)


class SoftCrossEntropy(nn.Module):
    """Module form of :func:`soft_cross_entropy`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = SoftCrossEntropy()
        >>> round(loss(torch.zeros(3, 2), torch.zeros(3, 2)).item(), 4)
        0.6931
    """

    def __init__(
        self, *, temperature: float = 1.0, dim: int = 1, activation: Activation = "softmax"
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_activation(activation)
        self.temperature = temperature
        self.dim = dim
        self.activation: Activation = activation

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return soft_cross_entropy(
            student,
            teacher,
            temperature=self.temperature,
            dim=self.dim,
            activation=self.activation,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, dim={self.dim}, activation={self.activation!r}"
