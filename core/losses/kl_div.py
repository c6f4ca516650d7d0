"""Logit distillation with a temperature (Hinton et al. 2014)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DistillError
from ._reduction import (
    Activation,
    check_activation,
    check_temperature,
    class_axis,
    full_precision,
    matched_pair,
    soften,
    weighted_mean,
)


def kl_div(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    dim: int = 1,
    activation: Activation = "softmax",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence from the softened teacher to the softened student.

    .. math:: L = T^2 \sum_c p^t_c (\log p^t_c - \log p^s_c), \qquad p = \mathrm{softmax}(z / T)

    summed over the classes, averaged over the positions. The factor :math:`T^2` keeps the size
    of the gradient: as :math:`T \to \infty` it tends to :math:`(z^s - z^t) / K` for centred
    logits.

    With `activation="sigmoid"` each class is a yes/no question of its own, as in detection heads
    without a background channel, and the two-way divergences are summed over the classes.

    Note that `F.kl_div(..., reduction="mean")` also divides by the number of classes and
    `reduction="batchmean"` on a map does not divide by its height and width; neither happens
    here.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        temperature: T. The paper uses 1 to 20; 4 is common for 10 to 100 classes, 1 for ImageNet.
        dim: Axis of the classes; -1 for (B, T, K).
        activation: `"softmax"`, or `"sigmoid"` for independent classes.
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0 (nats times T squared) up to rounding; 0 at equality. The gradient is
        computed together with the value, so there are no second derivatives: backward with
        `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or softmax gets a single class.
        ConfigError: If the temperature is not above 0 or the activation unknown.

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2014, section 2
        (arXiv 1503.02531).

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
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, activation)
        values = kl_per_position(student, teacher, temperature, axis, activation)
        return weighted_mean(values, weight, total)


def kl_per_position(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    dim: int,
    activation: Activation = "softmax",
) -> Tensor:
    """The divergence of :func:`kl_div` before averaging: the shape of the logits without `dim`.

    Expects what :func:`kl_div` has checked: a matched pair and a valid `dim`.
    """
    return _KL.apply(student, teacher, float(temperature), dim, activation)  # type: ignore


class _KL(torch.autograd.Function):
    """The divergence with its gradient T * (p_s - p_t), formed in the forward pass.

    Autograd's own graph would keep several tensors of the size of the logits until backward,
    this keeps one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        temperature: float,
        dim: int,
        activation: Activation,
    ) -> Tensor:
        if activation == "softmax":
            log_t = soften(teacher, temperature).log_softmax(dim)
            p_t = log_t.exp()
            log_s = soften(student, temperature).log_softmax(dim)
            values = log_t.sub_(log_s).mul_(p_t).sum(dim)
            slope = log_s.exp_().sub_(p_t)
        else:
            # "Yes" and "no" are alike, so ask the question to which the teacher's answer is no:
            # t <= 0, and every term below keeps its digits (a softplus of a large t would not).
            flip = torch.copysign(teacher.new_ones(()), -teacher)
            t = -soften(teacher, temperature).abs()
            s = soften(student, temperature) * flip
            p_t = t.sigmoid()
            values = _softplus(s).sub_(_softplus(t)).add_(t.sub_(s).mul_(p_t)).sum(dim)
            slope = s.sigmoid_().sub_(p_t).mul_(flip)
        ctx.dim = dim
        ctx.save_for_backward(slope.mul_(temperature))
        # Not in place: torch.compile (2.11) loses the gradient of an output changed in place.
        return values * temperature**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():
            # Without this the second derivative would be missing in silence.
            raise DistillError(
                "this loss has no second derivatives, but backward was called with "
                "create_graph=True. Leave it out of the part that is differentiated twice."
            )
        (slope,) = ctx.saved_tensors
        return grad.unsqueeze(ctx.dim) * slope, None, None, None, None


def _softplus(logits: Tensor) -> Tensor:
    # The default threshold, 20, cuts off digits that float64 has.
    return F.softplus(logits, threshold=40)


class KLDivergence(nn.Module):
    """Module form of :func:`kl_div`, same arguments and defaults.

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
