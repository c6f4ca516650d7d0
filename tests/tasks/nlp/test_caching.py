"""Training with a teacher that is remembered, and caches that must not be used."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import nlp_architectures as architectures
import nlp_parts as parts
import numpy as np
import pytest
import torch
from nlp_parts import PAIRS

from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.core.recipe import Progress
from taskdistill.core.teacher import FrozenTeacher
from taskdistill.tasks.nlp import DistillationCallback
from taskdistill.tasks.nlp.caching import ensure
from taskdistill.tasks.nlp.distillation import STATE_FILE
from taskdistill.tasks.nlp.text_ids import POSITIONS, text_ids

KL = dict(student="outputs.logits", loss="KLDivergence", temperature=2.0, name="kl")


def made(folder: Path, cache: Any = None, head: str = "classification", **options: Any) -> Any:
    """A trainer that is ready to distil."""
    pairs, teacher = options.pop("pairs", PAIRS), options.pop("teacher", None)
    student = options.pop("student", None) or parts.model(head)
    callback = DistillationCallback(teacher or parts.teacher(head), pairs, cache=cache)
    return parts.trainer(folder, student, head=head, callbacks=[callback], **options)


def trained(folder: Path, cache: Any = None, resume: str | None = None, **options: Any) -> Any:
    run = made(folder, cache, **options)
    run.train(resume_from_checkpoint=resume)
    return run


def exact(folder: Path, **options: Any) -> dict[str, Any]:
    return dict(path=folder / "cache", dtype="fp32", **options)


def gap(first: Any, second: Any) -> float:
    return parts.largest_gap(first.model, second.model)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that teachers were asked."""
    sizes: list[int] = []
    observe = FrozenTeacher.observe

    def counted(self: FrozenTeacher, specs: Any, *args: Any, **kw: Any) -> Any:
        sizes.append(len(kw["input_ids"]))
        return observe(self, specs, *args, **kw)

    monkeypatch.setattr(FrozenTeacher, "observe", counted)
    return sizes


# -- training is the same -------------------------------------------------------------------------


def test_training_in_the_order_of_the_data_is_the_same_bit_for_bit(tmp_path: Path):
    options: dict[str, Any] = dict(train_sampling_strategy="sequential")
    live = trained(tmp_path, **options)
    cached = trained(tmp_path, exact(tmp_path), **options)
    assert gap(live, cached) == 0.0
    for a, b in zip(live.state.log_history[:-1], cached.state.log_history[:-1], strict=True):
        assert a == b


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(train_sampling_strategy="group_by_length"),
        dict(per_device_train_batch_size=2, gradient_accumulation_steps=4),
        dict(dataloader_num_workers=2),
    ],
    ids=["shuffled", "grouped", "accumulated", "workers"],
)
def test_training_in_any_order_is_the_same_up_to_rounding(tmp_path: Path, options: Any):
    live = trained(tmp_path, max_steps=4, **options)
    cached = trained(tmp_path, exact(tmp_path), max_steps=4, **options)
    assert gap(live, cached) < 1e-6


def test_halves_are_near(tmp_path: Path):
    live, cached = trained(tmp_path), trained(tmp_path, tmp_path / "cache")
    index = json.loads((tmp_path / "cache" / "teacher" / "index.json").read_text())
    assert {field["dtype"] for field in index["fields"]} == {"float16"}
    assert 0 < gap(live, cached) < 1e-4


def test_the_teacher_is_asked_once_a_text(tmp_path: Path, asked: list[int]):
    rows = parts.rows(count=14)
    data = [*rows, rows[3], rows[5]]
    run = trained(tmp_path, exact(tmp_path), data=data, num_train_epochs=3, max_steps=-1)
    assert run.distillation.remembered["teacher"].cache.spec.samples == 14
    first = asked[:]
    asked.clear()
    trained(tmp_path, exact(tmp_path), data=data, num_train_epochs=3, max_steps=-1)
    assert len(first) - len(asked) == 2  # the two batches of 8 and 6 that were written
    probes = len(asked)
    asked.clear()
    trained(tmp_path, exact(tmp_path), data=data, num_train_epochs=6, max_steps=-1)
    assert len(asked) == probes


@pytest.mark.parametrize("cached_first", [False, True])
def test_a_resumed_run_ends_as_one_without_interruption(tmp_path: Path, cached_first: bool):
    options: dict[str, Any] = dict(max_steps=4, save_strategy="steps", save_steps=2)
    whole = trained(tmp_path / "whole", exact(tmp_path), **options)
    first = exact(tmp_path) if cached_first else None
    trained(tmp_path / "part", first, **options)
    checkpoint = tmp_path / "part" / "checkpoint-2"
    assert (checkpoint / STATE_FILE).is_file()
    second = trained(tmp_path / "part", exact(tmp_path), resume=str(checkpoint), **options)
    assert gap(whole, second) < 1e-6


