"""A number as a distribution over evenly spaced values, and what a binned head needs of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....core.errors import ConfigError, ShapeError, did_you_mean

__all__ = ["LOSS_DFL", "Bins", "bins_for_deltas", "build_bins", "distribution_loss", "is_binned"]

# GFL's weight beside a box loss of 2 (Li et al. 2020, "Generalized Focal Loss", section 3).
LOSS_DFL: dict[str, Any] = dict(type="DistributionFocalLoss", loss_weight=0.25)

# DistributionFocalLoss shares a target between the bin below and the next one, so there must be a
# next one. GFL keeps 0.1 bins away from the end; this little is enough in float32.
_SHORT_OF_END = 1e-3


class Bins(nn.Module):
    """Evenly spaced values that a number is a distribution over.

    ``values[i] = low + i * (high - low) / (count - 1)``. Logits ``z`` over them stand for the
    expectation ``sum_i softmax(z)_i * values[i]`` (the general distribution of Li et al. 2020,
    "Generalized Focal Loss", section 3, there with the values ``0, 1, ..., n``).

    Args:
        low: The smallest value a number can take.
        high: The largest.
        count: How many values, both ends included. Default 17, as GFL's ``reg_max=16`` has.

    Raises:
        ConfigError: If ``low`` and ``high`` are not finite and in this order, or ``count`` is not
            a whole number of at least 2.

    Example:
        >>> bins = Bins(-1.0, 1.0, count=5)
        >>> bins.values.tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]
        >>> bins.expect(torch.zeros(7, 4, 5)).shape
        torch.Size([7, 4])
        >>> bins.position(torch.tensor([-3.0, -1.0, 0.25])).tolist()
        [0.0, 0.0, 2.5]
    """

    values: Tensor

    def __init__(self, low: float, high: float, count: int = 17) -> None:
        super().__init__()
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ConfigError(f"bins need a 'count' of at least 2, a whole number; got {count!r}.")
        for name, end in (("low", low), ("high", high)):
            number = isinstance(end, (int, float)) and not isinstance(end, bool)
            if not number or not math.isfinite(end):
                raise ConfigError(f"bins need a finite number as {name!r}, not {end!r}.")
        if not low < high:
            raise ConfigError(f"bins go from 'low' up to 'high'; got low={low}, high={high}.")
        self.low = float(low)
        self.high = float(high)
        self.count = count
        # Not in checkpoints: it follows from the config, and a plain head's file has none.
        self.register_buffer("values", torch.linspace(low, high, count), persistent=False)

    def expect(self, logits: Tensor) -> Tensor:
        """The number each distribution stands for, in float32 at least.

        Args:
            logits: ``(..., count)``, before the softmax; of boxes ``(..., 4, count)``.

        Returns:
            The last axis taken away: ``(..., 4)``, between ``low`` and ``high``.

        Raises:
            ShapeError: If the last axis does not hold ``count`` logits.
        """
        if logits.shape[-1] != self.count:
            raise ShapeError(
                f"Expected logits of {self.count} bins on the last axis, got the shape "
                f"{tuple(logits.shape)}."
            )
        # A product and a sum, not a matrix product: autocast would round that to half precision.
        return (_full(logits).softmax(-1) * self.values).sum(-1)

    def position(self, targets: Tensor) -> Tensor:
        """Where numbers lie among the bins: ``values[i]`` at ``i``, in between linearly.

        Args:
            targets: Numbers of any shape.

        Returns:
            The same shape, from 0 to just below ``count - 1``; numbers outside ``low`` and
            ``high`` are moved to the nearer end.
        """
        position = (_full(targets) - self.low) * ((self.count - 1) / (self.high - self.low))
        return position.clamp(0, self.count - 1 - _SHORT_OF_END)

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}, count={self.count}"


def is_binned(head: Any) -> bool:
    """Whether a head says its box numbers as distributions over :class:`Bins` (``head.bins``).

    GFL's own head is none of them: its bins are a part of mmdet's code.

    Example:
        >>> is_binned(nn.Linear(1, 1))
        False
    """
    return isinstance(getattr(head, "bins", None), Bins)


def build_bins(given: Mapping[str, Any] | None, low: float | None, high: float | None) -> Bins:
    """The bins of a head's ``bins=dict(...)``.

    Args:
        given: Any of ``count``, ``low`` and ``high``; what is missing takes its default.
        low: Default of ``low``; ``None`` where the head knows none.
        high: Default of ``high``.

    Raises:
        ConfigError: If an entry is unknown, an end is neither given nor known, or as
            :class:`Bins` does.

    Example:
        >>> build_bins(dict(count=9), 0, 16)
        Bins(low=0.0, high=16.0, count=9)
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"'bins' is a dict of 'count', 'low' and 'high', not {given!r}.")
    entries = dict(given or {})
    known = ("count", "low", "high")
    for name in entries:
        if name not in known:
            raise ConfigError(
                f"'bins' has no entry {name!r}; it has {', '.join(known)}."
                + did_you_mean(str(name), known)
            )
    for name, default in (("low", low), ("high", high)):
        entries.setdefault(name, default)
        if entries[name] is None:
            raise ConfigError(
                f"'bins' needs {name!r}: only for mmdet's delta coders and for distances is there "
                "a default."
            )
    return Bins(**entries)


def bins_for_deltas(given: Mapping[str, Any] | None, coder: Any) -> Bins:
    """Bins for a coder's encoded deltas: by default those from -1 to 1 before the coder's scaling.

    A delta of the centre is then up to one width (height) of the anchor, one of the size a factor
    of ``e``: in encoded units ``(-1 - mean) / std`` to ``(1 - mean) / std``, over the coordinate
    that reaches furthest. That is ``[-1, 1]`` for RetinaNet (std 1) and ``[-10, 10]`` for the
    stds ``(0.1, 0.1, 0.2, 0.2)`` of ATSS and of RoI heads.

    An anchor with an IoU of 0.5 or more needs no more than 0.5 of the centre and ``log 2 = 0.69``
    of the size. Positives of a lower IoU (the best anchor of an object that none fits, with
    ``min_pos_iou=0``; ATSS on slender objects) may need more: their targets are moved to the end,
    and so their boxes cannot be reached. Where a data set has many, widen the bins.

    Args:
        given: As for :func:`build_bins`.
        coder: A box coder; its ``means`` and ``stds`` give the default.

    Raises:
        ConfigError: As :func:`build_bins` does.
    """
    stds = getattr(coder, "stds", None)
    if stds is None:
        return build_bins(given, None, None)
    pairs = list(zip(coder.means, stds, strict=True))
    return build_bins(
        given, min((-1 - mean) / std for mean, std in pairs), max((1 - m) / s for m, s in pairs)
    )


def distribution_loss(
    loss: nn.Module,
    bins: Bins,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    avg_factor: Any,
) -> Tensor:
    """A loss on distributions, averaged over the four numbers and then as the box loss is.

    Args:
        loss: mmdet's ``DistributionFocalLoss``, or one that is called like it.
        bins: What the distributions are over.
        logits: Of the positives, ``(N, 4, count)``.
        targets: The numbers they should say, ``(N, 4)``.
        weight: Of each positive, ``(N,)``, or of each number, ``(N, 4)``.
        avg_factor: What the weighted sum over positives is divided by.

    Returns:
        A scalar; 0 (with a graph) where there are no positives.
    """
    weight = weight if weight.ndim == 2 else weight[:, None].expand(-1, 4)
    return loss(
        _full(logits).flatten(0, 1),
        bins.position(targets).flatten(),
        weight=weight.flatten(),
        avg_factor=4.0 * avg_factor,
    )


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
