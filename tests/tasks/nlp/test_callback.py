from __future__ import annotations

from pathlib import Path
from typing import Any

import nlp_parts as parts
import pytest
import torch
from transformers import BertForSequenceClassification, Trainer

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.core.teacher import FrozenTeacher
from taskdistill.tasks.nlp import DistillationCallback, DistillationTrainer

PAIRS = parts.PAIRS
SMALL = dict(max_steps=2)


def test_given_to_a_plain_trainer_it_is_all_there_is_to_do(tmp_path: Path):
    callback = DistillationCallback(parts.teacher(), PAIRS)
    run = parts.trainer(tmp_path, parts.model(), callbacks=[callback], **SMALL)
    assert callback.distillation is not None
    run.train()
    assert "loss_kd_kl" in run.state.log_history[0]


def test_attached_by_hand_it_is_the_same(tmp_path: Path):
    given = parts.trainer(
        tmp_path, parts.model(), callbacks=[DistillationCallback(parts.teacher(), PAIRS)], **SMALL
    )
    attached = parts.trainer(tmp_path, parts.model(), **SMALL)
    callback = DistillationCallback(parts.teacher(), PAIRS)
    attached.add_callback(callback)
    callback.attach(attached)
    for run in (given, attached):
        run.train()
    assert parts.largest_gap(given.model, attached.model) == 0.0


def test_added_too_late_it_says_so(tmp_path: Path):
    run = parts.trainer(tmp_path, parts.model(), **SMALL)
    run.add_callback(DistillationCallback(parts.teacher(), PAIRS))
    with pytest.raises(ConfigError, match=r"callback.attach\(trainer\)"):
        run.train()


def test_one_callback_serves_one_trainer(tmp_path: Path):
    callback = DistillationCallback(parts.teacher(), PAIRS)
    parts.trainer(tmp_path, parts.model(), callbacks=[callback])
    with pytest.raises(ConfigError, match="serves a Trainer already"):
        parts.trainer(tmp_path, parts.model(), callbacks=[callback])


def test_what_does_not_fit_is_told_when_the_trainer_is_made(tmp_path: Path):
    def make(recipe: Any, **teacher: Any) -> None:
        callback = DistillationCallback(parts.teacher(**teacher), recipe)
        parts.trainer(tmp_path, parts.model(), callbacks=[callback])

    with pytest.raises(ConfigError, match="no outputs.logit .*Did you mean 'logits'"):
        make([dict(student="outputs.logit", loss="KLDivergence")])
    with pytest.raises(ConfigError, match="layers='same' needs equal depth"):
        make([dict(student="outputs.attentions", layers="same", loss="AttentionMap")])
    with pytest.raises(Exception, match="label"):
        make(PAIRS[:1], num_labels=4)


def test_the_trainer_with_arguments_does_the_same(tmp_path: Path):
    given = parts.trainer(
        tmp_path, parts.model(), callbacks=[DistillationCallback(parts.teacher(), PAIRS)], **SMALL
    )
    own = DistillationTrainer(
        model=parts.model(),
        args=parts.arguments(tmp_path, **SMALL),
        train_dataset=parts.rows(),
        data_collator=parts.collate,
        teacher=parts.teacher(),
        recipe=PAIRS,
    )
    for run in (given, own):
        run.train()
    assert parts.largest_gap(given.model, own.model) == 0.0


def test_a_teacher_that_reads_in_its_own_way(tmp_path: Path):
    asked = []
    wide = parts.teacher()
    wide.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["input_ids"]), with_kwargs=True
    )

    class Reversed(DistillationTrainer):
        def teacher_inputs(self, inputs: Any) -> dict[str, Any]:
            return {"teacher": {**inputs, "input_ids": inputs["input_ids"].flip(1)}}

    run = Reversed(
        model=parts.model(),
        args=parts.arguments(tmp_path, max_steps=1, train_sampling_strategy="sequential"),
        train_dataset=parts.rows(),
        data_collator=parts.collate,
        teacher=wide,
        recipe=PAIRS[:1],
    )
    asked.clear()  # those of the check before training
    run.train()
    batch = parts.collate(parts.rows()[:8])
    assert len(asked) == 1 and torch.equal(asked[0], batch["input_ids"].flip(1))


def test_several_teachers(tmp_path: Path):
    recipe = [dict(PAIRS[0], of="first", name="a"), dict(PAIRS[0], of="second", name="b")]
    teachers = {"first": parts.teacher(), "second": parts.teacher(seed=8)}
    run = parts.trainer(
        tmp_path, parts.model(), callbacks=[DistillationCallback(teachers, recipe)], **SMALL
    )
    run.train()
    row = run.state.log_history[0]
    assert row["kd_a_raw"] != row["kd_b_raw"]


