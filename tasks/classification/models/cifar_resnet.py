"""The residual networks for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ....core.errors import ConfigError
from .blocks import check_counts

__all__ = ["BasicBlock", "CifarResNet", "PadShortcut"]

SHORTCUTS = ("A", "B")


class PadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th pixel, and channels of zeros on both sides; no parameters.

    Args:
        in_channels: C that comes in.
        out_channels: C that goes out; not fewer. Where the difference is odd, the channel more of
            zeros comes last.
        stride: 2 where the map shrinks.

    Shapes:
        (B, ``in_channels``, H, W) in, (B, ``out_channels``, ceil(H / stride), ceil(W / stride))
        out, as a 3x3 convolution with padding 1 has.

    Raises:
        ConfigError: If channels were to be dropped.

    Example:
        >>> import torch
        >>> PadShortcut(1, 3, stride=2)(torch.ones(1, 1, 2, 2)).flatten().tolist()
        [0.0, 1.0, 0.0]
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ConfigError(
                f"A shortcut without parameters cannot drop channels ({in_channels} to "
                f"{out_channels}). Let widths grow, or choose shortcut='B'."
            )
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels=+{sum(self.padding)}"


class BasicBlock(nn.Module):
    r"""Two 3x3 convolutions, and what came in.

    .. math:: y = \mathrm{ReLU}(N_2 W_2\, \mathrm{ReLU}(N_1 W_1 x) + s(x))

    The activations are modules of their own and not in place, so every value has a tap:
    ``relu2@input`` is the sum before the activation (what activation boundaries compare), ``bn1``
    and ``bn2`` are what each convolution adds.

    Args:
        in_channels: C that comes in.
        out_channels: C that goes out.
        stride: Of the first convolution.
        shortcut: ``"A"`` or ``"B"``; only where shape or channels change, else what came in itself.

    Example:
        >>> import torch
        >>> BasicBlock(4, 8, stride=2)(torch.rand(1, 4, 7, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, shortcut: str = "A"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "A":
                self.shortcut = PadShortcut(in_channels, out_channels, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


@MODELS.register_module()
class CifarResNet(nn.Module):
    """ResNet for 32x32 images: one 3x3 convolution and three stages of basic blocks.

    Names are those of the widespread files of trained weights (``conv1``, ``bn1``,
    ``layer1.0.conv1``, ..., ``linear``); a ``module.`` before them is taken off by
    :func:`taskdistill.core.teacher.load_weights`.

    Useful taps: ``layer1``, ``layer2``, ``layer3`` (after the activation); ``layer1.2.relu2@input``
    (before it, at the end of a stage of depth 20); ``layer2@input``; ``pool`` (the last features,
    (B, C, 1, 1)); ``linear`` (logits).

    Args:
        depth: 6 n + 2 layers, n blocks a stage: 20, 32, 44, 56 and 110 in the paper.
        num_classes: K.
        shortcut: ``"A"``, of zeros (the paper's on CIFAR), or ``"B"``, a 1x1 convolution and its
            batch norm, where shape or channels change.
        widths: Channels of the three stages; (16, 32, 64) in the paper.
        in_channels: C of the images.

    Shapes:
        (B, ``in_channels``, H, W), normalised, in; (B, K) out. Any H and W.

    Raises:
        ConfigError: If an option is out of range.

    Reference:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016 (arXiv
        1512.03385), section 4.2.

    Example:
        >>> import torch
        >>> net = CifarResNet(depth=20)
        >>> net(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in net.parameters())  # the paper's 0.27M
        269722
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        shortcut: str = "A",
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks, odd = divmod(depth - 2, 6)
        if odd or blocks < 1:
            lower = max(8, depth - (depth - 2) % 6)
            raise ConfigError(
                f"depth must be 6 n + 2, for n blocks a stage, such as 20, 32, 44, 56 or 110; got "
                f"{depth}. The nearest are {lower} and {lower + 6}."
            )
        if shortcut not in SHORTCUTS:
            raise ConfigError(
                f"shortcut must be 'A' (zeros) or 'B' (a 1x1 convolution), got {shortcut!r}."
            )
        if len(widths) != 3:
            raise ConfigError(f"widths must be the channels of three stages, got {tuple(widths)}.")
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_counts(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        self.depth = depth
        self.num_classes = num_classes
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    rest = (BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
