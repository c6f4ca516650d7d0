"""Optimizer construction that treats the student as if it were trained alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

__all__ = ["CpuAmpOptimWrapper", "DistillOptimWrapperConstructor"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DistillOptimWrapperConstructor:
    """Build the user's optimizer on the student, then add the adapters as one more group.

    So ``paramwise_cfg`` and layer-wise constructors, which go by parameter names, see the names
    they know; the adapters get the optimizer's base settings.

    Args:
        optim_wrapper_cfg: As mmengine passes it; ``student_constructor`` in it names the
            constructor of the student's own config.
        paramwise_cfg: As mmengine passes it.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        self.optim_wrapper_cfg = optim_wrapper_cfg.copy()
        self.constructor = self.optim_wrapper_cfg.pop("student_constructor")
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper for a (possibly data-parallel) distilled model."""
        inner: Any = getattr(model, "module", model)
        build = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=self.constructor,
                optim_wrapper_cfg=self.optim_wrapper_cfg,
                paramwise_cfg=self.paramwise_cfg,
            )
        )
        wrapper: OptimWrapper = build(inner.student)
        adapters = [p for p in inner.distiller.parameters() if p.requires_grad]
        if adapters:
            wrapper.optimizer.add_param_group({"params": adapters})
        return wrapper


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
