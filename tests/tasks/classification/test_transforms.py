from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.classification.data import NpzImages
from taskdistill.tasks.classification.transforms import Cutout, build_transforms


def image(size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (channels, size, size), dtype=torch.uint8)


def test_any_of_torchvisions():
    ours = build_transforms(
        [
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomHorizontalFlip", p=0.3),
            dict(type="Resize", size=[16, 20], interpolation="nearest"),
        ]
    )
    theirs = [
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(0.3),
        v2.Resize([16, 20], interpolation=InterpolationMode.NEAREST),
    ]
    found = expected = image()
    torch.manual_seed(0)
    for transform in ours:
        found = transform(found)
    torch.manual_seed(0)
    for transform in theirs:
        expected = transform(expected)
    assert torch.equal(found, expected) and found.shape == (3, 16, 20)


@pytest.mark.parametrize("policy", ["CIFAR10", "imagenet", "SVHN"])
def test_policies_have_names(policy):
    (transform,) = build_transforms([dict(type="AutoAugment", policy=policy)])
    found = transform(image())
    assert found.dtype == torch.uint8 and found.shape == (3, 32, 32)
    assert transform.policy.name == policy.upper()


def test_transforms_within_transforms():
    inner = [dict(type="RandomInvert", p=1.0)]
    (transform,) = build_transforms([dict(type="RandomApply", transforms=inner, p=1.0)])
    pixels = image()
    assert torch.equal(transform(pixels), 255 - pixels)


def test_a_callable_is_taken_as_it_is():
    def halve(pixels):
        return pixels // 2

    assert build_transforms([halve]) == [halve]
    assert build_transforms(None) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="RandomCorp", size=3), "Did you mean 'RandomCrop'"),
        (dict(size=3), "no transform 'None'"),
        (dict(type="Transform"), "no transform 'Transform'"),
        (dict(type="RandomCrop"), "RandomCrop cannot be built.*'size'"),
        (dict(type="AutoAugment", policy="CIFAR"), "policy='CIFAR'.*Did you mean 'CIFAR10'"),
        (dict(type="Resize", size=3, interpolation="cubic"), "Did you mean 'BICUBIC'"),
        (dict(type="MixUp"), "data_preprocessor=dict"),
        (dict(type="Normalize", mean=[0], std=[1]), "stay uint8"),
        (dict(type="Cutout"), "Cutout cannot be built"),
        ("RandomCrop", "a dict with 'type' or a callable"),
    ],
)
def test_mistakes_are_told(config, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms([config])


# -- cutout ----------------------------------------------------------------------------------------


def slow_cutout(pixels, y, x, length, colour):
    """As the authors write it, pixel by pixel."""
    found = pixels.clone()
    for row in range(y - length // 2, y + length // 2):
        for column in range(x - length // 2, x + length // 2):
            if 0 <= row < pixels.shape[1] and 0 <= column < pixels.shape[2]:
                found[:, row, column] = torch.tensor(colour, dtype=torch.uint8)
    return found


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    length=st.integers(2, 14),
    seed=st.integers(0, 99),
)
def test_it_is_the_slow_one(height: int, width: int, length: int, seed: int):
    pixels = torch.randint(100, (3, height, width), dtype=torch.uint8)
    torch.manual_seed(seed)
    found = Cutout(length, fill=[200, 210, 220])(pixels)
    torch.manual_seed(seed)
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    assert torch.equal(found, slow_cutout(pixels, y, x, length, [200, 210, 220]))


def test_the_centre_is_uniform_over_all_pixels():
    """So at a border some is cut off; the mean area is known."""
    transform, size = Cutout(4, fill=255), 8
    blank = torch.zeros(1, size, size, dtype=torch.uint8)
    holes = torch.stack([transform(blank) for _ in range(2000)]) == 255
    clipped = [min(size, centre + 2) - max(0, centre - 2) for centre in range(size)]
    expected = (sum(clipped) / size) ** 2
    assert holes.sum((1, 2, 3)).float().mean().item() == pytest.approx(expected, rel=0.03)
    assert holes.any(0).all()


def test_without_a_colour_it_takes_the_datas_mean(tiny_data):
    cutout = dict(type="Cutout", length=100)  # covers all, wherever its centre
    data = NpzImages(str(tiny_data.npz), transforms=[cutout])
    mean = data.images.double().mean((0, 2, 3))
    assert data.transforms[0].fill == pytest.approx(mean.tolist())
    torch.testing.assert_close(data[0]["inputs"].double().mean((1, 2)), mean, atol=0.5, rtol=0)
    own = NpzImages(str(tiny_data.npz), transforms=[dict(cutout, fill=3)])
    assert (own[0]["inputs"] == 3).all()


def test_grey_images_take_one_number():
    found = Cutout(40, fill=7)(image(8, channels=1))
    assert (found == 7).all()


@pytest.mark.parametrize("length", [0, 1, 2.5, "16", True])
def test_a_length_is_a_number_of_pixels(length):
    with pytest.raises(ConfigError, match="length of Cutout"):
        Cutout(length)


def test_a_colour_is_needed():
    with pytest.raises(ConfigError, match="Set fill"):
        Cutout(2)(image())
