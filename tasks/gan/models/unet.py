"""The U-Net generator of pix2pix."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ....core.errors import ConfigError
from .layers import ImageNetwork, check_counts, check_dropout, conv_bias, norm_layer

__all__ = ["UnetBlock", "UnetGenerator"]

_WIDEST = 8  # times the width of the first level


class UnetBlock(nn.Module):
    """One level of the U: down, what is below, up again, and what came in beside it.

    Args:
        in_channels: C that comes in.
        out_channels: C that the way up gives.
        inner: C that goes to the level below.
        below: That level; ``None`` for the innermost.
        outermost: The first level has no norm, ends in a tanh, and hands on no input.
        norm: Name of the normalisation.
        dropout: Probability at the end of the way up; at 0 there is no such layer.

    Shapes:
        (B, ``in_channels``, H, W) in, (B, ``in_channels`` + ``out_channels``, H, W) out, or (B,
        ``out_channels``, H, W) of the outermost.

    Example:
        >>> UnetBlock(8, 8, 16)(torch.rand(1, 8, 4, 6)).shape
        torch.Size([1, 16, 4, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        inner: int,
        below: UnetBlock | None = None,
        *,
        outermost: bool = False,
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        bias = conv_bias(norm)
        layers: list[nn.Module] = [] if outermost else [nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(in_channels, inner, 4, stride=2, padding=1, bias=bias))
        if below is not None:
            layers += [below] if outermost else [norm_layer(norm, inner), below]
        layers.append(nn.ReLU())
        layers.append(
            nn.ConvTranspose2d(
                inner if below is None else 2 * inner,
                out_channels,
                4,
                stride=2,
                padding=1,
                bias=bias or outermost,
            )
        )
        layers.append(nn.Tanh() if outermost else norm_layer(norm, out_channels))
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        # The release's activations write into x, so that it hands on what they leave of it. The
        # ReLU above makes both the same; here nothing is overwritten, and taps read what was there.
        return y if self.outermost else torch.cat([x, y], 1)


@MODELS.register_module()
class UnetGenerator(ImageNetwork):
    """Generator of pix2pix: an encoder and a decoder with a connection at every level.

    Layers and names are those of the pytorch-CycleGAN-and-pix2pix release. There are ``downs``
    halvings, to ``width`` times 1, 2, 4, 8, 8, ... channels. Weights are torch's until
    :meth:`init_weights`.

    Args:
        in_channels: C of the images that come in.
        out_channels: C of the images that go out.
        downs: How many halvings: 8 in the paper for 256x256, 7 for 128x128.
        width: Channels after the first halving; 64 in the paper.
        norm: ``"batch"`` (the paper), ``"instance"`` or ``"none"``.
        dropout: Probability in the levels between the fourth and the innermost; 0.5 in the paper.

    Shapes:
        (B, ``in_channels``, H, W) in [-1, 1] in, (B, ``out_channels``, H, W) in [-1, 1] out. H and
        W are divisible by 2 ** ``downs``.

    Raises:
        ConfigError: If an option is out of range.
        ShapeError: In a call, if the images do not fit.

    Reference:
        Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks,
        CVPR 2017 (arXiv 1611.07004).

    Example:
        >>> UnetGenerator(downs=3, width=8)(torch.rand(1, 3, 16, 24)).shape
        torch.Size([1, 3, 16, 24])
        >>> sum(p.numel() for p in UnetGenerator().parameters())
        54413955
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        downs: int = 8,
        width: int = 64,
        norm: str = "batch",
        dropout: float = 0.5,
    ) -> None:
        check_counts(in_channels=in_channels, out_channels=out_channels, downs=downs, width=width)
        if downs < 2:
            raise ConfigError("downs must be at least 2, an outermost and an innermost, got 1.")
        check_dropout(dropout)
        super().__init__(in_channels, side_multiple=2**downs, smallest_side=2**downs)
        self.out_channels = out_channels
        self.downs = downs
        self.width = width
        self.norm = norm
        self.dropout = dropout
        inner = [width * min(2**level, _WIDEST) for level in range(downs)]
        block: UnetBlock | None = None
        for level in range(downs - 1, 0, -1):
            # Between the fourth level and the innermost, all of the widest.
            drop = dropout if 4 <= level < downs - 1 else 0.0
            outer = inner[level - 1]
            block = UnetBlock(outer, outer, inner[level], block, norm=norm, dropout=drop)
        self.model = UnetBlock(
            in_channels, out_channels, inner[0], block, outermost=True, norm=norm
        )

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.model(images)
