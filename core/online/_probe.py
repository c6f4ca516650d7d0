"""A batch of zeros, from which methods learn the shapes inside a network before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..losses._reduction import full_precision
from ..modes import evaluating

Example = Tensor | Sequence[int]


def example_batch(network: nn.Module, example: Example) -> Tensor:
    """Return one batch where the network's weights are: the example, or zeros of its shape.

    Args:
        network: Any network.
        example: A batch (B, C, H, W), or the shape (C, H, W) of one image.

    Raises:
        ConfigError: If the shape is not made of positive numbers.
    """
    first = next(network.parameters(), torch.empty(0))
    if isinstance(example, Tensor):
        return example.to(first.device)
    shape = tuple(example)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape)
    if not shape or not whole:
        raise ConfigError(
            f"The shape of an example image is {example!r}; expected channels, height and width in "
            "pixels, such as (3, 32, 32)."
        )
    return torch.zeros(1, *shape, device=first.device, dtype=first.dtype)


@contextmanager
def asking(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Ask in eval mode and without gradient; what the network cannot do is told in one message."""
    try:
        with torch.no_grad(), evaluating(network):
            yield
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        if isinstance(error, (ConfigError, ShapeError)):
            raise
        raise ShapeError(
            f"{type(network).__name__} does not run on images of shape {tuple(images.shape)}: "
            f"{error}. Give another example, of the size that training has."
        ) from error


def check_logits(logits: object, what: str, batch: int) -> Tensor:
    """Return the logits.

    Raises:
        ShapeError: If they are no tensor (B, K).
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"{what} must give logits (B, K) with B={batch}, got {got}.")
    return logits


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in float32 (float64 stays), with labels (B,) or probabilities (B, K)."""
    with full_precision(logits):
        precise = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(precise, target)
