from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("sklearn")

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from taskdistill.core.errors import DataError
from taskdistill.tasks.gan.data.digits import DigitOutlines, DigitRestyle

BOTH = [DigitOutlines, DigitRestyle]


@pytest.fixture(scope="module")
def outlines() -> DigitOutlines:
    return DigitOutlines("val")


@pytest.fixture(scope="module")
def restyle() -> DigitRestyle:
    return DigitRestyle("val")


def luma(pictures: Tensor) -> Tensor:
    """(N, H, W) from 0 to 1."""
    return (pictures.float() / 255 * torch.tensor([0.3, 0.6, 0.1])[:, None, None]).sum(1)


def outside(lines: Tensor) -> Tensor:
    """(N, H, W) bool: what can be reached from the border without crossing a line (bool)."""
    reached = torch.zeros_like(lines)
    reached[:, 0] = True
    while True:
        grown = reached.clone()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= ~lines
        if torch.equal(grown, reached):
            return reached
        reached = grown


# -- the splits ------------------------------------------------------------------------------------


def test_the_splits_are_all_digits_and_disjoint(outlines: DigitOutlines):
    train = DigitOutlines("train", size=16)
    assert (len(train), len(outlines)) == (1437, 360)
    numbers = [*train.numbers.tolist(), *outlines.numbers.tolist()]
    assert sorted(numbers) == list(range(1797))
    paths = {train[i]["data_samples"].img_path for i in range(len(train))}
    assert len(paths) == 1437
    assert all(path.startswith("digits/train/") for path in paths)


@pytest.mark.parametrize("count", [1437, 360])
def test_both_splits_have_all_digits_in_like_shares(count: int):
    labels = load_digits(return_X_y=True)[1]
    split = DigitOutlines("train" if count == 1437 else "val", size=16)
    shares = torch.bincount(torch.from_numpy(labels[split.numbers])) / count
    spread = 3 * (0.1 * 0.9 / count) ** 0.5  # three standard deviations of a fair draw
    assert (shares - 0.1).abs().max() < spread


@pytest.mark.parametrize("cls", BOTH)
def test_limit_takes_the_first(cls: type):
    whole, some = cls("val", size=16), cls("val", size=16, limit=5)
    assert len(some) == 5
    assert torch.equal(some.inputs, whole.inputs[:5])
    assert torch.equal(some.targets, whole.targets[:5])


