from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from taskdistill.core import cache as cache_module
from taskdistill.core.cache import CacheSpec, Field, TeacherCache
from taskdistill.core.errors import CacheError

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool")
LOGITS = Field("answer logits", (3,), "float16")


def spec_of(*fields: Field, samples: int = 7, shard_samples: int = 3, **identity: Any) -> CacheSpec:
    return CacheSpec(fields or (LOGITS,), samples, identity or {"seed": 0}, shard_samples)


def random_rows(
    fields: tuple[Field, ...], lengths: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random bits (NaN and infinities among them), zero behind each sample's length."""
    rows = {}
    longest = int(lengths.max())
    for field in fields:
        shape = (len(lengths), *field.shape_of(longest))
        if field.dtype == "bool":
            rows[field.name] = torch.randint(2, shape, generator=generator).bool()
        else:
            count = max(1, torch.Size(shape).numel()) * field.torch_dtype.itemsize
            bits = torch.randint(256, (count,), generator=generator, dtype=torch.uint8)
            values = bits.view(field.torch_dtype)[: torch.Size(shape).numel()]
            rows[field.name] = values.reshape(shape).clone()
        for row, length in zip(rows[field.name], lengths.tolist(), strict=True):
            for axis, size in enumerate(field.shape):
                if size == -1:
                    row.movedim(axis, 0)[length:] = 0
    return rows


def same_bits(a: Tensor, b: Tensor) -> bool:
    def bits(t: Tensor) -> Tensor:
        return t.contiguous().reshape(-1).view(torch.uint8)

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def fill(cache: TeacherCache, rows: dict[str, Tensor], lengths: Tensor | None = None) -> None:
    for shard in cache.missing():
        own = cache.positions(shard)
        cut = slice(own.start, own.stop)
        part = {name: row[cut] for name, row in rows.items()}
        cache.write(shard, part, None if lengths is None else lengths[cut])


def counting(samples: int = 7) -> dict[str, Tensor]:
    return {LOGITS.name: torch.arange(samples).half()[:, None].expand(-1, 3)}


@pytest.fixture
def full(tmp_path: Path) -> TeacherCache:
    cache = TeacherCache(tmp_path / "cache", spec_of())
    fill(cache, counting())
    return cache


# -- what is written is read -----------------------------------------------------------------------


@st.composite
def field_lists(draw: Any) -> tuple[Field, ...]:
    axes = st.sampled_from([-1, 1, 2, 5])
    return tuple(
        Field(f"field {n}", tuple(draw(st.lists(axes, max_size=3))), draw(st.sampled_from(DTYPES)))
        for n in range(draw(st.integers(1, 3)))
    )


@settings(max_examples=60)
@given(
    fields=field_lists(),
    samples=st.integers(1, 11),
    shard_samples=st.integers(1, 12),
    seed=st.integers(0, 2**20),
    large=st.booleans(),
    data=st.data(),
)
def test_round_trip_bit_for_bit(fields, samples, shard_samples, seed, large, data):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, (samples,), generator=generator)
    spec = CacheSpec(fields, samples, {"seed": seed}, shard_samples)
    rows = random_rows(fields, lengths, generator)
    asked = data.draw(st.lists(st.integers(0, samples - 1), max_size=2 * samples))
    # Large records take another way through the reader.
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_LARGE", 1 if large else 1 << 14)
        fill(TeacherCache(folder, spec), rows, lengths if spec.ragged else None)
        cache = TeacherCache(folder, spec)
        assert cache.missing() == []
        longest = int(lengths.max())
        found = cache.read(asked, longest if spec.ragged else None)
        assert list(found) == [field.name for field in fields]
        for name, row in rows.items():
            assert same_bits(found[name], row[asked])
        size = sum(path.stat().st_size for path in Path(folder).glob("shard-*"))
        if spec.ragged:
            assert torch.equal(cache.lengths(asked), lengths[asked])
        else:
            assert size == cache.bytes_total


