"""Start a thin generator from the most important channels of a wider one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ....core.errors import ConfigError
from .mobile_resnet import MobileResnetBlock, MobileResnetGenerator, SeparableConv2d
from .resnet import FIRST_BLOCK, ResnetBlock, ResnetGenerator
from .super_resnet import SuperMobileResnetGenerator

__all__ = ["transfer_channels"]

_Mobile = MobileResnetGenerator | SuperMobileResnetGenerator
_Generator = ResnetGenerator | _Mobile
_Conv = nn.Conv2d | nn.ConvTranspose2d
_ALIKE = ("in_channels", "out_channels", "blocks", "norm", "padding")


def transfer_channels(source: nn.Module, target: nn.Module) -> None:
    r"""Initialise a narrower generator, in place, with channels of a wider one.

    Of each layer those output channels :math:`o` are kept that have the largest

    .. math:: I_o = \sum_{i, u, v} |W_{o i u v}|

    in descending order, so that the first channels of a super-network are the most important ones.
    The next layer takes the same channels in. What the residual blocks add up must stay together:
    the channels of `down2` and of all blocks' outputs are chosen once, by the sum of :math:`I` over
    these layers. A depthwise convolution, and a norm, follow what comes in. Channels of images are
    kept whole. At equal widths the target computes what the source does.

    Args:
        source: The trained generator. It is not changed.
        target: A generator of the same family, nowhere wider. Both are
            :class:`.resnet.ResnetGenerator`, or each is a
            :class:`.mobile_resnet.MobileResnetGenerator` or a
            :class:`.super_resnet.SuperMobileResnetGenerator`, whose largest widths count. It may be
            on another device and of another precision.

    Raises:
        ConfigError: If the two are of different families, differ in images, blocks, norm or
            padding, or the target is wider.

    Reference:
        Li, Lin, Ding, Liu, Zhu, Han: GAN Compression: Efficient Architectures for Interactive
        Conditional GANs, CVPR 2020 (arXiv 2003.08936), as their code does it; Li, Kadav,
        Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, ICLR 2017 (arXiv
        1608.08710).

    Example:
        >>> teacher = MobileResnetGenerator(width=8, blocks=3)
        >>> student = MobileResnetGenerator(channels="4_4_4_2_4_8_4_4", blocks=3)
        >>> transfer_channels(teacher, student)
        >>> transfer_channels(student, teacher)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.ConfigError: the target is wider than the source: ...
    """
    wide, thin = _check_pair(source, target)
    _check_widths(wide, thin)
    with torch.no_grad():
        _transfer(wide, thin)


def _transfer(source: _Generator, target: _Generator) -> None:
    down2 = FIRST_BLOCK - 3
    last = len(source.model) - 2
    blocks = [layer for layer in source.model if isinstance(layer, ResnetBlock | MobileResnetBlock)]
    added = [_conv(source.model[down2]), *(_convs(block)[1] for block in blocks)]
    stream = _choose(added, _conv(target.model[down2]).out_channels)
    kept = torch.arange(source.in_channels)
    for index, (wide, thin) in enumerate(zip(source.model, target.model, strict=True)):
        if isinstance(wide, ResnetBlock | MobileResnetBlock):
            assert isinstance(thin, ResnetBlock | MobileResnetBlock)
            inner = _choose(_convs(wide)[:1], _convs(thin)[0].out_channels)
            _copy_block(wide, thin, stream, inner)
        elif isinstance(wide, _Conv):
            before = kept
            if index == down2:
                kept = stream
            elif index == last:
                kept = torch.arange(source.out_channels)
            else:
                kept = _choose([wide], _conv(thin).out_channels)
            _copy_conv(wide, _conv(thin), before, kept)
        else:
            _copy_norm(wide, thin, kept)


def _copy_block(wide: nn.Module, thin: nn.Module, stream: Tensor, inner: Tensor) -> None:
    steps = iter(((stream, inner), (inner, stream)))
    after = stream
    # One may have a dropout layer where the other has none.
    for from_, to in zip(_weighted(wide), _weighted(thin), strict=True):
        if isinstance(from_, SeparableConv2d):
            assert isinstance(to, SeparableConv2d)
            before, after = next(steps)
            depthwise, norm, pointwise = from_.conv
            alone = torch.zeros(1, dtype=torch.long)  # each channel's filter sees itself
            _copy_conv(_conv(depthwise), _conv(to.conv[0]), alone, before)
            _copy_norm(norm, to.conv[1], before)
            _copy_conv(_conv(pointwise), _conv(to.conv[2]), before, after)
        elif isinstance(from_, nn.Conv2d):
            before, after = next(steps)
            _copy_conv(from_, _conv(to), before, after)
        else:
            _copy_norm(from_, to, after)


def _copy_conv(wide: _Conv, thin: _Conv, inputs: Tensor, outputs: Tensor) -> None:
    transposed = isinstance(wide, nn.ConvTranspose2d)
    first, second = (inputs, outputs) if transposed else (outputs, inputs)
    device = wide.weight.device
    thin.weight.copy_(wide.weight[first.to(device)][:, second.to(device)])
    if wide.bias is not None and thin.bias is not None:
        thin.bias.copy_(wide.bias[outputs.to(device)])


def _copy_norm(wide: nn.Module, thin: nn.Module, kept: Tensor) -> None:
    """Copy what a batch norm holds a channel; other layers hold nothing."""
    state = thin.state_dict()
    for name, value in wide.state_dict().items():
        state[name].copy_(value[kept.to(value.device)] if value.ndim else value)


def _choose(convs: Sequence[_Conv], count: int) -> Tensor:
    """The output channels of the largest filters, of all these layers together."""
    total = torch.stack([_importance(conv) for conv in convs]).sum(0)
    return total.sort(descending=True, stable=True).indices[:count]


def _importance(conv: _Conv) -> Tensor:
    weight = conv.weight.double().cpu()
    if isinstance(conv, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    return weight.abs().flatten(1).sum(1)


def _conv(layer: nn.Module) -> _Conv:
    assert isinstance(layer, _Conv)
    return layer


def _convs(block: nn.Module) -> list[_Conv]:
    """Of each of a block's two convolutions the layer that gives its output."""
    return [
        _conv(layer.conv[2] if isinstance(layer, SeparableConv2d) else layer)
        for layer in _weighted(block)
        if isinstance(layer, SeparableConv2d | nn.Conv2d)
    ]


