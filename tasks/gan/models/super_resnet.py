"""One generator that holds all thin ones: the first channels of every layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ....core.errors import ConfigError
from .channels import check_member, format_channels, parse_space
from .layers import ImageNetwork, check_choice, check_counts, norm_layer
from .mobile_resnet import (
    MobileResnetBlock,
    MobileResnetGenerator,
    SeparableConv2d,
    inner_channels,
)
from .resnet import DOWNSAMPLING, SMALLEST_SIDE, resnet_layers

__all__ = [
    "SuperConv2d",
    "SuperConvTranspose2d",
    "SuperInstanceNorm2d",
    "SuperMobileResnetBlock",
    "SuperMobileResnetGenerator",
    "SuperSeparableConv2d",
]


class SuperConv2d(nn.Conv2d):
    """A convolution that can be narrower: the first filters, the first channels of each.

    Takes what ``nn.Conv2d`` takes, without groups. It is as wide in front as what comes in.

    Example:
        >>> import torch
        >>> conv = SuperConv2d(8, 16, 1)
        >>> conv(torch.rand(1, 4, 2, 2), 5).shape, conv(torch.rand(1, 8, 2, 2)).shape
        (torch.Size([1, 5, 2, 2]), torch.Size([1, 16, 2, 2]))
    """

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        out = self.out_channels if out_channels is None else out_channels
        return F.conv2d(
            x,
            self.weight[:out, : x.shape[1]],
            _first(self.bias, out),
            self.stride,
            self.padding,
            self.dilation,
        )


class SuperConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that can be narrower, as :class:`SuperConv2d`.

    Example:
        >>> import torch
        >>> conv = SuperConvTranspose2d(8, 16, 2, stride=2)
        >>> conv(torch.rand(1, 4, 2, 2), 5).shape
        torch.Size([1, 5, 4, 4])
    """

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        out = self.out_channels if out_channels is None else out_channels
        assert not isinstance(self.padding, str)  # torch refuses names of paddings here
        return F.conv_transpose2d(
            x,
            self.weight[: x.shape[1], :out],
            _first(self.bias, out),
            self.stride,
            self.padding,
            self.output_padding,
            dilation=self.dilation,
        )


class SuperInstanceNorm2d(nn.InstanceNorm2d):
    """An instance norm without weights, of as many channels as come in.

    torch's own does the same, but warns in every call.

    Example:
        >>> import torch
        >>> SuperInstanceNorm2d(8)(torch.rand(1, 4, 3, 3)).shape
        torch.Size([1, 4, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, eps=self.eps)


def _normalise(norm: str, channels: int) -> nn.Module:
    return SuperInstanceNorm2d(channels) if norm == "instance" else norm_layer(norm, channels)


class SuperSeparableConv2d(SeparableConv2d):
    """A separable convolution that can be narrower, as :class:`SuperConv2d`.

    Example:
        >>> import torch
        >>> SuperSeparableConv2d(8, 16, 1)(torch.rand(1, 4, 3, 3), 5).shape
        torch.Size([1, 5, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        padding: int = 0,
        norm: str = "instance",
        normalise: Callable[[str, int], nn.Module] = _normalise,
    ) -> None:
        super().__init__(in_channels, out_channels, padding, norm, normalise)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        depthwise, norm, pointwise = self.conv
        assert isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d)
        count = x.shape[1]
        out = pointwise.out_channels if out_channels is None else out_channels
        x = F.conv2d(
            x,
            depthwise.weight[:count],
            _first(depthwise.bias, count),
            padding=depthwise.padding,
            groups=count,
        )
        return F.conv2d(norm(x), pointwise.weight[:out, :count], _first(pointwise.bias, out))


