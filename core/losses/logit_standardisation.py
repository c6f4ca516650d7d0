"""Z-scores of the logits before any soft loss (Sun et al. 2024)."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ._reduction import (
    check_temperature,
    class_axis,
    compute_dtype,
    full_precision,
    matched_pair,
)
from .kl_div import kl_div


def standardise_logits(
    logits: Tensor, *, dim: int = 1, sample_std: bool = False, eps: float = 1e-7
) -> Tensor:
    r"""Bring the logits of every position to mean 0 and standard deviation 1 over the classes.

    .. math:: \hat z_c = \frac{z_c - \bar z}{\sigma(z)}, \qquad
              \sigma(z)^2 = \frac{1}{K} \sum_c (z_c - \bar z)^2

    A position whose logits are all the same has no ranking to keep: it becomes 0 and gets no
    gradient.

    Args:
        logits: Any shape with the classes on `dim`.
        dim: Axis of the classes.
        sample_std: Divide the sum of squares by K - 1, as the official code does, and not by K, as
            the formula above does: the result is then sqrt((K - 1) / K) times as large.
        eps: Up to this standard deviation, or to rounding, logits count as all the same. The
            official code adds 1e-7 to the standard deviation instead.

    Returns:
        The standardised logits in float32, or float64 for float64.

    Raises:
        ShapeError: If `dim` is no axis or there is a single class.
        ConfigError: If `eps` is negative.

    Example:
        >>> import torch
        >>> standardise_logits(torch.tensor([[1.0, 5.0], [2.0, 2.0]])).tolist()
        [[-1.0, 1.0], [0.0, 0.0]]
    """
    _check_eps(eps)
    axis = class_axis(logits, dim, "softmax")
    with full_precision(logits):
        logits = logits.to(compute_dtype(logits))
        mean = logits.mean(axis, keepdim=True)
        centred = logits - mean
        variance = centred.square().mean(axis, keepdim=True)
        rounding = 16 * torch.finfo(logits.dtype).eps * mean.detach()
        live = variance > rounding.square() + eps**2
        scale = torch.where(live, variance, torch.inf).rsqrt()
        if sample_std:
            scale = scale * math.sqrt(1 - 1 / logits.shape[axis])
        return centred * scale


def logit_standardisation(
    student: Tensor,
    teacher: Tensor,
    *,
    loss: Callable[..., Tensor] = kl_div,
    temperature: float = 2.0,
    dim: int = 1,
    sample_std: bool = False,
    eps: float = 1e-7,
    options: Mapping[str, Any] | None = None,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Any soft loss on standardised logits, so that only their relations are matched.

    .. math:: L = \ell_T(\hat z^s, \hat z^t), \qquad \hat z_c = \frac{z_c - \bar z}{\sigma(z)},
              \qquad \sigma(z)^2 = \frac{1}{K} \sum_c (z_c - \bar z)^2

    with the loss :math:`\ell` at the base temperature T, :func:`kl_div` (and so with the factor
    :math:`T^2`) unless another is given. Softmax with one temperature for both asks the student
    for the spread of the teacher's logits; here each side is measured in its own standard
    deviations. The value does not change when either side is shifted or multiplied by a positive
    number. See :func:`standardise_logits` for what is done with constant logits.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        loss: A loss on logits that takes `temperature` and `dim`, for example
            :func:`decoupled_kd` or :func:`dist`. For one that does not, give it the result of
            :func:`standardise_logits`.
        temperature: T, handed to the loss; 2 in the official recipe for plain distillation (with
            a weight of 9).
        dim: Axis of the classes, handed to the loss; -1 for (B, T, K).
        sample_std: Divide by the standard deviation with K - 1, as the official code does.
        eps: Standard deviation up to which logits count as constant.
        options: What else the loss takes, by name: `{"target": labels, "beta": 6.0}`.
        weight: One number a position, handed to the loss where given.
        total: Normaliser in place of `sum(weight)`, handed to the loss where given.

    Returns:
        What the loss returns.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or there is a single class.
        ConfigError: If the temperature is not above 0 or `eps` negative.

    Reference:
        Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024
        (arXiv 2403.01427).

    Lecture:
        Output logits

    When it helps:
        When the student is much smaller than the teacher, whose logits are then spread wider than
        the student can make its own.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 9.0, 6.0]])
        >>> round(logit_standardisation(student, teacher).item(), 4)
        0.8154
        >>> round(logit_standardisation(0.1 * student - 7, teacher).item(), 4)
        0.8154
    """
    check_temperature(temperature)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        given = {"weight": weight, "total": total}
        return loss(
            standardise_logits(student, dim=dim, sample_std=sample_std, eps=eps),
            standardise_logits(teacher, dim=dim, sample_std=sample_std, eps=eps),
            temperature=temperature,
            dim=dim,
            # Losses on relations of samples, such as dist, take no weights.
            **{name: value for name, value in given.items() if value is not None},
            **(options or {}),
        )


