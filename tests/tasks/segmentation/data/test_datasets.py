from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("sklearn")

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import DATASETS, METRICS, MODELS
from mmseg.utils import register_all_modules
from PIL import Image

from taskdistill.core.errors import DataError
from taskdistill.tasks.openmm.data.digit_scenes import SEGMENTATION_CLASSES, compose_scene
from taskdistill.tasks.segmentation.data.datasets import CamVid, DigitScenes

CONFIGS = Path(__file__).parents[4] / "configs" / "segmentation" / "_base_"
# In SegNet's order.
NAMES = "sky building pole road pavement tree sign fence car pedestrian cyclist".split()


@pytest.fixture(autouse=True)
def mmseg_scope(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "cache"))
    if not DefaultScope.check_instance_created("mmseg"):
        register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture
def digits() -> Config:
    cfg = Config.fromfile(CONFIGS / "digit_scenes.py")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.scenes = {"train": 8, "val": 6, "size": 64}
        loader.batch_size = 4
    return cfg


@pytest.fixture
def street(tmp_path) -> Path:
    """Two photos a split, in CamVid's layout: each label from 0 to 11 fills a column."""
    root = tmp_path / "streets"
    labels = np.tile(np.arange(12, dtype=np.uint8), (9, 1))
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for name in ("a", "b"):
            Image.fromarray(np.stack([labels * 20] * 3, 2)).save(
                root / "images" / split / f"{name}.jpg"
            )
            Image.fromarray(labels).save(root / "labels" / split / f"{name}.png")
    return root


