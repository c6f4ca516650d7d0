"""Discriminators of pix2pix and CycleGAN: is each patch of this image real?"""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor, nn

from .layers import ImageNetwork, check_counts, conv_bias, norm_layer

__all__ = ["PatchDiscriminator", "PixelDiscriminator"]

_SLOPE = 0.2
_WIDEST = 8  # times the width of the first layer


@MODELS.register_module()
class PatchDiscriminator(ImageNetwork):
    """PatchGAN: one score for each overlapping patch of the image.

    A 4x4 convolution of stride 2, ``layers - 1`` more, one of stride 1, and a last one that scores;
    ``width`` times 1, 2, 4, 8, 8, ... channels. With three layers a score sees 70x70 pixels.
    Layers and names are those of the pytorch-CycleGAN-and-pix2pix release.

    Args:
        in_channels: C of the images; for a conditional one those of both images together, which
            come in as one.
        width: Channels of the first layer: 64 in the papers, 128 in the paper on compression for
            its pix2pix models.
        layers: How many layers have stride 2.
        norm: ``"batch"`` (pix2pix), ``"instance"`` (CycleGAN) or ``"none"``. The first layer and
            the last have none.

    Shapes:
        (B, ``in_channels``, H, W) in [-1, 1] in, scores (B, 1, H / 2 ** ``layers`` - 2, ...) out,
        the quotient rounded down. H and W are 3 * 2 ** ``layers`` at least.

    Raises:
        ConfigError: If an option is out of range.
        ShapeError: In a call, if the images do not fit.

    Reference:
        Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks,
        CVPR 2017 (arXiv 1611.07004).

    Example:
        >>> import torch
        >>> PatchDiscriminator(6, width=8)(torch.rand(1, 6, 64, 72)).shape
        torch.Size([1, 1, 6, 7])
        >>> sum(p.numel() for p in PatchDiscriminator().parameters())
        2765633
    """

    def __init__(
        self, in_channels: int = 3, width: int = 64, layers: int = 3, norm: str = "batch"
    ) -> None:
        check_counts(in_channels=in_channels, width=width, layers=layers)
        super().__init__(in_channels, smallest_side=3 * 2**layers)
        self.width = width
        self.layers = layers
        self.norm = norm
        bias = conv_bias(norm)
        body: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE),
        ]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(2**layer, _WIDEST)
            stride = 2 if layer < layers else 1
            body.append(nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=bias))
            body += [norm_layer(norm, after), nn.LeakyReLU(_SLOPE)]
            before = after
        self.model = nn.Sequential(*body, nn.Conv2d(before, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.model(images)


@MODELS.register_module()
class PixelDiscriminator(ImageNetwork):
    """PixelGAN: one score for each pixel by itself, so by colour alone.

    Layers and names are those of the pytorch-CycleGAN-and-pix2pix release.

    Args:
        in_channels: C of the images; for a conditional one those of both images together.
        width: Channels of the first layer; 64 in the paper.
        norm: ``"batch"``, ``"instance"`` or ``"none"``, before the last layer. With an instance
            norm a score depends on the other pixels through it. With a batch norm the last layer
            has no bias, as in the release.

    Shapes:
        (B, ``in_channels``, H, W) in [-1, 1] in, scores (B, 1, H, W) out.

    Raises:
        ConfigError: If an option is out of range.
        ShapeError: In a call, if the images do not fit.

    Reference:
        Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks,
        CVPR 2017 (arXiv 1611.07004).

    Example:
        >>> import torch
        >>> PixelDiscriminator(width=8)(torch.rand(2, 3, 5, 7)).shape
        torch.Size([2, 1, 5, 7])
    """

    def __init__(self, in_channels: int = 3, width: int = 64, norm: str = "batch") -> None:
        check_counts(in_channels=in_channels, width=width)
        super().__init__(in_channels)
        self.width = width
        self.norm = norm
        bias = conv_bias(norm)
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, width, 1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(width, 2 * width, 1, bias=bias),
            norm_layer(norm, 2 * width),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.net(images)
