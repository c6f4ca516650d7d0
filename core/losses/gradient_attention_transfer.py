"""Gradient attention transfer: where a network looks, read off the gradient of its loss."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import DistillError, ShapeError
from ._maps import row_norm, smallest, unit
from ._reduction import (
    check_choice,
    compute_dtype,
    full_precision,
    matched_pair,
    resolve_axis,
    weighted_mean,
)

ReduceChannels = Literal["sum_abs", "sum_sq", "max"]


def loss_gradient(loss: Tensor, inputs: Tensor, *, create_graph: bool = False) -> Tensor:
    r"""Gradient of each sample's own loss with respect to its own input, or a feature of it.

    .. math:: J_b = \frac{\partial \ell_b}{\partial x_b}

    Found in one backward pass, as the gradient of the sum of the losses. A mean would make every
    gradient smaller by the number of samples in the batch, so what is asked for is one loss a
    sample, `reduction="none"`. (Batch normalisation in training mode lets a sample's loss depend
    on the other samples; the gradient then contains those shares, too.)

    Args:
        loss: (B,) or (B, ...), such as `F.cross_entropy(logits, labels, reduction="none")`.
        inputs: What to differentiate by, (B, ...): the image, on which `requires_grad_()` was
            called before the forward pass, or a feature map on the way to the loss. For the image
            use a tensor of your own (`images.detach().requires_grad_()`), not the loader's buffer.
        create_graph: True for the student, so that the gradient can be differentiated by the
            student's weights. False for the teacher.

    Returns:
        The gradient, the shape of `inputs`; part of a graph only with `create_graph`.

    Raises:
        ShapeError: If the loss is not one number (or several) a sample.
        DistillError: If no graph leads from the inputs to the loss: the forward pass ran under
            `no_grad` or `inference_mode`, or the inputs did not require a gradient by then.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        >>> loss_gradient(inputs.square().sum(1), inputs)
        tensor([[2., 4.],
                [6., 8.]])
    """
    if loss.ndim == 0 or inputs.ndim == 0 or loss.shape[0] != inputs.shape[0]:
        raise ShapeError(
            f"expected one loss a sample, shape ({inputs.shape[0] if inputs.ndim else 'B'},), got "
            f"loss {tuple(loss.shape)} for inputs {tuple(inputs.shape)}. Use reduction='none': the "
            "gradient of a mean depends on the batch size."
        )
    remedy = (
        "Call inputs.requires_grad_() before the forward pass and run it with gradients enabled; "
        "that holds for the teacher, too, whose weights may stay frozen."
    )
    if not inputs.requires_grad or not loss.requires_grad:
        name = "inputs do" if not inputs.requires_grad else "loss does"
        raise DistillError(f"the {name} not require a gradient. {remedy}")
    (gradient,) = torch.autograd.grad(
        loss.sum(), inputs, create_graph=create_graph, allow_unused=True
    )
    if gradient is None:
        raise DistillError(f"the loss does not depend on these inputs. {remedy}")
    return gradient


def gradient_attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    squared: bool = False,
    reduce_channels: ReduceChannels | None = None,
    normalize: bool = False,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Distance of the gradients of the task loss with respect to the input.

    .. math:: L = \left\lVert \frac{\partial \ell_S}{\partial x} -
        \frac{\partial \ell_T}{\partial x} \right\rVert_2

    per sample, over all channels and positions of x; averaged over the samples. Where the loss
    reacts to the image, there the network looks. The student's gradient must be part of a graph
    (:func:`loss_gradient` with `create_graph=True`): training differentiates it once more, by the
    student's weights. The paper adds :math:`\beta / 2` times this value to the task loss.

    In the paper x is the network's input. The lecture takes a feature map and the square of the
    norm: `squared=True`. Where the maps of two layers have different numbers of channels, let
    `reduce_channels` merge them, and `normalize=True` bring both to length 1.

    The pixels of a sample share one gradient, so the norm runs over all of them as in the paper:
    without `normalize`, a weight found at one resolution need not suit another.

    The second backward pass makes a step two to three times as long and as large. It needs
    operations with a second derivative: not fused attention kernels. Take the gradients in float32
    and before any loss scaling.

    Args:
        student: The student's gradient, (B, C, H, W), or any (B, ...).
        teacher: The teacher's gradient, the same shape; with `reduce_channels` C may differ.
        squared: The square of the norm.
        reduce_channels: `"sum_abs"`, `"sum_sq"` (squares) or `"max"` (of the absolute values) over
            the channels of (B, C, ...), or None.
        normalize: Bring both to Euclidean length 1 a sample first. A gradient of zeros stays
            zeros.
        weight: (B,), one number a sample.
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar >= 0; 0 with subgradient 0 at equality.

    Raises:
        ShapeError: If the shapes differ (with `reduce_channels`: in more than the channels).
        ConfigError: If `reduce_channels` is unknown.

    Reference:
        Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, section 3 on
        gradient-based transfer (arXiv 1612.03928).

    Lecture:
        Gradients

    When it helps:
        When student and teacher have no layers in common but see the same input, and the step may
        take longer; with little data above all.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.nn import functional as F
        >>> _ = torch.manual_seed(0)
        >>> student = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> teacher = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
        >>> teacher = teacher.eval().requires_grad_(False)
        >>> images, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
        >>> x = images.detach().requires_grad_()
        >>> loss_s = F.cross_entropy(student(x), labels, reduction="none")
        >>> loss_t = F.cross_entropy(teacher(x), labels, reduction="none")  # not under no_grad
        >>> gradient_s = loss_gradient(loss_s, x, create_graph=True)
        >>> gradient_t = loss_gradient(loss_t, x)
        >>> attention = gradient_attention_transfer(gradient_s, gradient_t)
        >>> (loss_s.mean() + 0.5 * attention).backward()
        >>> student[0].weight.grad.shape, teacher[0].weight.grad
        (torch.Size([8, 6]), None)
    """
    _check_reduce(reduce_channels)
    with full_precision(student):
        if reduce_channels is not None:
            _check_channels(student, teacher)
            dtype = compute_dtype(student, teacher)
            student = _merge_channels(student.to(dtype), reduce_channels)
            teacher = _merge_channels(teacher.detach().to(dtype), reduce_channels)
        student, teacher = matched_pair(student, teacher)
        rows_s, rows_t = _rows(student), _rows(teacher)
        if normalize:
            least = smallest(rows_s.dtype)
            rows_s, rows_t = unit(rows_s, least), unit(rows_t, least)
        return _mean_distance(rows_s - rows_t, squared, weight, total)


