from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from taskdistill.core.errors import CheckpointError, ConfigError, DataError
from taskdistill.tasks.gan.generate import build_translator, generate_images, save_image
from taskdistill.tasks.openmm import load_config


@pytest.fixture
def files(gan, tmp_path):
    """A config and a checkpoint that fits it."""
    model = gan.build(gan.model())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    config = gan.config(distill=gan.distill())  # which is left out
    return gan.write(config, tmp_path / "config.py"), str(tmp_path / "model.pth"), model


def test_writes_each_validation_image_under_its_name(gan, files, tmp_path):
    config, checkpoint, model = files
    out, targets = tmp_path / "out", tmp_path / "targets"
    assert generate_images(config, checkpoint, out, targets=targets) == 4
    names = ["0.png", "1.png", "2.png", "3.png"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert sorted(p.name for p in targets.iterdir()) == names
    data = gan.data(1, split="val")
    with torch.no_grad():
        expected = model.eval().val_step(data)[0].fake
    found = torch.from_numpy(np.asarray(Image.open(out / "0.png"))).permute(2, 0, 1)
    assert torch.equal(found, expected)
    truth = torch.from_numpy(np.asarray(Image.open(targets / "0.png"))).permute(2, 0, 1)
    assert torch.equal(truth, data["data_samples"][0].target)


def test_files_of_others_are_left_alone(files, tmp_path):
    config, checkpoint, _ = files
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    generate_images(config, checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    assert not list((tmp_path / "out").glob(".*"))


def test_images_of_one_name_are_told_apart(gan, files, tmp_path):
    config, checkpoint, _ = files
    folder = tmp_path / "twins" / "val"
    folder.mkdir(parents=True)
    for end in ("png", "bmp"):
        Image.open(gan.folder / "pairs" / "val" / "0.png").save(folder / f"same.{end}")
    cfg = load_config(config)
    cfg.val_dataloader.dataset.data_root = str(tmp_path / "twins")
    path = gan.write(cfg.to_dict(), tmp_path / "twins.py")
    assert generate_images(path, checkpoint, tmp_path / "out") == 2
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_grey_image_has_one_channel(tmp_path):
    save_image(torch.full((1, 2, 3), 7, dtype=torch.uint8), tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as image:
        assert (image.mode, image.size) == ("L", (3, 2))


def test_what_cannot_be_generated(gan, files, tmp_path):
    config, checkpoint, model = files
    with pytest.raises(ConfigError, match="no 'other_dataloader'"):
        generate_images(config, checkpoint, tmp_path / "out", loader="other_dataloader")
    with pytest.raises(CheckpointError, match="does not exist"):
        generate_images(config, str(tmp_path / "absent.pth"), tmp_path / "out")
    state = model.state_dict()
    del state["generator.model.1.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match="generator.model.1.weight"):
        generate_images(config, str(tmp_path / "partial.pth"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    other = load_config(config)
    other.model = dict(type="BaseDataPreprocessor")
    with pytest.raises(ConfigError, match="expected an image translator"):
        build_translator(other)
    (tmp_path / "empty" / "val").mkdir(parents=True)
    other = load_config(config)
    other.val_dataloader.dataset.data_root = str(tmp_path / "empty")
    with pytest.raises(DataError):
        generate_images(gan.write(other.to_dict()), checkpoint, Path(tmp_path / "out"))