def _weighted(block: nn.Module) -> list[nn.Module]:
    assert isinstance(block, ResnetBlock | MobileResnetBlock)
    return [layer for layer in block.conv_block if layer.state_dict()]


# -- checks ----------------------------------------------------------------------------------------


def _check_pair(source: nn.Module, target: nn.Module) -> tuple[_Generator, _Generator]:
    names = f"{type(source).__name__} to {type(target).__name__}"
    both_plain = isinstance(source, ResnetGenerator) and isinstance(target, ResnetGenerator)
    both_mobile = isinstance(source, _Mobile) and isinstance(target, _Mobile)
    if not (both_plain or both_mobile):
        raise ConfigError(
            f"channels cannot be transferred from {names}. Both must be a ResnetGenerator, or each "
            "a MobileResnetGenerator or SuperMobileResnetGenerator."
        )
    differ = [
        f"{name} is {getattr(source, name)!r} and {getattr(target, name)!r}"
        for name in _ALIKE
        if getattr(source, name) != getattr(target, name)
    ]
    if differ:
        raise ConfigError(
            f"channels cannot be transferred from {names}: {'; '.join(differ)} (source and "
            "target). Only their widths may differ."
        )
    assert isinstance(source, _Generator) and isinstance(target, _Generator)
    return source, target


def _check_widths(source: _Generator, target: _Generator) -> None:
    wider = [
        f"{name} has {thin} output channels, the source {wide}"
        for (name, wide), (_, thin) in zip(_widths(source), _widths(target), strict=True)
        if thin > wide
    ]
    if wider:
        more = f" and {len(wider) - 3} more" if len(wider) > 3 else ""
        raise ConfigError(
            f"the target is wider than the source: {'; '.join(wider[:3])}{more}. Give a narrower "
            "target or a wider source."
        )


def _widths(model: _Generator) -> Iterator[tuple[str, int]]:
    """Name and output channels of each layer that has a choice."""
    for index, layer in enumerate(model.model):
        if isinstance(layer, _Conv):
            yield f"model.{index}", layer.out_channels
        elif isinstance(layer, ResnetBlock | MobileResnetBlock):
            yield f"model.{index} inside", _convs(layer)[0].out_channels
