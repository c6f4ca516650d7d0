from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.classification.data import NpzImages


def test_it_reads_both_splits(tiny_data):
    arrays = np.load(tiny_data.npz)
    for split, count in (("train", 24), ("test", 12)):
        data = NpzImages(str(tiny_data.npz), split)
        assert len(data) == count and data.metainfo["classes"] == tiny_data.classes
        assert data.labels == arrays[f"y_{split}"].tolist()
        expected = torch.from_numpy(arrays[f"x_{split}"][5]).permute(2, 0, 1)
        assert torch.equal(data[5]["inputs"], expected)
        assert data[5]["inputs"].is_contiguous()


def test_it_is_found_in_its_root(tiny_data, monkeypatch):
    folder, name = os.path.split(tiny_data.npz)
    assert len(NpzImages(name, root=folder)) == 24
    monkeypatch.setenv("TASKDISTILL_DATA", folder)
    assert len(NpzImages(name)) == 24


def test_grey_images(tmp_path):
    np.savez(
        tmp_path / "grey.npz",
        x_train=np.zeros((2, 5, 6), np.uint8),
        y_train=np.array([0, 1]),
        classes=["a", "b"],
    )
    assert NpzImages(str(tmp_path / "grey.npz"))[0]["inputs"].shape == (1, 5, 6)


def test_missing_and_misspelt(tiny_data, monkeypatch, tmp_path):
    monkeypatch.delenv("TASKDISTILL_DATA", raising=False)
    with pytest.raises(DataError, match="absent.npz.*does not exist.*TASKDISTILL_DATA"):
        NpzImages("absent.npz", root=str(tmp_path))
    with pytest.raises(ConfigError, match="no split 'trian'. Did you mean 'train'.*train, test"):
        NpzImages(str(tiny_data.npz), "trian")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x_train=np.zeros((2, 4, 4, 3), np.float32)), "expected x_train as uint8"),
        (dict(x_train=np.zeros((2, 4), np.uint8)), "expected x_train as uint8"),
        (dict(y_train=np.array([0, 2])), "labels from 0 to 2, but 2 classes"),
        (dict(y_train=np.array([0])), "2 images, but 1 labels"),
        (dict(y_train=None), "incomplete.*y_train"),
        (dict(classes=None), "incomplete.*classes"),
        (dict(classes=np.array([{"a": 1}], dtype=object)), "cannot be read"),
    ],
)
def test_malformed_files(tmp_path, change, message):
    arrays = dict(
        x_train=np.zeros((2, 4, 4, 3), np.uint8), y_train=np.array([0, 1]), classes=["a", "b"]
    )
    kept = {name: value for name, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "broken.npz", **kept)
    with pytest.raises(DataError, match=message):
        NpzImages(str(tmp_path / "broken.npz"))


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "array.npy"):
        with pytest.raises(DataError, match="cannot be read as numpy arrays"):
            NpzImages(name, root=str(tmp_path))


def test_a_file_that_runs_code_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError):
        NpzImages(str(tmp_path / "evil.npz"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.data
def test_the_small_cifar_10():
    path = "cifar10_mini/cifar10_mini.npz"
    train, test = NpzImages(path), NpzImages(path, "test", subset=7)
    assert (len(train), len(test)) == (4000, 70)
    assert train[0]["inputs"].shape == (3, 32, 32)
    assert train.metainfo == test.metainfo and len(train.metainfo["classes"]) == 10
    # CIFAR-10's known means of red, green and blue.
    mean = train.images.double().mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([125.3, 123.0, 113.9]).double(), atol=2.0, rtol=0)