def test_ragged_axes_are_padded_to_the_longest_asked_for(tmp_path: Path):
    cache = TeacherCache(tmp_path, spec_of(Field("hidden", (-1, 2), "float32"), samples=3))
    hidden = torch.ones(3, 6, 2)  # what lies behind the length does not count
    cache.write(0, {"hidden": hidden}, torch.tensor([1, 6, 3]))
    found = cache.read([2, 0])["hidden"]
    assert found.shape == (2, 3, 2) and found.sum((1, 2)).tolist() == [6, 2]
    assert cache.read([2, 0], 8)["hidden"].shape == (2, 8, 2)
    assert cache.read([])["hidden"].shape == (0, 0, 2)
    with pytest.raises(CacheError, match="position 1 is 6 long, but at most 5"):
        cache.read([0, 1], 5)


def test_what_is_read_is_a_copy(full: TeacherCache):
    full.read([0, 3])[LOGITS.name].fill_(9)
    assert full.read(torch.tensor([3, 0]))[LOGITS.name][:, 0].tolist() == [3, 0]


def test_batches_are_joined_by_their_rows(tmp_path: Path):
    fields = (Field("map", (2, -1, -1), "float32"), Field("label", (), "int64"))
    cache = TeacherCache(tmp_path, spec_of(*fields, samples=5, shard_samples=5))
    generator = torch.Generator().manual_seed(0)
    lengths = [torch.tensor([2, 4]), torch.tensor([3, 1, 3])]
    parts = [random_rows(fields, own, generator) for own in lengths]
    rows, own = cache.join(parts, lengths)
    assert own is not None and own.tolist() == [2, 4, 3, 1, 3]
    cache.write(0, rows, own)
    for part, asked, longest in zip(parts, ([0, 1], [2, 3, 4]), (4, 3), strict=True):
        assert all(same_bits(cache.read(asked, longest)[name], part[name]) for name in part)


def test_forecast_of_a_classifier_of_which_ten_classes_are_kept(tmp_path: Path):
    fields = (
        Field("values", (10,), "float16"),
        Field("indices", (10,), "int16"),
        Field("tail", (), "float16"),
    )
    cache = TeacherCache(tmp_path, spec_of(*fields, samples=1000, shard_samples=100))
    assert cache.record_bytes == 42
    assert cache.bytes_total == 1000 * 42 + 10 * 64
    ragged = TeacherCache(tmp_path / "ragged", spec_of(Field("a", (-1,), "bool")))
    assert ragged.bytes_total is None and ragged.record_bytes is None


# -- several processes -----------------------------------------------------------------------------


class Cached(Dataset):
    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return self.cache.spec.samples

    def __getitem__(self, index: int) -> Tensor:
        return self.cache.read([index])[LOGITS.name][0, 0]


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)]
)  # the second imports torch in every worker
def test_workers_of_a_loader_read(full: TeacherCache, method: str):
    full.read([0])
    context = multiprocessing.get_context(method)
    loader = DataLoader(Cached(full), num_workers=2, batch_size=2, multiprocessing_context=context)
    assert torch.cat(list(loader)).tolist() == list(range(7))


def test_a_pickled_cache_takes_no_maps_along(full: TeacherCache):
    full.read(range(7))
    again = pickle.loads(pickle.dumps(full))
    assert len(pickle.dumps(full)) < 2000
    assert same_bits(again.read([5])[LOGITS.name], full.read([5])[LOGITS.name])


def write_every_other(folder: Path, rank: int, start: Any) -> None:
    start.wait(60)
    cache = TeacherCache(folder, spec_of(samples=40))
    rows = counting(40)[LOGITS.name]
    for shard in range(rank, cache.shards, 2):
        own = cache.positions(shard)
        cache.write(shard, {LOGITS.name: rows[own.start : own.stop]})


