"""Peers that learn from each other while they learn the task (Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..losses import kl_div

__all__ = ["mutual_loss", "mutual_losses"]


def mutual_loss(student: Tensor, teachers: Sequence[Tensor], *, temperature: float = 1.0) -> Tensor:
    r"""How far one network is from its peers.

    .. math:: L_k = \frac{T^2}{K - 1} \sum_{l \ne k} KL(p_l^T \| p_k^T),
              \qquad p^T = \mathrm{softmax}(z / T)

    summed over the classes, averaged over the batch. The peers are targets: they get no gradient.

    Args:
        student: Logits of the network that learns, (B, C), or with further axes behind the classes.
        teachers: Logits of the other K - 1 networks on the same images, of the same shape.
        temperature: T, 1 in the paper.

    Returns:
        A scalar >= 0, in nats (times T squared).

    Raises:
        ShapeError: If the shapes differ, or there is a single class.
        ConfigError: If there is no teacher, or the temperature is not above 0.

    Reference:
        Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, section 3
        (arXiv 1706.00384).

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 2.0]]), torch.tensor([[5.0, 1.0]])
        >>> round(mutual_loss(student, [teacher]).item(), 4)
        0.2412
        >>> round(mutual_loss(student, [teacher, student]).item(), 4)
        0.1206
    """
    if not teachers:
        raise ConfigError("mutual_loss needs the logits of at least one other network, got none.")
    terms = [kl_div(student, teacher, temperature=temperature) for teacher in teachers]
    return torch.stack(terms).mean()


def mutual_losses(logits: Sequence[Tensor], *, temperature: float = 1.0) -> list[Tensor]:
    r"""What each of several networks learns from the others, on one batch.

    .. math:: L_k = \frac{T^2}{K - 1} \sum_{l \ne k} KL(p_l^T \| p_k^T)

    To each is added its own cross-entropy with the labels. The direction is the paper's: the peer
    is the target, the network itself the approximation. The other direction is another number, and
    so is the sum over peers that some code for more than two networks has: K - 1 times this value.

    Nothing of :math:`L_k` flows into another network, so the order in which networks step is free:
    all on the predictions before the step (`sum(losses).backward()`), or one after the other, each
    on the predictions of those that have stepped; for that call :func:`mutual_loss` with fresh
    logits.

    Args:
        logits: One tensor a network, (B, C) each, on the same images; two or more.
        temperature: T, 1 in the paper.

    Returns:
        One scalar >= 0 a network, in their order.

    Raises:
        ConfigError: If there are fewer than two networks, or the temperature is not above 0.
        ShapeError: If the shapes differ.

    Reference:
        Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, section 3
        (arXiv 1706.00384).

    Example:
        >>> import torch
        >>> first, second = torch.tensor([[3.0, 2.0]]), torch.tensor([[5.0, 1.0]])
        >>> [round(loss.item(), 4) for loss in mutual_losses([first, second])]
        [0.2412, 0.5117]
    """
    if len(logits) < 2:
        raise ConfigError(
            f"Mutual learning needs the logits of two networks or more, got {len(logits)}. Give "
            "one tensor a network."
        )
    shapes = [tuple(each.shape) for each in logits]
    if len(set(shapes)) > 1:
        raise ShapeError(
            f"Networks that learn from each other give logits of one shape, got {shapes}. They "
            "need the same classes and the same images."
        )
    return [
        mutual_loss(own, [*logits[:k], *logits[k + 1 :]], temperature=temperature)
        for k, own in enumerate(logits)
    ]
