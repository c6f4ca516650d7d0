from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.classification.preflight import check_config_data, sample_shape


def written(folder, name, size=8, channels=3, classes=("a", "b", "c"), labels=(0, 1, 2)):
    arrays = {"classes": np.array(classes)}
    for split in ("train", "test"):
        shape = (len(labels), size, size, channels)
        arrays[f"x_{split}"] = np.zeros(shape, np.uint8)
        arrays[f"y_{split}"] = np.array(labels)
    np.savez(folder / name, **arrays)
    return str(folder / name)


@pytest.fixture
def config(tiny_data):
    def make(model=None, **loaders):
        made = Config(tiny_data.config(tiny_data.model(**(model or {}))))
        for name, changes in loaders.items():
            made[f"{name}_dataloader"].dataset.update(changes)
        return made

    return make


def refused(cfg, message, error=DataError):
    with pytest.raises(error, match=message):
        check_config_data(cfg)


def test_a_config_that_holds_leaves_nothing_changed(config):
    cfg = config()
    before, state = copy.deepcopy(cfg.to_dict()), torch.get_rng_state()
    check_config_data(cfg)
    assert cfg.to_dict() == before and torch.equal(torch.get_rng_state(), state)


def test_absent_data_is_told_with_its_loader(config, tmp_path):
    absent = str(tmp_path / "absent.npz")
    refused(config(val=dict(path=absent)), "NpzImages of val_dataloader: .*absent.npz.*not exist")


def test_data_within_wrappers_is_found(config, tmp_path):
    cfg = config(train=dict(path=str(tmp_path / "absent.npz")))
    cfg.train_dataloader.dataset = dict(
        type="SeededDataset",
        dataset=dict(type="RepeatDataset", times=2, dataset=cfg.train_dataloader.dataset),
    )
    refused(cfg, "NpzImages of train_dataloader")


def test_the_test_data_is_looked_at_too(config, tmp_path):
    cfg = config()
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.test_dataloader.dataset.split = "tset"
    refused(cfg, "NpzImages of test_dataloader: .*no split 'tset'", ConfigError)


def test_other_packages_data_is_left_alone(config):
    @DATASETS.register_module(name="TestOnlyData", force=True)
    class Data:
        pass

    try:
        cfg = config()
        cfg.train_dataloader.dataset = dict(type="TestOnlyData")
        check_config_data(cfg)
    finally:
        del DATASETS.module_dict["TestOnlyData"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(pth="x"), "NpzImages of train_dataloader: .*'pth'.*Did you mean 'path'"),
        (dict(transforms=[dict(type="RandomFlip")]), "of train_dataloader: There is no transform"),
    ],
)
def test_mistakes_in_the_datas_config(config, changes, message):
    refused(config(train=changes), message, ConfigError)


def test_classes_must_be_as_many_as_the_networks(config):
    refused(
        config(dict(num_classes=5)),
        "NpzImages of train_dataloader has 3 classes .* num_classes=5. Set num_classes to 3",
    )
    network = dict(type="CifarResNet", depth=8, num_classes=4)
    refused(config(dict(num_classes=None, network=network)), "num_classes=4")


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (("red", "blue", "green"), (0, 1, 2), "class 1 is 'green' and 'blue'"),
        (("red", "green"), (0, 1, 1), "has 2 classes"),
    ],
)
def test_classes_of_the_splits_must_agree(config, tmp_path, classes, labels, message):
    path = written(tmp_path, "other.npz", classes=classes, labels=labels)
    refused(config(val=dict(path=path)), message)


def test_splits_that_lack_classes_are_told_without_num_classes(config, tmp_path):
    path = written(tmp_path, "other.npz", classes=("red", "green"), labels=(0, 1, 1))
    refused(config(dict(num_classes=None), val=dict(path=path)), "3 and 2 classes; blue is in one")


def test_labels_beyond_the_classes(config, tmp_path):
    path = written(tmp_path, "beyond.npz", labels=(0, 1, 3))
    refused(config(train=dict(path=path)), "labels from 0 to 3, but 3 classes")


def test_images_must_be_pixels(config):
    refused(
        config(train=dict(transforms=[dict(type="ToDtype", dtype=torch.float32, scale=True)])),
        "gives torch.float32 of shape .*expected uint8",
    )
    refused(config(train=dict(transforms=[dict(type="ToPILImage")])), "gives Image; expected uint8")


def test_images_must_be_of_one_size(config):
    transforms = [dict(type="RandomResize", min_size=8, max_size=40)]
    cfg = config(train=dict(transforms=transforms))
    torch.manual_seed(0)
    refused(cfg, "images of several sizes")
    cfg.train_dataloader.batch_size = 1
    check_config_data(cfg)


@pytest.mark.parametrize("option", ["mean", "std"])
def test_statistics_must_be_as_many_as_channels(config, tmp_path, option):
    path = written(tmp_path, "grey.npz", channels=1, classes=("red", "green", "blue"))
    cfg = config(dict(data_preprocessor={option: [1.0, 2.0, 3.0]}), train=dict(path=path))
    refused(cfg, f"images of 1 channels, but {option} of the preprocessor has 3 numbers")
    cfg.model.data_preprocessor = {option: [5.0]}
    check_config_data(cfg)


def test_the_shape_of_a_sample(config, tmp_path):
    assert sample_shape(config()) == (3, 8, 8)
    transforms = [dict(type="Resize", size=[5, 7])]
    assert sample_shape(config(train=dict(transforms=transforms))) == (3, 5, 7)
    cfg = config()
    cfg.pop("train_dataloader")
    assert sample_shape(cfg) == (3, 8, 8)
    cfg.pop("val_dataloader")
    with pytest.raises(ConfigError, match="no train_dataloader"):
        sample_shape(cfg)
    with pytest.raises(DataError, match="absent.npz"):
        sample_shape(config(train=dict(path=str(tmp_path / "absent.npz"))))


def test_the_shape_of_another_packages_sample(config):
    @DATASETS.register_module(name="TestOnlyData", force=True)
    class Data:
        def __init__(self, sample):
            self.sample = sample

        def __getitem__(self, index):
            return self.sample

    try:
        cfg = config()
        image = torch.zeros(1, 4, 6, dtype=torch.uint8)
        cfg.train_dataloader.dataset = dict(type="TestOnlyData", sample=dict(inputs=image))
        assert sample_shape(cfg) == (1, 4, 6)
        cfg.train_dataloader.dataset = dict(type="TestOnlyData", sample=(image, 3))
        with pytest.raises(
            DataError, match="TestOnlyData of train_dataloader must give.*got tuple"
        ):
            sample_shape(cfg)
    finally:
        del DATASETS.module_dict["TestOnlyData"]