def test_two_processes_write_alternate_shards(tmp_path: Path):
    folder = tmp_path / "cache"
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    processes = [
        fork.Process(target=write_every_other, args=(folder, rank, start)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    cache = TeacherCache(folder, spec_of(samples=40))
    assert cache.missing() == []
    assert cache.read(range(40))[LOGITS.name][:, 0].tolist() == list(range(40))
    assert sorted(os.listdir(folder)) == [
        "index.json",
        *(f"shard-{shard:05d}.bin" for shard in range(14)),
    ]


def test_another_process_that_makes_the_same_cache_is_first(tmp_path: Path, monkeypatch):
    """Both have found an empty folder; the other's index stands."""
    folder, place = tmp_path / "cache", cache_module._place

    def late(part: Path, path: Path, *, replace: bool) -> None:
        monkeypatch.setattr(cache_module, "_place", place)
        fill(TeacherCache(folder, spec_of()), counting())
        place(part, path, replace=replace)

    monkeypatch.setattr(cache_module, "_place", late)
    assert TeacherCache(folder, spec_of()).missing() == []


def test_another_process_that_makes_another_cache_is_first(tmp_path: Path, monkeypatch):
    folder, place = tmp_path / "cache", cache_module._place

    def late(part: Path, path: Path, *, replace: bool) -> None:
        monkeypatch.setattr(cache_module, "_place", place)
        TeacherCache(folder, spec_of(seed=1))
        place(part, path, replace=replace)

    monkeypatch.setattr(cache_module, "_place", late)
    with pytest.raises(CacheError, match="identity.seed: then 1, now 0"):
        TeacherCache(folder, spec_of())


# -- broken off, damaged ---------------------------------------------------------------------------


@contextmanager
def killed_before(name: str) -> Iterator[None]:
    """As when a process dies: nothing is cleaned up after that call."""

    class Killed(BaseException):
        pass

    def die(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, name, die)
        patch.setattr(Path, "unlink", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            yield


def test_broken_off_writing_leaves_a_cache_that_goes_on(tmp_path: Path):
    cache = TeacherCache(tmp_path, spec_of())
    cache.write(1, {LOGITS.name: torch.ones(3, 3).half()})
    with killed_before("_place"):
        cache.write(0, {LOGITS.name: torch.ones(3, 3).half()})
    assert [p.name for p in tmp_path.glob("*.part")] != []
    again = TeacherCache(tmp_path, spec_of())
    assert again.missing() == [0, 2]
    with pytest.raises(CacheError, match="Shard 0 of cache .* is not there yet. Run the tool"):
        again.read([4, 0])
    fill(again, counting())
    assert again.missing() == []
    assert [p.name for p in tmp_path.glob("*.part")] == []
    assert again.read([0, 4])[LOGITS.name][:, 0].tolist() == [0, 1]  # 1 was kept


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch):
    cache = TeacherCache(tmp_path, spec_of())

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full_disk)
    with pytest.raises(CacheError, match="Shard 0 .* cannot be written: No space left on device"):
        cache.write(0, {LOGITS.name: torch.ones(3, 3).half()})
    assert os.listdir(tmp_path) == ["index.json"]


@pytest.mark.parametrize("ragged", [False, True])
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, ragged: bool):
    field = Field("a", (-1,), "int16") if ragged else LOGITS
    cache = TeacherCache(tmp_path, spec_of(field))
    lengths = torch.tensor([2, 0, 3, 1, 1, 2, 3])
    rows = random_rows((field,), lengths, torch.Generator().manual_seed(0))
    fill(cache, rows, lengths if ragged else None)
    path = cache.path(1)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert cache.missing() == [1], place
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert cache.missing(verify=False) == [1], size
    path.write_bytes(whole + b"x")
    assert cache.missing(verify=False) == [1]
    path.write_bytes(whole)
    assert cache.missing() == []


