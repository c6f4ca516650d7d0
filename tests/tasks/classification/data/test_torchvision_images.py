from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.classification.data import TorchvisionImages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes: PNG, JPEG, and a format that goes by way of PIL."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for index, ending in enumerate(("png", "jpg", "bmp")):
            pixels = generator.integers(0, 255, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.{ending}")
    Image.fromarray(generator.integers(0, 255, (6, 5), dtype=np.uint8)).save(root / "dog" / "3.png")
    return root


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A CIFAR-10 of 2 images a file, in the release's format."""
    generator = np.random.default_rng(1)
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = generator.integers(0, 255, (2, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1]}))
    names = [f"class{i}" for i in range(10)]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    return tmp_path


def test_arrays_are_the_images(cifar):
    data = TorchvisionImages("CIFAR10", str(cifar), train=True)
    theirs = torchvision.datasets.CIFAR10(cifar)
    assert len(data) == 10 and data.labels == theirs.targets
    assert data.metainfo["classes"] == tuple(theirs.classes)
    for index in (0, 9):
        image, label = theirs[index]
        sample = data[index]
        assert torch.equal(sample["inputs"], torch.tensor(np.array(image)).permute(2, 0, 1))
        assert sample["data_samples"] == label
    assert len(TorchvisionImages("CIFAR10", str(cifar), train=False)) == 2


def test_the_mean_of_arrays_fills_a_cutout(cifar):
    data = TorchvisionImages("CIFAR10", str(cifar), transforms=[dict(type="Cutout", length=4)])
    pixels = torchvision.datasets.CIFAR10(cifar).data
    assert data.transforms[0].fill == pytest.approx(pixels.mean((0, 1, 2)).tolist())


def test_grey_arrays(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        images = bytes([0, 0, 8, 3]) + np.array([3, 28, 28], ">i4").tobytes() + pixels.tobytes()
        labels = bytes([0, 0, 8, 1]) + np.array([3], ">i4").tobytes() + bytes([4, 0, 9])
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{split}-{name}-ubyte").write_bytes(content)
            (raw / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    data = TorchvisionImages("MNIST", str(tmp_path))
    assert torch.equal(data[1]["inputs"], torch.from_numpy(pixels[1]).expand(3, -1, -1))
    assert data.labels == [4, 0, 9]
    grey = TorchvisionImages("MNIST", str(tmp_path), channels=1)
    assert torch.equal(grey[1]["inputs"], torch.from_numpy(pixels[1:2]))


def test_files_are_decoded_as_pil_does(folder):
    data = TorchvisionImages("ImageFolder", str(folder))
    theirs = torchvision.datasets.ImageFolder(folder)
    assert data.metainfo["classes"] == ("cat", "dog") and data.labels == theirs.targets
    for index, (path, _) in enumerate(theirs.samples):
        expected = torch.tensor(np.array(theirs[index][0])).permute(2, 0, 1).int()
        found = data[index]["inputs"]
        assert found.dtype == torch.uint8 and found.shape == (3, 6, 5)
        off = (found.int() - expected).abs().max()
        assert off <= (2 if path.endswith("jpg") else 0)


def test_grey_files(folder):
    data = TorchvisionImages("ImageFolder", str(folder), channels=1)
    assert {tuple(data[index]["inputs"].shape) for index in range(len(data))} == {(1, 6, 5)}


def test_a_subset_of_files(folder):
    whole = TorchvisionImages("ImageFolder", str(folder))
    data = TorchvisionImages("ImageFolder", str(folder), subset=2)
    assert data.labels == [0, 0, 1, 1]
    for ours, theirs in ((0, 0), (1, 1), (2, 3), (3, 4)):
        assert torch.equal(data[ours]["inputs"], whole[theirs]["inputs"])


def test_a_subset_of_arrays(cifar):
    whole = TorchvisionImages("CIFAR10", str(cifar))
    with pytest.raises(DataError, match="'class2' has 0 images"):
        TorchvisionImages("CIFAR10", str(cifar), subset=1)
    assert len(whole) == 10


def test_a_damaged_file_is_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "cat" / "0.png").write_bytes(b"no image")
    data = TorchvisionImages("ImageFolder", str(tmp_path / "copy"))
    with pytest.raises(DataError, match=r"cat.0\.png cannot be read"):
        data[0]


def test_it_can_be_sent_to_worker_processes(folder, cifar):
    for data in (
        TorchvisionImages("ImageFolder", str(folder)),
        TorchvisionImages("CIFAR10", str(cifar)),
    ):
        again = pickle.loads(pickle.dumps(data))
        assert torch.equal(again[1]["inputs"], data[1]["inputs"])


def test_relative_roots_are_looked_up_where_a_variable_says(folder, monkeypatch):
    monkeypatch.setenv("TASKDISTILL_DATA", str(folder.parent))
    assert len(TorchvisionImages("ImageFolder", folder.name)) == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR-10", {}, "no data set 'CIFAR-10'. Did you mean 'CIFAR10'"),
        ("CIFAR10", dict(split="train"), "CIFAR10 has no option 'split'.*train, download"),
        ("CIFAR10", dict(transform=None), "has no option 'transform'"),
        ("CIFAR10", dict(channels=2), "channels=2"),
        ("SVHN", dict(split="tran"), "SVHN cannot be opened with"),
    ],
)
def test_mistakes(tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message):
        TorchvisionImages(name, str(tmp_path), **options)


def test_absent_data_is_one_message(tmp_path):
    with pytest.raises(DataError, match="CIFAR10 cannot be opened in .*download=True"):
        TorchvisionImages("CIFAR10", str(tmp_path))
    with pytest.raises(DataError, match="ImageFolder cannot be opened in .*Set root") as caught:
        TorchvisionImages("ImageFolder", str(tmp_path / "absent"))
    assert "download" not in str(caught.value)


def test_data_without_labels(tmp_path):
    with pytest.raises(ConfigError, match="not one label for each image"):
        TorchvisionImages("FakeData", "")
