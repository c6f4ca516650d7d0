"""What is kept of a model's output until a whole set has been evaluated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["chosen_classes", "logits_only", "span_logits"]


def logits_only(outputs: Tensor | tuple[Any, ...], labels: Any) -> Tensor:
    """The logits alone, without hidden states or attention maps that come after them.

    Example:
        >>> import torch
        >>> logits_only((torch.zeros(2, 3), torch.ones(9)), None).shape
        torch.Size([2, 3])
    """
    return outputs[0] if isinstance(outputs, tuple) else outputs


def chosen_classes(outputs: Tensor | tuple[Any, ...], labels: Any) -> Tensor:
    """The class with the greatest logit, position by position.

    Example:
        >>> import torch
        >>> chosen_classes(torch.tensor([[[0.0, 1.0], [3.0, 2.0]]]), None)
        tensor([[1, 0]])
    """
    return logits_only(outputs, labels).argmax(dim=-1)


def span_logits(outputs: tuple[Any, ...], labels: Any) -> tuple[Tensor, Tensor]:
    """The logits of where an answer starts and ends.

    Example:
        >>> import torch
        >>> len(span_logits((torch.zeros(2, 9), torch.zeros(2, 9), torch.zeros(3)), None))
        2
    """
    return outputs[0], outputs[1]
