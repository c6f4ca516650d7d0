from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.runner import Runner

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.classification.data import ArrayImages
from taskdistill.tasks.classification.data.images import (
    channel_means,
    first_of_each,
    located,
)
from taskdistill.tasks.openmm.seeded import SeededDataset  # noqa: F401 - registered


def pixels(count: int = 6) -> torch.Tensor:
    return torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8)


def test_a_sample_is_an_image_and_a_number():
    images = pixels()
    data = ArrayImages(images, np.array([0, 1, 2, 0, 1, 2]), ["a", "b", "c"])
    assert len(data) == 6 and data.metainfo == {"classes": ("a", "b", "c")}
    assert data.labels == [0, 1, 2, 0, 1, 2]
    sample = data[4]
    assert set(sample) == {"inputs", "data_samples"}
    assert torch.equal(sample["inputs"], images[4]) and type(sample["data_samples"]) is int


def test_transforms_run_in_their_order():
    data = ArrayImages(pixels(2), [0, 0], ["a"], [lambda x: x // 2, lambda x: x + 1])
    assert torch.equal(data[1]["inputs"], data.images[1] // 2 + 1)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), count=st.integers(1, 4))
def test_a_subset_holds_the_first_of_each_class(labels: list[int], count: int):
    classes = "abcd"
    fewest = min(labels.count(label) for label in range(4))
    if fewest < count:
        with pytest.raises(DataError, match=f"subset={count} of each class"):
            first_of_each(labels, count, classes)
        return
    seen, expected = [0] * 4, []
    for index, label in enumerate(labels):
        if seen[label] < count:
            expected.append(index)
        seen[label] += 1
    assert first_of_each(labels, count, classes).tolist() == expected


def test_a_subset_keeps_images_and_labels_together():
    images = pixels()
    data = ArrayImages(images, [0, 0, 1, 1, 0, 1], ["a", "b"], subset=2)
    assert data.labels == [0, 0, 1, 1]
    assert torch.equal(data.images, images[:4])


@pytest.mark.parametrize("subset", [0, -1, 1.5, True])
def test_a_subset_is_a_number(subset):
    with pytest.raises(ConfigError, match="how many images of each class"):
        ArrayImages(pixels(), [0] * 6, ["a"], subset=subset)


@given(count=st.integers(1, 9), channels=st.integers(1, 4))
def test_means_are_exact(count: int, channels: int):
    images = torch.randint(256, (count, channels, 3, 2), dtype=torch.uint8)
    assert channel_means(images) == pytest.approx(images.double().mean((0, 2, 3)).tolist())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (pixels().float(), [0] * 6, "needs images as uint8"),
        (pixels()[0], [0] * 3, "needs images as uint8"),
        (pixels(), [0] * 5, "6 images, but 5 labels"),
        (pixels(), [0, 1, 2, 0, 0, 0], "labels from 0 to 2, but 2 classes"),
        (pixels(), [0, -1, 0, 0, 0, 0], "labels from -1"),
        (pixels(0), [], "has no images"),
    ],
)
def test_malformed_data(images, labels, message):
    with pytest.raises(DataError, match=message):
        ArrayImages(images, labels, ["a", "b"])


def test_paths_are_looked_up_where_a_variable_says(monkeypatch):
    monkeypatch.setenv("TASKDISTILL_DATA", "/elsewhere")
    assert located("a.npz", None).as_posix() == "/elsewhere/a.npz"
    assert located("a.npz", "/here").as_posix() == "/here/a.npz"
    assert located("/there/a.npz", "/here").as_posix() == "/there/a.npz"
    monkeypatch.delenv("TASKDISTILL_DATA")
    assert located("a.npz", None).as_posix() == "a.npz"


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_the_seed_alone(tiny_data, workers):
    """Whatever the number of worker processes, and again after a resume."""
    transforms = [dict(type="RandomCrop", size=8, padding=2), dict(type="Cutout", length=4)]
    inner = dict(type="NpzImages", path=str(tiny_data.npz), transforms=transforms)

    def epoch(number: int, count: int) -> list[torch.Tensor]:
        loader = Runner.build_dataloader(
            dict(
                dataset=dict(type="SeededDataset", dataset=inner),
                batch_size=10,
                num_workers=count,
                sampler=dict(type="DefaultSampler", shuffle=False),
                collate_fn=dict(type="default_collate"),
            )
        )
        loader.dataset.seed, loader.dataset.epoch = 5, number
        batches = list(loader)
        assert batches[0]["data_samples"].dtype == torch.int64
        return [batch["inputs"] for batch in batches]

    first = epoch(1, workers)
    assert [len(part) for part in first] == [10, 10, 4]
    assert all(map(torch.equal, first, epoch(1, 0)))
    assert not torch.equal(first[0], epoch(2, 0)[0])