class SuperMobileResnetBlock(MobileResnetBlock):
    """A block that can be narrower, outside and inside.

    Args:
        channels: C of the widest that comes in and goes out.
        inner: C of the widest between the two convolutions.
        norm: Name of the normalisation.
        dropout: Probability between the two convolutions.
        padding: ``"reflect"``, ``"replicate"`` or ``"zero"``.

    Example:
        >>> import torch
        >>> SuperMobileResnetBlock(8, 16)(torch.rand(1, 4, 3, 3), 5).shape
        torch.Size([1, 4, 3, 3])
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        norm: str = "instance",
        dropout: float = 0.0,
        padding: str = "reflect",
    ) -> None:
        super().__init__(channels, inner, norm, dropout, padding, SuperSeparableConv2d, _normalise)

    def forward(self, x: Tensor, inner: int | None = None) -> Tensor:
        widths = [inner, x.shape[1]]
        y = x
        for layer in self.conv_block:
            y = layer(y, widths.pop(0)) if isinstance(layer, SuperSeparableConv2d) else layer(y)
        return x + y


@MODELS.register_module()
class SuperMobileResnetGenerator(ImageNetwork):
    """All generators of a search space in one set of weights.

    A generator of the space is the first channels of every layer. ``active`` says which one a call
    runs; training sets it anew in every step. Names and shapes of the weights are those of the
    :class:`.mobile_resnet.MobileResnetGenerator` of the largest widths, so they load both ways;
    ``active`` is not among them. Every parameter gets a gradient in every step, zero outside the
    active channels, which data-parallel training needs.

    Args:
        space: For each of the eight stages (:data:`.channels.STAGES`) the widths to choose from.
            The paper has ``[[32, 24, 16]] * 8`` and the like.
        in_channels: C of the images that come in.
        out_channels: C of the images that go out.
        blocks: How many residual blocks, in three thirds.
        norm: ``"instance"`` or ``"none"``. Not ``"batch"``: its running statistics would be a
            mixture over the widths, true for none.
        dropout: Probability inside the blocks.
        padding: ``"reflect"``, ``"replicate"`` or ``"zero"``, inside the blocks.

    Shapes:
        (B, ``in_channels``, H, W) in [-1, 1] in, (B, ``out_channels``, H, W) in [-1, 1] out. H and
        W are divisible by 4, and 8 at least.

    Raises:
        ConfigError: If an option is out of range, or a configuration not in the space.
        ShapeError: In a call, if the images do not fit.

    Reference:
        Li, Lin, Ding, Liu, Zhu, Han: GAN Compression: Efficient Architectures for Interactive
        Conditional GANs, CVPR 2020 (arXiv 2003.08936); Cai, Gan, Wang, Zhang, Han: Once-for-All,
        ICLR 2020 (arXiv 1908.09791).

    Example:
        >>> import random
        >>> import torch
        >>> net = SuperMobileResnetGenerator([[8, 4]] * 8, blocks=3)
        >>> net.active = net.smallest
        >>> thin, images = net.slice(net.active), torch.rand(1, 3, 16, 16)
        >>> torch.allclose(thin(images), net(images), atol=1e-6)
        True
        >>> net.sample(random.Random(1)) == net.sample(random.Random(1))
        True
    """

    def __init__(
        self,
        space: Sequence[Sequence[int]],
        in_channels: int = 3,
        out_channels: int = 3,
        blocks: int = 9,
        norm: str = "instance",
        dropout: float = 0.0,
        padding: str = "reflect",
    ) -> None:
        check_counts(in_channels=in_channels, out_channels=out_channels, blocks=blocks)
        if norm == "batch":
            raise ConfigError(
                "a super-network takes norm='instance' or 'none', got 'batch': running statistics "
                "would be a mixture over the widths, true for none of them."
            )
        check_choice("norm", norm, ("instance", "none"))
        super().__init__(in_channels, side_multiple=DOWNSAMPLING, smallest_side=SMALLEST_SIDE)
        self.space = parse_space(space)
        self.largest = tuple(max(choices) for choices in self.space)
        self.smallest = tuple(min(choices) for choices in self.space)
        self.out_channels = out_channels
        self.blocks = blocks
        self.norm = norm
        self.dropout = dropout
        self.padding = padding
        self._active = self.largest
        body = [
            SuperMobileResnetBlock(4 * self.largest[2], inner, norm, dropout, padding)
            for _, inner in inner_channels(self.largest, blocks)
        ]
        self.model = resnet_layers(
            in_channels,
            out_channels,
            self.largest,
            body,
            norm,
            SuperConv2d,
            SuperConvTranspose2d,
            _normalise,
        )

    @property
    def active(self) -> tuple[int, ...]:
        """The configuration that a call runs; the largest in the beginning."""
        return self._active

    @active.setter
    def active(self, channels: str | Sequence[int]) -> None:
        self._active = check_member(channels, self.space)

    def sample(self, generator: random.Random) -> tuple[int, ...]:
        """Return a configuration of the space, each as likely as any other.

        Args:
            generator: Where the choices come from. Give every process the same one.
        """
        return tuple(generator.choice(choices) for choices in self.space)

    def slice(self, channels: str | Sequence[int]) -> MobileResnetGenerator:
        """Return one generator of the space by itself, with a copy of its weights.

        Args:
            channels: The configuration. ``active`` stays what it is.

        Returns:
            A plain module in the same mode, on the same device and of the same precision.

        Raises:
            ConfigError: If the space does not have it.
        """
        channels = check_member(channels, self.space)
        with torch.device("meta"):  # nothing is drawn: the random state stays what it was
            thin = MobileResnetGenerator(
                self.in_channels,
                self.out_channels,
                channels=channels,
                blocks=self.blocks,
                norm=self.norm,
                dropout=self.dropout,
                padding=self.padding,
            )
        whole = self.state_dict()
        state = {
            name: whole[name][tuple(slice(n) for n in value.shape)].clone()
            for name, value in thin.state_dict().items()
        }
        thin.load_state_dict(state, assign=True)
        return thin.requires_grad_(True).train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        self.check_images(images)
        stem, down1, down2, *_, up1, up2 = self._active
        outer = iter((stem, 2 * down1, 4 * down2, 2 * up1, up2, self.out_channels))
        inner = iter(width for _, width in inner_channels(self._active, self.blocks))
        x = images
        for layer in self.model:
            if isinstance(layer, SuperMobileResnetBlock):
                x = layer(x, next(inner))
            elif isinstance(layer, SuperConv2d | SuperConvTranspose2d):
                x = layer(x, next(outer))
            else:
                x = layer(x)
        return x

    def extra_repr(self) -> str:
        return f"space={[list(c) for c in self.space]}, active={format_channels(self._active)}"


def _first(bias: Tensor | None, count: int) -> Tensor | None:
    return None if bias is None else bias[:count]
