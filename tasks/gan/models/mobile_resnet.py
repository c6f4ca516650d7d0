"""The ResNet generator with separable convolutions in its blocks, of any widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from .channels import parse_channels
from .layers import ImageNetwork, check_counts, check_dropout, norm_layer, padding_layer
from .resnet import DOWNSAMPLING, SMALLEST_SIDE, resnet_layers

__all__ = ["MobileResnetBlock", "MobileResnetGenerator", "SeparableConv2d", "inner_channels"]


class SeparableConv2d(nn.Module):
    """A 3x3 convolution of each channel by itself, a norm, and a 1x1 convolution of all of them.

    Both convolutions have a bias, whatever the norm, as in the gan-compression release.

    Args:
        in_channels: C of the map that comes in.
        out_channels: C of the map that goes out.
        padding: Zeros around the map.
        norm: Name of the normalisation between the two.
        normalise: Makes it, from name and channels.

    Shapes:
        (B, ``in_channels``, H, W) in, (B, ``out_channels``, H + 2 p - 2, W + 2 p - 2) out, with p
        the padding.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> import torch
        >>> SeparableConv2d(8, 4, padding=1)(torch.rand(1, 8, 5, 6)).shape
        torch.Size([1, 4, 5, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        padding: int = 0,
        norm: str = "instance",
        normalise: Callable[[str, int], nn.Module] = norm_layer,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, out_channels=out_channels)
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels),
            normalise(norm, in_channels),
            nn.Conv2d(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MobileResnetBlock(nn.Module):
    """Two separable convolutions, with a width of their own between them, and what came in.

    The dropout layer is always there, at probability 0 too: the second convolution is
    `conv_block.6` in every file of the gan-compression release.

    Args:
        channels: C that comes in and goes out.
        inner: C between the two convolutions.
        norm: Name of the normalisation.
        dropout: Probability between the two convolutions.
        padding: ``"reflect"``, ``"replicate"`` or ``"zero"``.
        conv: Makes the separable convolutions.
        normalise: Makes the normalisations, from name and channels.

    Shapes:
        (B, C, H, W) in and out.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> import torch
        >>> MobileResnetBlock(8, 4)(torch.rand(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        norm: str = "instance",
        dropout: float = 0.0,
        padding: str = "reflect",
        conv: type[SeparableConv2d] = SeparableConv2d,
        normalise: Callable[[str, int], nn.Module] = norm_layer,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, inner=inner)
        check_dropout(dropout)
        layers: list[nn.Module] = []
        for before, after in ((channels, inner), (inner, channels)):
            pad, own = padding_layer(padding)
            layers += [*pad, conv(before, after, own, norm, normalise), normalise(norm, after)]
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        del layers[-2:]  # what is added to the input may be negative
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def inner_channels(
    channels: Sequence[int], blocks: int, *, legacy: bool = False
) -> list[tuple[int, int]]:
    """Return the third (0, 1 or 2) and the inner width of each block.

    The first two thirds have ``blocks // 3`` blocks each, the last has the rest.

    Args:
        channels: Eight widths, in the order of :data:`.channels.STAGES`.
        blocks: How many blocks there are.
        legacy: Only the first block of each third has the third's own width, the others as many
            channels inside as outside.

    Example:
        >>> inner_channels((8, 8, 8, 1, 2, 3, 8, 8), 4)
        [(0, 4), (1, 8), (2, 12), (2, 12)]
        >>> inner_channels((8, 8, 8, 1, 2, 3, 8, 8), 4, legacy=True)
        [(0, 4), (1, 8), (2, 12), (2, 32)]
    """
    third = blocks // 3
    counts = (third, third, blocks - 2 * third)
    return [
        (part, 4 * channels[2 if legacy and place else 3 + part])
        for part, count in enumerate(counts)
        for place in range(count)
    ]


@MODELS.register_module()
class MobileResnetGenerator(ImageNetwork):
    """ResNet generator with separable convolutions in its blocks; each stage has its own width.

    Layers and names are those of the gan-compression release. With ``width`` alone it is the
    release's teacher, with ``channels`` a compressed generator.

    Args:
        in_channels: C of the images that come in.
        out_channels: C of the images that go out.
        width: Channels at full resolution; twice and four times as many below. 64 in the paper's
            teacher.
        channels: Widths of the stages, as ``"16_16_32_16_32_32_16_16"`` or a sequence, instead of
            ``width``; see :func:`.channels.parse_channels`. The blocks take and give four times the
            third.
        legacy: Give only the first block of each third its own inner width. The paper's compressed
            edges-to-shoes and Cityscapes generators were built that way.
        blocks: How many residual blocks.
        norm: ``"instance"``, ``"batch"`` or ``"none"``.
        dropout: Probability inside the blocks.
        padding: ``"reflect"``, ``"replicate"`` or ``"zero"``, inside the blocks.

    Shapes:
        (B, ``in_channels``, H, W) in [-1, 1] in, (B, ``out_channels``, H, W) in [-1, 1] out. H and
        W are divisible by 4, and 8 at least.

    Raises:
        ConfigError: If an option is out of range.
        ShapeError: In a call, if the images do not fit.

    Reference:
        Li, Lin, Ding, Liu, Zhu, Han: GAN Compression: Efficient Architectures for Interactive
        Conditional GANs, CVPR 2020 (arXiv 2003.08936).

    Example:
        >>> thin = MobileResnetGenerator(channels="16_16_32_16_32_32_16_16")
        >>> sum(p.numel() for p in thin.parameters())
        356867
        >>> sum(p.numel() for p in MobileResnetGenerator().parameters())
        1987075
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        channels: str | Sequence[int] | None = None,
        legacy: bool = False,
        blocks: int = 9,
        norm: str = "instance",
        dropout: float = 0.0,
        padding: str = "reflect",
    ) -> None:
        check_counts(in_channels=in_channels, out_channels=out_channels, width=width, blocks=blocks)
        super().__init__(in_channels, side_multiple=DOWNSAMPLING, smallest_side=SMALLEST_SIDE)
        self.out_channels = out_channels
        self.channels = (width,) * 8 if channels is None else parse_channels(channels)
        self.legacy = legacy
        self.blocks = blocks
        self.norm = norm
        self.dropout = dropout
        self.padding = padding
        body = [
            MobileResnetBlock(4 * self.channels[2], inner, norm, dropout, padding)
            for _, inner in inner_channels(self.channels, blocks, legacy=legacy)
        ]
        self.model = resnet_layers(in_channels, out_channels, self.channels, body, norm)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.model(images)
