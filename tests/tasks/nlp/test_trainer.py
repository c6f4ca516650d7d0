from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nlp_parts as parts
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Trainer,
    TrainerCallback,
)

from taskdistill.core.errors import CheckpointError, ConfigError, NonFiniteLossError
from taskdistill.tasks.nlp import DistillationCallback
from taskdistill.tasks.nlp.distillation import STATE_FILE
from taskdistill.tasks.nlp.trainer import DistillingTrainer

PAIRS = parts.PAIRS


def distilled(folder: Path, head: str = "classification", **options: Any) -> Any:
    """Train a student with every sort of pair; the trainer, with its callback beside it."""
    recipe = options.pop("recipe", _pairs(head))
    wide = options.pop("teacher", None) or parts.teacher(head)
    student = options.pop("student", None) or parts.model(head)
    callback = DistillationCallback(wide, recipe)
    resume = options.pop("resume", None)
    more = options.pop("callbacks", [])
    run = parts.trainer(folder, student, head=head, callbacks=[callback, *more], **options)
    run.train(resume_from_checkpoint=resume)
    run.plan = callback.distillation
    return run


def _pairs(head: str) -> list[dict[str, Any]]:
    if head != "answers":
        return PAIRS
    ends = [
        dict(student=f"outputs.{side}_logits", loss="KLDivergence", name=side)
        for side in ("start", "end")
    ]
    return [*ends, *PAIRS[1:]]


def gap(first: Any, second: Any) -> float:
    ours = parts.largest_gap(first.model, second.model)
    return max(ours, parts.largest_gap(first.plan.distiller, second.plan.distiller))


# -- many small batches are one large one ---------------------------------------------------------


