"""Optimizer construction that treats the student as if it were trained alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from .steps import TurnOptimWrapper

__all__ = [
    "CRITIC",
    "STUDENT",
    "AlternatingOptimWrapper",
    "CpuAmpOptimWrapper",
    "DistillOptimWrapperConstructor",
]

STUDENT, CRITIC = "student", "critic"
"""Names of the two optimizers, in checkpoints and in ``param_scheduler``."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DistillOptimWrapperConstructor:
    """Build the user's optimizer on the student, then add the adapters as one more group.

    So ``paramwise_cfg`` and layer-wise constructors, which go by parameter names, see the names
    they know; the adapters get the optimizer's base settings.

    Args:
        optim_wrapper_cfg: As mmengine passes it; ``student_constructor`` in it names the
            constructor of the student's own config, ``critic`` is the optimizer wrapper of the
            critics, where the recipe has some.
        paramwise_cfg: As mmengine passes it.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        self.optim_wrapper_cfg = optim_wrapper_cfg.copy()
        self.constructor = self.optim_wrapper_cfg.pop("student_constructor")
        self.critic = self.optim_wrapper_cfg.pop("critic", None)
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper | TurnOptimWrapper:
        """Build the optimizer wrapper for a (possibly data-parallel) distilled model."""
        inner: Any = getattr(model, "module", model)
        build = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=self.constructor,
                optim_wrapper_cfg=self.optim_wrapper_cfg,
                paramwise_cfg=self.paramwise_cfg,
            )
        )
        wrapper: OptimWrapper | TurnOptimWrapper = build(inner.student)
        # A student that plays a game of its own (a GAN) has several optimizers already.
        own = wrapper[wrapper.main] if isinstance(wrapper, TurnOptimWrapper) else wrapper
        if adapters := inner.distiller.partner_parameters():
            own.optimizer.add_param_group({"params": adapters})
        own.optimizer.register_step_pre_hook(lambda *_: inner.holding.drop_gradients())
        if self.critic is None:
            return wrapper
        settings = dict(self.critic)
        steps = settings.pop("steps")
        parameters = inner.distiller.critic_parameters()
        optimizer = OPTIMIZERS.build({"params": parameters, **settings.pop("optimizer")})
        settings.setdefault("type", "OptimWrapper")
        critic = OPTIM_WRAPPERS.build({"optimizer": optimizer, **settings})
        return AlternatingOptimWrapper(own, critic, steps)


class AlternatingOptimWrapper(TurnOptimWrapper):
    """The student's optimizer and the critics', stepped in turn by the model's ``train_step``.

    Args:
        student: Steps once for a batch (or where gradients are accumulated, for several).
        critic: Steps after it.
        critic_steps: How often, for each step of the student.
    """

    def __init__(self, student: OptimWrapper, critic: OptimWrapper, critic_steps: int = 1) -> None:
        super().__init__(STUDENT, {STUDENT: student, CRITIC: critic}, {CRITIC: critic_steps})
        self.critic_steps = critic_steps


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision without a GPU: forward in bfloat16 autocast, no loss scaling.

    mmengine's ``AmpOptimWrapper`` refuses to run on a CPU. Takes :class:`OptimWrapper`'s arguments.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward in bfloat16."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield
