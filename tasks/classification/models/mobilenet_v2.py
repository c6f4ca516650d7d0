"""MobileNetV2 of any width, as the NetAug paper takes it."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS

from ....core.errors import ConfigError
from .blocks import Block, MobileNetwork, make_divisible, widen

__all__ = ["NarrowMobileNetV2", "check_width", "mobilenet_v2_stages"]

# Table 2 of the paper: channels, stride and number of blocks, each widening six times.
_STAGES = ((24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3))


def check_width(width: float) -> None:
    """Raise ConfigError if a width multiplier is not a positive number."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < 100:
        raise ConfigError(f"width must be a multiplier > 0, such as 0.35, got {width!r}.")


def mobilenet_v2_stages(width: float) -> tuple[int, list[tuple[int, int, Sequence[Block]]], int]:
    """Return the stem's channels, the stages up to stride 32, and the last stage's channels.

    Args:
        width: Multiplier of every channel count, rounded to multiples of 8.

    Example:
        >>> stem, stages, channels = mobilenet_v2_stages(0.35)
        >>> stem, [stage[0] for stage in stages], channels
        (16, [8, 8, 16, 24, 32, 56], 56)
    """
    check_width(width)
    stem, channels = make_divisible(32 * width), make_divisible(16 * width)
    stages: list[tuple[int, int, Sequence[Block]]] = [(channels, 1, [Block(None)])]
    for full, stride, count in _STAGES:
        out = make_divisible(full * width)
        stages.append((out, stride, widen(channels, out, [6] * count, [3] * count)))
        channels = out
    return stem, stages, channels


@MODELS.register_module()
class NarrowMobileNetV2(MobileNetwork):
    """MobileNetV2 whose last layer is 1280 wide at the least, whatever the width.

    At ``width=1.0`` it is torchvision's ``mobilenet_v2``, number for number. Below, channels are
    rounded as there. Modules: see :class:`.blocks.MobileNetwork`; strides 4, 8, 16 and 32 are
    reached in ``stages.1``, ``stages.2``, ``stages.4`` and ``stages.6``.

    Args:
        width: Multiplier of the channels; 0.35 in the NetAug paper.
        num_classes: K.
        dropout: Probability before the classifier; 0 in the NetAug paper, 0.2 in torchvision.
        in_channels: C of the images.

    Raises:
        ConfigError: If an option is out of range.

    Reference:
        Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (arXiv
        1801.04381), table 2.

    Example:
        >>> sum(p.numel() for p in NarrowMobileNetV2(width=0.35).parameters())
        1677128
    """

    def __init__(
        self,
        width: float = 0.35,
        num_classes: int = 1000,
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        stem, stages, channels = mobilenet_v2_stages(width)
        last = make_divisible(320 * width)
        super().__init__(
            stem,
            [*stages, (last, 1, [Block(6 * channels, residual=False)])],
            head=max(1280, make_divisible(1280 * width)),
            num_classes=num_classes,
            dropout=dropout,
            in_channels=in_channels,
        )
