from __future__ import annotations

import pytest

pytest.importorskip("mmengine")

import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS

from taskdistill.core.errors import DataError, ShapeError
from taskdistill.tasks.gan.data.pipeline import pack_pair
from taskdistill.tasks.gan.data.preprocessor import (
    TranslationPreprocessor,
    from_pixels,
    to_pixels,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def batch(*sizes: tuple[int, int], target: tuple[int, int] | None = None) -> dict:
    items = [pack_pair(noise(3, *s), noise(1, *(target or s)), "a", "b", True) for s in sizes]
    return pseudo_collate(items)


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_comes_back(dtype: torch.dtype):
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(from_pixels(pixels).to(dtype)), pixels)


def test_the_scale_is_that_of_the_networks():
    scaled = from_pixels(torch.arange(256, dtype=torch.uint8))
    assert scaled[0] == -1 and scaled[255] == 1
    torch.testing.assert_close(scaled, torch.arange(256) / 127.5 - 1, rtol=0, atol=0)


@given(values=st.lists(st.floats(-3, 3, width=32), min_size=1))
def test_pixels_are_the_nearest_of_the_256(values: list[float]):
    images = torch.tensor(values)
    off = (from_pixels(to_pixels(images)) - images.clamp(-1, 1)).abs()
    assert off.max() <= 1 / 255 + 1e-6


def test_half_precision_is_widened_first():
    images = torch.linspace(-1, 1, 50).half()
    assert torch.equal(to_pixels(images), to_pixels(images.float()))


def test_other_types_are_no_pixels():
    with pytest.raises(DataError, match=r"expected pixels of torch\.uint8.*got torch\.float32"):
        from_pixels(torch.zeros(3))


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_stacked_and_scaled():
    data = batch((8, 12), (8, 12))
    out = MODELS.build(dict(type="TranslationPreprocessor"))(data, training=True)
    assert torch.equal(out["inputs"], from_pixels(torch.stack(data["inputs"])))
    for given_sample, sample in zip(data["data_samples"], out["data_samples"], strict=True):
        assert torch.equal(sample.target, given_sample.target)
        assert sample.target.dtype == torch.uint8
        assert torch.equal(sample.real, from_pixels(given_sample.target))
        assert sample.real.shape == (1, 8, 12)
        assert (sample.img_path, sample.target_path, sample.paired) == ("a", "b", True)
        assert "real" not in given_sample  # the loader's is left alone


def test_a_stacked_batch_and_one_without_samples():
    stacked = noise(2, 3, 8, 8)
    out = TranslationPreprocessor()({"inputs": stacked})
    assert torch.equal(out["inputs"], from_pixels(stacked))
    assert out["data_samples"] is None


def test_samples_without_targets_are_left_without():
    data = batch((8, 8))
    del data["data_samples"][0].target
    out = TranslationPreprocessor()(data)
    assert "real" not in out["data_samples"][0]


@pytest.mark.parametrize("sizes", [((8, 8), (8, 12)), ((8, 8), (12, 8), (16, 8), (20, 8))])
def test_inputs_of_several_sizes(sizes: tuple):
    with pytest.raises(ShapeError, match=r"inputs of one batch.*\(3, 8, 8\).*batch_size=1") as info:
        TranslationPreprocessor()(batch(*sizes))
    assert ("..." in str(info.value)) == (len(sizes) > 3)


def test_targets_of_several_sizes():
    data = batch((8, 8), (8, 8))
    data["data_samples"][1].target = noise(1, 8, 9)
    with pytest.raises(ShapeError, match=r"targets of one batch.*\(1, 8, 8\), \(1, 8, 9\)"):
        TranslationPreprocessor()(data)
    # Alone, a target may have another size than its input.
    out = TranslationPreprocessor()(batch((8, 8), target=(4, 4)))
    assert out["data_samples"][0].real.shape == (1, 4, 4)


def test_floats_are_refused():
    with pytest.raises(DataError, match=r"torch\.uint8"):
        TranslationPreprocessor()({"inputs": [torch.rand(3, 8, 8)]})


@pytest.mark.gpu
def test_on_a_gpu():
    data = batch((8, 8), (8, 8))
    out = TranslationPreprocessor(non_blocking=True).cuda()(data)
    assert out["inputs"].is_cuda and out["data_samples"][0].real.is_cuda
    assert torch.equal(to_pixels(out["inputs"]).cpu(), torch.stack(data["inputs"]))
