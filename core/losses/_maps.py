"""What the losses on feature maps share: energies over channels, safe norms, work in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._autograd import by_hand
from ._backend import compilable, use_compiled

# Elements: a MiB of float32. Smaller parts spend their time on calls, larger ones on memory.
_BLOCK = 1 << 18


def row_blocks(tensor: Tensor) -> Iterator[slice]:
    """Cut (B, ...) into rows whose intermediate results stay in the cache of a CPU.

    Other devices get all rows at once.
    """
    rows = len(tensor)
    step = max(1, _BLOCK // max(1, tensor.shape[1:].numel()))
    if tensor.device.type != "cpu":
        step = max(1, rows)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def blocks(tensor: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (B, C, ...) likewise, and a row that is too large by itself into channels."""
    channels = tensor.shape[1]
    step = max(1, _BLOCK // max(1, tensor.shape[2:].numel()))
    if tensor.device.type != "cpu" or step >= channels:
        step = max(1, channels)
    for row in row_blocks(tensor):
        for start in range(0, channels, step):
            yield row, slice(start, start + step)


def workspace(tensor: Tensor, count: int, parts: Callable[..., Any] = blocks) -> list[Tensor]:
    """Make tensors of the size of the first, which is the largest, part of `tensor`.

    To be used for all parts in turn: new memory comes from the system page by page, which takes
    longer than what is then done in it.
    """
    first = next(parts(tensor), slice(0, 0))
    return [torch.empty_like(tensor[first]) for _ in range(count)]


def fit(space: Tensor, part: Tensor) -> Tensor:
    """Return the piece of a workspace that is as large as this part."""
    return space[: part.shape[0], : part.shape[1]]


def smallest(dtype: torch.dtype) -> float:
    """Return what a feature must exceed to be told from zero: 1e-16 in float32.

    Below, its square underflows, and one over it would overflow in a gradient.
    """
    return 1e3 * torch.finfo(dtype).tiny ** 0.5


def unit(rows: Tensor, least: float) -> Tensor:
    """Scale the rows of (B, n) to Euclidean length 1.

    A row without an element above `least` becomes 0 and gets no gradient.
    """
    size = rows.detach().abs().amax(1, keepdim=True)
    live = size > least
    # The largest element becomes 1 first, so that no square over- or underflows.
    rows = rows / torch.where(live, size, torch.inf)
    return rows * torch.where(live, rows.square().sum(1, keepdim=True), torch.inf).rsqrt()


def row_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean length of each row of (B, n); at 0 the gradient is 0."""
    size = rows.detach().abs().amax(1)
    live = size > 0
    rows = rows / torch.where(live, size, torch.inf).unsqueeze(1)
    return size * torch.where(live, rows.square().sum(1), torch.inf).sqrt().where(live, 0.0)


def safe_sqrt(values: Tensor) -> Tensor:
    """Return the square root, with gradient 0 where the value is 0."""
    live = values > 0
    return torch.where(live, torch.where(live, values, 1.0).sqrt(), 0.0)


def channel_energy(rows: Tensor) -> Tensor:
    """Sum the squares of (B, C, n) over the channels: (B, n).

    The map is kept by reference: it is a feature that the student's graph holds anyway.
    """
    return _Energy.apply(rows) if by_hand() else rows.square().sum(1)  # type: ignore


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        if use_compiled() or rows.device.type != "cpu":
            return _energy(rows)
        energy = rows.new_zeros(len(rows), rows.shape[2])
        (space,) = workspace(rows, 1)
        for row, channel in blocks(rows):
            part = rows[row, channel]
            energy[row] += torch.mul(part, part, out=fit(space, part)).sum(1)
        return energy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Plain operations, so that this can be differentiated again.
        (rows,) = ctx.saved_tensors
        return rows * (2 * grad).unsqueeze(1)


@compilable
def _energy(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).square()
