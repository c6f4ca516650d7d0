"""MCUNet, a network searched for microcontrollers."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS

from .blocks import Block, MobileNetwork, widen

__all__ = ["MCUNet"]

# Channels, stride, then how much each block widens and the side of its kernel: the outcome of the
# search, for a microcontroller with 320 kB of memory and 1 MB of flash.
_STAGES = (
    (16, 2, (3, 5, 5, 4), (7, 3, 7, 5)),
    (24, 2, (5, 5, 5), (5, 5, 5)),
    (40, 2, (5, 6, 4), (3, 7, 5)),
    (48, 1, (5, 5, 5), (5, 7, 3)),
    (96, 2, (6, 5, 4), (3, 7, 3)),
)


@MODELS.register_module()
class MCUNet(MobileNetwork):
    """The ImageNet network of MCUNet that the NetAug paper trains.

    737,408 parameters and 81,785,520 multiply-accumulates at 176x176 with 1000 classes. There is no
    ``head``: the classifier reads the last stage's 160 channels. Modules: see
    :class:`.blocks.MobileNetwork`; strides 4, 8, 16 and 32 are reached in ``stages.1``,
    ``stages.2``, ``stages.4`` and ``stages.6`` (16, 24, 48 and 160 channels).

    Args:
        num_classes: K.
        dropout: Probability before the classifier; 0 in the NetAug paper.
        in_channels: C of the images.

    Raises:
        ConfigError: If an option is out of range.

    Reference:
        Lin, Chen, Lin, Cohn, Gan, Han: MCUNet: Tiny Deep Learning on IoT Devices, NeurIPS 2020
        (arXiv 2007.10319); Cai et al.: Network Augmentation for Tiny Deep Learning, ICLR 2022
        (arXiv 2110.08890).

    Example:
        >>> sum(p.numel() for p in MCUNet().parameters())
        737408
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.0, in_channels: int = 3) -> None:
        channels = 8
        stages: list[tuple[int, int, Sequence[Block]]] = [(channels, 1, [Block(None)])]
        for out, stride, expansions, kernels in _STAGES:
            stages.append((out, stride, widen(channels, out, expansions, kernels)))
            channels = out
        stages.append((160, 1, [Block(480, 7, residual=False)]))
        super().__init__(
            16, stages, num_classes=num_classes, dropout=dropout, in_channels=in_channels
        )
