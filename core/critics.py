"""Discriminators that are trained against a student and dropped with its adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from .errors import ConfigError, ShapeError

__all__ = ["MapCritic", "SelfAttention2d"]

_WINDOW = 4  # side of every convolution, and so of the smallest map that the last one takes


class SelfAttention2d(nn.Module):
    r"""Every position of a map looks at all others, as in SAGAN.

    .. math:: y_i = x_i + \gamma \sum_j \mathrm{softmax}_j\big(q(x_i)^\top k(x_j)\big)\, v(x_j)

    with 1x1 convolutions q, k, v and no scale on the scores. :math:`\gamma` begins at 0: a new one
    hands its input on, and training decides how far to look.

    Args:
        channels: C of the map. Queries and keys have C / 8 (at least 1), values C, as in SAGAN.

    Shapes:
        (B, C, H, W) in and out. Memory grows with (H * W) squared.

    Raises:
        ConfigError: If there are no channels.

    Reference:
        Zhang, Goodfellow, Metaxas, Odena: Self-Attention Generative Adversarial Networks, ICML
        2019 (arXiv 1805.08318).

    Example:
        >>> import torch
        >>> attention, x = SelfAttention2d(16), torch.randn(2, 16, 5, 7)
        >>> torch.equal(attention(x), x)
        True
        >>> attention.query.weight.shape
        torch.Size([2, 16, 1, 1])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        _check_counts(channels=channels)
        self.query = nn.Conv2d(channels, max(1, channels // 8), 1)
        self.key = nn.Conv2d(channels, max(1, channels // 8), 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        # Written out: the fused kernels have no second derivative, which a gradient penalty needs.
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = (query.mT @ key).softmax(-1)
        return x + self.gamma * (value @ attention.mT).view_as(x)


class MapCritic(nn.Module):
    """Discriminator of segmentation maps, for structured distillation.

    `layers` times a 4x4 convolution of stride 2 with spectral norm and a LeakyReLU, of `channels`,
    2 `channels`, 4 `channels`, ... channels, self-attention after some of them, and a last 4x4
    convolution without spectral norm that gives the score. Maps go in as probabilities; what they
    are judged by (the image, at the size of the map) goes in as further channels.

    With the defaults and maps of 65x65, as 512x512 crops give at stride 8, this is the network of
    Liu et al.: sides 65, 32, 16, 8, 4, 1, attention over 64 and 16 positions. Theirs takes no other
    size. Here larger maps give several scores, whose mean is the sample's, and a side below
    `4 * 2**layers` (64) is first enlarged to that (bilinear). Their public code begins with a batch
    norm; here nothing ties the samples of a batch together, which a gradient penalty asks for.

    In training mode every forward takes one step of the spectral norm's power iteration, which
    changes its buffers and no parameter.

    Args:
        in_channels: Classes, plus the image's channels where it is judged together with the map.
        channels: Width of the first layer; 64 in the authors' code.
        layers: How often the map is halved; 4 in the authors' code.
        attention: Layers, counted from 1, that self-attention follows; the last two in the authors'
            code. Of the h x w positions at that depth it holds (h * w) squared numbers a sample.
        slope: Of the LeakyReLU below 0; 0.1 in the authors' code.

    Shapes:
        (B, in_channels, H, W) of any size in, (B,) out. The scores are raw numbers of either sign.

    Raises:
        ConfigError: If a number is below 1, the slope is negative, or `attention` names a layer
            that is not there.
        ShapeError: In use, if the maps are not (B, in_channels, H, W).

    Reference:
        Liu et al.: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019, section
        on holistic distillation (arXiv 1903.04197); Miyato, Kataoka, Koyama, Yoshida: Spectral
        Normalization for Generative Adversarial Networks, ICLR 2018 (arXiv 1802.05957).

    Example:
        >>> import torch
        >>> critic = MapCritic(22)  # 19 classes and an RGB image
        >>> critic(torch.rand(2, 22, 65, 65)).shape
        torch.Size([2])
        >>> sum(p.numel() for p in MapCritic(19).parameters())
        3191683
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int = 64,
        layers: int = 4,
        attention: Sequence[int] = (3, 4),
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        check_architecture(channels=channels, layers=layers, attention=attention)
        _check_counts(in_channels=in_channels)
        if not 0 <= slope < math.inf:
            raise ConfigError(f"slope must be a finite number >= 0, got {slope}.")
        self.in_channels = in_channels
        self.smallest = _WINDOW * 2**layers
        body: list[nn.Module] = []
        before = in_channels
        for layer in range(1, layers + 1):
            width = channels * 2 ** (layer - 1)
            body.append(spectral_norm(nn.Conv2d(before, width, _WINDOW, stride=2, padding=1)))
            body.append(nn.LeakyReLU(slope))
            if layer in attention:
                body.append(SelfAttention2d(width))
            before = width
        self.body = nn.Sequential(*body)
        self.score = nn.Conv2d(before, 1, _WINDOW)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or maps.shape[1] != self.in_channels:
            raise ShapeError(
                f"this critic takes maps (B, {self.in_channels}, H, W), got {tuple(maps.shape)}. "
                "It is made for one number of classes and image channels: make another for others."
            )
        # The critic's precision decides: its parameters stay float32 beside a half-precision model.
        maps = maps.to(self.score.weight.dtype)
        size = [max(side, self.smallest) for side in maps.shape[2:]]
        if size != list(maps.shape[2:]):
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        return self.score(self.body(maps)).flatten(1).mean(1)


def check_architecture(*, channels: int, layers: int, attention: Sequence[int]) -> None:
    """Raise ConfigError for a :class:`MapCritic` that cannot be built."""
    _check_counts(channels=channels, layers=layers)
    if wrong := [layer for layer in attention if layer not in range(1, layers + 1)]:
        raise ConfigError(
            f"attention={tuple(attention)} names layers {wrong}, but the layers are 1 to {layers}."
        )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} must be at least 1, got {count}.")