def _check_eps(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ConfigError(f"eps must be a finite number >= 0, got {eps}.")


class LogitStandardisation(nn.Module):
    """Module form of :func:`logit_standardisation`.

    Args:
        loss: Name of a loss of this package, or a loss module. A module keeps its own temperature
            and axis of the classes (`dim` must be the same).
        temperature: T for a loss given by name; 2 unless given.
        dim: Axis of the classes.
        sample_std: Divide by the standard deviation with K - 1, as the official code does.
        eps: Standard deviation up to which logits count as constant.
        options: What else the loss given by name is built with.

    Raises:
        ConfigError: If the loss is unknown or takes no temperature, needs more than student and
            teacher (use the function then), or is a module and comes with options.

    Example:
        >>> import torch
        >>> loss = LogitStandardisation("DIST", temperature=4.0, options={"intra": 2.0})
        >>> teacher = torch.tensor([[1.0, 2.0], [5.0, 0.0]])
        >>> loss(3 * teacher + 1, teacher).item()
        0.0
    """

    def __init__(
        self,
        loss: str | nn.Module = "KLDivergence",
        *,
        temperature: float | None = None,
        dim: int = 1,
        sample_std: bool = False,
        eps: float = 1e-7,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_eps(eps)
        if isinstance(loss, str):
            temperature = 2.0 if temperature is None else temperature
            loss = _build(loss, temperature, dim, dict(options or {}))
        elif temperature is not None or options:
            raise ConfigError(
                "a loss given as a module has its temperature and options already: give them to "
                f"{type(loss).__name__}, or give the loss by name."
            )
        elif getattr(loss, "dim", dim) != dim:
            raise ConfigError(
                f"the classes are on dim={dim} here but on dim={loss.dim} in "
                f"{type(loss).__name__}: use the same for both."
            )
        self._takes = set(inspect.signature(loss.forward).parameters)
        if "target" in self._takes:
            raise ConfigError(
                f"{type(loss).__name__} needs a target, which this module has no place for. Call "
                "the function: logit_standardisation(..., loss=..., options={'target': labels})."
            )
        self.loss = loss
        self.dim = dim
        self.sample_std = sample_std
        self.eps = eps

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        with full_precision(student):
            student, teacher = matched_pair(student, teacher)
            given = {"weight": weight, "total": total}
            return self.loss(
                *(
                    standardise_logits(
                        logits, dim=self.dim, sample_std=self.sample_std, eps=self.eps
                    )
                    for logits in (student, teacher)
                ),
                **{name: value for name, value in given.items() if value is not None},
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, sample_std={self.sample_std}, eps={self.eps}"


def _build(name: str, temperature: float, dim: int, options: dict[str, Any]) -> nn.Module:
    """Make the loss of this package that has this name."""
    package = importlib.import_module(
        __name__.rpartition(".")[0]
    )  # not at the top: it imports this
    losses: dict[str, Any] = {}
    for public in package.__all__:
        thing = getattr(package, public)
        takes = inspect.signature(thing).parameters if inspect.isclass(thing) else {}
        if {"temperature", "dim"} <= set(takes):
            losses[public] = thing
    if name not in losses:
        raise ConfigError(
            "loss must name a loss on logits that takes a temperature and a dim, one of "
            f"{', '.join(losses)}; got {name!r}.{did_you_mean(name, losses)}"
        )
    return losses[name](**{"temperature": temperature, "dim": dim, **options})
