"""Logit distillation with a temperature (Hinton et al. 2014)."""

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
from ._row_kl import divergence


def kl_div(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    dim: int = 1,
    activation: Activation = "softmax",
    consume_teacher: bool = False,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence from the softened teacher to the softened student.

    .. math:: L = T^2 \sum_c p^t_c (\log p^t_c - \log p^s_c), \qquad p = \mathrm{softmax}(z / T)

    summed over the classes, averaged over the positions. The factor :math:`T^2` keeps the size
    of the gradient: as :math:`T \to \infty` it tends to :math:`(z^s - z^t) / K` for centred
    logits.

    With `activation="sigmoid"`, for several labels at a time, each class is a yes/no question of
    its own, as in detection heads without a background channel, and the two-way divergences are
    summed over the classes.

    Note that `F.kl_div(..., reduction="mean")` also divides by the number of classes and
    `reduction="batchmean"` on a map does not divide by its height and width; neither happens
    here.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        temperature: T. The paper uses 1 to 20; 4 is common for 10 to 100 classes, 1 for ImageNet.
        dim: Axis of the classes; -1 for (B, T, K).
        activation: `"softmax"`, or `"sigmoid"` for independent classes.
        consume_teacher: Write the gradient over the teacher's logits instead of into new memory:
            the loss then needs next to none. Only where nothing else reads the teacher's logits
            afterwards, neither another loss nor a log: they are gone, and their memory becomes the
            student's gradient. Ignored where it cannot be done: for inference tensors, a teacher
            that requires a gradient, or another memory layout than the student's. For loops of
            one's own: the module has no such option, since a recipe may read the same tensor twice.
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0 (nats times T squared); 0 at equality. The gradient is computed together with
        the value, so there are no second derivatives: backward with `create_graph=True` raises
        DistillError. Under `losses.backend("reference")` there are.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or softmax gets a single class.
        ConfigError: If the temperature is not above 0 or the activation unknown.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS 2014 workshop,
        section 2 (arXiv 1503.02531).

    Lecture:
        Output logits

    When it helps:
        With any classifier, as the first thing to try: it needs neither labels nor equal
        architectures, only the same classes in the same order.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[5.0, 1.0]])
        >>> student = torch.tensor([[3.0, 2.0]])
        >>> round(kl_div(student, teacher).item(), 4)
        0.2412
        >>> kl_div(teacher, teacher, temperature=4.0).item()
        0.0
    """
    check_temperature(temperature)
    check_activation(activation)
    with full_precision(student):
        spare = consume_teacher and not teacher.requires_grad
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, activation)
        return divergence(axis, temperature, activation).mean(
            student, teacher, weight=weight, total=total, consume_teacher=spare
        )


class KLDivergence(nn.Module):
    """Module form of :func:`kl_div`, same defaults; it always leaves the teacher as it is.

    Example:
        >>> import torch
        >>> loss = KLDivergence(temperature=4.0)
        >>> loss(torch.zeros(2, 10), torch.zeros(2, 10)).item()
        0.0
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
        return kl_div(
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
