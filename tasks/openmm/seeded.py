"""Augmentation that does not depend on what ran before, so that a resumed run repeats it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from multiprocessing import Value
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS

__all__ = ["SeededDataset"]


@DATASETS.register_module()
class SeededDataset:
    """Seed every sample's augmentation by (seed, epoch, index).

    mmengine seeds each worker process once; what a sample looks like then depends on how many were
    loaded before it, and a run resumed after an interruption sees other crops than one that was
    not. Here it depends on nothing but the three numbers, whatever the number of workers. All
    else is the wrapped dataset's.

    Args:
        dataset: The dataset, or its config.
    """

    def __init__(self, dataset: Mapping[str, Any] | Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
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

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        entropy = np.random.SeedSequence([self.seed, self.epoch, int(index)]).generate_state(1)
        random.seed(int(entropy[0]))
        np.random.seed(int(entropy[0]))
        torch.manual_seed(int(entropy[0]))
        try:
            return self.dataset[index]
        finally:  # without workers, the model's own randomness goes on undisturbed
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(torch_state)
