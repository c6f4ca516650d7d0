import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from taskdistill.core.errors import DataError
from taskdistill.tasks.openmm.seeded import POSITION, NumberedSampler, SeededDataset, Views


class Noise:
    """Draws from every generator that augmentations use."""

    metainfo = {"classes": ("a",)}

    def __init__(self):
        self.pipeline = ["first"]

    def __len__(self):
        return 8

    def __getitem__(self, index):
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([index, *draws], dtype=torch.float64)

    def get_data_info(self, index):
        return {"index": index}


class Mapped:
    """The same as mappings, which can bear a number."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return {"inputs": self.dataset[index]}


def make(seed=0, epoch=0):
    dataset = SeededDataset(Noise())
    dataset.seed, dataset.epoch = seed, epoch
    return dataset


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    first, second = make(), make()
    random.seed(99)
    wanted = [first[i] for i in range(8)]
    for index in (5, 2, 2, 7):
        assert torch.equal(second[index], wanted[index])
    drawn = [tuple(make(s, e)[i].tolist()) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    assert len(set(drawn)) == len(drawn)


def test_views_are_the_pictures_of_so_many_epochs_and_bear_their_number():
    wanted = [[make(5, epoch)[i][1:].tolist() for i in range(8)] for epoch in range(3)]
    viewed = SeededDataset(Mapped(Noise()))
    viewed.seed, viewed.views = 99, Views(3, seed=5)
    for epoch in (0, 1, 2, 3, 7):
        viewed.epoch = epoch
        for index in (4, 0):
            item = viewed[index]
            assert item["inputs"][1:].tolist() == wanted[epoch % 3][index]
            assert item[POSITION] == epoch % 3 * 8 + index
            assert viewed.at(item[POSITION])["inputs"].equal(item["inputs"])
    viewed.views = None
    assert POSITION not in viewed[0]


@pytest.mark.parametrize("world", [1, 2])
def test_without_epochs_a_pass_of_all_processes_together_is_a_view(world):
    seen = []
    for rank in range(world):
        viewed = SeededDataset(Mapped(Noise()))
        viewed.views = Views(2, world=world, rank=rank)
        sampler = numbered(viewed)
        sampler.sampler.rank, sampler.sampler.world_size = rank, world
        own = [viewed[i][POSITION] for i in itertools.islice(iter(sampler), 24 // world)]
        seen += [(number * world + rank, position) for number, position in enumerate(own)]
    positions = [position for _, position in sorted(seen)]
    assert sorted(positions[:8]) == [*range(8)] == sorted(positions[16:])
    assert sorted(positions[8:16]) == [*range(8, 16)]


def test_a_sample_that_can_bear_no_number_is_told():
    viewed = SeededDataset(Noise())
    viewed.views = Views(1)
    with pytest.raises(DataError, match="sample of Noise is a Tensor.*expected a mapping"):
        viewed[0]


def test_the_surrounding_random_state_is_left_alone():
    dataset = make()
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        expected = [random.random(), np.random.rand(), torch.rand(()).item()]
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        dataset[3]
        assert [random.random(), np.random.rand(), torch.rand(()).item()] == expected


def test_the_state_is_restored_when_a_sample_fails():
    class Broken(Noise):
        def __getitem__(self, index):
            random.random()
            raise OSError("unreadable")

    dataset = SeededDataset(Broken())
    before = random.getstate()
    with pytest.raises(OSError):
        dataset[0]
    assert random.getstate() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_no_difference_and_persistent_ones_see_the_epoch(workers):
    dataset = make(seed=4)
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 2):
        dataset.epoch = epoch
        found = torch.cat(list(loader))
        fresh = make(seed=4, epoch=epoch)
        assert torch.equal(found, torch.stack([fresh[i] for i in range(8)]))


def test_everything_else_is_the_wrapped_datasets():
    dataset = make()
    assert len(dataset) == 8 and dataset.metainfo == {"classes": ("a",)}
    assert dataset.get_data_info(2) == {"index": 2}
    dataset.pipeline = ["second"]  # as mmdet's PipelineSwitchHook does
    assert dataset.dataset.pipeline == ["second"] == dataset.pipeline
    with pytest.raises(AttributeError):
        dataset.no_such_thing  # noqa: B018


def test_an_unfinished_copy_does_not_recurse():
    empty = SeededDataset.__new__(SeededDataset)
    with pytest.raises(AttributeError):
        empty.anything  # noqa: B018
    unfinished = NumberedSampler.__new__(NumberedSampler)
    with pytest.raises(AttributeError):
        unfinished.anything  # noqa: B018
    assert len(pickle.loads(pickle.dumps(Noise()))) == 8


def numbered(dataset, kind="InfiniteSampler"):
    return NumberedSampler(dict(type=kind, shuffle=True), dataset=dataset, seed=5)


def test_without_epochs_a_sample_is_augmented_otherwise_every_time():
    dataset = make()
    drawn = torch.stack([dataset[i] for i in itertools.islice(iter(numbered(dataset)), 24)])
    assert sorted(drawn[:, 0].tolist()) == sorted([*range(8)] * 3)
    assert len({tuple(row.tolist()) for row in drawn[:, 1:]}) == 24
    assert dataset.get_data_info(2 * 8 + 3) == {"index": 3}


def test_draws_go_on_after_a_skip_as_without_one():
    dataset = make()
    whole = list(itertools.islice(iter(numbered(dataset)), 24))
    resumed = numbered(dataset)
    resumed.skip(10)
    assert list(itertools.islice(iter(resumed), 14)) == whole[10:]


def test_a_sampler_that_ends_goes_on_counting_and_cannot_skip():
    sampler = numbered(make(), "DefaultSampler")
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [i // 8 for i in first + second] == list(range(16)) and len(sampler) == 8
    assert sorted(i % 8 for i in second) == list(range(8))
    assert not hasattr(sampler, "skip")
