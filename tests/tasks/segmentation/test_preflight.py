from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmseg")
pytest.importorskip("sklearn")

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from PIL import Image

from taskdistill.core.errors import DataError
from taskdistill.tasks.segmentation.preflight import check_config_data

CONFIGS = Path(__file__).parents[3] / "configs" / "segmentation" / "_base_"
LOADING = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]


@pytest.fixture(autouse=True)
def mmseg_scope():
    if not DefaultScope.check_instance_created("mmseg"):
        register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def config(tmp_path) -> dict[str, Any]:
    """Three classes and void (255), twelve training images and five for validation."""
    root = tmp_path / "data"
    labels = np.tile([0, 1, 2, 255], (6, 2))
    for split, count in (("train", 12), ("val", 5)):
        for i in range(count):
            write(root / "img" / split / f"{i:02d}.jpg", np.zeros((6, 8, 3)))
            write(root / "ann" / split / f"{i:02d}.png", labels)

    def loader(split: str) -> dict[str, Any]:
        return {
            "dataset": {
                "type": "BaseSegDataset",
                "metainfo": {"classes": ("road", "car", "sky")},
                "data_root": str(root),
                "data_prefix": {"img_path": f"img/{split}", "seg_map_path": f"ann/{split}"},
                "pipeline": [dict(step) for step in LOADING],
            }
        }

    return {
        "model": {"type": "EncoderDecoder", "decode_head": {"type": "FCNHead", "num_classes": 3}},
        "train_dataloader": loader("train"),
        "val_dataloader": loader("val"),
    }


def check(config: dict[str, Any]) -> None:
    check_config_data(Config(config))


def train_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["train_dataloader"]["dataset"]


def label_file(config: dict[str, Any], name: str, split: str = "train") -> Path:
    return Path(train_of(config)["data_root"]) / "ann" / split / name


def test_good_data_passes(config):
    check(config)
    del config["val_dataloader"]
    check(config)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
@pytest.mark.parametrize(("key", "what"), [("img_path", "image"), ("seg_map_path", "label")])
def test_absent_folders(config, loader, key, what):
    config[loader]["dataset"]["data_prefix"][key] = "gone"
    with pytest.raises(DataError, match=rf"The {what} folder .*gone .*{loader}.* does not exist"):
        check(config)


def test_label_files_that_lack_are_counted_and_three_named(config):
    for name in ("03.png", "05.png", "07.png", "11.png"):
        label_file(config, name).unlink()
    with pytest.raises(
        DataError, match=r"4 of the 12 label files .*: 03\.png, 05\.png, 07\.png, \.\.\.\. Check"
    ):
        check(config)


def test_images_in_subfolders_have_their_labels_in_the_same(config):
    root = Path(train_of(config)["data_root"])
    for kind in ("img", "ann"):
        files = list((root / kind / "train").iterdir())
        (root / kind / "train" / "city").mkdir()
        for path in files:
            path.rename(path.parent / "city" / path.name)
    check(config)
    (root / "ann" / "train" / "city" / "04.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 12 label files .*: city/04\.png\. "):
        check(config)


def test_no_image_of_that_ending(config):
    train_of(config)["img_suffix"] = ".png"
    with pytest.raises(DataError, match=r"no image that ends in '\.png', only \.jpg\. Set img_suf"):
        check(config)


def test_suffixes_of_the_dataset_class_are_used(config):
    """Cityscapes' labels are named after the image with another ending."""
    train_of(config)["type"] = "CityscapesDataset"
    with pytest.raises(DataError, match=r"'_leftImg8bit\.png', only \.jpg"):
        check(config)


def test_a_list_of_images(config, tmp_path):
    dataset = train_of(config)
    dataset.update(type="PascalVOCDataset", metainfo=None, ann_file="lists/train.txt")
    config["model"]["decode_head"]["num_classes"] = 21
    del config["val_dataloader"]
    lists = tmp_path / "data" / "lists"
    lists.mkdir()
    (lists / "trainval.txt").write_text("00\n")
    with pytest.raises(
        DataError, match=r"list of images .*lists/train\.txt .*Did you mean 'trainval\.txt'"
    ):
        check(config)
    (lists / "train.txt").write_text("00\n01\n")
    check(config)
    (lists / "train.txt").write_text("00\n77\n99\n")
    with pytest.raises(DataError, match=r"2 of the 3 images .*: 77\.jpg, 99\.jpg\. "):
        check(config)


def test_labels_that_are_loaded_but_have_no_folder(config):
    train_of(config)["data_prefix"] = {"img_path": "img/train"}
    with pytest.raises(DataError, match="Set seg_map_path"):
        check(config)
    train_of(config)["pipeline"] = LOADING[:1]
    check(config)


# --- wrappers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["RepeatDataset", "MultiImageMixDataset", "ConcatDataset"])
def test_datasets_inside_wrappers_are_found(config, wrapper):
    inner = train_of(config)
    key, value = ("datasets", [inner]) if wrapper == "ConcatDataset" else ("dataset", inner)
    config["train_dataloader"]["dataset"] = {"type": wrapper, key: value}
    check(config)
    inner["data_prefix"]["img_path"] = "gone"
    with pytest.raises(DataError, match="gone"):
        check(config)


# --- labels -------------------------------------------------------------------------------------


def test_a_label_outside_the_classes(config):
    write(label_file(config, "00.png"), np.full((6, 8), 3))
    with pytest.raises(
        DataError,
        match=r"train/00\.png has the label 3 in 48 pixels; the head knows 0 to 2 "
        r"\(num_classes=3\) and ignores 255.*reduce_zero_label",
    ):
        check(config)
    write(label_file(config, "00.png"), np.tile([0, 7, 9, 8], (6, 2)))
    with pytest.raises(DataError, match=r"label 7 in 12 pixels \(and 2 more such labels\)"):
        check(config)