def test_a_damaged_shard_is_refused_and_written_anew(full: TeacherCache):
    path = full.path(2)
    path.write_bytes(path.read_bytes()[:-1])
    again = TeacherCache(full.folder, full.spec)
    assert again.read([0])[LOGITS.name].tolist() == [[0, 0, 0]]
    with pytest.raises(CacheError, match="Shard 2 .* has 69 bytes, expected 70. Run the tool"):
        again.read([0, 6])
    fill(again, counting())
    assert again.read([6])[LOGITS.name].tolist() == [[6, 6, 6]]


def test_only_the_shards_asked_for_are_looked_at(full: TeacherCache):
    for shard in (0, 2):
        full.path(shard).unlink()
    assert full.missing([0, 1]) == [0]
    with pytest.raises(CacheError, match="shards 0 to 2; there is no 3"):
        full.missing([3])


def test_a_shard_of_another_place_or_cache_is_no_shard_of_this(full: TeacherCache, tmp_path: Path):
    other = TeacherCache(tmp_path / "other", spec_of(seed=1))
    fill(other, counting())
    full.path(0).write_bytes(full.path(1).read_bytes())
    full.path(1).write_bytes(other.path(1).read_bytes())
    assert full.missing(verify=False) == [0, 1]


# -- of something else -----------------------------------------------------------------------------


def test_another_teacher_is_refused_with_both(tmp_path: Path):
    then = spec_of(teacher={"sha256": "abc", "precision": "bf16"}, views=4)
    TeacherCache(tmp_path, then)
    now = spec_of(teacher={"sha256": "def", "precision": "bf16"}, epochs=4)
    with pytest.raises(CacheError) as caught:
        TeacherCache(tmp_path, now)
    text = str(caught.value)
    assert "identity.teacher.sha256: then abc, now def" in text
    assert "identity.views: then 4, now absent" in text
    assert "identity.epochs: then absent, now 4" in text
    assert "precision" not in text
    assert TeacherCache(tmp_path, then).missing() == [0, 1, 2]


OTHER = Field("label", (), "bool")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": 8}, ["samples: then 7, now 8"]),
        ({"shard_samples": 4}, ["shard_samples: then 3, now 4"]),
        (
            {"fields": (Field(LOGITS.name, (4,), "bfloat16"),)},
            [
                "field.answer logits: then float16 [3], now bfloat16 [4]",
                "field.label: then bool [], now absent",
            ],
        ),
        ({"fields": (OTHER, LOGITS)}, ["the fields come in another order"]),
    ],
)
def test_other_records_are_refused(tmp_path: Path, change: dict[str, Any], says: list[str]):
    spec = spec_of(LOGITS, OTHER)
    TeacherCache(tmp_path, spec)
    with pytest.raises(CacheError) as caught:
        TeacherCache(tmp_path, dataclasses.replace(spec, **change))
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == says


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "epoch_1.pth").write_text("weights")
    with pytest.raises(CacheError, match=r"holds no cache but other files \(epoch_1.pth\)"):
        TeacherCache(tmp_path, spec_of())
    assert os.listdir(tmp_path) == ["epoch_1.pth"]
    with pytest.raises(CacheError, match="cannot be used for a cache: File exists"):
        TeacherCache(tmp_path / "epoch_1.pth", spec_of())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": "other"}', b"\xff\xfe"])
def test_an_index_that_is_none_is_refused_and_left_alone(tmp_path: Path, content: bytes):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(CacheError, match="is not the index of a cache"):
        TeacherCache(tmp_path, spec_of())
    assert (tmp_path / "index.json").read_bytes() == content


def test_a_later_version_is_refused(full: TeacherCache):
    index = full.folder / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "version": 2}))
    with pytest.raises(CacheError, match="is of version 2, this release reads version 1"):
        TeacherCache(full.folder, full.spec)


def test_an_identity_is_compared_as_json(tmp_path: Path):
    TeacherCache(tmp_path, spec_of(views=(0, 1)))
    TeacherCache(tmp_path, spec_of(views=[0, 1]))


