"""Batch norms of a frozen network, folded into the layers before them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["LAYERS", "find_foldable", "fold_batch_norms", "is_spoiled"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*_CONVS, *_TRANSPOSED, nn.Linear)
"""What a batch norm may be folded into."""
_TOLERANCE = 1e-4
"""Largest difference of a folded layer, relative to the largest number it gives."""


def find_foldable(
    network: nn.Module, run: Callable[[], object], keep: Collection[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    r"""Find the batch norms that can be folded into the layer before them.

    In eval mode a batch norm is an affine map of each channel, so that with the layer before it

    .. math:: \gamma \frac{W x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
              = W' x + b', \qquad W' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W

    Which layer is before which norm is seen in one forward, whatever the network's code looks like:
    the norm is given the very tensor that the layer returned. Folded are those of which both are
    called once and whose folded form gives the norm's own output, on that forward's inputs.

    Args:
        network: In eval mode. It is not changed.
        run: Runs it on an example, which should not be all zeros.
        keep: What must stay readable: ``(module name, side)`` of taps. A layer whose output or
            weight is tapped, and a norm whose input or weight is, are left alone.

    Returns:
        Names ``(layer, norm)``, in the order of the forward.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> image = torch.randn(1, 3, 8, 8)
        >>> find_foldable(net, lambda: net(image))
        [('0', '1')]
        >>> find_foldable(net, lambda: net(image), keep=[("0", "output")])
        []
    """
    names = _names_of(network)
    tapped = _spoiling(network, keep)
    layers = [m for m in names if isinstance(m, LAYERS) and _is_plain(m) and m not in tapped]
    norms = [m for m in names if isinstance(m, _BatchNorm) and _is_plain(m) and m not in tapped]
    norms = [norm for norm in norms if norm.running_mean is not None]
    calls: dict[nn.Module, int] = {}
    # Of the layer called last: whatever comes between it and its norm, there is nothing to fold.
    last: list[tuple[nn.Module, Tensor, Tensor]] = []
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after_layer(module: nn.Module, args: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        last[:] = [(module, args[0], output)] if args and isinstance(args[0], Tensor) else []

    def after_norm(module: nn.Module, args: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if last and args and args[0] is last[0][2]:
            layer, given, _ = last[0]
            if _is_right(_fused(layer, module), given, output):
                pairs.append((layer, module))
        last.clear()

    handles = [layer.register_forward_hook(after_layer) for layer in layers]
    handles += [norm.register_forward_hook(after_norm) for norm in norms]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [
        (names[layer][0], names[norm][0])
        for layer, norm in pairs
        if calls[layer] == 1 and calls[norm] == 1
    ]


def is_spoiled(
    network: nn.Module, pair: tuple[str, str], keep: Collection[tuple[str, str]]
) -> bool:
    """Whether something is to be read of a layer or norm that folding them changes.

    Args:
        network: Before it was folded.
        pair: What :func:`find_foldable` found.
        keep: As there.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> is_spoiled(net, ("0", "1"), [("1", "output")])
        False
        >>> is_spoiled(net, ("0", "1"), [("1", "input")])
        True
    """
    tapped = _spoiling(network, keep)
    return any(network.get_submodule(name) in tapped for name in pair)


def _spoiling(network: nn.Module, keep: Collection[tuple[str, str]]) -> set[nn.Module]:
    """The layers and norms of which something is read that folding changes."""
    return {
        module
        for name, side in keep
        if isinstance(module := network.get_submodule(name), (*LAYERS, _BatchNorm))
        and (side == "weight" or (side == "input") == isinstance(module, _BatchNorm))
    }


def fold_batch_norms(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold, in place, what :func:`find_foldable` found.

    The layers are replaced by new ones, so that a copy which shares its weights with another
    network leaves that one as it is. In a norm's place stands an ``Identity``: names stay, and taps
    on the norm's output read the same as before.

    Args:
        network: The network, or a copy of it.
        pairs: Names ``(layer, norm)``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> fold_batch_norms(net, [("0", "1")])
        >>> type(net[1]).__name__
        'Identity'
    """
    names = _names_of(network)
    for layer_name, norm_name in pairs:
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        fused = _fused(layer, norm)
        # A module that is registered twice is replaced in both places.
        for name in names[layer]:
            network.set_submodule(name, fused)
        for name in names[norm]:
            network.set_submodule(name, nn.Identity())


def _names_of(network: nn.Module) -> dict[nn.Module, list[str]]:
    found: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(name)
    return found


def _is_plain(module: nn.Module) -> bool:
    """Whether it is computed from its own weights alone: not spectral norm and the like."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and not is_parametrized(module)


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    bare: Any = copy.copy(layer)  # the fusion copies what it is given, our hooks too
    bare._forward_hooks, bare._forward_hooks_with_kwargs = OrderedDict(), OrderedDict()
    if isinstance(layer, nn.Linear):
        fused: nn.Module = fuse_linear_bn_eval(bare, norm)  # type: ignore[arg-type]
    else:
        transposed = isinstance(layer, _TRANSPOSED)
        fused = fuse_conv_bn_eval(bare, norm, transpose=transposed)  # type: ignore[arg-type]
    fused._forward_hooks.clear()
    return fused.eval().requires_grad_(False)


def _is_right(fused: nn.Module, given: Tensor, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return False
    try:
        found = fused(given)
    except RuntimeError:
        return False
    if found.shape != expected.shape:
        return False
    scale = expected.abs().max()
    return bool((found - expected).abs().max() <= _TOLERANCE * scale)
