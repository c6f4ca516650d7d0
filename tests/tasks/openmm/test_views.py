from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.tasks.openmm.seeded import SeededDataset
from taskdistill.tasks.openmm.views import check_data, draws_at_random, per_batch, trial_places


class Pictures:
    """Samples that a function of their index makes."""

    def __init__(self, make: Any, length: int = 20) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((1, 2, 2), float(index)) + self.make(index)
        return {"inputs": image, "data_samples": index}


def test_plain_pictures_are_not_random() -> None:
    assert not draws_at_random(SeededDataset(Pictures(lambda index: 0)), 0)
    assert not draws_at_random(SeededDataset(Pictures(lambda index: 0, length=1)), 0)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_random_numbers_of_each_generator_are_found(draw: Any) -> None:
    assert draws_at_random(SeededDataset(Pictures(lambda index: draw())), 0)
    # Also where nothing came of them this time.
    assert draws_at_random(SeededDataset(Pictures(lambda index: float(draw() > 2))), 0)


def test_pictures_that_do_not_come_again_are_refused() -> None:
    own = np.random.default_rng(0)
    with pytest.raises(CacheError, match="looks another way each time"):
        draws_at_random(SeededDataset(Pictures(lambda index: own.random())), 0)
    before: list[int] = []

    def mixed(index: int) -> float:
        before.append(index)
        return sum(before[-3:])

    with pytest.raises(CacheError, match="CachedMosaic"):
        draws_at_random(SeededDataset(Pictures(mixed)), 0)


def test_trying_out_leaves_the_random_state_alone() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [random.random(), np.random.rand(), torch.rand(()).item()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    draws_at_random(SeededDataset(Pictures(lambda index: random.random())), 0)
    assert [random.random(), np.random.rand(), torch.rand(()).item()] == expected


def test_places_to_try_are_from_all_over_the_data() -> None:
    assert trial_places(1) == [0] and trial_places(3) == [0, 1, 2]
    assert trial_places(71) == [0, 10, 20, 30, 40, 50, 60, 70]


class YOLOXModeSwitchHook:
    pass


class OwnSwitch(YOLOXModeSwitchHook):
    pass


def test_what_changes_pictures_behind_a_sample_is_refused() -> None:
    dataset = SeededDataset(Pictures(lambda index: 0))
    loader = SimpleNamespace(dataset=dataset)
    plain = SimpleNamespace(mixing=[], batch_augments=None)
    assert check_data(loader, [object()], plain) is dataset
    with pytest.raises(ConfigError, match="YOLOXModeSwitchHook changes"):
        check_data(loader, [OwnSwitch()], plain)
    with pytest.raises(ConfigError, match="batch_augments .Linear. makes"):
        check_data(loader, [], SimpleNamespace(batch_augments=[torch.nn.Linear(1, 1)]))
    with pytest.raises(ConfigError, match="are a Pictures"):
        check_data(SimpleNamespace(dataset=dataset.dataset), [], plain)


def test_the_batch_size_is_the_loaders_or_its_batch_samplers() -> None:
    assert per_batch(SimpleNamespace(batch_size=4)) == 4
    assert per_batch(SimpleNamespace(batch_size=None, batch_sampler=SimpleNamespace(batch_size=3)))
    with pytest.raises(ConfigError, match="list does not say"):
        per_batch(SimpleNamespace(batch_size=None, batch_sampler=[[1]]))
