from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.classification.data import SklearnDigits


def test_the_splits_are_all_digits_once():
    train, val = SklearnDigits("train"), SklearnDigits("val")
    assert len(train) + len(val) == 1797
    ink = load_digits().data
    ours = torch.cat([train.images, val.images])[:, 0].flatten(1).double() * (16 / 255)
    assert sorted(map(tuple, ours.round().int().tolist())) == sorted(
        map(tuple, ink.astype(int).tolist())
    )


def test_each_class_is_split_alike():
    train = np.bincount(SklearnDigits("train").labels)
    val = np.bincount(SklearnDigits("val").labels)
    assert len(train) == len(val) == 10
    assert (np.abs(val / (train + val) - 0.25) < 0.01).all()


def test_ink_is_scaled_to_pixels():
    data = SklearnDigits("train", channels=1)
    assert data.images.min() == 0 and data.images.max() == 255
    assert data[0]["inputs"].shape == (1, 8, 8)


def test_channels_and_size():
    data = SklearnDigits("val", channels=2, size=20)
    image = data[3]["inputs"]
    assert image.shape == (2, 20, 20) and torch.equal(image[0], image[1])
    small = SklearnDigits("val", channels=1, size=4)[3]["inputs"]
    whole = SklearnDigits("val", channels=1)[3]["inputs"]
    assert small.float().mean() == pytest.approx(whole.float().mean().item(), rel=0.1)


def test_a_subset_of_each_class():
    data = SklearnDigits("train", subset=4)
    assert np.bincount(data.labels).tolist() == [4] * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(split="vall"), "Did you mean 'val'"),
        (dict(channels=0), "channels=0"),
        (dict(size=1.5), "size=1.5"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        SklearnDigits(**options)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="pip install"):
        SklearnDigits()
