import json

import pytest
from mmengine.config import Config

from taskdistill.core.errors import DataError
from taskdistill.tasks.detection import DenseHeadAdapter
from taskdistill.tasks.detection.preflight import check_config_data


@pytest.fixture
def config(tiny):
    return tiny.config()


def test_good_data_passes(config):
    check_config_data(Config(config))
    DenseHeadAdapter.check_data(Config(config))


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_absent_annotations(config, loader):
    config[loader]["dataset"]["ann_file"] = "gone.json"
    with pytest.raises(DataError, match="gone.json does not exist"):
        check_config_data(Config(config))


@pytest.mark.parametrize("wrapper", ["RepeatDataset", "MultiImageMixDataset", "ConcatDataset"])
def test_datasets_inside_wrappers_are_found(config, wrapper):
    inner = config["train_dataloader"]["dataset"]
    key, value = ("datasets", [inner]) if wrapper == "ConcatDataset" else ("dataset", inner)
    config["train_dataloader"]["dataset"] = {"type": wrapper, key: value}
    check_config_data(Config(config))
    inner["ann_file"] = "gone.json"
    with pytest.raises(DataError, match="gone.json"):
        check_config_data(Config(config))


def test_missing_pictures_are_counted(config):
    config["train_dataloader"]["dataset"]["data_prefix"] = dict(img="val")
    with pytest.raises(DataError, match="6 of the 12 images"):
        check_config_data(Config(config))


def test_classes_are_those_of_the_file_or_of_coco(config):
    config["train_dataloader"]["dataset"]["metainfo"] = dict(classes=("red", "gren", "blue"))
    with pytest.raises(DataError, match="gren.*Did you mean 'green'"):
        check_config_data(Config(config))
    del config["train_dataloader"]["dataset"]["metainfo"]
    with pytest.raises(DataError, match="person"):
        check_config_data(Config(config))


def test_what_is_not_coco_or_not_local_is_left_alone(config):
    dataset = config["train_dataloader"]["dataset"]
    dataset.update(data_root="s3://bucket/")
    check_config_data(Config(config))
    dataset.update(type="XMLDataset", data_root="gone", ann_file="gone.txt")
    check_config_data(Config(config))
    del config["val_dataloader"]
    check_config_data(Config(config))


def test_paths_without_a_data_root(config, tiny):
    dataset = config["train_dataloader"]["dataset"]
    dataset.update(
        data_root="",
        ann_file=str(tiny.data / "train.json"),
        data_prefix=dict(img=str(tiny.data / "train")),
    )
    check_config_data(Config(config))
    assert json.loads((tiny.data / "train.json").read_text())["images"]