def test_a_trainer_that_changes_batches_is_told(tmp_path: Path):
    from transformers import Trainer

    class Changing(Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            inputs = super()._prepare_inputs(inputs)  # type: ignore[misc]
            return {**inputs, "input_ids": inputs["input_ids"].flip(0)}

    with pytest.raises(CacheError, match="_prepare_inputs of the trainer"):
        trained(tmp_path, exact(tmp_path), kind=Changing)


# -- what pairs compare ---------------------------------------------------------------------------


CASES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "logits": ("classification", [KL]),
    "token logits": ("tokens", [KL]),
    "word logits": ("masked_lm", [KL, dict(KL, region="tokens", name="all")]),
    "hidden": ("classification", PAIRS[1:2]),
    "embeddings": ("tokens", [dict(student="outputs.embeddings", loss="HiddenStateTransfer")]),
    "attentions": ("classification", PAIRS[2:]),
    "scores": (
        "classification",
        [
            dict(
                student="outputs.attention_scores",
                loss="AttentionMap",
                form="scores",
                divergence=divergence,
                layers="uniform",
                name=divergence,
            )
            for divergence in ("kl", "mse")
        ],
    ),
    "queries": (
        "classification",
        [
            dict(
                student=["outputs.queries[-1]", "outputs.keys[-1]"],
                teacher=["outputs.queries[-1]", "outputs.keys[-1]"],
                loss="AttentionQK",
            )
        ],
    ),
    "relations": (
        "classification",
        [
            dict(
                student="outputs.values[-1]",
                teacher="outputs.values[-1]",
                loss="SelfAttentionRelations",
                relation_heads=2,
            )
        ],
    ),
    "answers": (
        "answers",
        [
            dict(student=f"outputs.{side}_logits", loss="KLDivergence", name=side)
            for side in ("start", "end")
        ],
    ),
    "tap": (
        "tokens",
        [
            dict(
                student="bert.encoder.layer.1",
                teacher="bert.encoder.layer.3",
                loss="HiddenStateTransfer",
                region="tokens",
            )
        ],
    ),
}


