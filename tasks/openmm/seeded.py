"""Augmentation that does not depend on what ran before, so that a resumed run repeats it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Value
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import get_worker_info

from ...core.errors import DataError

__all__ = ["POSITION", "NumberedSampler", "SeededDataset", "Views", "random_states", "seeded"]

POSITION = "teacher_cache_position"
"""Key of a sample under which its number in a teacher's cache goes with it through the loader."""


@dataclass(frozen=True)
class Views:
    """The pictures of each sample that a cache of a teacher's answers knows.

    Args:
        count: How many of each sample: passes through the data take them in turn.
        seed: What they are seeded with, in place of the run's own seed.
        world: How many processes draw from the data together.
        rank: Which of them this one is.
    """

    count: int
    seed: int = 0
    world: int = 1
    rank: int = 0


@DATASETS.register_module()
class SeededDataset:
    """Seed every sample's augmentation by (seed, epoch, index, and number of the draw).

    mmengine seeds each worker process once; what a sample looks like then depends on how many were
    loaded before it, and a run resumed after an interruption sees other crops than one that was
    not. Here it depends on nothing but those numbers, whatever the number of workers. All else is
    the wrapped dataset's.

    An index at or beyond the dataset's length is ``number * length + index``; training by
    iterations has no epochs, and :class:`NumberedSampler` counts draws instead.

    Where :attr:`views` are set, a sample has so many pictures and no more: those of epochs 0, 1,
    ... of a run by epochs with the seed of the views. Every sample then bears, under
    :data:`POSITION`, its number ``view * length + index``.

    Args:
        dataset: The dataset, or its config.

    Raises:
        DataError: From an item, if there are views and the sample is no mapping.
    """

    views: Views | None = None
    """The pictures that a teacher's cache knows; None where there are as many as draws."""

    def __init__(self, dataset: dict[str, Any] | Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed = 0
        # Shared memory: workers that live on over epochs must see it change.
        self._epoch = Value("q", 0)

    @property
    def epoch(self) -> int:
        """The epoch that samples are drawn for."""
        return self._epoch.value

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch.value = value

    @property
    def metainfo(self) -> dict[str, Any]:
        """The wrapped dataset's."""
        return self.dataset.metainfo

    @property
    def pipeline(self) -> Any:
        """The wrapped dataset's; hooks switch it in the middle of training."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, value: Any) -> None:
        self.dataset.pipeline = value

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def get_data_info(self, index: int) -> Any:
        """The wrapped dataset's; batch samplers ask for the aspect ratio."""
        return self.dataset.get_data_info(index % len(self))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        number, index = divmod(int(index), len(self))
        if self.views is None:
            return self._draw(index, self.seed, self.epoch, number)
        # The draws of all processes together make a pass through the data.
        drawn = number * self.views.world + self.views.rank if number else 0
        return self.at((self.epoch + drawn // len(self)) % self.views.count * len(self) + index)

    def at(self, position: int) -> Mapping[str, Any]:
        """The sample of a position among the :attr:`views`, which it bears itself.

        Args:
            position: ``view * length + index``.

        Raises:
            DataError: If the sample is no mapping, which could bear it.
        """
        assert self.views is not None
        view, index = divmod(position, len(self))
        item = self._draw(index, self.views.seed, view, 0)
        if not isinstance(item, Mapping):
            raise DataError(
                f"A sample of {type(self.dataset).__name__} is a {type(item).__name__}; to find "
                "what a teacher said of it, expected a mapping (inputs=..., data_samples=...)."
            )
        return {**item, POSITION: position}

    def _draw(self, index: int, seed: int, epoch: int, number: int) -> Any:
        with seeded(seed, epoch, index, number):
            return self.dataset[index]


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed Python, numpy and torch (of the host) by these numbers while the block runs.

    Example:
        >>> with seeded(3, 0):
        ...     first = random.random()
        >>> with seeded(3, 0):
        ...     random.random() == first
        True
    """
    # In a loader's worker nobody else draws; saving and restoring takes longer than seeding.
    kept = random_states() if get_worker_info() is None else None
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # Not torch.manual_seed, which reseeds every device, and takes longer than a small image.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:  # without workers, the model's own randomness goes on undisturbed
        if kept is not None:
            python, numpy, torch_state = kept
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torch_state)


def random_states() -> tuple[Any, Any, torch.Tensor]:
    """Where the generators of Python, numpy and torch (of the host) stand."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


@DATA_SAMPLERS.register_module()
class NumberedSampler:
    """Tell a :class:`SeededDataset` how many samples were drawn before each.

    Training by iterations goes over the data again and again without an epoch to count; by the
    number of the draw a sample is augmented otherwise every time.

    Args:
        sampler: Config of the sampler to number.
        dataset: As mmengine passes it.
        seed: As mmengine passes it.
    """

    def __init__(
        self, sampler: dict[str, Any], dataset: SeededDataset, seed: int | None = None
    ) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset
        self._number = 0

    def __iter__(self) -> Iterator[int]:
        for index in self.sampler:
            # Counted before it is given away: the loader may never come back for more.
            self._number += 1
            yield (self._number - 1) * len(self.dataset) + index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # not there yet while unpickling
            raise AttributeError(name)
        found = getattr(self.sampler, name)
        return self._skip if name == "skip" else found

    def _skip(self, count: int) -> None:
        """Go on where a run to be resumed had come to; offered where the sampler offers it."""
        self.sampler.skip(count)
        self._number += count
