"""The ResNet generator of CycleGAN, and what the thin ones share with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from .layers import (
    ImageNetwork,
    check_counts,
    check_dropout,
    conv_bias,
    norm_layer,
    padding_layer,
)

__all__ = ["FIRST_BLOCK", "ResnetBlock", "ResnetGenerator", "resnet_layers"]

FIRST_BLOCK = 10
"""Index in `model` of the first residual block."""
SMALLEST_SIDE = 8  # a side of 2 inside: one can be neither reflected nor normalised
DOWNSAMPLING = 4


class ResnetBlock(nn.Module):
    r"""Two padded 3x3 convolutions and what came in.

    .. math:: y = x + N(W_2\, \mathrm{ReLU}(N(W_1 x)))

    Args:
        channels: C.
        norm: Name of the normalisation.
        dropout: Probability between the two convolutions. At 0 there is no such layer, and the
            second convolution is `conv_block.5` and not `.6`, as in the release.
        padding: ``"reflect"``, ``"replicate"`` or ``"zero"``.

    Shapes:
        (B, C, H, W) in and out.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> import torch
        >>> ResnetBlock(8)(torch.rand(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(
        self, channels: int, norm: str = "instance", dropout: float = 0.0, padding: str = "reflect"
    ) -> None:
        super().__init__()
        check_counts(channels=channels)
        check_dropout(dropout)
        bias = conv_bias(norm)
        layers: list[nn.Module] = []
        for first in (True, False):
            pad, own = padding_layer(padding)
            layers += [*pad, nn.Conv2d(channels, channels, 3, padding=own, bias=bias)]
            layers.append(norm_layer(norm, channels))
            if first:
                layers.append(nn.ReLU())
                if dropout:
                    layers.append(nn.Dropout(dropout))
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def resnet_layers(
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    blocks: Sequence[nn.Module],
    norm: str,
    conv: Any = nn.Conv2d,
    conv_transpose: Any = nn.ConvTranspose2d,
    normalise: Callable[[str, int], nn.Module] = norm_layer,
) -> nn.Sequential:
    """Return stem, two downsamplings, the blocks, two upsamplings and the last convolution.

    Args:
        in_channels: C of the images that come in.
        out_channels: C of those that go out.
        channels: Eight widths, in the order of :data:`.channels.STAGES`.
        blocks: The residual blocks.
        norm: Name of the normalisation.
        conv: Makes the convolutions; takes what ``nn.Conv2d`` takes.
        conv_transpose: Makes the transposed convolutions.
        normalise: Makes the normalisations, from name and channels.
    """
    bias = conv_bias(norm)
    stem, down1, down2, *_, up1, up2 = channels
    # ReLUs are not in place: a tap on the layer before would read what they leave.
    layers: list[nn.Module] = [
        nn.ReflectionPad2d(3),
        conv(in_channels, stem, 7, bias=bias),
        normalise(norm, stem),
        nn.ReLU(),
    ]
    for before, after in ((stem, 2 * down1), (2 * down1, 4 * down2)):
        layers.append(conv(before, after, 3, stride=2, padding=1, bias=bias))
        layers += [normalise(norm, after), nn.ReLU()]
    layers += blocks
    for before, after in ((4 * down2, 2 * up1), (2 * up1, up2)):
        layers.append(
            conv_transpose(before, after, 3, stride=2, padding=1, output_padding=1, bias=bias)
        )
        layers += [normalise(norm, after), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.ReflectionPad2d(3), conv(up2, out_channels, 7, bias=True), nn.Tanh()
    )


@MODELS.register_module()
class ResnetGenerator(ImageNetwork):
    """Generator of CycleGAN: residual blocks at a quarter of the image's side.

    Layers and names are those of the pytorch-CycleGAN-and-pix2pix release, whose files load
    through :func:`.release.release_names`. Weights are torch's until :meth:`init_weights`.

    Args:
        in_channels: C of the images that come in.
        out_channels: C of the images that go out.
        width: Channels at full resolution; twice and four times as many below. 64 in the paper.
        blocks: How many residual blocks: 9 in the paper for 256x256 and larger, 6 below.
        norm: ``"instance"`` (CycleGAN), ``"batch"`` (pix2pix) or ``"none"``.
        dropout: Probability inside the blocks; 0 in CycleGAN, 0.5 in pix2pix.
        padding: ``"reflect"`` (the release), ``"replicate"`` or ``"zero"``, inside the blocks.

    Shapes:
        (B, ``in_channels``, H, W) in [-1, 1] in, (B, ``out_channels``, H, W) in [-1, 1] out. H and
        W are divisible by 4, and 8 at least.

    Raises:
        ConfigError: If an option is out of range.
        ShapeError: In a call, if the images do not fit.

    Reference:
        Zhu, Park, Isola, Efros: Unpaired Image-to-Image Translation using Cycle-Consistent
        Adversarial Networks, ICCV 2017 (arXiv 1703.10593); Johnson, Alahi, Fei-Fei: Perceptual
        Losses for Real-Time Style Transfer and Super-Resolution, ECCV 2016 (arXiv 1603.08155).

    Example:
        >>> import torch
        >>> ResnetGenerator(width=8, blocks=2)(torch.rand(1, 3, 16, 24)).shape
        torch.Size([1, 3, 16, 24])
        >>> sum(p.numel() for p in ResnetGenerator().parameters())
        11378179
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        blocks: int = 9,
        norm: str = "instance",
        dropout: float = 0.0,
        padding: str = "reflect",
    ) -> None:
        check_counts(in_channels=in_channels, out_channels=out_channels, width=width, blocks=blocks)
        super().__init__(in_channels, side_multiple=DOWNSAMPLING, smallest_side=SMALLEST_SIDE)
        self.out_channels = out_channels
        self.width = width
        self.blocks = blocks
        self.norm = norm
        self.dropout = dropout
        self.padding = padding
        body = [ResnetBlock(4 * width, norm, dropout, padding) for _ in range(blocks)]
        self.model = resnet_layers(in_channels, out_channels, (width,) * 8, body, norm)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.model(images)
