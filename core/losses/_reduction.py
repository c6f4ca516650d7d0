"""What every loss shares: shape checks, precision, and the one way to average over positions."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError, did_you_mean

Activation = Literal["softmax", "sigmoid"]


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off for the device of `tensor`: losses choose their own precision."""
    if tensor.device.type == "meta":  # which autocast refuses, and which computes nothing anyway
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor is float64, otherwise float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def matched_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Check that the shapes agree; return both in the computing precision, the teacher detached.

    Raises:
        ShapeError: If the shapes differ. Nothing is broadcast: a broadcast teacher gives a
            plausible number for the wrong thing.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            "student and teacher must have the same shape, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}. Bring the student to the "
            "teacher's shape first, for example with an adapter."
        )
    dtype = compute_dtype(student, teacher)
    return student.to(dtype), teacher.detach().to(dtype)


def weighted_mean(
    values: Tensor, weight: Tensor | None = None, total: Tensor | float | None = None
) -> Tensor:
    """Average the values of all positions: `sum(weight * values) / total`.

    Args:
        values: One number a position, any shape.
        weight: One number a position, the shape of `values`; bool is fine. Never receives a
            gradient.
        total: Replaces the normaliser, which is `sum(weight)`, or the number of positions
            without a weight. For averages over all DDP ranks pass the sum over ranks divided by
            their number, since DDP itself averages gradients.

    Returns:
        A scalar. Where `total` is 0 (an empty foreground, no rows at all) it is 0 and still
        belongs to the graph, so that backward gives zeros instead of an error.

    Raises:
        ShapeError: If `weight` has another shape than `values`, or `total` more than one element.
        ConfigError: If `total` is a negative or non-finite number. (A tensor is not looked at:
            that would wait for the device.)

    Example:
        >>> import torch
        >>> values = torch.tensor([1.0, 2.0, 6.0])
        >>> weighted_mean(values).item()
        3.0
        >>> weighted_mean(values, torch.tensor([True, True, False])).item()
        1.5
        >>> weighted_mean(values, torch.zeros(3)).item()
        0.0
    """
    if weight is not None:
        if weight.shape != values.shape:
            raise ShapeError(
                "weight must hold one number a position, shape "
                f"{tuple(values.shape)}, got {tuple(weight.shape)}."
            )
        weight = weight.detach().to(values.dtype)
        if total is None:
            total = weight.sum()
        values = values * weight
    elif total is None:
        total = values.numel()
    if isinstance(total, Tensor):
        if total.numel() != 1:
            raise ShapeError(f"total must be one number, got shape {tuple(total.shape)}.")
        total = total.detach().to(values).reshape(())
        # A device-side choice: reading the number here would make the GPU wait.
        scale = torch.where(total == 0, torch.zeros_like(total), 1 / total)
        return values.sum() * scale
    if not 0 <= total < math.inf:
        raise ConfigError(f"total must be a finite number >= 0, got {total}.")
    return values.sum() / total if total else values.sum() * 0.0


def resolve_axis(tensor: Tensor, dim: int) -> int:
    """Return `dim` as a non-negative axis of `tensor`.

    Raises:
        ShapeError: If the tensor has no such axis.
    """
    if not -tensor.ndim <= dim < tensor.ndim:
        raise ShapeError(f"dim={dim} is no axis of a tensor of shape {tuple(tensor.shape)}.")
    return dim % tensor.ndim


def class_axis(logits: Tensor, dim: int, activation: Activation) -> int:
    """Return the class axis as a non-negative number.

    Raises:
        ShapeError: If there is no such axis, or it is too short: a softmax over one class is
            always 1, so its loss would be 0 in silence.
    """
    axis = resolve_axis(logits, dim)
    least = 2 if activation == "softmax" else 1
    if logits.shape[axis] < least:
        raise ShapeError(
            f"{activation} needs at least {least} class(es) on dim={dim}, got logits of shape "
            f"{tuple(logits.shape)}. For a single foreground class use activation='sigmoid'."
        )
    return axis


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, but spare the copy where it is 1."""
    return logits if temperature == 1 else logits / temperature


def check_temperature(temperature: float) -> None:
    """Raise ConfigError unless the temperature is a finite number above 0."""
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature must be a finite number > 0, got {temperature}.")


def check_activation(activation: str) -> None:
    """Raise ConfigError unless the activation is a known one."""
    check_choice("activation", activation, get_args(Activation))


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(
            f"{option} must be one of {', '.join(map(repr, choices))}, got {value!r}."
            f"{did_you_mean(str(value), choices)}"
        )
