"""MobileNetV3-Large of any width, as the NetAug paper takes it."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS

from .blocks import Block, MobileNetwork, make_divisible
from .mobilenet_v2 import check_width

__all__ = ["NarrowMobileNetV3"]

# Channels and stride at width 1, channels of each block's depthwise convolution, side of its
# kernel, activation, and whether it has a squeeze-excitation.
_STAGES = (
    (24, 2, (64, 72), 3, "relu", False),
    (40, 2, (72, 120, 120), 5, "relu", True),
    (80, 2, (240, 200, 184, 184), 3, "hardswish", False),
    (112, 1, (480, 672), 3, "hardswish", True),
    (160, 2, (672, 960, 960), 5, "hardswish", True),
)


@MODELS.register_module()
class NarrowMobileNetV3(MobileNetwork):
    """MobileNetV3-Large whose last layer is 1280 wide at the least, whatever the width.

    At the default width 0.35: 2,109,840 parameters and 19,495,688 multiply-accumulates at 160x160
    with 1000 classes. Modules: see :class:`.blocks.MobileNetwork`; strides 4, 8, 16 and 32 are
    reached in ``stages.1``, ``stages.2``, ``stages.4`` and ``stages.5``.

    Args:
        width: Multiplier of the channels; 0.35 in the NetAug paper.
        num_classes: K.
        dropout: Probability before the classifier; 0 in the NetAug paper.
        in_channels: C of the images.

    Raises:
        ConfigError: If an option is out of range.

    Reference:
        Howard et al.: Searching for MobileNetV3, ICCV 2019 (arXiv 1905.02244), table 1.

    Example:
        >>> sum(p.numel() for p in NarrowMobileNetV3().parameters())
        2109840
    """

    def __init__(
        self,
        width: float = 0.35,
        num_classes: int = 1000,
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        check_width(width)
        stem = make_divisible(16 * width)
        # The only first block of a stage that adds what came in.
        first = Block(None, act="relu", residual=True)
        stages: list[tuple[int, int, Sequence[Block]]] = [(stem, 1, [first])]
        for full, stride, middles, kernel, act, squeezes in _STAGES:
            blocks = []
            for count in middles:
                middle = make_divisible(round(count * width))
                squeeze = max(16, make_divisible(middle / 4)) if squeezes else None
                blocks.append(Block(middle, kernel, squeeze, act))
            stages.append((make_divisible(full * width), stride, blocks))
        super().__init__(
            stem,
            stages,
            head=make_divisible(960 * width),
            features=max(1280, make_divisible(1280 * width)),
            stem_act="hardswish",
            head_act="hardswish",
            num_classes=num_classes,
            dropout=dropout,
            in_channels=in_channels,
        )
