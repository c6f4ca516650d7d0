from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from taskdistill.core.errors import DataError
from taskdistill.tasks.gan.data.folders import AlignedImages, UnalignedImages, list_images
from taskdistill.tasks.openmm.seeded import SeededDataset

AS_IS = dict(preprocess="none", flip=False)


def picture(seed: int, width: int = 16, height: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    """Five pairs; every pixel of A is below 100 and every one of B above 150."""
    for i in range(5):
        halves = [picture(i) % 100, 150 + picture(10 + i) % 100]
        write(tmp_path / "train" / f"{i}.png", np.concatenate(halves, 1))
    return tmp_path


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Three pictures of A, five of B; the red of each is its number."""
    for side, count in (("A", 3), ("B", 5)):
        for i in range(count):
            array = picture(i)
            array[..., 0] = i + (100 if side == "B" else 0)
            write(tmp_path / f"train{side}" / f"{i}.png", array)
    return tmp_path


def reds(sample: dict[str, Any]) -> tuple[int, int]:
    return int(sample["inputs"][0, 0, 0]), int(sample["data_samples"].target[0, 0, 0])


# -- aligned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_halves_are_exact_in_both_directions(aligned: Path, direction: str):
    dataset = AlignedImages(str(aligned), direction=direction, **AS_IS)
    assert len(dataset) == 5
    for i, item in enumerate(dataset):
        whole = np.asarray(Image.open(aligned / "train" / f"{i}.png"))
        left, right = pixels(item["inputs"]), pixels(item["data_samples"].target)
        if direction == "BtoA":
            left, right = right, left
        assert np.array_equal(np.concatenate([left, right], 1), whole)
        sample = item["data_samples"]
        assert sample.paired is True
        assert sample.img_path == sample.target_path == str(aligned / "train" / f"{i}.png")


def test_a_pair_shares_its_crop(tmp_path: Path):
    array = picture(0, 40, 40)
    write(tmp_path / "train" / "a.png", np.concatenate([array, 255 - array], 1))
    dataset = AlignedImages(str(tmp_path), preprocess="crop", crop_size=16)
    seen = set()
    for _ in range(20):
        item = dataset[0]
        assert torch.equal(item["inputs"], 255 - item["data_samples"].target)
        seen.add(item["inputs"].numpy().tobytes())
    assert len(seen) > 10


def test_channels_follow_the_direction(aligned: Path):
    dataset = AlignedImages(
        str(aligned), direction="BtoA", in_channels=1, out_channels=3, crop_size=16
    )
    item = dataset[0]
    assert item["inputs"].shape == (1, 16, 16) and item["inputs"].min() > 140  # grey of B
    assert item["data_samples"].target.shape == (3, 16, 16)
    assert (dataset.in_channels, dataset.out_channels) == (1, 3)


def test_limit_takes_the_first(aligned: Path):
    dataset = AlignedImages(str(aligned), limit=2, **AS_IS)
    assert [Path(item["data_samples"].img_path).name for item in dataset] == ["0.png", "1.png"]
    assert len(AlignedImages(str(aligned), limit=99)) == 5


def test_odd_pictures_are_refused_by_name(tmp_path: Path):
    write(tmp_path / "train" / "odd.png", picture(0, 33))
    write(tmp_path / "train" / "slim.png", picture(0, 14))
    dataset = AlignedImages(str(tmp_path))
    with pytest.raises(DataError, match=r"odd\.png is 33x12.*even width of at least 16"):
        dataset[0]
    with pytest.raises(DataError, match=r"slim\.png is 14x12"):
        dataset[1]


# -- unaligned -------------------------------------------------------------------------------------


def test_the_smaller_domain_begins_again_and_targets_are_any(domains: Path):
    dataset = UnalignedImages(str(domains), **AS_IS)
    assert len(dataset) == 5
    seen = [reds(item) for _ in range(30) for item in dataset]
    assert [a for a, _ in seen[:5]] == [0, 1, 2, 0, 1]
    assert {b for a, b in seen if a == 0} == {100, 101, 102, 103, 104}
    item = dataset[4]["data_samples"]
    assert item.paired is False
    assert Path(item.img_path).parent.name == "trainA"
    assert Path(item.target_path).parent.name == "trainB"


def test_the_direction_swaps_the_domains(domains: Path):
    dataset = UnalignedImages(str(domains), direction="BtoA", serial=True, **AS_IS)
    assert [reds(item) for item in dataset] == [(100, 0), (101, 1), (102, 2), (103, 0), (104, 1)]


@pytest.mark.parametrize("arguments", [dict(serial=True), dict(test_mode=True)])
def test_serial_and_test_mode_take_the_same_index(domains: Path, arguments: dict):
    dataset = UnalignedImages(str(domains), **arguments, **AS_IS)
    state = random.getstate()
    assert [reds(item) for item in dataset] == [(0, 100), (1, 101), (2, 102), (0, 103), (1, 104)]
    assert random.getstate() == state


def test_the_target_is_drawn_from_pythons_generator(domains: Path):
    dataset = UnalignedImages(str(domains), **AS_IS)
    drawn = []
    for seed in (3, 3, 4):
        random.seed(seed)
        drawn.append([reds(dataset[0])[1] for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_two_sides_are_cropped_each_by_itself(tmp_path: Path):
    for side in "AB":
        write(tmp_path / f"train{side}" / "0.png", picture(0, 40, 40))
    dataset = UnalignedImages(str(tmp_path), preprocess="crop", crop_size=16)
    items = [dataset[0] for _ in range(10)]
    assert any(not torch.equal(i["inputs"], i["data_samples"].target) for i in items)


def test_paired_is_for_test_sets_of_equal_length(domains: Path):
    with pytest.raises(DataError, match="paired=True .* is for test mode"):
        UnalignedImages(str(domains), paired=True)
    with pytest.raises(DataError, match="trainA has 3 pictures and trainB 5"):
        UnalignedImages(str(domains), paired=True, test_mode=True)
    for i in (3, 4):
        write(domains / "trainA" / f"{i}.png", picture(i))
    dataset = UnalignedImages(str(domains), paired=True, test_mode=True)
    assert all(item["data_samples"].paired is True for item in dataset)
    assert not UnalignedImages(str(domains), test_mode=True)[0]["data_samples"].paired


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_a_paired_set_used_without_its_pairs(aligned: Path, direction: str):
    dataset = UnalignedImages(str(aligned), aligned=True, direction=direction, **AS_IS)
    assert len(dataset) == 5
    partners = set()
    for _ in range(20):
        sample = dataset[2]["data_samples"]
        assert not sample.paired
        partners.add(Path(sample.target_path).stem)
    assert partners == {"0", "1", "3", "4"}  # never its own other half

    pairs = AlignedImages(str(aligned), direction=direction, **AS_IS)
    random.seed(0)
    item = dataset[2]
    other = int(Path(item["data_samples"].target_path).stem)
    assert torch.equal(item["inputs"], pairs[2]["inputs"])
    assert torch.equal(item["data_samples"].target, pairs[other]["data_samples"].target)

    test = UnalignedImages(str(aligned), aligned=True, test_mode=True, direction=direction, **AS_IS)
    for ours, theirs in zip(test, pairs, strict=True):
        assert torch.equal(ours["inputs"], theirs["inputs"])
        assert torch.equal(ours["data_samples"].target, theirs["data_samples"].target)
        assert ours["data_samples"].paired is True


def test_a_paired_set_of_one_picture_is_its_own_partner(tmp_path: Path):
    write(tmp_path / "train" / "0.png", picture(0, 32))
    assert UnalignedImages(str(tmp_path), aligned=True, **AS_IS)[0]["inputs"].shape == (3, 12, 16)


def test_unaligned_errors_name_the_file(domains: Path):
    dataset = UnalignedImages(str(domains), preprocess="crop", crop_size=14, serial=True)
    with pytest.raises(DataError, match=r"trainA.0\.png: .*16x12 pixels is smaller than crop_size"):
        dataset[0]


# -- files -----------------------------------------------------------------------------------------


def test_files_are_found_by_their_endings_in_the_order_of_their_paths(tmp_path: Path):
    for name in ("b.JPG", "a.png", "sub/c.jpeg", "._a.png", "notes.txt"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [
        path.relative_to(tmp_path / "train").as_posix()
        for path in list_images(str(tmp_path), "train")
    ]
    assert found == ["a.png", "b.JPG", "sub/c.jpeg"]


def test_folders_that_are_not_there(domains: Path):
    with pytest.raises(DataError, match=r"nowhere does not exist.*data_root.*\$TASKDISTILL_DATA"):
        AlignedImages(str(domains / "nowhere"))
    with pytest.raises(
        DataError, match="no folder 'train', only trainA, trainB.*Did you mean 'train"
    ):
        AlignedImages(str(domains))
    with pytest.raises(DataError, match="no folder 'trianA'.*Did you mean 'trainA'"):
        UnalignedImages(str(domains), split="trian")
    (domains / "trainB").rename(domains / "valB")
    with pytest.raises(DataError, match="no folder 'trainB', only trainA, valB"):
        UnalignedImages(str(domains))


@pytest.mark.parametrize("root", [None, "", 3])
def test_a_root_that_was_not_set(root: Any):
    with pytest.raises(DataError, match=r"data_root must be the folder.*\$TASKDISTILL_DATA"):
        AlignedImages(root)


def test_folders_without_pictures(tmp_path: Path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train holds no picture .*, only nothing"):
        AlignedImages(str(tmp_path))
    (tmp_path / "train" / "a.npy").touch()
    with pytest.raises(DataError, match=r"only \.npy"):
        AlignedImages(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(direction="A2B"), "direction must be 'AtoB' or 'BtoA', got 'A2B'.*Did you mean"),
        (dict(limit=0), "limit must be None or a whole number from 1, got 0"),
        (dict(limit=2.0), "limit must be"),
        (dict(crop_size=300), "crop_size is 300"),
        (dict(in_channels=2), "got 2 and 3"),
    ],
)
def test_arguments_out_of_range(aligned: Path, arguments: dict, message: str):
    for more in (dict(type="AlignedImages"), dict(type="UnalignedImages", aligned=True)):
        with pytest.raises(DataError, match=message):
            DATASETS.build(dict(data_root=str(aligned), **arguments, **more))


def test_a_file_that_is_no_picture(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png cannot be read: .*Restore the file"):
        AlignedImages(str(tmp_path))[0]


def test_a_file_that_ends_early(tmp_path: Path):
    path = tmp_path / "train" / "short.png"
    write(path, picture(0, 64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"short\.png cannot be read"):
        AlignedImages(str(tmp_path))[0]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_refused(tmp_path: Path, mode: str):
    path = tmp_path / "train" / "deep.tif"
    path.parent.mkdir()
    Image.new(mode, (32, 16)).save(path)
    with pytest.raises(DataError, match=r"deep\.tif has more than 8 bits"):
        AlignedImages(str(tmp_path))[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str):
    path = tmp_path / "train" / "a.png"
    path.parent.mkdir()
    image = Image.fromarray(picture(0, 32)).convert(mode)
    image.save(path)
    item = AlignedImages(str(tmp_path), **AS_IS)[0]
    whole = np.concatenate([pixels(item["inputs"]), pixels(item["data_samples"].target)], 1)
    assert np.array_equal(whole, np.asarray(image.convert("RGB")))


def test_check_files_opens_first_middle_and_last(aligned: Path):
    dataset = AlignedImages(str(aligned), crop_size=16)
    dataset.check_files()
    for name in ("0.png", "2.png", "4.png"):
        kept = (aligned / "train" / name).read_bytes()
        (aligned / "train" / name).write_bytes(b"")
        with pytest.raises(DataError, match=name):
            dataset.check_files()
        (aligned / "train" / name).write_bytes(kept)
    (aligned / "train" / "1.png").write_bytes(b"")
    dataset.check_files()
    with pytest.raises(DataError, match=r"1\.png"):
        dataset.check_files(count=5)


def test_check_files_knows_crops_that_do_not_fit(aligned: Path):
    with pytest.raises(DataError, match=r"0\.png: .*16x12 pixels is smaller than crop_size=14"):
        AlignedImages(str(aligned), preprocess="crop", crop_size=14).check_files()


# -- with mmengine ---------------------------------------------------------------------------------


def test_a_dataset_ends(aligned: Path):
    dataset = UnalignedImages(str(aligned), aligned=True)
    for index in (5, -1):
        with pytest.raises(IndexError):
            dataset[index]
    assert dataset.metainfo == {}
    assert not hasattr(dataset, "full_init")  # mmengine would call it
    assert len(pickle.loads(pickle.dumps(dataset))) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_a_loader(aligned: Path, workers: int):
    dataset = DATASETS.build(
        dict(type="AlignedImages", data_root=str(aligned), load_size=20, crop_size=16)
    )
    loader = DataLoader(dataset, batch_size=2, collate_fn=pseudo_collate, num_workers=workers)
    batches = list(loader)
    assert [len(batch["inputs"]) for batch in batches] == [2, 2, 1]
    for batch in batches:
        for inputs, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            assert inputs.shape == sample.target.shape == (3, 16, 16)
            assert inputs.max() < 110 and sample.target.min() > 140


def test_a_seeded_dataset_repeats_itself(aligned: Path):
    def samples() -> list[bytes]:
        config = dict(
            type="UnalignedImages",
            data_root=str(aligned),
            aligned=True,
            load_size=40,
            crop_size=16,
        )
        seeded = SeededDataset(config)
        items = [seeded[i % 5] for i in (3, 0, 3)]
        random.random(), torch.rand(1)  # what else is drawn does not matter
        items.append(seeded[3])
        seeded.epoch = 1
        items.append(seeded[3])
        return [
            i["inputs"].numpy().tobytes() + i["data_samples"].target.numpy().tobytes()
            for i in items
        ]

    first = samples()
    assert first == samples()
    assert first[0] == first[2] == first[3]
    assert first[4] != first[3]  # another epoch, another crop


# -- real data -------------------------------------------------------------------------------------


@pytest.mark.data
def test_maps():
    root = os.path.join(os.environ["TASKDISTILL_DATA"], "maps_128")
    train = AlignedImages(root, "train", load_size=143, crop_size=128)
    val = AlignedImages(root, "val", test_mode=True, crop_size=128, direction="BtoA")
    assert (len(train), len(val)) == (320, 80)
    train.check_files()
    val.check_files(count=80)
    item = val[0]
    whole = np.asarray(Image.open(item["data_samples"].img_path).convert("RGB"))
    assert np.array_equal(pixels(item["inputs"]), whole[:, 128:])
    assert np.array_equal(pixels(item["data_samples"].target), whole[:, :128])
    assert train[7]["inputs"].shape == (3, 128, 128)
    # A are dark aerial photographs, B bright maps.
    assert all(
        i["inputs"].float().mean() > 150 > i["data_samples"].target.float().mean() for i in val
    )
