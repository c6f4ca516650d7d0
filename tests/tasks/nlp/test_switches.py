"""TrainingArguments' bf16 and torch_compile with taps, readers, adapters and a stop in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nlp_parts as parts
import pytest
import torch
from transformers import TrainerCallback

from taskdistill.core.teacher import state_sha256
from taskdistill.tasks.nlp import DistillationCallback

RECIPE = [
    dict(student="outputs.logits", loss="KLDivergence", temperature=2.0, name="kd"),
    dict(student="bert.encoder.layer.1", teacher="bert.encoder.layer.3", loss="Hint", name="hint"),
]
COMPILED = dict(torch_compile=True, torch_compile_backend="eager")


def distilled(folder: Path, **options: Any) -> tuple[Any, DistillationCallback]:
    teacher = parts.teacher("classification")
    before = state_sha256(teacher)
    callback = DistillationCallback(teacher, [dict(pair) for pair in RECIPE])
    student = parts.model("classification")
    run = parts.trainer(folder, student, head="classification", callbacks=[callback], **options)
    run.train()
    assert state_sha256(teacher) == before
    return run, callback


@pytest.mark.parametrize("options", [dict(bf16=True), COMPILED, dict(bf16=True, **COMPILED)])
def test_a_run(tmp_path: Path, options: dict[str, Any]):
    torch._dynamo.reset()
    plain, _ = distilled(tmp_path / "plain")
    run, callback = distilled(tmp_path / "switched", **options)
    losses = [
        [row["loss"] for row in each.state.log_history if "loss" in row] for each in (plain, run)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.03 if "bf16" in options else 1e-4)
    assert callback.distillation is not None
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    adapters = list(callback.distillation.distiller.adapters.parameters())
    assert adapters and all(p.dtype == torch.float32 for p in adapters)


def test_nothing_is_compiled_anew_after_an_evaluation(tmp_path: Path):
    """Taps come and go: an evaluation between two steps runs without them."""
    torch._dynamo.reset()
    frames = []

    class Counting(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            frames.append(torch._dynamo.utils.counters["frames"]["total"])

    callback = DistillationCallback(parts.teacher("classification"), [dict(p) for p in RECIPE])
    run = parts.trainer(
        tmp_path,
        parts.model("classification"),
        head="classification",
        callbacks=[callback, Counting()],
        eval_dataset=parts.rows("classification"),
        eval_strategy="steps",
        eval_steps=1,
        **COMPILED,
    )
    run.train()
    assert frames[0] > 0
    assert frames[-1] == frames[len(frames) // 2]
