"""What tests of resumed runs compare: everything a checkpoint holds, and every figure logged."""

from __future__ import annotations

from typing import Any

import torch

# Asked of every process of a data-parallel run at its end.
RANK_HOOK = """
import json
import os

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankHook(Hook):
    def after_train(self, runner):
        model = runner.model
        assert isinstance(model, MMDistributedDataParallel), type(model)
        assert not model.find_unused_parameters
        teacher = model.module.distiller.teachers["teacher"].model
        names = [name for name, _ in model.named_parameters()]
        assert not any("teacher" in name for name in names)
        assert not any(module.training for module in teacher.modules())
        own = torch.cat([p.detach().flatten() for p in model.parameters()])
        others = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(others, own)
        text = dict(
            backend=dist.get_backend(),
            world=dist.get_world_size(),
            equal=all(torch.equal(own, other) for other in others),
            finite=bool(torch.isfinite(own).all()),
        )
        with open(os.path.join(runner.work_dir, f"rank{dist.get_rank()}.json"), "w") as file:
            json.dump(text, file)
"""


def curves(checkpoint: dict[str, Any]) -> dict[str, list[float]]:
    """Every training figure of the run but the clock's."""
    return {
        key.removeprefix("train/"): scalar.data[0].tolist()
        for key, scalar in checkpoint["message_hub"]["log_scalars"].items()
        if key.startswith("train/") and not key.endswith(("time", "memory"))
    }


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, however nested; says where not."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where
