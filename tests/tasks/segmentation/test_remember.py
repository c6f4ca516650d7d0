"""Segmentors whose teacher is remembered: structured distillation, by epochs and by iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from saved_runs import assert_equal, curves

from taskdistill.tasks.openmm.teacher import read_mm_checkpoint


def distill(seg: Any, cache: dict[str, Any] | None, *pairs: Any) -> dict[str, Any]:
    given = seg.distill(*pairs, **({} if cache is None else {"cache": cache}))
    given["teacher"]["precision"] = "fp32"
    return given


def test_kept_answers_train_student_and_critic_bit_for_bit(seg: Any, tmp_path: Path) -> None:
    """All three structured terms and a hint; some images smaller than the crop, and padded."""
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    seg.train(seg.config(distill=distill(seg, None)), tmp_path / "asked")
    seg.train(seg.config(distill=distill(seg, cache)), tmp_path / "kept")
    a, b = (read_mm_checkpoint(str(tmp_path / n / "epoch_2.pth")) for n in ("asked", "kept"))
    assert curves(a) == curves(b)
    for entry in ("state_dict", "optimizer", "distill"):
        assert_equal(a[entry], b[entry], entry)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_by_iterations_a_pass_through_the_data_has_a_view(
    seg: Any, tmp_path: Path, workers: int
) -> None:
    """Six steps of four of twelve samples are two passes; answers are those of the very images."""
    given = seg.iteration_config(
        distill=distill(
            seg, dict(path=str(tmp_path / "cache"), views="epochs", dtype="fp32"), seg.pixels
        )
    )
    given["train_dataloader"]["num_workers"] = workers
    seen: list[Any] = []

    @HOOKS.register_module(force=True)
    class LookHook(Hook):
        priority = "VERY_LOW"

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            model = runner.model
            images = model.data_preprocessor(data_batch, True)["inputs"]
            _, kept = model.remembered.answer("teacher", images)
            _, asked = model.ask_teacher("teacher", images, None)
            assert torch.equal(kept["logits"], asked["logits"])
            seen.extend(model.remembered.positions.tolist())

    given["custom_hooks"] = [dict(type="LookHook")]
    seg.train(given, tmp_path / "run")
    assert sorted(seen[:12]) == [*range(12)] and sorted(seen[12:]) == [*range(12, 24)]
    # Stopped and resumed in a pass, the samples go on where they were.
    first, seen[:] = list(seen), []
    resumed = dict(given, resume=True, load_from=str(tmp_path / "run" / "iter_3.pth"))
    seg.train(resumed, tmp_path / "resumed")
    assert seen == first[12:]