def gradient_symmetry(
    gradient: Tensor,
    flipped: Tensor,
    *,
    dim: int = -1,
    squared: bool = False,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""How far a network's gradient is from being the same for an image and its mirror image.

    .. math:: L = \left\lVert \frac{\partial \ell(x)}{\partial x} - \mathrm{flip}\left(
        \frac{\partial \ell(\mathrm{flip}(x))}{\partial \mathrm{flip}(x)} \right) \right\rVert_2

    per sample, averaged over the samples: a regulariser that needs no teacher. Both gradients
    belong to the same network and get a gradient. The paper adds :math:`\beta / 2` times this.

    Args:
        gradient: Gradient at the image, (B, C, H, W), from :func:`loss_gradient` with
            `create_graph=True`.
        flipped: Gradient at the mirrored image, `x.flip(dim)`, as it is: it is flipped back here.
        dim: The mirrored axis; -1 swaps left and right.
        squared: The square of the norm.
        weight: (B,), one number a sample.
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar >= 0; 0 with subgradient 0 where the gradients are mirror images.

    Raises:
        ShapeError: If the shapes differ, or `dim` is no axis or that of the samples.

    Reference:
        Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, section 3 on
        gradient-based transfer (arXiv 1612.03928).

    Example:
        >>> import torch
        >>> gradient = torch.tensor([[1.0, 2.0, 3.0]])
        >>> gradient_symmetry(gradient, torch.tensor([[3.0, 2.0, 1.0]])).item()
        0.0
        >>> gradient_symmetry(gradient, torch.tensor([[0.0, 2.0, 5.0]])).item()
        5.0
    """
    if gradient.shape != flipped.shape:
        raise ShapeError(
            "both gradients must have the same shape, got "
            f"{tuple(gradient.shape)} and {tuple(flipped.shape)}."
        )
    axis = resolve_axis(gradient, dim)
    if axis == 0:
        raise ShapeError(f"dim={dim} is the axis of the samples, which have no mirror image.")
    with full_precision(gradient):
        dtype = compute_dtype(gradient, flipped)
        difference = gradient.to(dtype) - flipped.to(dtype).flip(axis)
        return _mean_distance(_rows(difference), squared, weight, total)


def _rows(tensor: Tensor) -> Tensor:
    if tensor.ndim == 0 or 0 in tensor.shape[1:]:
        raise ShapeError(f"a gradient must be (B, ...) and not empty, got {tuple(tensor.shape)}.")
    return tensor.reshape(len(tensor), tensor.shape[1:].numel())


def _mean_distance(
    difference: Tensor, squared: bool, weight: Tensor | None, total: Tensor | float | None
) -> Tensor:
    values = difference.square().sum(1) if squared else row_norm(difference)
    return weighted_mean(values, weight, total)


def _merge_channels(gradient: Tensor, how: ReduceChannels) -> Tensor:
    if how == "sum_sq":
        return gradient.square().sum(1)
    return gradient.abs().sum(1) if how == "sum_abs" else gradient.abs().amax(1)


def _check_reduce(reduce_channels: str | None) -> None:
    if reduce_channels is not None:
        check_choice("reduce_channels", reduce_channels, get_args(ReduceChannels))


def _check_channels(student: Tensor, teacher: Tensor) -> None:
    shapes = f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}."
    if min(student.ndim, teacher.ndim) < 3 or 0 in (*student.shape[1:], *teacher.shape[1:]):
        raise ShapeError(f"reduce_channels needs gradients (B, C, ...), none empty, {shapes}")
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ShapeError(
            f"student and teacher must agree in all but the channels, {shapes} Take the gradients "
            "at layers of the same resolution."
        )


class GradientAttentionTransfer(nn.Module):
    """Module form of :func:`gradient_attention_transfer`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = GradientAttentionTransfer(squared=True)
        >>> loss(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).item()
        48.0
    """

    any_channels: ClassVar[bool] = True
    per_position: ClassVar[bool] = False  # a weight is one a sample

    def __init__(
        self,
        *,
        squared: bool = False,
        reduce_channels: ReduceChannels | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        _check_reduce(reduce_channels)
        self.squared = squared
        self.reduce_channels: ReduceChannels | None = reduce_channels
        self.normalize = normalize

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return gradient_attention_transfer(
            student,
            teacher,
            squared=self.squared,
            reduce_channels=self.reduce_channels,
            normalize=self.normalize,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return (
            f"squared={self.squared}, reduce_channels={self.reduce_channels!r}, "
            f"normalize={self.normalize}"
        )