def digest(dataset: DigitOutlines | DigitRestyle) -> str:
    parts = (dataset.inputs.numpy().tobytes(), dataset.targets.numpy().tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_same_pictures_every_time_and_in_another_process():
    ours = [digest(cls("val", limit=40)) for cls in BOTH]
    assert ours == [digest(cls("val", limit=40)) for cls in BOTH]
    code = """
import hashlib
from taskdistill.tasks.gan.data.digits import DigitOutlines, DigitRestyle
for cls in (DigitOutlines, DigitRestyle):
    d = cls("val", limit=40)
    parts = (d.inputs.numpy().tobytes(), d.targets.numpy().tobytes())
    print(hashlib.sha256(b"".join(parts)).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ours, done.stderr


@pytest.mark.parametrize("cls", BOTH)
def test_drawing_draws_no_random_number(cls: type):
    state = torch.get_rng_state(), random.getstate()
    cls("val", limit=4)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("size", [16, 33, 64, 100, 256])
def test_every_size(cls: type, size: int):
    dataset = cls("val", size=size, limit=2)
    assert dataset.inputs.shape == dataset.targets.shape == (2, 3, size, size)
    assert dataset.inputs.dtype == dataset.targets.dtype == torch.uint8
    assert dataset.sides == (size,)
    # The digit fills the middle, whatever the size.
    background = dataset.inputs[:, :, :1, :1]
    ys, xs = (dataset.inputs != background).any(1).any(0).nonzero().T / size
    assert 0.05 < ys.min() < 0.25 and 0.75 < ys.max() < 0.95
    assert xs.min() > 0.05 and xs.max() < 0.95


@pytest.mark.parametrize("cls", BOTH)
def test_drawing_all_is_quick(cls: type):
    cls("val", limit=1)  # scikit-learn is read once
    began = time.process_time()
    cls("train"), cls("val")
    assert time.process_time() - began < 5  # about one second alone on a core


# -- outlines --------------------------------------------------------------------------------------


def test_what_the_line_encloses_is_filled_and_nothing_else():
    dataset = DigitOutlines("val", size=64)
    lines = luma(dataset.inputs) < 0.75
    out = outside(lines)
    reds, blues = (dataset.targets[:, channel].float() for channel in (0, 2))
    filled = reds - blues > 60  # paper and shadow are nearly grey
    assert not (filled & out & ~grown(lines)).any()
    # Beyond the line, from the outside, the next enclosed region is filled: no digit is empty.
    enclosed = ~out & ~lines
    share = (filled & enclosed).flatten(1).sum(1) / enclosed.flatten(1).sum(1)
    assert share.min() > 0.4  # the rest is holes
    without_hole = [i for i in range(len(dataset)) if regions(enclosed[i]) == 1]
    assert len(without_hole) > 100
    for i in without_hole:
        assert (filled[i] | ~enclosed[i]).all()


def grown(mask: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(mask.float()[:, None], 3, 1, 1)[:, 0] > 0


def regions(mask: Tensor) -> int:
    """How many parts a mask (H, W) has."""
    left, count = mask.clone(), 0
    while left.any():
        y, x = left.nonzero()[0]
        part = torch.zeros_like(left)
        part[y, x] = True
        while True:
            wider = grown(part[None])[0] & left
            if torch.equal(wider, part):
                break
            part = wider
        left &= ~part
        count += 1
    return count


def test_holes_stay_paper():
    labels = load_digits(return_X_y=True)[1]
    dataset = DigitOutlines("val", size=64)
    zeros = [i for i, number in enumerate(dataset.numbers) if labels[number] == 0]
    assert len(zeros) > 20
    middle = dataset.targets[zeros][:, :, 28:36, 28:36].float()
    paper = dataset.targets[0, :, 0, 0].float()[:, None, None]
    like_paper = ((middle - paper).abs().amax(1) < 60).flatten(1).any(1)
    assert like_paper.float().mean() > 0.8  # some writers close their zeros


def test_outlines_are_dark_on_paper_and_fills_coloured(outlines: DigitOutlines):
    assert luma(outlines.inputs).amin((1, 2)).max() < 0.35
    assert luma(outlines.inputs)[:, 0].min() > 0.9
    spread = outlines.inputs.float().amax(1) - outlines.inputs.float().amin(1)
    assert spread.max() < 30  # without colour
    colour = (outlines.targets.float().amax(1) - outlines.targets.float().amin(1)).amax((1, 2))
    assert colour.min() > 100
    # Greener above than below: yellow to crimson.
    fill = outlines.targets[:, 0].float() - outlines.targets[:, 2].float() > 60
    green = outlines.targets[:, 1].float()
    upper = green[:, :14][fill[:, :14]].mean()
    lower = green[:, 18:][fill[:, 18:]].mean()
    assert upper > lower + 60


def test_outlines_are_pairs(outlines: DigitOutlines):
    for i in (0, 7, 359):
        item = outlines[i]
        sample = item["data_samples"]
        assert torch.equal(item["inputs"], outlines.inputs[i])
        assert torch.equal(sample.target, outlines.targets[i])
        assert sample.paired is True and sample.img_path == sample.target_path


# -- restyle ---------------------------------------------------------------------------------------


def test_training_takes_the_target_of_another_digit():
    dataset = DigitRestyle("train", size=16, limit=6)
    partners = set()
    for _ in range(60):
        item = dataset[2]
        sample = item["data_samples"]
        assert sample.paired is False
        j = next(k for k in range(6) if f"{dataset.numbers[k]:04d}" in sample.target_path)
        assert torch.equal(sample.target, dataset.targets[j])
        assert torch.equal(item["inputs"], dataset.inputs[2])
        partners.add(j)
    assert partners == {0, 1, 3, 4, 5}


def test_the_partner_is_drawn_from_pythons_generator():
    dataset = DigitRestyle("train", size=16, limit=50)
    drawn = []
    for seed in (1, 1, 2):
        random.seed(seed)
        drawn.append([dataset[0]["data_samples"].target_path for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_validation_has_the_true_pair(restyle: DigitRestyle):
    item = restyle[11]
    assert item["data_samples"].paired is True
    assert torch.equal(item["data_samples"].target, restyle.targets[11])
    assert DigitRestyle("train", limit=2, test_mode=True)[0]["data_samples"].paired is True
    assert DigitRestyle("val", limit=2, test_mode=False)[0]["data_samples"].paired is False


def test_the_styles_differ_and_the_digit_is_the_same(restyle: DigitRestyle):
    inputs, targets = luma(restyle.inputs), luma(restyle.targets)
    assert (restyle.inputs[:, :1] == restyle.inputs).all()  # without colour
    assert inputs.amax((1, 2)).min() > 0.99 and inputs[:, 0].max() == 0
    ink, tube = inputs > 0.5, targets > 0.5
    # Slanted, and so not in the same place; as much of it, and mostly overlapping.
    areas = tube.flatten(1).sum(1) / ink.flatten(1).sum(1)
    assert 0.85 < areas.min() and areas.max() < 1.35
    shared = (ink & tube).flatten(1).sum(1) / ink.flatten(1).sum(1)
    assert 0.6 < shared.mean() < 0.98
    columns = torch.arange(32.0)

    def lean(mask: Tensor) -> Tensor:
        """How much further right the upper half is than the lower one."""
        rows = [mask[:, half].float() for half in (slice(0, 16), slice(16, 32))]
        upper, lower = (((r * columns).sum((1, 2)) / r.sum((1, 2))) for r in rows)
        return upper - lower

    assert ((lean(tube) - lean(ink)) > 0.5).all()


def test_the_ground_is_one_weave_of_four_pixels(restyle: DigitRestyle):
    corner = restyle.targets[:, :, :4, :4]
    assert (corner == corner[:1]).all()
    assert torch.equal(corner[0], restyle.targets[0, :, :4, 28:])
    assert corner[0].float().std() > 0  # woven, not flat


# -- in use ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DigitOutlines", "DigitRestyle"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_a_loader(kind: str, workers: int):
    dataset = DATASETS.build(dict(type=kind, split="val", size=16, limit=5))
    loader = DataLoader(dataset, batch_size=2, collate_fn=pseudo_collate, num_workers=workers)
    batches = list(loader)
    assert [len(batch["inputs"]) for batch in batches] == [2, 2, 1]
    samples = [sample for batch in batches for sample in batch["data_samples"]]
    assert torch.equal(torch.stack([sample.target for sample in samples]), dataset.targets)
    assert dataset.metainfo == {}


@pytest.mark.parametrize("cls", BOTH)
def test_who_changes_a_sample_does_not_change_the_set(cls: type):
    dataset = cls("val", size=16, limit=3)
    before = digest(dataset)
    item = dataset[0]
    item["inputs"].fill_(9)
    item["data_samples"].target.fill_(9)
    assert digest(dataset) == before


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(split="vla"), "split must be 'train' or 'val', got 'vla'. Did you mean 'val'"),
        (dict(size=8), "size must be a whole number of pixels from 16 to 256, got 8"),
        (dict(size=32.0), "size must be a whole number"),
        (dict(limit=0), "limit must be None or a whole number from 1"),
    ],
)
def test_arguments_out_of_range(cls: type, arguments: dict, message: str):
    with pytest.raises(DataError, match=message):
        cls(**arguments)


def test_one_digit_has_no_partner():
    with pytest.raises(DataError, match="limit of at least 2"):
        DigitRestyle(limit=1)
    assert len(DigitRestyle("val", limit=1)) == 1


@pytest.mark.parametrize("cls", BOTH)
def test_a_dataset_ends(cls: type):
    dataset = cls("val", size=16, limit=2)
    assert len(list(dataset)) == 2
    for index in (2, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    from taskdistill.tasks.gan.data import digits

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._source.cache_clear()
    with pytest.raises(DataError, match="pip install scikit-learn"):
        DigitOutlines()
