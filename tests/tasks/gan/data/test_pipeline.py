from __future__ import annotations

import pytest

pytest.importorskip("mmengine")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from taskdistill.core.errors import DataError
from taskdistill.tasks.gan.data.pipeline import PREPROCESS, PairTransform, pack_pair


def coordinates(width: int, height: int, tint: int = 0) -> Image.Image:
    """A picture whose red and green are the place of each pixel."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.full_like(x, tint)], -1).astype(np.uint8))


def place(picture: Tensor) -> list[int]:
    """Where the four corners of a crop of :func:`coordinates` are from."""
    return [int(v) for v in picture[:2, [0, -1], [0, -1]].flatten()]


# -- what is random --------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), flip=st.booleans())
def test_both_of_a_pair_are_cropped_and_flipped_alike(seed: int, flip: bool):
    transform = PairTransform(crop_size=8, preprocess="crop", flip=flip)
    torch.manual_seed(seed)
    first, second = transform(coordinates(20, 16, 1), coordinates(20, 16, 2))
    assert torch.equal(first[:2], second[:2])
    assert first[2].unique().tolist() == [1] and second[2].unique().tolist() == [2]


def test_crops_reach_every_place_and_half_of_them_are_mirrored():
    transform = PairTransform(crop_size=8, preprocess="crop")
    crops = [transform.single(coordinates(11, 10)) for _ in range(300)]
    lefts = {int(crop[0].min()) for crop in crops}
    tops = {int(crop[1].min()) for crop in crops}
    assert lefts == {0, 1, 2, 3} and tops == {0, 1, 2}
    mirrored = sum(int(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops)
    assert 110 < mirrored < 190


def test_one_seed_gives_one_sample_and_another_seed_another():
    transform = PairTransform(load_size=40, crop_size=16)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8))
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(transform.single(noise))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_flip_can_be_switched_off():
    transform = PairTransform(crop_size=8, preprocess="crop", flip=False)
    for _ in range(30):
        crop = transform.single(coordinates(12, 12))
        assert crop[0, 0, 0] < crop[0, 0, -1]


@pytest.mark.parametrize("preprocess", PREPROCESS)
def test_test_mode_draws_nothing(preprocess: str):
    transform = PairTransform(
        load_size=40, crop_size=16, preprocess=preprocess, flip=True, test_mode=True
    )
    state = torch.get_rng_state()
    first = transform.single(coordinates(32, 24))
    assert torch.equal(state, torch.get_rng_state())
    assert first[0, 0, 0] < first[0, 0, -1]  # never mirrored


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preprocess", "train", "test"),
    [
        ("resize_and_crop", (16, 16), (16, 16)),
        ("crop", (16, 16), (16, 16)),
        ("scale_width", (16, 24), (16, 16)),  # 31x20 at a width of 24 is 15.5 high: the crop's 16
        ("scale_width_and_crop", (16, 16), (16, 16)),
        ("none", (20, 32), (20, 32)),
    ],
)
def test_sizes_of_each_preprocess(preprocess: str, train: tuple, test: tuple):
    for test_mode, expected in ((False, train), (True, test)):
        transform = PairTransform(24, 16, preprocess, test_mode=test_mode)
        for picture in transform(coordinates(31, 20), coordinates(31, 20)):
            assert picture.shape == (3, *expected)
            assert picture.dtype == torch.uint8
        sides = transform.sides
        assert not sides if preprocess == "none" else sides == (expected[1],)


def test_scale_width_keeps_the_proportions():
    transform = PairTransform(40, 16, "scale_width", flip=False)
    assert transform.single(coordinates(80, 60)).shape == (3, 32, 40)  # 30, rounded to 4


@given(width=st.integers(1, 60), height=st.integers(1, 60))
def test_none_rounds_each_side_to_the_nearest_multiple_of_four(width: int, height: int):
    picture = PairTransform(preprocess="none").single(coordinates(width, height))
    for side, given_side in zip(picture.shape[1:], (height, width), strict=True):
        assert side % 4 == 0 and side >= 4
        assert abs(side - given_side) <= 2 or (given_side < 2 and side == 4)


def test_a_picture_of_the_right_size_is_not_resampled():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for preprocess in ("resize_and_crop", "scale_width", "none"):
        transform = PairTransform(32, 32, preprocess, flip=False)
        picture = transform.single(Image.fromarray(noise))
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), noise)


def test_resizing_is_pillows_bicubic():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    picture = PairTransform(crop_size=16, test_mode=True).single(noise)
    expected = np.asarray(noise.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), expected)


def test_the_test_crop_is_the_middle():
    transform = PairTransform(crop_size=8, preprocess="crop", test_mode=True)
    assert place(transform.single(coordinates(20, 12))) == [6, 13, 2, 9]


def test_a_test_crop_may_be_larger_than_the_load_size():
    assert PairTransform(16, 32, test_mode=True).sides == (32,)


# -- channels --------------------------------------------------------------------------------------


def test_each_side_has_its_own_channels():
    colour, grey = coordinates(16, 16, 200), Image.new("L", (16, 16), 77)
    transform = PairTransform(16, 16, flip=False, channels=(1, 3))
    first, second = transform(colour, grey)
    assert first.shape == (1, 16, 16) and second.shape == (3, 16, 16)
    assert np.array_equal(first[0].numpy(), np.asarray(colour.convert("L")))
    assert second.unique().tolist() == [77]
    assert transform.single(colour, 1).shape[0] == 3
    assert transform.single(colour).shape[0] == 1


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(load_size=0), "load_size must be a whole number of pixels from 1, got 0"),
        (dict(crop_size=16.0), "crop_size must be a whole number of pixels from 1, got 16.0"),
        (dict(crop_size=True), "crop_size must be a whole number"),
        (dict(preprocess="resize_crop"), "Did you mean 'resize_and_crop'"),
        (dict(channels=(3, 4)), "must each be 1 .* or 3 .*, got 3 and 4"),
        (dict(channels=(3,)), "must each be 1"),
        (dict(load_size=200), "crop_size is 256, but resize_and_crop .* at most load_size"),
        (
            dict(load_size=200, preprocess="scale_width_and_crop"),
            "crop_size is 256, but scale_width_and_crop",
        ),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str):
    with pytest.raises(DataError, match=message):
        PairTransform(**arguments)


def test_a_crop_that_does_not_fit():
    transform = PairTransform(crop_size=16, preprocess="crop")
    with pytest.raises(DataError, match="30x12 pixels is smaller than crop_size=16"):
        transform.single(coordinates(30, 12))
    transform.check_size(16, 16)


def test_a_pair_of_two_sizes():
    with pytest.raises(DataError, match="16x16 and 16x17.*UnalignedImages"):
        PairTransform()(coordinates(16, 16), coordinates(16, 17))


# -- samples ---------------------------------------------------------------------------------------


def test_a_sample_is_what_models_take():
    a, b = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.ones(1, 4, 4, dtype=torch.uint8)
    packed = pack_pair(a, b, "x/a.png", "x/b.png", True)
    sample = packed["data_samples"]
    assert packed["inputs"] is a and sample.target is b
    assert sample.keys() == ["target"]
    assert dict(sample.metainfo_items()) == dict(
        img_path="x/a.png", target_path="x/b.png", paired=True
    )
