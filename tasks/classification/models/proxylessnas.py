"""ProxylessNAS-Mobile, a network searched for a phone."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS

from .blocks import Block, MobileNetwork, make_divisible, widen
from .mobilenet_v2 import check_width

__all__ = ["ProxylessNASMobile"]

# Channels at width 1, stride, then how much each block widens and the side of its kernel.
_STAGES = (
    (32, 2, (3, 3), (5, 3)),
    (40, 2, (3, 3, 3, 3), (7, 3, 5, 5)),
    (80, 2, (6, 3, 3, 3), (7, 5, 5, 5)),
    (96, 1, (6, 3, 3, 3), (5, 5, 5, 5)),
    (192, 2, (6, 6, 3, 3), (7, 7, 7, 7)),
)


@MODELS.register_module()
class ProxylessNASMobile(MobileNetwork):
    """ProxylessNAS-Mobile, whose blocks were searched for a phone's latency.

    At the default width 0.35: 1,781,344 parameters and 35,716,800 multiply-accumulates at 160x160
    with 1000 classes. Modules: see :class:`.blocks.MobileNetwork`; strides 4, 8, 16 and 32 are
    reached in ``stages.1``, ``stages.2``, ``stages.4`` and ``stages.6``.

    Args:
        width: Multiplier of the channels; 0.35 in the NetAug paper. The last layer is 1280 wide at
            least.
        num_classes: K.
        dropout: Probability before the classifier; 0 in the NetAug paper.
        in_channels: C of the images.

    Raises:
        ConfigError: If an option is out of range.

    Reference:
        Cai, Zhu, Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware,
        ICLR 2019 (arXiv 1812.00332), figure 4; Cai et al.: Network Augmentation for Tiny Deep
        Learning, ICLR 2022 (arXiv 2110.08890).

    Example:
        >>> sum(p.numel() for p in ProxylessNASMobile().parameters())
        1781344
    """

    def __init__(
        self,
        width: float = 0.35,
        num_classes: int = 1000,
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        check_width(width)
        channels = make_divisible(16 * width)
        stages: list[tuple[int, int, Sequence[Block]]] = [(channels, 1, [Block(None)])]
        for full, stride, expansions, kernels in _STAGES:
            out = make_divisible(full * width)
            stages.append((out, stride, widen(channels, out, expansions, kernels)))
            channels = out
        last = make_divisible(320 * width)
        stages.append((last, 1, [Block(6 * channels, 7, residual=False)]))
        super().__init__(
            make_divisible(32 * width),
            stages,
            head=max(1280, make_divisible(1280 * width)),
            num_classes=num_classes,
            dropout=dropout,
            in_channels=in_channels,
        )
