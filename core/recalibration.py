"""Running statistics of batch norms, computed anew for the weights there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ConfigError
from .modes import evaluating

__all__ = ["batch_norms", "recalibrate", "statistics"]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a model that keep running statistics, by name.

    Example:
        >>> list(batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
        ['1']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
) -> int:
    """Compute the running mean and variance of every batch norm anew, in place.

    They become the plain averages over the batches of each batch's mean and unbiased variance, all
    with the present weights; in training they are moving averages over weights that have changed
    since. All else is in eval mode, and every module has afterwards the mode it had. Of a
    :class:`.NetAug`, the statistics of the present setting are computed.

    Args:
        model: The network.
        batches: What it is run on, such as some tens of batches of training images.
        forward: How it is run on one; by default ``model(batch)``.

    Returns:
        The number of batches.

    Raises:
        ConfigError: If there is no batch.

    Reference:
        Wu, Johnson: Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3 ("PreciseBN");
        Cai et al. 2022 (arXiv 2110.08890) do so for every evaluation of NetAug.

    Example:
        >>> norm = nn.BatchNorm2d(1)
        >>> recalibrate(norm, [torch.full((4, 1, 2, 2), 3.0), torch.full((4, 1, 2, 2), 5.0)])
        2
        >>> norm.running_mean, norm.running_var
        (tensor([4.]), tensor([0.]))
    """
    run = forward or model
    norms = list(batch_norms(model).values())
    before = [(norm.momentum, getattr(norm, "tracking", None)) for norm in norms]
    count = 0
    with torch.no_grad(), evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
            if hasattr(norm, "tracking"):
                norm.tracking = True  # type: ignore[assignment]
        try:
            for batch in batches:
                if norms:
                    run(batch)
                count += 1
        finally:
            for norm, (momentum, tracking) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if tracking is not None:
                    norm.tracking = tracking  # type: ignore[assignment]
    if not count:
        raise ConfigError("There is no batch from which batch-norm statistics could be computed.")
    return count


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all running statistics of a model, by their names in its state dict.

    Example:
        >>> list(statistics(nn.BatchNorm2d(1)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return {
        f"{name}.{key}" if name else key: buffer.clone()
        for name, norm in batch_norms(model).items()
        for key, buffer in norm.named_buffers(recurse=False)
    }
