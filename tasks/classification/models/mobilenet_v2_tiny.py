"""MobileNetV2-Tiny, the smallest network of the NetAug paper."""

from __future__ import annotations

from mmengine.registry import MODELS

from .blocks import Block, MobileNetwork
from .mobilenet_v2 import mobilenet_v2_stages

__all__ = ["MobileNetV2Tiny"]


@MODELS.register_module()
class MobileNetV2Tiny(MobileNetwork):
    """MobileNetV2 of width 0.35 with a thin head too: 448 features in place of 1280.

    750,280 parameters and 23,499,152 multiply-accumulates at 144x144 with 1000 classes. Modules:
    see :class:`.blocks.MobileNetwork`; strides 4, 8, 16 and 32 are reached in ``stages.1``,
    ``stages.2``, ``stages.4`` and ``stages.6`` (8, 16, 32 and 112 channels).

    Args:
        num_classes: K.
        dropout: Probability before the classifier; 0 in the paper.
        in_channels: C of the images.

    Raises:
        ConfigError: If an option is out of range.

    Reference:
        Cai, Gan, Lin, Han: Network Augmentation for Tiny Deep Learning, ICLR 2022 (arXiv
        2110.08890).

    Example:
        >>> sum(p.numel() for p in MobileNetV2Tiny().parameters())
        750280
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.0, in_channels: int = 3) -> None:
        stem, stages, channels = mobilenet_v2_stages(0.35)
        super().__init__(
            stem,
            [*stages, (112, 1, [Block(6 * channels, residual=False)])],
            head=448,
            num_classes=num_classes,
            dropout=dropout,
            in_channels=in_channels,
        )