@pytest.mark.parametrize("head", list(parts.HEADS))
def test_accumulation_equals_one_batch(tmp_path: Path, head: str):
    whole = distilled(tmp_path / "a", head, per_device_train_batch_size=8)
    split = distilled(
        tmp_path / "b", head, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert gap(whole, split) < 1e-6
    moved = parts.largest_gap(whole.model, parts.model(head))
    assert moved > 1e-3
    for a, b in zip(*(_train_rows(run) for run in (whole, split)), strict=True):
        assert {key: pytest.approx(a[key], rel=1e-4) for key in a} == b


def _train_rows(run: Any) -> list[dict[str, float]]:
    return [row for row in run.state.log_history if "loss" in row]


def test_accumulation_with_label_smoothing(tmp_path: Path):
    whole, split = (
        distilled(
            tmp_path / str(size),
            "tokens",
            label_smoothing_factor=0.1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        for size in (8, 4)
    )
    assert gap(whole, split) < 1e-6


def test_label_smoothing_changes_the_students_own_loss(tmp_path: Path):
    plain = distilled(tmp_path / "a")
    smooth = distilled(tmp_path / "b", label_smoothing_factor=0.3)
    first, second = _train_rows(plain)[0], _train_rows(smooth)[0]
    assert first["loss"] != pytest.approx(second["loss"], rel=1e-3)
    assert first["loss_kd_kl"] == pytest.approx(second["loss_kd_kl"])


def test_a_last_step_of_fewer_batches(tmp_path: Path):
    # 16 samples: 5 + 5 + 5 + 1, the last step of an epoch has one batch of one sample.
    run = distilled(
        tmp_path, per_device_train_batch_size=5, gradient_accumulation_steps=3, max_steps=4
    )
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert len(_train_rows(run)) == 4


# -- the student is trained as ever ---------------------------------------------------------------


def test_pairs_of_weight_zero_are_plain_training(tmp_path: Path):
    changes = dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.0)
    recipe = [dict(pair, weight=0.0) for pair in PAIRS[:2]]
    run = distilled(
        tmp_path / "a", student=parts.model(**changes), recipe=recipe, optim="adamw_torch"
    )
    plain = parts.trainer(tmp_path / "b", parts.model(**changes), optim="adamw_torch")
    plain.train()
    assert parts.largest_gap(run.model, plain.model) == 0.0


def test_the_log_has_every_term_raw_and_weighted(tmp_path: Path):
    run = distilled(tmp_path)
    for row in _train_rows(run):
        assert row["loss_kd_hidden"] == pytest.approx(0.5 * row["kd_hidden_raw"])
        assert row["loss_kd_kl"] == pytest.approx(row["kd_kl_raw"])
        assert {"loss_kd_attention", "kd_attention_raw"} <= set(row)
        terms = sum(value for key, value in row.items() if key.startswith("loss_kd_"))
        assert row["loss"] == pytest.approx(row["task_loss"] + terms)


def test_the_students_own_loss_is_logged_before_its_weight(tmp_path: Path):
    whole, tenth = (
        _train_rows(distilled(tmp_path / str(weight), recipe=dict(pairs=PAIRS, task_weight=weight)))
        for weight in (1.0, 0.1)
    )
    assert tenth[0]["task_loss"] == pytest.approx(whole[0]["task_loss"])
    gap = whole[0]["loss"] - tenth[0]["loss"]
    assert gap == pytest.approx(0.9 * whole[0]["task_loss"], rel=1e-5)


def test_the_log_averages_over_the_steps_since_the_last_time(tmp_path: Path):
    every = _train_rows(distilled(tmp_path / "a", max_steps=4))
    rare = _train_rows(distilled(tmp_path / "b", max_steps=4, logging_steps=2))
    for key in ("loss_kd_kl", "kd_hidden_raw", "loss"):
        means = [(every[i][key] + every[i + 1][key]) / 2 for i in (0, 2)]
        assert [row[key] for row in rare] == pytest.approx(means, rel=1e-5)


def test_evaluation_and_prediction_are_untouched(tmp_path: Path):
    data = parts.rows(seed=5)
    run = distilled(tmp_path / "a", eval_dataset=data)
    plain = parts.trainer(tmp_path / "b", run.model, eval_dataset=data)
    ours, theirs = run.evaluate(), plain.evaluate()
    assert ours["eval_loss"] == theirs["eval_loss"]
    assert not any("kd" in key for key in ours)
    predicted = run.predict(data).predictions
    assert predicted.shape == (16, 3)
    assert (predicted == plain.predict(data).predictions).all()


def test_the_attention_implementation_is_put_back(tmp_path: Path):
    student = parts.model(attn_implementation="sdpa")
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(student.config._attn_implementation)

    distilled(tmp_path, student=student, callbacks=[Look()])
    assert seen == ["eager"] * 3
    assert student.config._attn_implementation == "sdpa"


def test_a_users_own_trainer_keeps_its_loss(tmp_path: Path):
    class Doubled(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kw: Any):
            loss, output = super().compute_loss(model, inputs, return_outputs=True, **kw)
            return (2 * loss, output) if return_outputs else 2 * loss

    plain, doubled = (
        _train_rows(distilled(tmp_path / kind.__name__, kind=kind))[0]
        for kind in (Trainer, Doubled)
    )
    terms = sum(value for key, value in plain.items() if key.startswith("loss_kd_"))
    assert doubled["loss"] - terms == pytest.approx(2 * (plain["loss"] - terms), rel=1e-5)


def test_a_term_that_is_not_finite_is_named(tmp_path: Path):
    wide = parts.teacher()
    nn.init.constant_(wide.classifier.bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match="kl=nan"):
        distilled(tmp_path, teacher=wide)


# -- adapters -------------------------------------------------------------------------------------


def test_adapters_are_trained_and_decayed_like_the_student(tmp_path: Path):
    run = distilled(tmp_path, optim="adamw_torch", weight_decay=0.1, lr_scheduler_type="linear")
    adapters = run.plan.partner_parameters
    assert len(adapters) == 4  # a weight and a bias for each of two layers
    groups = {
        id(p): group["weight_decay"]
        for group in run.optimizer.param_groups
        for p in group["params"]
    }
    assert [groups[id(p)] for p in adapters] == [0.1 if p.ndim > 1 else 0.0 for p in adapters]
    assert len(run.lr_scheduler.get_last_lr()) == len(run.optimizer.param_groups)
    fresh = distilled(tmp_path / "b", max_steps=1, learning_rate=0.0)
    pairs = zip(adapters, fresh.plan.partner_parameters, strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)


def test_an_optimizer_of_ones_own(tmp_path: Path):
    student = parts.model()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    own = distilled(tmp_path / "a", student=student, optimizers=(optimizer, None))
    assert gap(own, distilled(tmp_path / "b")) < 1e-7
    student = parts.model()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ConfigError, match=r"optimizers=\(optimizer, None\)"):
        distilled(tmp_path / "c", student=student, optimizers=(optimizer, schedule))


