"""Gradients formed by hand: when to form them, how to hold them, and what they cannot do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DistillError
from ._backend import plain

# Elements a block: what the first two cache levels hold of a few tensors at once.
BLOCK = 1 << 17


def by_hand() -> bool:
    """Whether to form gradients by hand: not for the formula itself, and not inside a trace."""
    return not plain() and not torch.compiler.is_compiling()


def wants_gradient(*inputs: Tensor | None) -> bool:
    """Whether a gradient is worth computing for any of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def forbid_second_derivatives() -> None:
    """Call in a backward whose gradient is a constant: raise where it is differentiated again.

    Without this the second derivative would be missing in silence.

    Raises:
        DistillError: If backward was called with `create_graph=True`.
    """
    if torch.is_grad_enabled():
        raise DistillError(
            "this loss has no second derivatives, but backward was called with create_graph=True. "
            "Leave it out of the part that is differentiated twice, or compute it within "
            "taskdistill.core.losses.backend('reference')."
        )


def graph_is_kept() -> bool:
    """Whether the backward that is running was told to retain its graph.

    If not, what was saved for it may be overwritten and given away.
    """
    autograd = getattr(torch._C, "_autograd", None)
    kept = getattr(autograd, "_get_current_graph_task_keep_graph", None)
    return True if kept is None else kept()  # not a public function: without it, copy


def with_gradient(
    values: Tensor,
    inputs: tuple[Tensor, ...],
    slopes: tuple[Tensor | None, ...],
    shape: tuple[int, ...] = (),
) -> Tensor:
    """Make the values depend on the inputs by known derivatives.

    Backward scales the slopes in place and gives them away, so that nothing of their size is
    allocated there. Where the graph is retained it copies instead.

    Args:
        values: A number, or one a position. Computed without a graph.
        inputs: What the values were computed from.
        slopes: The derivative of every value in each input, shaped like the input. None for an
            input that needs none.
        shape: The shape in which `values` goes with an input: 1 on every axis reduced over.
    """
    return _Known.apply(values, shape, slopes, *inputs)  # type: ignore


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        shape: tuple[int, ...],
        slopes: tuple[Tensor | None, ...],
        *inputs: Tensor,
    ) -> Tensor:
        # As a plain attribute: a saved tensor may not be changed, nor given away.
        ctx.slopes, ctx.shape = slopes, shape
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        forbid_second_derivatives()
        if ctx.slopes is None:
            raise DistillError(
                "backward was called a second time through this loss. Call it with "
                "retain_graph=True the first time."
            )
        grad = grads[0].reshape(ctx.shape)
        if graph_is_kept():
            found = [None if s is None else s * grad for s in ctx.slopes]
        else:
            found = [None if s is None else s.mul_(grad) for s in ctx.slopes]
            ctx.slopes = None
        return None, None, None, *found
