"""What a case of the benchmark of losses consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One loss at one shape, and what it is compared with.

    Args:
        name: The loss, and what is special.
        inputs: Makes float32 tensors on the CPU; those of the student come first.
        ours: `ours(*inputs)` is the loss.
        peers: The same value computed otherwise, by name: ``plain`` is the maths as one would write
            it, ``torchdistill`` that package's, ...
        against: The peer that the goals are set against.
        students: How many of the first inputs get a gradient.
        goal: Least ratio of times with the eager backend.
        compiled_goal: The same with the compiled backend.
        peak_goal: Most memory beside the inputs, in multiples of the student's tensors.
        rtol: How closely values and gradients must agree.
        scale: What a peer's value is multiplied with to be ours, by name.
    """

    name: str
    inputs: Callable[[Generator], Inputs]
    ours: Callable[..., Tensor]
    peers: Mapping[str, Callable[..., Tensor]]
    against: str = "plain"
    students: int = 1
    goal: float | None = None
    compiled_goal: float | None = None
    peak_goal: float | None = None
    rtol: float = 1e-4
    scale: Mapping[str, float] = field(default_factory=dict)


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[Generator], Inputs]:
    """Inputs of these shapes, normally distributed."""
    return lambda generator: tuple(
        scale * torch.randn(shape, generator=generator) for shape in shapes
    )


def torchdistill(name: str, *arguments: object, **options: object) -> Callable[..., Tensor]:
    """A loss of torchdistill, which looks its tensors up by the name of a module."""

    def loss(student: Tensor, teacher: Tensor, *rest: Tensor) -> Tensor:
        from torchdistill.losses import mid_level  # type: ignore

        module = getattr(mid_level, name)(*arguments, **options)
        return module({"m": {"output": student}}, {"m": {"output": teacher}}, *rest)

    return loss


TAPS = ("m", "output", "m", "output")