def test_adapters_are_clipped_by_themselves(tmp_path: Path):
    run = distilled(tmp_path / "a", max_steps=1, max_grad_norm=1e-3, learning_rate=1.0)
    before = distilled(tmp_path / "b", max_steps=1, learning_rate=0.0)
    for first, second in (
        (run.model.parameters(), before.model.parameters()),
        (run.plan.partner_parameters, before.plan.partner_parameters),
    ):
        steps = [(a - b).flatten() for a, b in zip(first, second, strict=True)]
        assert torch.cat(steps).norm().item() == pytest.approx(1e-3, rel=1e-2)


# -- columns --------------------------------------------------------------------------------------


def _distilbert() -> Any:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=parts.VOCABULARY,
            dim=8,
            n_layers=2,
            n_heads=2,
            hidden_dim=16,
            max_position_embeddings=16,
            num_labels=3,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )


def test_what_only_the_teacher_takes_is_kept_for_it(tmp_path: Path):
    from datasets import Dataset

    seen = []
    wide = parts.teacher()
    wide.bert.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("token_type_ids")), with_kwargs=True
    )
    data = Dataset.from_list(parts.rows())
    run = distilled(tmp_path, student=_distilbert(), teacher=wide, data=data, eval_dataset=data)
    asked = [ids for ids in seen if ids is not None]
    assert len(asked) == 3 and all(ids.any() for ids in asked)
    assert run.evaluate()["eval_loss"] > 0
    assert "token_type_ids" not in next(iter(run.get_eval_dataloader()))


# -- precision, memory, compilation ---------------------------------------------------------------