def test_the_index_is_readable(full: TeacherCache):
    assert json.loads((full.folder / "index.json").read_text()) == {
        "format": "taskdistill teacher cache",
        "version": 1,
        "samples": 7,
        "shard_samples": 3,
        "identity": {"seed": 0},
        "fields": [{"name": "answer logits", "shape": [3], "dtype": "float16"}],
    }


# -- what cannot be meant --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Field("a", (2,), "float61"), "dtype 'float61'.*Did you mean 'float16'"),
        (lambda: Field("a", (2, 0), "bool"), r"shape \(2, 0\), expected axes of at least 1, or -1"),
        (lambda: CacheSpec((), 1, {}, 1), "no fields"),
        (lambda: spec_of(LOGITS, LOGITS), r"these come twice: \['answer logits'\]"),
        (lambda: spec_of(samples=0), "samples .* >= 1, got 0. Is the data set empty"),
        (lambda: spec_of(samples=2.0), "samples .* got 2.0"),  # type: ignore
        (lambda: spec_of(shard_samples=0), "shard_samples .* got 0"),
        (lambda: spec_of(path=Path("a")), "must be made of JSON values"),
        (lambda: spec_of(rate=float("nan")), "must be made of JSON values"),
        (lambda: CacheSpec((LOGITS,), 1, [1], 1), "must be a mapping"),  # type: ignore
    ],
)
def test_unusable_specs(make: Any, says: str):
    with pytest.raises(CacheError, match=says):
        make()


@pytest.mark.parametrize(
    ("rows", "lengths", "says"),
    [
        ({}, None, r"has the fields \['answer logits'\], got \[\]"),
        ({"answer logits": torch.zeros(3, 3)}, None, "stored as float16, got torch.float32"),
        ({"answer logits": torch.zeros(2, 3).half()}, None, r"must be \(3, 3\), got \(2, 3\)"),
        ({"answer logits": torch.zeros(3, 4).half()}, None, r"must be \(3, 3\), got \(3, 4\)"),
        ({"answer logits": torch.zeros(3, 3).half()}, [1, 1, 1], "no lengths to give"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: Any, lengths: Any, says: str):
    cache = TeacherCache(tmp_path, spec_of())
    with pytest.raises(CacheError, match=says):
        cache.write(0, rows, lengths)
    assert cache.missing() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "lengths", "says"),
    [
        (torch.zeros(3, 4, 2), None, "give their lengths"),
        (torch.zeros(3, 4, 2), [1, 2], r"must be 3 whole numbers, got torch.int64 of shape \(2,\)"),
        (torch.zeros(3, 4, 2), [1, 2, -1], "at least 0 and below 2.31, got -1 to 2"),
        (torch.zeros(3, 4, 2), [1, 2, 5], r"must be \(3, >=5, 2\), got \(3, 4, 2\)"),
        (torch.zeros(3, 4), [1, 2, 4], r"must be \(3, >=4, 2\), got \(3, 4\)"),
    ],
)
def test_ragged_rows_that_do_not_fit(tmp_path: Path, rows: Tensor, lengths: Any, says: str):
    cache = TeacherCache(tmp_path, spec_of(Field("a", (-1, 2), "float32")))
    with pytest.raises(CacheError, match=says):
        cache.write(0, {"a": rows}, lengths)


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        ([0, 7], "positions 0 to 6, asked for 7. Is the data set the one"),
        ([-1], "asked for -1"),
        ([0.5], "must be whole numbers"),
        ([[0]], r"shape \(1, 1\)"),
        ([True], "must be whole numbers"),
    ],
)
def test_positions_that_are_none(full: TeacherCache, positions: Any, says: str):
    with pytest.raises(CacheError, match=says):
        full.read(positions)


def test_records_of_one_size_have_no_lengths(full: TeacherCache):
    with pytest.raises(CacheError, match="no lengths"):
        full.lengths([0])