def terms(run: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    plan, batch = run.distillation, parts.collate(rows)
    with torch.no_grad(), plan.active():
        with plan.distiller.watch() as seen:
            output = run.model.eval()(**plan.student_inputs(batch))
        found = plan.terms(seen, output, batch, None, Progress())
    return {name: term.raw for name, term in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_terms_are_those_of_a_teacher_that_is_asked(tmp_path: Path, case: str, asked: list[int]):
    head, pairs = CASES[case]
    run = made(tmp_path, exact(tmp_path, shard_mb=0.01), head=head, pairs=pairs)
    rows = parts.rows(head)
    if head == "answers":  # texts of several lengths
        for index, row in enumerate(rows):
            for column in ("input_ids", "attention_mask", "token_type_ids"):
                row[column] = row[column][: 4 + index % 7]
            row["start_positions"] = row["end_positions"] = 1
    run.train_dataset = rows
    ensure(run)
    plan = run.distillation
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    batches = [rows[:8], *([rows[i] for i in order[k : k + 5]] for k in range(0, 15, 5))]
    asked.clear()
    cached = [terms(run, batch) for batch in batches]
    assert not asked
    plan.remembered = {}
    live = [terms(run, batch) for batch in batches]
    assert len(asked) == len(batches)
    for number, (a, b) in enumerate(zip(cached, live, strict=True)):
        for name in a:
            assert a[name] > 1e-6, name
            if number == 0:  # asked together: bit for bit
                assert torch.equal(a[name], b[name]), name
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("head", ["classification", "masked_lm"])
def test_the_most_probable_classes_are_stored_alone(tmp_path: Path, head: str):
    line = dict(student="outputs.logits", loss="TopKKLDivergence", k=2, temperature=2.0)
    both = [dict(line, name="a"), dict(line, name="b", weight=0.5)]
    run = made(tmp_path, tmp_path / "cache", head=head, pairs=both)
    ensure(run)
    rows = parts.rows(head)[3:9]
    cached = terms(run, rows)
    held = run.distillation.remembered["teacher"]
    per_token = (-1,) if head == "masked_lm" else ()
    assert {field.shape for field in held.cache.spec.fields} == {(*per_token, 2), per_token}
    run.distillation.remembered = {}
    live = terms(run, rows)
    for name in ("a", "b"):
        torch.testing.assert_close(cached[name], live[name], rtol=1e-2, atol=1e-4)


def test_drawn_classes_are_the_same_when_they_are_written_again(tmp_path: Path):
    line = dict(student="outputs.logits", loss="TopKKLDivergence", k=2, tail="sampled")
    run = made(tmp_path, small(tmp_path), head="tokens", pairs=[line])
    ensure(run)
    whole = [path.read_bytes() for path in shards(tmp_path)]
    shards(tmp_path)[0].unlink()
    ensure(run)
    assert [path.read_bytes() for path in shards(tmp_path)] == whole
    assert terms(run, parts.rows("tokens")[:6]) == terms(run, parts.rows("tokens")[:6])


def test_classes_are_all_stored_where_another_pair_wants_them(tmp_path: Path):
    sparse = dict(student="outputs.logits", loss="TopKKLDivergence", k=2, name="few")
    run = made(tmp_path, tmp_path / "cache", pairs=[sparse, KL])
    ensure(run)
    (field,) = run.distillation.remembered["teacher"].cache.spec.fields
    assert field.shape == (3,)


def test_only_layers_that_are_compared_are_stored(tmp_path: Path):
    run = made(tmp_path, tmp_path / "cache", pairs=PAIRS[1:2])
    ensure(run)
    fields = run.distillation.remembered["teacher"].cache.spec.fields
    assert [field.name for field in fields] == ["answer hidden_states 2", "answer hidden_states 4"]


def test_a_pair_that_compares_padding_is_refused(tmp_path: Path):
    line = dict(
        student="bert.encoder.layer.1",
        teacher="bert.encoder.layer.3",
        loss="HiddenStateTransfer",
        name="whole",
    )
    with pytest.raises(CacheError, match=r"Pair 'whole'.*region='tokens'"):
        ensure(made(tmp_path, exact(tmp_path), pairs=[line]))
    assert not (tmp_path / "cache").exists()
    # Without padding there is nothing to refuse.
    same = [dict(row, labels=0) for row in parts.rows("answers")]
    for row in same:
        del row["start_positions"], row["end_positions"]
    ensure(made(tmp_path, exact(tmp_path), pairs=[line], data=same))
    assert (tmp_path / "cache").exists()


def test_a_teacher_that_sees_padding_is_refused(tmp_path: Path):
    student, teacher = (
        architectures.encoder("ConvBert", seed=seed, num_labels=3, conv_kernel_size=5)
        for seed in (0, 1)
    )
    pairs = [dict(student="outputs.hidden_states[2]", loss="HiddenStateTransfer")]
    run = made(tmp_path, exact(tmp_path), student=student, teacher=teacher, pairs=pairs)
    with pytest.raises(CacheError, match="depends on how far it is padded"):
        ensure(run)


# -- the folder -----------------------------------------------------------------------------------


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "teacher").glob("shard-*.bin"))


def small(folder: Path, **options: Any) -> dict[str, Any]:
    """In files of four texts."""
    return exact(folder, shard_mb=0.01, **options)


def test_what_is_missing_or_damaged_is_written_again(tmp_path: Path, asked: list[int]):
    run = made(tmp_path, small(tmp_path))
    (before,) = ensure(run)
    assert before.missing == before.shards == len(shards(tmp_path)) == 4
    whole = [path.read_bytes() for path in shards(tmp_path)]
    damaged = bytearray(whole[1])
    damaged[-3] ^= 1
    shards(tmp_path)[1].write_bytes(damaged)
    shards(tmp_path)[3].unlink()
    with pytest.raises(CacheError, match=r"lacks 2 of 4 files.*cache_teacher"):
        ensure(made(tmp_path, small(tmp_path, build=False)))
    (again,) = ensure(made(tmp_path, small(tmp_path)))
    assert again.missing == 2
    assert [path.read_bytes() for path in shards(tmp_path)] == whole
    (last,) = ensure(made(tmp_path, small(tmp_path, build=False)))
    assert last.missing == 0


