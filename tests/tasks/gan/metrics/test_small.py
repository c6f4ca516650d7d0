from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from torchvision.transforms.functional import gaussian_blur

from taskdistill.core.errors import ShapeError
from taskdistill.tasks.gan.metrics.frechet import RunningStatistics, Statistics, frechet_distance
from taskdistill.tasks.gan.metrics.network import features_of
from taskdistill.tasks.gan.metrics.small import SmallNetwork

NETWORK = SmallNetwork()
Cut = Callable[..., list[np.ndarray]]


def tensors(crops: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(crop).permute(2, 0, 1).contiguous() for crop in crops]


def digits(count: int) -> list[Tensor]:
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images[:count, None]).float() * 15.9375
    return list(F.interpolate(images, scale_factor=4, mode="bilinear").round().byte())


def statistics(images: Sequence[Tensor]) -> Statistics:
    running = RunningStatistics(NETWORK.dims)
    for features in features_of(NETWORK, images):
        running.add(features)
    return running.result(len(images))


def blurred(images: Sequence[Tensor], sigma: float) -> list[Tensor]:
    return [gaussian_blur(image, [2 * int(3 * sigma) + 3] * 2, [sigma] * 2) for image in images]


def noisy(images: Sequence[Tensor], sigma: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = (sigma * torch.randn(image.shape, generator=generator) for image in images)
    return [(i + n).round().clamp(0, 255).byte() for i, n in zip(images, noise, strict=True)]


# -- the network -----------------------------------------------------------------------------------


def test_the_weights_are_the_same_everywhere():
    """The figures of all time depend on these; a change needs another version in `identity`."""
    digest = hashlib.sha256()
    for stage in range(3):
        digest.update(NETWORK.get_buffer(f"weight{stage}").numpy().tobytes())
    assert digest.hexdigest() == "c0cfbfb9322840ecc491c714d72bdcf871059fdbb2263aa5e0bc9bf555647eee"
    assert NETWORK.identity == f"small 1 {digest.hexdigest()}"


def test_building_it_draws_no_random_numbers_of_others():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SmallNetwork()
    assert torch.equal(torch.rand(3), expected)


def test_filters_are_at_right_angles_and_most_see_contrast():
    filters = NETWORK.get_buffer("weight0").double()
    flat = filters.flatten(1)
    lengths = flat.norm(dim=1)
    torch.testing.assert_close(
        lengths, torch.tensor([1.0] * 4 + [4.0] * 12).double(), atol=2e-3, rtol=0
    )
    angles = (flat / lengths[:, None]) @ (flat / lengths[:, None]).mT
    torch.testing.assert_close(angles, torch.eye(16).double(), atol=2e-3, rtol=0)
    assert filters[4:].sum((2, 3)).abs().max() < 5e-3
    assert filters[:4].sum((2, 3)).abs().max() > 0.3


def test_there_is_nothing_to_train():
    assert not list(NETWORK.parameters())


@settings(max_examples=25)
@given(
    height=st.integers(8, 150), width=st.integers(8, 150), channels=st.sampled_from([1, 3]),
    batch=st.integers(1, 3),
)  # fmt: skip
def test_any_size(height: int, width: int, channels: int, batch: int):
    images = torch.randint(256, (batch, channels, height, width), dtype=torch.uint8)
    features = NETWORK(images)
    assert features.shape == (batch, 16, 72)
    assert features.dtype == torch.float32 and torch.isfinite(features).all()


def test_grey_is_rgb_of_equal_channels():
    grey = torch.randint(256, (2, 1, 20, 20), dtype=torch.uint8)
    assert torch.equal(NETWORK(grey), NETWORK(grey.expand(-1, 3, -1, -1)))


def test_the_smaller_side_is_brought_to_64():
    image = torch.randint(256, (1, 3, 100, 150), dtype=torch.uint8)
    resized = F.interpolate(image.float(), (64, 96), mode="bilinear", antialias=True)
    expected = NETWORK(resized.round().byte())
    torch.testing.assert_close(NETWORK(image), expected, atol=0.2, rtol=0.05)  # of rounding


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 1)])
def test_too_small(size: tuple[int, int]):
    with pytest.raises(ShapeError, match=f"at least 8 x 8 pixels, got {size[0]} x {size[1]}"):
        NETWORK(torch.zeros(1, 3, *size, dtype=torch.uint8))


# -- the distance ----------------------------------------------------------------------------------


def test_the_same_set_has_distance_zero_in_any_order(crops: Cut):
    images = tensors(crops(80))
    shuffled = [images[i] for i in torch.randperm(80)]
    assert frechet_distance(statistics(images), statistics(images)) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(statistics(images), statistics(shuffled)) == pytest.approx(0, abs=1e-4)
    others = statistics(noisy(images, 20))
    assert frechet_distance(statistics(shuffled), others) == pytest.approx(
        frechet_distance(statistics(images), others), rel=1e-4
    )


@pytest.mark.parametrize("kind", ["photos", "digits"])
@pytest.mark.parametrize("change", [blurred, noisy])
def test_more_damage_is_farther(
    kind: str, change: Callable[[Sequence[Tensor], float], list[Tensor]], crops: Cut
):
    images = tensors(crops(80)) if kind == "photos" else digits(100)
    steps = (0.5, 1.0, 2.0, 4.0) if change is blurred else (5.0, 20.0, 40.0, 80.0)
    real = statistics(images)
    distances = [frechet_distance(real, statistics(change(images, step))) for step in steps]
    assert all(b > 1.2 * a for a, b in zip([0.1, *distances], distances, strict=False)), distances
    assert distances[-1] < 5000


def test_other_content_is_farther_than_the_other_half(crops: Cut):
    images = tensors(crops(80, (128, 128)))
    halves = frechet_distance(statistics(images[:40]), statistics(images[40:]))
    flowers = frechet_distance(statistics(images[::2]), statistics(images[1::2]))
    assert flowers > 5 * halves