def test_a_teacher_by_its_folder(tmp_path: Path):
    parts.teacher().save_pretrained(tmp_path / "teacher")
    runs = []
    for config in (
        dict(teacher=str(tmp_path / "teacher"), pairs=PAIRS),
        dict(teachers={"teacher": dict(path=str(tmp_path / "teacher"))}, pairs=PAIRS),
    ):
        callback = DistillationCallback.from_config(config, "AutoModelForSequenceClassification")
        frozen = callback.teachers["teacher"]
        assert isinstance(frozen, FrozenTeacher)
        assert isinstance(frozen.model, BertForSequenceClassification)
        runs.append(parts.trainer(tmp_path / "run", parts.model(), callbacks=[callback], **SMALL))
        runs[-1].train()
    own = DistillationCallback(parts.teacher(), PAIRS)
    runs.append(parts.trainer(tmp_path / "run", parts.model(), callbacks=[own], **SMALL))
    runs[-1].train()
    assert all(parts.largest_gap(runs[0].model, run.model) == 0.0 for run in runs[1:])


def test_a_head_that_was_never_trained_is_refused(tmp_path: Path):
    parts.teacher("masked_lm").save_pretrained(tmp_path)
    config = dict(teacher=str(tmp_path), pairs=PAIRS)
    with pytest.raises(TeacherError, match="no weights for .*classifier.*would be random"):
        DistillationCallback.from_config(config, "AutoModelForSequenceClassification")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (dict(pairs=PAIRS), "either 'teacher' or 'teachers'"),
        (dict(teacher="a", teachers={"b": "c"}, pairs=PAIRS), "either 'teacher' or 'teachers'"),
        (dict(teacher="/nowhere/at/all", pairs=PAIRS), "does not exist"),
        (dict(teacher="/nowhere", pair=PAIRS), "has no 'pair'.*Did you mean 'pairs'"),
        (dict(teachers={}, pairs=PAIRS), "maps names to teachers"),
        ("tinybert", "distill is a mapping"),
    ],
)
def test_an_entry_that_cannot_be_meant(config: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        DistillationCallback.from_config(config)


def test_no_teacher_at_all(tmp_path: Path):
    callback = DistillationCallback({}, PAIRS)
    with pytest.raises(ConfigError, match="There is no teacher"):
        parts.trainer(tmp_path, parts.model(), callbacks=[callback])


def test_the_teacher_stays_as_it_is(tmp_path: Path):
    wide, fresh = parts.teacher(), parts.teacher()
    run = parts.trainer(
        tmp_path, parts.model(), callbacks=[DistillationCallback(wide, PAIRS)], **SMALL
    )
    run.train()
    assert parts.largest_gap(wide, fresh) == 0.0
    assert not wide.training and not any(p.requires_grad for p in wide.parameters())
    known = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not known & {id(p) for p in wide.parameters()}


def test_a_subclass_that_calls_from_deep_within(tmp_path: Path):
    class Wrapped(Trainer):
        def __init__(self, **options: Any) -> None:
            helper = lambda: super(Wrapped, self).__init__(**options)  # noqa: E731
            helper()

    callback = DistillationCallback(parts.teacher(), PAIRS)
    run = parts.trainer(tmp_path, parts.model(), kind=Wrapped, callbacks=[callback])
    assert isinstance(run, Wrapped) and run.distillation is callback.distillation  # type: ignore


def test_a_cache_is_part_of_the_callback_the_trainer_and_a_config(tmp_path: Path):
    callback = DistillationCallback(parts.teacher(), PAIRS, cache=tmp_path / "cache")
    run = parts.trainer(tmp_path, parts.model(), callbacks=[callback], **SMALL)
    assert callback.distillation is not None and not callback.distillation.remembered
    run.train()
    assert list(callback.distillation.remembered) == ["teacher"]

    def kind(**options: Any) -> Trainer:
        given: dict[str, Any] = dict(
            teacher=parts.teacher(), recipe=PAIRS, cache=tmp_path / "cache"
        )
        return DistillationTrainer(**options, **given)

    derived = parts.trainer(tmp_path, parts.model(), kind=kind, **SMALL)
    derived.train()
    assert parts.largest_gap(run.model, derived.model) == 0.0

    folder = tmp_path / "teacher"
    parts.teacher().save_pretrained(folder)
    config = dict(teacher=str(folder), pairs=PAIRS, cache=dict(path="kept", dtype="bf16"))
    read = DistillationCallback.from_config(config, "AutoModelForSequenceClassification")
    assert read.cache is not None and (read.cache.path, read.cache.dtype) == ("kept", "bf16")
    config["cache"] = dict(folder="kept")
    with pytest.raises(ConfigError, match="cache has no 'folder'"):
        DistillationCallback.from_config(config, "AutoModelForSequenceClassification")
