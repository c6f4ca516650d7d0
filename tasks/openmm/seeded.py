"""Augmentation that does not depend on what ran before, so that a resumed run repeats it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from multiprocessing import Value
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS, DATASETS

__all__ = ["NumberedSampler", "SeededDataset"]


@DATASETS.register_module()
class SeededDataset:
    """Seed every sample's augmentation by (seed, epoch, index, and number of the draw).

    mmengine seeds each worker process once; what a sample looks like then depends on how many were
    loaded before it, and a run resumed after an interruption sees other crops than one that was
    not. Here it depends on nothing but those numbers, whatever the number of workers. All else is
    the wrapped dataset's.

    An index at or beyond the dataset's length is ``number * length + index``; training by
    iterations has no epochs, and :class:`NumberedSampler` counts draws instead.

    Args:
        dataset: The dataset, or its config.
    """

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
        python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        number, index = divmod(int(index), len(self))
        sequence = np.random.SeedSequence([self.seed, self.epoch, index, number])
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        # Not torch.manual_seed, which reseeds every device, and takes longer than a small image.
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[index]
        finally:  # without workers, the model's own randomness goes on undisturbed
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torch_state)


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
