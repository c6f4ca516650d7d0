from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from pytorch_fid.fid_score import compute_statistics_of_path

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.gan.metrics.cache import (
    cached_statistics,
    content_key,
    load_statistics,
    save_statistics,
)
from taskdistill.tasks.gan.metrics.frechet import Statistics

SOME = Statistics(np.arange(3.0), np.eye(3) + 0.5, vectors=4, images=4)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.png").write_bytes(bytes([index]) * 10)
    return sorted(folder.iterdir())


def array_file() -> bytes:
    """One array, as numpy.save writes it: no archive of named ones."""
    stream = io.BytesIO()
    np.save(stream, np.ones(2))
    return stream.getvalue()


class Counting:
    def __init__(self, statistics: Statistics = SOME) -> None:
        self.calls, self.statistics = 0, statistics

    def __call__(self) -> Statistics:
        self.calls += 1
        return self.statistics


# -- pytorch_fid's format --------------------------------------------------------------------------


def test_a_file_has_pytorch_fids_arrays_and_no_others(tmp_path: Path):
    path = tmp_path / "new" / "a.npz"
    save_statistics(path, SOME)
    with np.load(path) as file:
        assert sorted(file) == ["mu", "sigma"]
    mean, covariance = compute_statistics_of_path(str(path), None, 1, 3, "cpu")
    assert np.array_equal(mean, SOME.mean) and np.array_equal(covariance, SOME.covariance)
    again = load_statistics(path)
    assert np.array_equal(again.mean, SOME.mean) and again.vectors is None
    assert list(path.parent.iterdir()) == [path]  # nothing is left beside it


def test_nothing_is_overwritten(tmp_path: Path):
    path = tmp_path / "a.npz"
    path.write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        save_statistics(path, SOME)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="must end in .npz"):
        save_statistics(tmp_path / "a.npy", SOME)
    with pytest.raises(DataError, match="cannot be written"):
        save_statistics(path / "b.npz", SOME)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_text("no zip"), "damaged or no .npz"),
        (lambda p: p.write_bytes(b""), "damaged or no .npz"),
        (lambda p: np.ones(2).dump(p), "damaged or no .npz"),
        (lambda p: p.write_bytes(array_file()), "damaged or no .npz"),
        (lambda p: np.savez(p, mu=np.ones(2)), r"holds no sigma, but \['mu'\]"),
        (lambda p: np.savez(p, a=np.ones(2)), "holds no mu and no sigma"),
        (lambda p: np.savez(p, mu=np.ones(2), sigma=np.ones((3, 3))), r"\(D,\) and \(D, D\)"),
        (lambda p: np.savez(p, mu=np.ones(()), sigma=np.ones((1, 1))), "expected floating-point"),
        (lambda p: np.savez(p, mu=np.ones(1, int), sigma=np.ones((1, 1))), "expected floating"),
        (lambda p: np.savez(p, mu=np.array([None]), sigma=np.ones((1, 1))), "damaged or no .npz"),
        (lambda p: np.savez(p, mu=np.ones(1) * np.nan, sigma=np.ones((1, 1))), "NaN"),
    ],
)
def test_what_is_no_statistics_file(tmp_path: Path, write: Callable, message: str):
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(DataError, match=message):
        load_statistics(path)


def test_every_truncation_is_noticed(tmp_path: Path):
    path = tmp_path / "a.npz"
    save_statistics(path, SOME)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load_statistics(path)
    with pytest.raises(DataError, match="does not exist"):
        load_statistics(tmp_path / "absent.npz")


# -- by content ------------------------------------------------------------------------------------


def test_the_key_is_the_content_and_the_network(files: list[Path], tmp_path: Path):
    key = content_key(files, "net")
    copied = tmp_path / "copy"
    shutil.copytree(files[0].parent, copied)
    assert content_key(sorted(copied.iterdir()), "net") == key
    others = [
        content_key(files, "other net"),
        content_key(files[:3], "net"),
        content_key(files[::-1], "net"),
    ]
    (copied / "2.png").write_bytes(b"\x02" * 9 + b"\x03")
    others.append(content_key(sorted(copied.iterdir()), "net"))
    # The same bytes, with a border between files elsewhere.
    (copied / "0.png").write_bytes(b"\x00" * 10 + b"\x01")
    (copied / "1.png").write_bytes(b"\x01" * 9)
    (copied / "2.png").write_bytes(b"\x02" * 10)
    others.append(content_key(sorted(copied.iterdir()), "net"))
    assert len({key, *others}) == 6
    with pytest.raises(DataError, match="cannot be read"):
        content_key([tmp_path / "absent.png"], "net")


def test_computed_once(files: list[Path], own_cache: Path):
    compute = Counting()
    for _ in range(2):
        result = cached_statistics(files, "net", compute)
        assert np.array_equal(result.covariance, SOME.covariance)
        assert (result.vectors, result.images) == (4, 4)
    assert compute.calls == 1
    assert len(list(own_cache.rglob("*.npz"))) == 1
    files[0].write_bytes(b"changed")
    cached_statistics(files, "net", compute)
    assert compute.calls == 2


def test_a_cache_entry_is_a_file_that_pytorch_fid_reads(files: list[Path], own_cache: Path):
    cached_statistics(files, "net", Counting())
    (path,) = own_cache.rglob("*.npz")
    mean, _ = compute_statistics_of_path(str(path), None, 1, 3, "cpu")
    assert np.array_equal(mean, SOME.mean)


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_a_damaged_entry_is_made_again(files: list[Path], own_cache: Path, damage: bytes | None):
    compute = Counting()
    cached_statistics(files, "net", compute)
    (path,) = own_cache.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    assert np.array_equal(cached_statistics(files, "net", compute).mean, SOME.mean)
    assert compute.calls == 2
    cached_statistics(files, "net", compute)
    assert compute.calls == 2


def test_what_was_skipped_is_not_kept(files: list[Path], own_cache: Path):
    compute = Counting(Statistics(SOME.mean, SOME.covariance, vectors=3, images=3))
    for calls in (1, 2):
        cached_statistics(files, "net", compute)
        assert compute.calls == calls
    assert not list(own_cache.rglob("*.npz"))


def test_without_a_place_for_the_cache(files: list[Path], own_cache: Path):
    own_cache.write_text("a file, no folder")
    with pytest.warns(UserWarning, match="not kept.*TASKDISTILL_CACHE"):
        assert cached_statistics(files, "net", Counting()) is SOME
