"""What the switches of a config must leave as it was; for the tests of each task."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import curves

from taskdistill.core.teacher import state_sha256
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

# The compiler without its code generator, which may take half a minute a network.
SWITCHES: dict[str, dict[str, Any]] = {
    "amp": dict(amp=True),
    "channels_last": dict(channels_last=True),
    "compile": dict(compile=dict(backend="eager")),
    "all": dict(amp=True, channels_last=True, compile=dict(backend="aot_eager")),
}

# Relative, of the losses of the first epoch: bfloat16 has 8 bits, of which training makes use.
LOOSE, TIGHT = 0.1, 2e-3


def combinations(kinds: Sequence[str], whole: str | None = None, quick: bool = False) -> list[Any]:
    """Every kind with every switch, and with all at once.

    All but the last of one kind, if any, are slow tests; where runs are quick, all but the single
    switches of the other kinds.
    """
    found = []
    for kind in kinds:
        for switch in SWITCHES:
            fast = switch == "all" or kind == whole if quick else (kind, switch) == (whole, "all")
            found.append(pytest.param(kind, switch, marks=() if fast else pytest.mark.slow))
    return found


class SwitchedRuns:
    """Trains configs with and without switches and compares the runs.

    Args:
        trainer: The task's tiny configs: has ``runner(config, work_dir)``.
        folder: Where runs go.
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self.trainer = trainer
        self.folder = folder
        self._plain: dict[str, dict[str, list[float]]] = {}

    def plain(self, name: str, config: Mapping[str, Any]) -> dict[str, list[float]]:
        """The curves of a run without a switch; trained once for each name."""
        if name not in self._plain:
            self._plain[name] = curves(self._train(config, self.folder / f"{name}_plain")[1])
        return self._plain[name]

    def check(
        self,
        name: str,
        config: Mapping[str, Any],
        switch: str,
        loose: float = LOOSE,
        floor: float = 1e-3,
        average: bool = True,
    ) -> dict[str, Any]:
        """Train with a switch, and see that nothing but its speed and rounding has changed.

        Args:
            name: Of the config.
            config: Without a switch.
            switch: One of :data:`SWITCHES`.
            loose: Tolerance of runs in bfloat16.
            floor: Losses below are compared as if they were as large.
            average: Whether a run with all switches keeps an average of the weights too.

        Returns:
            ``runner``, ``checkpoint`` and ``first`` (the checkpoint of the first epoch).
        """
        expected = self.plain(name, config)
        switched = {**copy.deepcopy(dict(config)), **SWITCHES[switch]}
        average = average and switch == "all"
        if average:
            switched["custom_hooks"] = [
                *switched.get("custom_hooks", ()),
                dict(type="EMAHook", momentum=0.3),
            ]
        work_dir = self.folder / f"{name}_{switch}"
        runner, checkpoint = self._train(switched, work_dir)
        first = read_mm_checkpoint(str(work_dir / "epoch_1.pth"))
        found = curves(checkpoint)
        assert found.keys() == expected.keys()
        tolerance = loose if "amp" in SWITCHES[switch] else TIGHT
        for key, values in expected.items():
            assert all(map(math.isfinite, found[key])), key
            if not key.startswith("loss"):
                continue
            epoch = len(values) // 2
            # Of an adversarial term, which may be near zero, in units of what it is a mean of.
            scale = max(floor, *map(abs, values[:epoch]))
            for a, b in zip(found[key][:epoch], values[:epoch], strict=True):
                assert abs(a - b) <= tolerance * scale, (key, found[key], values)
        if "amp" in SWITCHES[switch]:
            assert found["loss"] != expected["loss"]
        self._check_deployed(config, checkpoint)
        if average:
            assert any(
                not torch.equal(value, checkpoint["ema_state_dict"][f"module.{key}"])
                for key, value in checkpoint["state_dict"].items()
                if value.is_floating_point()
            )
        if adapters := checkpoint.get("distill", {}).get("adapters"):
            learned = [k for k, v in adapters.items() if v.is_floating_point()]
            before = first["distill"]["adapters"]
            assert any(not torch.equal(adapters[k], before[k]) for k in learned)
        if "compile" in SWITCHES[switch]:
            compiled = [m for m in runner.model.modules() if m._compiled_call_impl is not None]
            assert compiled
        return dict(runner=runner, checkpoint=checkpoint, first=first)

    def _train(self, config: Mapping[str, Any], work_dir: Path) -> tuple[Any, dict[str, Any]]:
        runner = self.trainer.runner(config, work_dir)
        distiller = getattr(runner.model, "distiller", None)
        teachers = {} if distiller is None else distiller.teachers
        before = {name: state_sha256(each.model) for name, each in teachers.items()}
        runner.train()
        assert {name: state_sha256(each.model) for name, each in teachers.items()} == before
        last = max(work_dir.glob("epoch_*.pth"), key=lambda path: path.stat().st_mtime)
        return runner, read_mm_checkpoint(str(last))

    def _check_deployed(self, config: Mapping[str, Any], checkpoint: dict[str, Any]) -> None:
        from mmengine.config import ConfigDict
        from mmengine.registry import MODELS

        state = checkpoint["state_dict"]
        assert all(value.is_contiguous() for value in state.values())
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
        plain = MODELS.build(ConfigDict(copy.deepcopy(dict(config["model"]))))
        plain.load_state_dict(state, strict=True)