def test_bfloat16(tmp_path: Path):
    whole, half = (distilled(tmp_path / str(on), bf16=on) for on in (False, True))
    for a, b in zip(_train_rows(whole), _train_rows(half), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


def test_gradient_checkpointing_changes_nothing(tmp_path: Path):
    plain, checkpointed = (
        distilled(tmp_path / str(on), gradient_checkpointing=on) for on in (False, True)
    )
    assert gap(plain, checkpointed) < 1e-6


def test_a_compiled_student(tmp_path: Path):
    plain = distilled(tmp_path / "a")
    compiled = distilled(tmp_path / "b", torch_compile=True, torch_compile_backend="aot_eager")
    assert gap(plain, compiled) < 1e-6


def test_a_compiled_student_that_is_tapped(tmp_path: Path):
    recipe = [dict(student="bert.encoder.layer.1", teacher="bert.encoder.layer.3", loss="Hint")]
    plain = distilled(tmp_path / "a", recipe=recipe)
    compiled = distilled(
        tmp_path / "b", recipe=recipe, torch_compile=True, torch_compile_backend="aot_eager"
    )
    assert gap(plain, compiled) < 1e-6


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_bare_student(tmp_path: Path):
    run = distilled(tmp_path, save_strategy="steps", save_steps=3)
    folder = tmp_path / "checkpoint-3"
    assert set(load_file(folder / "model.safetensors")) == set(parts.model().state_dict())
    state = torch.load(folder / STATE_FILE, weights_only=True)
    assert set(state) == {"distiller", "teachers"}
    assert not list(folder.glob("*.part"))
    code = (
        "import sys; sys.modules['taskdistill'] = None\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        f"print(Auto.from_pretrained({str(folder)!r}).classifier.weight.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(run.model.classifier.weight.sum().item())


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_resumed_run_is_as_if_never_interrupted(tmp_path: Path, optim: str):
    options: dict[str, Any] = dict(
        optim=optim,
        learning_rate=0.01,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=7,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=5,
    )
    changes = dict(hidden_dropout_prob=0.1)
    whole = distilled(tmp_path / "a", student=parts.model(**changes), **options)
    resumed = distilled(
        tmp_path / "b",
        student=parts.model(seed=9, **changes),
        resume=str(tmp_path / "a" / "checkpoint-5"),
        **options,
    )
    assert gap(whole, resumed) == 0.0
    assert _train_rows(whole)[-2:] == _train_rows(resumed)[-2:]


def test_what_a_resumed_run_needs(tmp_path: Path):
    options: dict[str, Any] = dict(save_strategy="steps", save_steps=2)
    distilled(tmp_path / "a", **options)
    folder = tmp_path / "a" / "checkpoint-2"
    with pytest.raises(CheckpointError, match="another teacher"):
        distilled(tmp_path / "b", teacher=parts.teacher(seed=8), resume=str(folder), **options)
    with pytest.raises(CheckpointError, match="adapters of another recipe"):
        distilled(tmp_path / "c", recipe=PAIRS[:1], resume=str(folder), **options)
    (folder / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match="not written by a distillation run"):
        distilled(tmp_path / "d", resume=str(folder), **options)


def test_training_twice(tmp_path: Path):
    run = distilled(tmp_path)
    groups = len(run.optimizer.param_groups)
    run.train()
    assert len(run.optimizer.param_groups) == groups


# -- stages ---------------------------------------------------------------------------------------


def test_layers_are_trained_one_after_another(tmp_path: Path):
    before: dict[str, torch.Tensor] = {}
    changed: list[set[str]] = []

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            before.update({n: p.detach().clone() for n, p in model.named_parameters()})

        def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            now = dict(model.named_parameters())
            changed.append({n for n, p in now.items() if not torch.equal(p, before[n])})

    student = parts.model("masked_lm")
    distilled(
        tmp_path,
        "masked_lm",
        student=student,
        teacher=parts.teacher("masked_lm", width=8, layers=2),
        recipe=parts.layers_recipe(),
        optim="adamw_torch",
        weight_decay=0.1,
        max_steps=5,
        callbacks=[Look()],
    )
    names = {n for n, _ in student.named_parameters()}
    layers = [{n for n in names if f"encoder.layer.{i}." in n} for i in (0, 1)]
    unmoved = [layer - moved for layer, moved in zip(layers * 2, changed[::2], strict=False)]
    # A bias of the keys adds the same to every score: it has no gradient.
    assert all("key.bias" in name for names in unmoved for name in names)
    for step in (0, 1):
        assert changed[step] <= layers[0] and changed[2 + step] <= layers[1]
    assert changed[4] > layers[0] | layers[1] - {n for n in names if "key.bias" in n}
    assert not student.bert.encoder.layer[0]._forward_pre_hooks


def test_a_stage_without_the_students_own_loss(tmp_path: Path):
    stages = [dict(name="first", until=2, task_weight=0.0), dict(name="second")]
    pairs = [dict(PAIRS[1], stage="first"), dict(PAIRS[0], stage="second")]
    run = distilled(
        tmp_path,
        recipe=dict(pairs=pairs, stages=stages, unit="step"),
        max_steps=2,
        weight_decay=0.1,
    )
    assert torch.equal(run.model.classifier.weight, parts.model().classifier.weight)
    rows = _train_rows(run)
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss_kd_hidden"])
    assert rows[0]["loss_kd_kl"] == 0.0


# -- several processes ----------------------------------------------------------------------------


CASES = [
    "classification",
    "tokens",
    "classification+stages",
    "masked_lm+layers",
    "classification+cache",
]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have trained every case together."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in (0, 1):
        settings = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2)
        settings |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        env = dict(os.environ, **{key: str(value) for key, value in settings.items()})
        # To a file: a process whose full pipe nobody reads would keep the other waiting.
        errors = (folder / f"errors{rank}.txt").open("w")
        command = [sys.executable, parts.__file__, str(folder), *CASES]
        running.append(subprocess.Popen(command, env=env, stdout=errors, stderr=errors))
    for rank, process in enumerate(running):
        code = process.wait(timeout=300)
        assert code == 0, (folder / f"errors{rank}.txt").read_text()[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tmp_path: Path, two_processes: Path, case: str):
    parts.train_case(str(tmp_path), case)
    single = torch.load(tmp_path / f"{case}.0.pt", weights_only=True)
    ranks = [torch.load(two_processes / f"{case}.{rank}.pt", weights_only=True) for rank in (0, 1)]
    for part in ("student", "adapters"):
        for name, value in single[part].items():
            assert torch.equal(ranks[0][part][name], ranks[1][part][name]), name
            torch.testing.assert_close(ranks[0][part][name], value, rtol=0, atol=1e-6, msg=name)
    for a, b in zip(single["log"], ranks[0]["log"], strict=True):
        for key in a:
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-7), key


# -- settings that cannot be ----------------------------------------------------------------------


def test_data_parallel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(parts.arguments(tmp_path)), "n_gpu", property(lambda self: 2))
    with pytest.raises(ConfigError, match="DataParallel"):
        parts.trainer(
            tmp_path, parts.model(), callbacks=[DistillationCallback(parts.teacher(), PAIRS)]
        )


def test_it_stays_the_users_trainer(tmp_path: Path):
    class Mine(Trainer):
        pass

    run = distilled(tmp_path, kind=Mine, max_steps=1)
    assert isinstance(run, Mine) and isinstance(run, DistillingTrainer)
    assert type(run).__name__ == "DistillingMine"
