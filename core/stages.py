"""What a stage of training leaves alone: parts of the student, and what other stages learn.

A frozen part is not stepped: no weight decay and no momentum moves it, and its batch norms keep
their statistics. Its gradients are thrown away between the backward pass and the optimizer's step,
and not switched off beforehand, because data-parallel training counts on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from .distiller import Distiller
from .errors import TapError
from .recipe import Progress, Stage
from .taps import Tap

__all__ = ["Holding", "held_modules"]


def held_modules(student: nn.Module, stage: Stage | None) -> list[nn.Module]:
    """The modules with parameters or statistics of their own that a stage does not train.

    Args:
        student: The student.
        stage: The stage; ``None`` trains everything.

    Raises:
        TapError: If ``train`` or ``freeze`` names no module.

    Example:
        >>> student = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> held_modules(student, Stage("hint", train=["0"]))
        [Linear(in_features=2, out_features=2, bias=True)]
    """
    if stage is None or not stage.holds:
        return []
    everything = [m for m in student.modules() if _owns(m)]
    trained = everything if stage.train is None else _below(student, stage, "train")
    frozen = {id(m) for m in _below(student, stage, "freeze")}
    kept = {id(m) for m in trained} - frozen
    return [m for m in everything if id(m) not in kept]


def _below(student: nn.Module, stage: Stage, key: str) -> list[nn.Module]:
    globs: Sequence[str] = getattr(stage, key) or ()
    found = []
    for glob in globs:
        try:
            roots = Tap.parse(glob).modules(student)
        except TapError as error:
            raise TapError(f"Stage {stage.name!r}, {key}={list(globs)}: {error}") from error
        found += [m for root in roots.values() for m in root.modules() if _owns(m)]
    return found


def _owns(module: nn.Module) -> bool:
    parameters = next(module.parameters(recurse=False), None)
    buffers = next(module.buffers(recurse=False), None)
    return parameters is not None or buffers is not None


class Holding:
    """Keep still, step by step, what the present stage does not train.

    What is still: the modules of :func:`held_modules`, whatever belongs to pairs that are off
    (their adapters) and what a loss leaves alone in a stage (its ``still``): all get zero gradients
    at most, but would be moved by weight decay.

    Args:
        distiller: Its student is held, and its recipe says when.

    Raises:
        TapError: If a stage names a module that is not there.

    Example:
        >>> import torch
        >>> from taskdistill.core.recipe import Recipe
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> distiller = Distiller(student, teacher, Recipe.from_config(
        ...     [dict(student="outputs.logits", loss="KLDivergence")],
        ...     stages=[dict(name="first", until=1, train=[]), dict(name="second")]))
        >>> holding = Holding(distiller)
        >>> student(torch.ones(1, 4)).sum().backward()
        >>> holding.update(Progress(epoch=0.5))
        >>> holding.drop_gradients()
        >>> student.weight.grad is None
        True
    """

    def __init__(self, distiller: Distiller) -> None:
        self._distiller = distiller
        recipe = distiller.recipe
        self._held = {s.name: held_modules(distiller.student, s) for s in recipe.stages}
        self._now: Sequence[nn.Module] = ()
        # Those that were in train mode: some networks keep batch norms in eval mode themselves.
        self._woken: dict[int, nn.Module] = {}
        self._off: list[nn.Parameter] = []

    def update(self, progress: Progress) -> None:
        """Find out what is still now; held modules are put in eval mode.

        Call it at the beginning of every step: training loops put the whole model in train mode
        when they please.
        """
        recipe = self._distiller.recipe
        if not recipe.stages:
            return
        stage = recipe.stage(progress)
        held = self._held[stage.name] if stage is not None else []
        still = {id(module) for module in held}
        for key in [key for key in self._woken if key not in still]:
            module = self._woken.pop(key)
            module.training = self._distiller.student.training
        for module in held:
            if module.training:
                module.training = False  # not eval(), which reaches the modules in it
                self._woken[id(module)] = module
        self._now = held
        name = None if stage is None else stage.name
        self._off = []
        for pair, factor in zip(recipe.pairs, recipe.factors(progress), strict=True):
            if factor == 0.0:
                self._off += self._distiller.parameters_of(pair)
            else:
                self._off += self._distiller.still(pair, name)

    def drop_gradients(self) -> None:
        """Forget the gradients of what is still; an optimizer skips a parameter without one."""
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in self._now:
            yield from module.parameters(recurse=False)
        yield from self._off