def test_labels_of_validation_are_read_too(config):
    write(label_file(config, "04.png", "val"), np.full((6, 8), 3))
    with pytest.raises(DataError, match=r"val/04\.png has the label 3"):
        check(config)


def test_eight_maps_from_the_first_to_the_last_are_read(config):
    read = []
    for i in range(12):
        path = label_file(config, f"{i:02d}.png")
        whole = path.read_bytes()
        write(path, np.full((6, 8), 99))
        try:
            check(config)
        except DataError:
            read.append(i)
        path.write_bytes(whole)
    assert len(read) == 8 and read[0] == 0 and read[-1] == 11
    assert max(np.diff(read)) == 2


def test_the_ignore_label_is_that_of_the_head(config):
    config["model"]["decode_head"]["ignore_index"] = 0
    with pytest.raises(DataError, match="label 255 .* ignores 0"):
        check(config)


def test_label_map_and_reduced_zero_are_applied(config):
    for split in ("train", "val"):
        dataset = config[f"{split}_dataloader"]["dataset"]
        for path in (Path(dataset["data_root"]) / "ann" / split).iterdir():
            write(path, np.tile([0, 1, 2, 3], (6, 2)))
    with pytest.raises(DataError, match="label 3"):
        check(config)
    for split in ("train", "val"):
        config[f"{split}_dataloader"]["dataset"]["reduce_zero_label"] = True
    check(config)

    @DATASETS.register_module(force=True)
    class FourClasses(BaseSegDataset):
        METAINFO = {"classes": ("road", "car", "sky", "void"), "palette": [[0, 0, 0]] * 4}

    for split in ("train", "val"):
        config[f"{split}_dataloader"]["dataset"].update(type="FourClasses", reduce_zero_label=False)
    check(config)  # metainfo chooses three of the four, and the map makes 255 of the fourth
    DATASETS.module_dict.pop("FourClasses")


def test_colour_pictures_are_no_label_maps(config):
    write(label_file(config, "00.png"), np.zeros((6, 8, 3)))
    with pytest.raises(DataError, match=r"00\.png has the shape \(6, 8, 3\).*not a colour picture"):
        check(config)


def test_a_damaged_label_map(config):
    path = label_file(config, "00.png")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"00\.png cannot be read: .*Restore the file"):
        check(config)


def test_without_a_head_that_counts_classes_labels_are_not_judged(config):
    write(label_file(config, "00.png"), np.full((6, 8), 99))
    config["model"] = {"type": "Segmentor"}
    check(config)


# --- number of classes --------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 4, 19])
def test_another_number_of_classes(config, num_classes):
    config["model"]["decode_head"]["num_classes"] = num_classes
    with pytest.raises(
        DataError,
        match=rf"3 classes \(road, car, sky\), but .*num_classes is {num_classes}\. Set num_cl",
    ):
        check(config)


def test_the_last_head_of_a_cascade_counts(config):
    head = config["model"]["decode_head"]
    config["model"]["decode_head"] = [{**head, "num_classes": 5}, head]
    check(config)
    config["model"]["decode_head"] = [head, {**head, "num_classes": 5}]
    with pytest.raises(DataError, match="num_classes is 5"):
        check(config)


def test_a_binary_head_of_one_class(config):
    config["model"]["decode_head"]["num_classes"] = 1
    for split, count in (("train", 12), ("val", 5)):
        config[f"{split}_dataloader"]["dataset"]["metainfo"] = {"classes": ("no", "yes")}
        for i in range(count):
            write(label_file(config, f"{i:02d}.png", split), np.tile([0, 1], (6, 4)))
    check(config)
    write(label_file(config, "00.png"), np.full((6, 8), 2))
    with pytest.raises(DataError, match="label 2 .* knows 0 to 1"):
        check(config)


# --- what is left alone -------------------------------------------------------------------------


def test_what_is_not_local_or_laid_out_otherwise_is_left_alone(config):
    dataset = train_of(config)
    dataset.update(data_root="s3://bucket/")
    check(config)
    dataset.update(data_root="gone", backend_args={"backend": "petrel"})
    check(config)
    dataset.update(backend_args=None)
    with pytest.raises(DataError, match="gone"):
        check(config)
    dataset.update(type="NYUDataset")  # lists its files in its own way
    check(config)
    dataset.update(type="NobodyKnows")
    check(config)


# --- shipped data -------------------------------------------------------------------------------


def test_digit_scenes(monkeypatch, tmp_path):
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path))
    cfg = Config.fromfile(CONFIGS / "digit_scenes.py")
    cfg.model = {"decode_head": {"num_classes": cfg.num_classes}}
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.scenes = {"train": 3, "val": 2, "size": 48}
    check_config_data(cfg)
    cfg.model.decode_head.num_classes = 10
    with pytest.raises(DataError, match="DigitScenes of train_dataloader has 11 classes"):
        check_config_data(cfg)


@pytest.mark.data
def test_real_data_takes_less_than_a_second(monkeypatch):
    path = CONFIGS / "camvid.py"
    cfg = Config.fromfile(path)
    cfg.model = {"decode_head": {"num_classes": cfg.num_classes}}
    start = time.process_time()
    check_config_data(cfg)
    assert time.process_time() - start < 1
    cfg.model.decode_head.num_classes = 12
    with pytest.raises(DataError, match="CamVid of train_dataloader has 11 classes"):
        check_config_data(cfg)
    monkeypatch.setenv("TASKDISTILL_DATA", os.path.join(os.environ["TASKDISTILL_DATA"], "gone"))
    with pytest.raises(DataError, match="is not CamVid"):
        check_config_data(Config.fromfile(path))
