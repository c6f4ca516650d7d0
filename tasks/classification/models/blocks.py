"""What the tiny mobile networks are made of: inverted residual blocks, in stages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ....core.errors import ConfigError, did_you_mean

__all__ = [
    "Block",
    "ConvNormAct",
    "InvertedResidual",
    "MobileNetwork",
    "SqueezeExcite",
    "check_counts",
    "make_divisible",
    "widen",
]

# None is in place: a tap on the layer before would read what they leave.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}


def check_counts(**counts: int) -> None:
    """Raise ConfigError for the first of these numbers that is no positive integer.

    Example:
        >>> check_counts(num_classes=10)
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name} must be an integer >= 1, got {count!r}.")


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` next to ``channels``, one up if that lost over a tenth.

    The rounding of the MobileNets: halves go up, and the smallest is ``divisor``.

    Args:
        channels: A count, often a fraction after scaling.
        divisor: 8 in all of these networks.

    Example:
        >>> make_divisible(33.6), make_divisible(11.2), make_divisible(3)
        (32, 16, 8)
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"Activation {name!r} is not one of {sorted(_ACTIVATIONS)}."
            f"{did_you_mean(name, _ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]()


class ConvNormAct(nn.Sequential):
    """A convolution, its batch norm and its activation: ``conv``, ``norm``, ``act``.

    Args:
        in_channels: C that comes in.
        out_channels: C that goes out.
        kernel: Odd side of the kernel; padded so that stride 1 keeps H and W.
        stride: Of the convolution.
        groups: ``in_channels`` for a depthwise one.
        act: ``"relu"``, ``"relu6"``, ``"hardswish"`` or ``None``.
        norm: Without one, the convolution has a bias.

    Example:
        >>> [name for name, _ in ConvNormAct(3, 8, 3, act="relu6").named_children()]
        ['conv', 'norm', 'act']
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: str | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=kernel // 2,
            groups=groups,
            bias=not norm,
        )
        if norm:
            self.norm = nn.BatchNorm2d(out_channels)
        if act is not None:
            self.act = _activation(act)


class SqueezeExcite(nn.Module):
    r"""Each channel scaled by a number in [0, 1] that the whole map decides.

    .. math:: y = x \cdot h(W_2\, \mathrm{ReLU}(W_1\, \bar x)), \quad h(a) = \min(\max(a/6 + 1/2,
        0), 1)

    Args:
        channels: C of the map.
        middle: Channels between the two 1x1 convolutions.

    Reference:
        Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018 (arXiv 1709.01507); with the hard
        sigmoid of Howard et al.: Searching for MobileNetV3, ICCV 2019 (arXiv 1905.02244).

    Example:
        >>> import torch
        >>> SqueezeExcite(16, 8)(torch.rand(2, 16, 3, 5)).shape
        torch.Size([2, 16, 3, 5])
    """

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(middle, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Widen by 1x1 (``expand``), convolve channel by channel (``depthwise``), narrow (``project``).

    Without ``middle`` there is no widening: a depthwise separable convolution. The last convolution
    has no activation. Where ``residual``, what came in is added.

    Args:
        in_channels: C that comes in.
        out_channels: C that goes out.
        middle: Channels of the depthwise convolution, or ``None`` for ``in_channels``.
        kernel: Its odd side.
        stride: Its stride.
        act: Activation of the first two.
        residual: Whether to add what came in; the shapes have to agree.
        squeeze: Middle channels of a squeeze-excitation after the depthwise one (``squeeze``).

    Raises:
        ConfigError: If ``residual`` is asked for where the shapes differ.

    Reference:
        Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (arXiv
        1801.04381), section 3.3.

    Example:
        >>> import torch
        >>> block = InvertedResidual(8, 16, middle=48, kernel=5, stride=2)
        >>> block(torch.rand(1, 8, 7, 7)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        middle: int | None = None,
        kernel: int = 3,
        stride: int = 1,
        act: str = "relu6",
        residual: bool = False,
        squeeze: int | None = None,
    ) -> None:
        super().__init__()
        if residual and (stride != 1 or in_channels != out_channels):
            raise ConfigError(
                f"What came in ({in_channels} channels) cannot be added to what goes out "
                f"({out_channels} channels, stride {stride}); set residual=False."
            )
        layers: list[tuple[str, nn.Module]] = []
        if middle is not None:
            layers.append(("expand", ConvNormAct(in_channels, middle, act=act)))
        wide = in_channels if middle is None else middle
        depthwise = ConvNormAct(wide, wide, kernel, stride, groups=wide, act=act)
        layers.append(("depthwise", depthwise))
        if squeeze is not None:
            layers.append(("squeeze", SqueezeExcite(wide, squeeze)))
        layers.append(("project", ConvNormAct(wide, out_channels)))
        for name, layer in layers:
            self.add_module(name, layer)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.residual else y


@dataclass(frozen=True)
class Block:
    """One inverted residual block of a stage.

    Args:
        middle: Channels of its depthwise convolution; ``None`` without widening.
        kernel: Side of it.
        squeeze: Middle channels of a squeeze-excitation.
        act: Activation.
        residual: Whether what came in is added; by default in all but the first block of a stage,
            where stride and channels allow it.
    """

    middle: int | None
    kernel: int = 3
    squeeze: int | None = None
    act: str = "relu6"
    residual: bool | None = None


class MobileNetwork(nn.Module):
    """A mobile classifier: a strided convolution, stages of inverted residual blocks, a head.

    Modules, which are the useful taps too: ``stem``; ``stages.0`` (the block right after it),
    ``stages.1``, ...; ``head`` (a 1x1 convolution, where there is one); ``pool``; ``features``
    (MobileNetV3's layer between pooling and classifier); ``drop``; ``classifier``. Convolutions of
    a block are ``expand``, ``depthwise`` and ``project``, each with ``conv``, ``norm`` and ``act``.

    Weights start as torch's convolutions do (Kaiming uniform, which the NetAug paper's code trains
    wide networks from); the classifier from N(0, 0.02²), and with biases of 0.

    Args:
        stem: Channels of the first convolution (3x3, stride 2).
        stages: For each stage its channels, its stride, and its blocks.
        head: Channels of a 1x1 convolution before the pooling, or ``None``.
        features: Channels of a 1x1 convolution with bias after it, or ``None``.
        stem_act: Activation of the first convolution.
        head_act: Activation of the head.
        num_classes: K.
        dropout: Probability before the classifier.
        in_channels: C of the images.

    Shapes:
        (B, ``in_channels``, H, W), normalised, in; (B, K) out. Any H and W.

    Raises:
        ConfigError: If an option is out of range.
    """

    def __init__(
        self,
        stem: int,
        stages: Sequence[tuple[int, int, Sequence[Block]]],
        head: int | None = None,
        features: int | None = None,
        stem_act: str = "relu6",
        head_act: str = "relu6",
        num_classes: int = 1000,
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be a probability in [0, 1), got {dropout!r}.")
        self.num_classes = num_classes
        self.stem = ConvNormAct(in_channels, stem, 3, 2, act=stem_act)
        built, channels = [], stem
        for out_channels, stride, blocks in stages:
            layers = []
            for index, block in enumerate(blocks):
                step = stride if index == 0 else 1
                fits = index > 0 and step == 1 and channels == out_channels
                layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        block.middle,
                        block.kernel,
                        step,
                        block.act,
                        fits if block.residual is None else block.residual,
                        block.squeeze,
                    )
                )
                channels = out_channels
            built.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*built)
        self.head: nn.Module = nn.Identity()
        if head is not None:
            self.head = ConvNormAct(channels, head, act=head_act)
            channels = head
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.features: nn.Module = nn.Identity()
        if features is not None:
            self.features = ConvNormAct(channels, features, act=head_act, norm=False)
            channels = features
        self.flatten = nn.Flatten()
        self.drop: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.stages(self.stem(images)))
        x = self.features(self.pool(x))
        return self.classifier(self.drop(self.flatten(x)))

    @staticmethod
    def checkpoint_names(state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state dict of the NetAug release under this package's names.

        Names that are not the release's stay, so a file of this package passes unchanged, and
        strict loading still names every real difference. Made for ``names=`` of
        :func:`taskdistill.core.teacher.load_weights`.

        Args:
            state: Names and tensors, as read. It is not changed.

        Example:
            >>> names = ["backbone.stages.0.op_list.1.conv.depth_conv.norm.bias",
            ...          "head.op_list.3.linear.weight"]
            >>> list(MobileNetwork.checkpoint_names(dict.fromkeys(names)))
            ['stages.1.1.depthwise.norm.bias', 'classifier.weight']
        """
        # The last stage has one block, which the release counts to its head.
        stages = [int(m[1]) for n in state if (m := re.match(r"backbone\.stages\.(\d+)\.", n))]
        last = max(stages, default=-1) + 2
        blocks = any(name.startswith("head.op_list.0.conv.point_conv.") for name in state)
        return {_released(name, last, blocks): value for name, value in state.items()}


_LAYERS = {
    "inverted_conv": "expand",
    "depth_conv": "depthwise",
    "point_conv": "project",
    "se_layer.reduce_conv": "squeeze.reduce",
    "se_layer.expand_conv": "squeeze.expand",
}


def _released(name: str, last: int, blocks: bool) -> str:
    """The name here of a name there; ``blocks`` if the head begins with an inverted block."""
    if match := re.fullmatch(r"backbone\.input_stem\.op_list\.0\.(.+)", name):
        return f"stem.{match[1]}"
    block, inner = "", ""
    if match := re.fullmatch(r"backbone\.input_stem\.op_list\.1\.conv\.(.+)", name):
        block, inner = "stages.0.0", match[1]
    elif match := re.fullmatch(r"backbone\.stages\.(\d+)\.op_list\.(\d+)\.conv\.(.+)", name):
        block, inner = f"stages.{int(match[1]) + 1}.{match[2]}", match[3]
    elif blocks and (match := re.fullmatch(r"head\.op_list\.0\.conv\.(.+)", name)):
        block, inner = f"stages.{last}.0", match[1]
    if block:
        for theirs, ours in _LAYERS.items():
            if inner.startswith(f"{theirs}."):
                return f"{block}.{ours}.{inner.removeprefix(f'{theirs}.')}"
        return name
    if match := re.fullmatch(r"head\.op_list\.\d+\.linear\.(weight|bias)", name):
        return f"classifier.{match[1]}"
    if match := re.fullmatch(r"head\.op_list\.(\d+)\.((?:conv|norm)\..+)", name):
        first = 1 if blocks else 0
        return f"{'head' if int(match[1]) == first else 'features'}.{match[2]}"
    return name


def widen(
    in_channels: int,
    out_channels: int,
    expansions: Sequence[float],
    kernels: Sequence[int],
    divisor: int = 8,
) -> list[Block]:
    """Return a stage's blocks that widen by factors, rounded to multiples of ``divisor``.

    Args:
        in_channels: C that comes into the first block; ``out_channels`` into the others.
        out_channels: C of the stage.
        expansions: Factor of each block.
        kernels: Side of each block's depthwise kernel.
        divisor: What the widened channels are a multiple of.

    Example:
        >>> [block.middle for block in widen(8, 16, [3, 5], [7, 3])]
        [24, 80]
    """
    found = []
    for index, (factor, kernel) in enumerate(zip(expansions, kernels, strict=True)):
        channels = out_channels if index else in_channels
        found.append(Block(make_divisible(round(factor * channels), divisor), kernel))
    return found
