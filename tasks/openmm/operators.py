"""mmcv's own operators, which know neither channels-last tensors nor bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.taps import map_tensors

__all__ = ["plain_operators"]

# Modules that read tensors as they lie; the second put into one tensor what the first gave.
_OPERATORS = ("mmcv.ops", "mmdet.models.roi_heads.roi_extractors")


def plain_operators(network: nn.Module) -> None:
    """Give mmcv's own operators in a network tensors as they know them, whatever is around.

    RoIAlign and others take their input to be contiguous without a look, and compute something
    else of one that is channels-last; and they have no bfloat16, in place of which they get
    float32.

    Args:
        network: Changed in place. Once is enough, twice does no harm.
    """
    for module in network.modules():
        done = _plain_inputs in module._forward_pre_hooks.values()
        if not done and any(c.__module__.startswith(_OPERATORS) for c in type(module).__mro__):
            module.register_forward_pre_hook(_plain_inputs)


def _plain_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_tensors(args, _plain_input)


def _plain_input(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous()