def test_building_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from taskdistill.core.cache import TeacherCache

    write, written = TeacherCache.write, []

    def killed(self: TeacherCache, shard: int, *args: Any, **kw: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, *args, **kw)

    monkeypatch.setattr(TeacherCache, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure(made(tmp_path, small(tmp_path)))
    monkeypatch.setattr(TeacherCache, "write", write)
    (forecast,) = ensure(made(tmp_path, small(tmp_path)))
    assert (forecast.missing, forecast.shards) == (2, 4)


def test_a_dry_run_writes_nothing(tmp_path: Path):
    run = made(tmp_path, small(tmp_path))
    (forecast,) = ensure(run, dry_run=True)
    assert not (tmp_path / "cache").exists() and not run.distillation.remembered
    (real,) = ensure(run)
    sizes = sum(path.stat().st_size for path in shards(tmp_path))
    # Beside the records, a header a file and a number a text.
    assert real.bytes_total == forecast.bytes_total == sizes - 4 * 64 - 16 * 4
    assert forecast.missing_bytes == forecast.bytes_total
    (done,) = ensure(made(tmp_path, small(tmp_path)), dry_run=True)
    assert done.missing == done.missing_bytes == 0


def test_room_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(CacheError, match="where 1 B are free"):
        ensure(made(tmp_path, small(tmp_path)))
    assert not shards(tmp_path)


@pytest.mark.parametrize("changed", ["teacher", "layers", "dtype"])
def test_a_cache_of_something_else_is_refused(tmp_path: Path, changed: str):
    ensure(made(tmp_path, exact(tmp_path)))
    before = {path: path.read_bytes() for path in shards(tmp_path)}
    options: dict[str, Any] = {}
    cache = exact(tmp_path)
    if changed == "teacher":
        options["teacher"] = parts.teacher(seed=8)
    elif changed == "layers":
        options["pairs"] = PAIRS[:2]
    else:
        cache["dtype"] = "bf16"
    with pytest.raises(CacheError, match="of something else"):
        ensure(made(tmp_path, cache, **options))
    assert {path: path.read_bytes() for path in shards(tmp_path)} == before


def test_other_data_are_refused_and_fewer_are_not(tmp_path: Path, asked: list[int]):
    rows = parts.rows(count=16)
    ensure(made(tmp_path, small(tmp_path), data=rows))
    changed = [dict(row) for row in rows]
    changed[4]["input_ids"] = [1 + i % 49 for i in changed[4]["input_ids"]]
    with pytest.raises(CacheError, match="1 of the 16 texts of the training data are not in"):
        ensure(made(tmp_path, small(tmp_path), data=changed))
    run = made(tmp_path, small(tmp_path), data=rows[9:3:-1])
    (forecast,) = ensure(run)
    assert (forecast.rows, forecast.texts, forecast.missing) == (6, 16, 0)
    asked.clear()
    terms(run, rows[4:9])
    assert not asked


def test_a_damaged_table_is_made_again(tmp_path: Path):
    ensure(made(tmp_path, small(tmp_path)))
    table = tmp_path / "cache" / "teacher.texts.npy"
    whole = table.read_bytes()
    for damage in (b"", whole[:-9], whole[:-1] + b"\x07", whole[:200] + b"\x01" + whole[201:]):
        table.write_bytes(damage)
        (forecast,) = ensure(made(tmp_path, small(tmp_path)))
        assert forecast.missing == 0
        assert table.read_bytes() == whole


def test_there_must_be_a_cache_to_fill(tmp_path: Path):
    with pytest.raises(ConfigError, match="no cache to fill"):
        ensure(made(tmp_path))


def test_several_teachers_have_a_folder_each(tmp_path: Path):
    pairs = [dict(KL, of=name, name=name) for name in ("a", "b")]
    teachers = {"a": parts.teacher(), "b": parts.teacher(seed=9)}
    run = made(tmp_path, exact(tmp_path), pairs=pairs, teacher=teachers)
    ensure(run)
    cached = terms(run, parts.rows()[:8])
    run.distillation.remembered = {}
    live = terms(run, parts.rows()[:8])
    assert cached["a"] != cached["b"]
    for name in ("a", "b"):
        assert (tmp_path / "cache" / name / "index.json").is_file()
        assert torch.equal(cached[name], live[name])


def test_batches_bring_their_positions_in_training_only(tmp_path: Path):
    from transformers import Trainer

    class Changing(Trainer):
        def training_step(self, *args: Any, **kw: Any) -> Any:
            return super().training_step(*args, **kw)

    carried = []
    for kind in (Trainer, Changing):
        run = made(tmp_path, exact(tmp_path), kind=kind)
        ensure(run)
        for in_training in (False, True):
            run.is_in_train = in_training
            batch = next(iter(run.get_train_dataloader()))
            carried.append(POSITIONS in batch)
            if carried[-1]:
                found = run.distillation.remembered["teacher"]
                own = found.table.positions(text_ids(found.reader.inputs(batch))[0])
                assert batch[POSITIONS]["teacher"].tolist() == own.tolist()
        assert run.data_collator is parts.collate
    # A trainer of the user's own may change a batch after it was made.
    assert carried == [False, True, False, False]