def camvid_of(root: Path, split: str = "train", **kwargs) -> CamVid:
    pipeline = [{"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    return CamVid(split=split, data_root=str(root), pipeline=pipeline, **kwargs)


def labels_of(sample: dict) -> torch.Tensor:
    return sample["data_samples"].gt_sem_seg.data[0]


def truth_as_prediction(cfg: Config, loader: dict, shift: int = 0) -> dict[str, float]:
    """Evaluate the labels, moved by some pixels, as if they were predicted."""
    data = Runner.build_dataloader(loader)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = data.dataset.metainfo
    for batch in data:
        samples = []
        for sample in batch["data_samples"]:
            labels = sample.gt_sem_seg.data
            predicted = torch.where(labels == 255, 0, labels).roll(shift, -1)
            samples.append({"gt_sem_seg": {"data": labels}, "pred_sem_seg": {"data": predicted}})
        metric.process(batch, samples)
    return metric.evaluate(len(data.dataset))


# --- digit scenes -------------------------------------------------------------------------------


def test_digit_scenes_config_gives_the_composed_scenes(digits):
    for split, loader in (("train", digits.train_dataloader), ("val", digits.val_dataloader)):
        dataset = DATASETS.build(loader.dataset)
        assert isinstance(dataset, DigitScenes)
        assert len(dataset) == loader.dataset.scenes[split]
        for i in range(len(dataset)):
            sample = dataset[i]
            scene = compose_scene(split, i, 64)
            assert np.array_equal(labels_of(sample).numpy(), np.asarray(scene.mask))
            # BGR as mmcv reads it, and lossy.
            pixels = sample["inputs"].numpy()[::-1].transpose(1, 2, 0).astype(float)
            assert np.abs(pixels - np.asarray(scene.image)).mean() < 4


def test_digit_scenes_classes_are_the_background_and_the_digits(digits):
    dataset = DATASETS.build(digits.train_dataloader.dataset)
    assert dataset.metainfo["classes"] == SEGMENTATION_CLASSES
    assert len(SEGMENTATION_CLASSES) == len(dataset.metainfo["palette"]) == digits.num_classes == 11


def test_digit_scenes_share_one_folder_with_detection(digits):
    train = DATASETS.build(digits.train_dataloader.dataset)
    val = DATASETS.build(digits.val_dataloader.dataset)
    assert train.data_root == val.data_root
    assert (Path(train.data_root) / "train.json").is_file()


def test_digit_scenes_evaluate(digits):
    perfect = truth_as_prediction(digits, digits.val_dataloader)
    assert perfect["mIoU"] == perfect["mAcc"] == 100
    assert 0 < truth_as_prediction(digits, digits.val_dataloader, shift=2)["mIoU"] < 90


def test_unknown_split_and_option(digits):
    with pytest.raises(DataError, match="splits train and val, not 'test'"):
        DATASETS.build({**digits.val_dataloader.dataset, "split": "test"})
    with pytest.raises(DataError, match="Did you mean 'size'"):
        DATASETS.build({**digits.val_dataloader.dataset, "scenes": {"sise": 3}})


# --- CamVid -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_void_is_ignored_and_the_classes_keep_their_indices(street, split):
    dataset = camvid_of(street, split)
    assert list(dataset.metainfo["classes"]) == NAMES
    assert len(dataset.metainfo["palette"]) == 11
    assert [Path(info["img_path"]).name for info in map(dataset.get_data_info, range(2))] == [
        "a.jpg",
        "b.jpg",
    ]
    for i in range(2):
        assert labels_of(dataset[i])[0].tolist() == [*range(11), 255]


def test_a_selection_of_the_classes_ignores_the_others(street):
    dataset = camvid_of(street, metainfo={"classes": ("car", "road")})
    expected = [255] * 12
    expected[NAMES.index("car")], expected[NAMES.index("road")] = 0, 1
    assert labels_of(dataset[0])[0].tolist() == expected
    assert dataset.metainfo["palette"] == [
        CamVid.METAINFO["palette"][NAMES.index(name)] for name in ("car", "road")
    ]


def test_what_is_padded_in_training_is_ignored_too(monkeypatch, street):
    monkeypatch.setenv("TASKDISTILL_DATA", str(street.parent))
    street.rename(street.with_name("camvid_small"))
    cfg = Config.fromfile(CONFIGS / "camvid.py")
    cfg.train_dataloader.batch_size = 2
    resize = cfg.train_dataloader.dataset.pipeline[2]
    resize.ratio_range = (0.5, 0.5)  # 90x120, smaller than the crop
    preprocess = MODELS.build(cfg.data_preprocessor)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
    data = preprocess(batch, training=True)
    assert data["inputs"].shape == (2, 3, 160, 160)
    for sample in data["data_samples"]:
        labels = sample.gt_sem_seg.data[0]
        assert labels.shape == (160, 160) and (labels[:90, :120] < 11).float().mean() > 0.8
        assert (labels[90:] == 255).all() and (labels[:, 120:] == 255).all()


def test_camvid_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("TASKDISTILL_DATA", str(tmp_path))
    cfg = Config.fromfile(CONFIGS / "camvid.py")
    assert cfg.data_root == f"{tmp_path}/camvid_small"
    with pytest.raises(DataError, match=r"no folder images and no folder labels.*TASKDISTILL_DATA"):
        DATASETS.build(cfg.train_dataloader.dataset)
    monkeypatch.delenv("TASKDISTILL_DATA")
    assert Config.fromfile(CONFIGS / "camvid.py").data_root == "data/camvid_small"


def test_camvid_without_a_folder(street):
    (street / "labels").rename(street / "annotations")
    with pytest.raises(DataError, match=r"streets is not CamVid: it has no folder labels\. "):
        camvid_of(street)


@pytest.mark.parametrize(
    ("split", "hint"), [("valid", "Did you mean 'val'"), ("trian", "Did you mean 'train'")]
)
def test_unknown_split_of_camvid(street, split, hint):
    with pytest.raises(DataError, match=rf"no split '{split}', only test, train, val.*{hint}"):
        camvid_of(street, split)


def test_a_split_that_only_the_images_have(street):
    (street / "labels" / "val").rename(street / "labels" / "validation")
    with pytest.raises(DataError, match=r"labels has no split 'val', only test, train, validation"):
        camvid_of(street, "val")


@pytest.mark.parametrize(("kind", "suffix"), [("images", "jpg"), ("labels", "png")])
def test_an_empty_folder(street, kind, suffix):
    for path in (street / kind / "train").iterdir():
        path.rename(path.with_suffix(".bmp"))
    with pytest.raises(
        DataError, match=rf"{kind}/train holds no \.{suffix} file.*TASKDISTILL_DATA"
    ):
        camvid_of(street)


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [
        ("images", "jpg", "of the 6 images in the split 'train' of .* have no label file"),
        ("labels", "png", "of the 6 label files in the split 'train' of .* have no image"),
    ],
)
def test_images_and_labels_that_do_not_pair_up(street, kind, suffix, message):
    for name in "cdef":
        (street / kind / "train" / f"{name}.{suffix}").touch()
    with pytest.raises(DataError, match=rf"4 {message}: c, d, e, \.\.\..*TASKDISTILL_DATA"):
        camvid_of(street)
    for name in "def":
        (street / kind / "train" / f"{name}.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"{message.replace('6', '3')}: c\. "):
        camvid_of(street)
    camvid_of(street, "val")  # the other splits are whole


@pytest.mark.data
def test_the_real_camvid():
    cfg = Config.fromfile(CONFIGS / "camvid.py")
    sizes = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = DATASETS.build(loader.dataset)
        sizes.append(len(dataset))
        for i in (0, len(dataset) // 2):
            labels = labels_of(dataset[i])
            assert set(labels.unique().tolist()) <= {*range(11), 255}
    assert sizes == [367, 101, 233]
    sample = DATASETS.build(cfg.val_dataloader.dataset)[0]
    assert tuple(sample["inputs"].shape) == (3, 180, 240)
    assert truth_as_prediction(cfg, cfg.val_dataloader)["mIoU"] == 100


@pytest.mark.data
def test_the_real_camvid_names_agree_with_what_is_seen():
    """Colour and place of what no street scene mistakes: sky above, road below, trees, cars."""
    cfg = Config.fromfile(CONFIGS / "camvid.py")
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    height: dict[str, list[float]] = {name: [] for name in NAMES}
    brightness: dict[str, list[float]] = {name: [] for name in NAMES}
    for i in range(0, len(dataset), 5):
        sample = dataset[i]
        labels, image = labels_of(sample), sample["inputs"].float().mean(0)
        for index, name in enumerate(NAMES):
            here = labels == index
            if here.any():
                height[name].append(float(torch.nonzero(here)[:, 0].float().mean()))
                brightness[name].append(float(image[here].mean()))
    mean = {name: float(np.mean(values)) for name, values in height.items()}
    assert mean["sky"] < mean["tree"] < mean["fence"] < mean["cyclist"] < mean["road"]
    assert mean["building"] < mean["pedestrian"] < mean["pavement"]
    assert all(np.mean(brightness["sky"]) > np.mean(brightness[n]) for n in NAMES[1:])
