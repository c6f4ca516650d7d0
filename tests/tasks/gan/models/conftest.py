from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Cost:
    """Of one image: parameters, multiply-accumulates, and what instance norms look at."""

    parameters: int = 0
    macs: int = 0  # transposed convolutions by the positions that come out
    macs_by_input: int = 0  # and by those that go in
    norm_elements: int = 0


def cost(build: Callable[[], nn.Module], side: int = 256) -> Cost:
    """Counted without computing anything: the network is on torch's meta device."""
    with torch.device("meta"):
        model = build()
        images = torch.empty(1, 3, side, side)
    found = Cost(parameters=sum(p.numel() for p in model.parameters()))

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.InstanceNorm2d):
            found.norm_elements += output.numel()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            by_output = output.numel() * module.in_channels // module.groups * kernel
            found.macs += by_output
            if isinstance(module, nn.ConvTranspose2d):
                found.macs_by_input += inputs[0].numel() * module.out_channels * kernel
            else:
                found.macs_by_input += by_output

    for module in model.modules():
        module.register_forward_hook(note)
    model(images)
    return found


@pytest.fixture(name="cost")
def cost_fixture() -> Callable[..., Cost]:
    return cost
