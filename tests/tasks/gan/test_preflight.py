from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("sklearn")

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

import taskdistill.tasks.gan.models
from taskdistill.core.errors import DataError
from taskdistill.tasks.gan.data import AlignedImages
from taskdistill.tasks.gan.preflight import check_config_data


def write(path: Path, width: int, height: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Paired data for training, unpaired for validation."""
    for i in range(5):
        write(tmp_path / "pairs" / "train" / f"{i}.png", 64)
        write(tmp_path / "domains" / "valA" / f"{i}.png", 40)
        write(tmp_path / "domains" / "valB" / f"{i}.png", 36)
    return dict(
        model=dict(type="Pix2Pix", generator=dict(type="ResnetGenerator", width=8)),
        train_dataloader=dict(
            dataset=dict(
                type="AlignedImages",
                data_root=str(tmp_path / "pairs"),
                load_size=40,
                crop_size=32,
            )
        ),
        val_dataloader=dict(
            dataset=dict(
                type="UnalignedImages",
                data_root=str(tmp_path / "domains"),
                split="val",
                test_mode=True,
                crop_size=32,
            )
        ),
    )


def check(config: dict[str, Any], **changes: Any) -> None:
    """``changes`` are of the training data."""
    config = copy.deepcopy(config)
    config["train_dataloader"]["dataset"].update(changes)
    check_config_data(Config(config))


def refused(config: dict[str, Any], message: str, **changes: Any) -> None:
    with pytest.raises(DataError, match=message):
        check(config, **changes)


# -- what is in order ------------------------------------------------------------------------------


def test_a_good_config_passes_and_draws_no_random_number(config: dict[str, Any]):
    state = torch.get_rng_state(), random.getstate()
    check(config)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    check_config_data(Config(dict(model=config["model"])))  # no data, nothing to check
    check_config_data(Config(dict(train_dataloader=None)))


def test_data_of_others_is_left_alone(config: dict[str, Any]):
    config["val_dataloader"]["dataset"] = dict(type="NobodyKnows", data_root="/nowhere")
    check(config)


def test_digits_pass(config: dict[str, Any]):
    for kind in ("DigitOutlines", "DigitRestyle"):
        config["train_dataloader"]["dataset"] = dict(type=kind, size=32)
        check(config)


def test_a_class_and_wrappers_are_found(config: dict[str, Any]):
    good = config["train_dataloader"]["dataset"]
    bad = {**good, "split": "trian"}
    for wrapped in (
        dict(type="RepeatDataset", times=2, dataset=bad),
        dict(type="ConcatDataset", datasets=[good, bad]),
        dict(type="SeededDataset", dataset=dict(type="RepeatDataset", times=2, dataset=bad)),
        {**bad, "type": AlignedImages},
    ):
        config["train_dataloader"]["dataset"] = wrapped
        with pytest.raises(DataError, match="AlignedImages of train_dataloader: .*'trian'"):
            check_config_data(Config(config))


def test_test_data_is_checked(config: dict[str, Any]):
    config["test_dataloader"] = copy.deepcopy(config["val_dataloader"])
    check(config)
    config["test_dataloader"]["dataset"]["split"] = "test"
    refused(config, "UnalignedImages of test_dataloader: .*no folder 'testA', only valA, valB")


# -- folders and files -----------------------------------------------------------------------------


def test_folders_that_are_not_there(config: dict[str, Any], tmp_path: Path):
    refused(
        config, "AlignedImages of train_dataloader: .*nowhere does not exist", data_root="nowhere"
    )
    refused(config, "no folder 'trian', only train. Did you mean 'train'", split="trian")
    (tmp_path / "domains" / "valB").rename(tmp_path / "domains" / "trainB")
    refused(config, "UnalignedImages of val_dataloader: .*no folder 'valB', only trainB, valA")


def test_a_folder_without_pictures(config: dict[str, Any], tmp_path: Path):
    (tmp_path / "pairs" / "empty").mkdir()
    refused(config, "empty holds no picture", split="empty")


@pytest.mark.parametrize("name", ["0.png", "2.png", "4.png"])
def test_damaged_files_are_named(config: dict[str, Any], tmp_path: Path, name: str):
    path = tmp_path / "domains" / "valB" / name
    path.write_bytes(path.read_bytes()[:40])
    refused(config, f"UnalignedImages of val_dataloader: .*valB.{name} cannot be read")


@pytest.mark.parametrize("width", [63, 14])
def test_widths_that_are_no_pair(config: dict[str, Any], tmp_path: Path, width: int):
    write(tmp_path / "pairs" / "train" / "2.png", width)
    refused(config, rf"2\.png is {width}x32 pixels: .*even width of at least 16")


# -- sizes -----------------------------------------------------------------------------------------


def test_a_crop_larger_than_what_it_is_taken_from(config: dict[str, Any]):
    refused(config, "crop_size is 44, but .* load_size 40", crop_size=44)
    refused(config, r"0\.png: .*32x32 .*crop_size=36", crop_size=36, preprocess="crop")


def test_sides_that_the_generator_cannot_halve(config: dict[str, Any]):
    refused(config, "30 pixels, but ResnetGenerator.*4. Set crop_size .* to 28 or 32", crop_size=30)
    refused(
        config, "42 pixels.*Set load_size .* to 40 or 44", load_size=42, preprocess="scale_width"
    )
    check(config, crop_size=30, preprocess="none")  # rounded to what fits
    config["model"]["generator"]["type"] = "SomebodysGenerator"
    check(config, crop_size=30)


def test_the_units_of_other_generators(config: dict[str, Any]):
    config["model"]["generator"] = dict(type="UnetGenerator", downs=5)
    check(config)
    del config["model"]["generator"]["downs"]  # 8
    refused(config, "UnetGenerator halves them 8 times.*divisible by 256.* to 256")
    config["model"]["generator"] = dict(type=taskdistill.tasks.gan.models.MobileResnetGenerator)
    refused(config, "30 pixels, but MobileResnetGenerator", crop_size=30)


def test_digits_of_a_size_that_does_not_fit(config: dict[str, Any]):
    config["train_dataloader"]["dataset"] = dict(type="DigitRestyle")
    refused(config, "DigitRestyle of train_dataloader .*Set size .* to 28 or 32", size=30)
    refused(config, "split must be 'train' or 'val', got 'test'", split="test")


# -- channels and arguments ------------------------------------------------------------------------


def test_channels_that_disagree(config: dict[str, Any]):
    refused(
        config, "inputs of 1 channels, but in_channels of model.generator .* is 3", in_channels=1
    )
    config["model"]["generator"].update(in_channels=1, out_channels=1)
    config["val_dataloader"]["dataset"].update(in_channels=1, out_channels=1)
    refused(config, "targets of 3 channels, but out_channels .* is 1", in_channels=1)
    check(config, in_channels=1, out_channels=1)
    config["train_dataloader"]["dataset"] = dict(type="DigitOutlines")
    refused(config, r"in_channels.*\(digits have 3\)")


def test_a_generator_that_says_nothing_is_believed(config: dict[str, Any]):
    config["model"]["generator"] = dict(type="SomebodysGenerator")
    check(config, in_channels=1)
    config["model"]["generator"]["in_channels"] = 3
    refused(config, "in_channels of model.generator .SomebodysGenerator. is 3", in_channels=1)
    del config["model"]
    check(config, in_channels=1)


def test_arguments_that_are_none(config: dict[str, Any]):
    refused(config, "has no argument 'crop'. Did you mean 'crop_size'.*arguments are", crop=3)
    del config["train_dataloader"]["dataset"]["data_root"]
    refused(config, "AlignedImages of train_dataloader needs data_root")
