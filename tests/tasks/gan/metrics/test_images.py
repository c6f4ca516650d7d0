from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from pytorch_fid.fid_score import IMAGE_EXTENSIONS as THEIRS
from pytorch_fid.fid_score import ImagePathDataset
from torchvision.transforms import ToTensor

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.gan.metrics.images import (
    IMAGE_EXTENSIONS,
    ImageFiles,
    Unreadable,
    image_batches,
    list_images,
    read_image,
)

PIXELS = np.random.default_rng(0).integers(256, size=(5, 7, 4), dtype=np.uint8)


def save(path: Path, mode: str = "RGB") -> Path:
    Image.fromarray(PIXELS[..., :3]).convert(mode).save(path)
    return path


# -- which files -----------------------------------------------------------------------------------


def test_the_extensions_are_pytorch_fids():
    assert IMAGE_EXTENSIONS == THEIRS


def test_images_of_the_folder_alone_in_order(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("b.png", "a.jpg", "c.txt", "sub/d.png", "png"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.png"]
    every = list_images(tmp_path, recursive=True)
    assert [path.name for path in every] == ["a.jpg", "b.png", "d.png"]


def test_capital_letters_count_and_are_told(tmp_path: Path):
    for name in ("a.PNG", "b.png", "c.Jpeg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 images such as 'a.PNG'.* pytorch_fid leaves them out"):
        assert len(list_images(tmp_path)) == 3


def test_no_images(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist; expected a folder of images or an .npz"):
        list_images(tmp_path / "absent")
    (tmp_path / "deeper").mkdir()
    with pytest.raises(DataError, match=r"holds no image \(bmp, jpeg, jpg, .*\)\.$"):
        list_images(tmp_path)
    (tmp_path / "deeper" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="subfolders hold 1: name one, or use --recursive"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        list_images(tmp_path / "deeper" / "a.png")


# -- one image -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("LA", "png"), ("P", "png"), ("1", "png"),
        ("RGBA", "png"), ("CMYK", "jpg"), ("YCbCr", "jpg"), ("RGB", "webp"), ("RGB", "bmp"),
        ("L", "pgm"), ("RGB", "ppm"), ("RGBA", "tif"), ("P", "bmp"),
    ],
)  # fmt: skip
def test_pixels_are_pytorch_fids(tmp_path: Path, mode: str, suffix: str):
    path = save(tmp_path / f"image.{suffix}", mode)
    ours = read_image(path)
    assert ours.dtype == torch.uint8 and ours.shape == (3, 5, 7)
    assert torch.equal(ours.float().div(255), ImagePathDataset([path], ToTensor())[0])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str):
    values = np.array([[0, 257, 128, 129, 1000, 65535, 200 * 257, 65407]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = torch.tensor([0, 1, 0, 1, 4, 255, 200, 255], dtype=torch.uint8)
    assert torch.equal(read_image(tmp_path / f"a.{suffix}"), expected.expand(3, 1, 8))


def test_pixels_without_a_range(tmp_path: Path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match="floating-point pixels have no fixed range"):
        read_image(tmp_path / "f.tif")
    with pytest.raises(DataError, match="more than 16 bits"):
        read_image(tmp_path / "i.tif")


def test_one_pixel(tmp_path: Path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flatten().tolist() == [1, 2, 3]


# -- many images -----------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> list[Path]:
    """Ten images, of which 1 (empty), 4 (cut off) and 7 (a text) cannot be read."""
    for index in range(10):
        save(tmp_path / f"{index}.png")
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "7.png").write_text("no image")
    return list_images(tmp_path)


def test_an_unreadable_item_says_why(spoilt: list[Path]):
    item = ImageFiles(spoilt)[1]
    assert isinstance(item, Unreadable)
    assert item.path == spoilt[1] and "cannot identify" in item.reason
    assert isinstance(ImageFiles(spoilt)[0], torch.Tensor)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_unreadable_files_are_named_at_once(spoilt: list[Path], workers: int):
    seen, done = [], []
    with pytest.raises(DataError, match="3 of 10 images cannot be read") as error:
        for batch in image_batches(spoilt, batch_size=1, num_workers=workers, progress=done.append):
            seen += batch
    assert all(f"{index}.png: " in str(error.value) for index in (1, 4, 7))
    assert "--skip-unreadable" in str(error.value)
    assert len(seen) == 1  # nothing is measured in vain after the first of them
    assert sum(done) == 10


def test_no_more_than_eight_are_listed(tmp_path: Path):
    for index in range(11):
        (tmp_path / f"{index:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match="11 of 11") as error:
        list(image_batches(list_images(tmp_path)))
    assert "07.png" in str(error.value) and "08.png" not in str(error.value)
    assert "and 3 more" in str(error.value)


def test_unreadable_files_can_be_left_out(spoilt: list[Path]):
    batches = list(image_batches(spoilt, batch_size=4, skip_unreadable=True))
    assert [len(batch) for batch in batches] == [3, 2, 2]
    alone = list(image_batches(spoilt[1:2], skip_unreadable=True))
    assert alone == []


def test_batches_keep_order_and_sizes(tmp_path: Path):
    for index in range(5):
        Image.new("RGB", (index + 1, 3), (index,) * 3).save(tmp_path / f"{index}.png")
    batches = list(image_batches(list_images(tmp_path), batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    flat = [image for batch in batches for image in batch]
    assert [tuple(image.shape) for image in flat] == [(3, 3, n + 1) for n in range(5)]
    assert [int(image[0, 0, 0]) for image in flat] == list(range(5))


def test_batch_options():
    for wrong in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ConfigError, match="batch_size must be at least 1"):
            next(image_batches([], **wrong))
