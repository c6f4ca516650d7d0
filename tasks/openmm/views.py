"""Which training data a teacher's answers can be kept for, and how many pictures of each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from ...core.errors import CacheError, ConfigError
from ...core.taps import flatten_tensors
from .seeded import SeededDataset, random_states, seeded

__all__ = ["check_data", "draws_at_random", "passes", "per_batch", "trial_places"]

# They exchange the pipeline, or what it does, in the middle of training.
_SWITCHES = ("PipelineSwitchHook", "YOLOXModeSwitchHook", "SyncRandomSizeHook")
_MIXERS = ("batch_augments", "mixing")
_TRIALS = 8


def check_data(loader: Any, hooks: Sequence[Any], preprocessor: Any) -> SeededDataset:
    """Return the data set of a training loader, after seeing that its pictures can come again.

    Args:
        loader: The training loader.
        hooks: The run's.
        preprocessor: The student's data preprocessor.

    Raises:
        ConfigError: If something changes pictures that does not go by their sample alone.
    """
    dataset = loader.dataset
    if type(dataset) is not SeededDataset:
        raise ConfigError(
            f"distill.cache: the training data are a {type(dataset).__name__}, whose items are of "
            "several samples at once, or not seeded one by one. Leave distill.cache out."
        )
    for hook in hooks:
        if names := [kind.__name__ for kind in type(hook).__mro__ if kind.__name__ in _SWITCHES]:
            raise ConfigError(
                f"distill.cache: {names[0]} changes the pictures in the middle of training, so "
                "that a teacher's answers of before do not hold after. Take it out of "
                "custom_hooks, or leave distill.cache out."
            )
    for name in _MIXERS:
        if mixer := getattr(preprocessor, name, None):
            kinds = ", ".join(type(each).__name__ for each in mixer)
            raise ConfigError(
                f"distill.cache: data_preprocessor.{name} ({kinds}) makes pictures of whole "
                "batches, which never come again. Leave it out, or distill.cache."
            )
    return dataset


def per_batch(loader: Any) -> int:
    """How many samples a loader gives at once."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if not isinstance(size, int):
        raise ConfigError(
            f"distill.cache: {type(loader.batch_sampler).__name__} does not say its batch_size."
        )
    return size


def passes(runner: Any, loader: Any) -> int:
    """How often a run goes through its training data."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return int(runner.max_epochs)
    drawn = runner.max_iters * per_batch(loader) * get_world_size()
    return max(1, math.ceil(drawn / len(loader.dataset)))


def trial_places(length: int) -> list[int]:
    """Some samples from all over a data set."""
    count = min(_TRIALS, length)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]


def draws_at_random(dataset: SeededDataset, seed: int) -> bool:
    """Try out whether samples are augmented at random.

    They are where loading one draws a random number, even if this time nothing comes of it, or
    where another seed gives another picture.

    Args:
        dataset: The training data.
        seed: What the samples of a cache are seeded with.

    Raises:
        CacheError: If a sample does not come again under its own seed.
    """
    places = trial_places(len(dataset))
    first = {index: _drawn(dataset, seed, index) for index in places}
    # In another order: some pipelines mix in what they have loaded before.
    for index in reversed(places):
        if not _same(first[index][0], _drawn(dataset, seed, index)[0]):
            raise CacheError(
                f"distill.cache: sample {index} of the training data looks another way each time "
                "it is loaded, though Python's, numpy's and torch's generators are seeded alike "
                "before: a transform keeps earlier pictures (CachedMosaic, CachedMixUp), or draws "
                "from a generator of its own. Exchange it, or leave distill.cache out."
            )
    if any(drew for _, drew in first.values()):
        return True
    return any(not _same(first[i][0], _drawn(dataset, seed + 1, i)[0]) for i in places)


def _drawn(dataset: SeededDataset, seed: int, index: int) -> tuple[list[Tensor], bool]:
    """The pictures of a sample, and whether loading it drew random numbers."""
    with seeded(seed, 0, index, 0):
        before = random_states()
        item = dataset.dataset[index]
        drew = not _alike(before, random_states())
    shown = item.get("inputs", item) if isinstance(item, Mapping) else item
    return flatten_tensors(shown), drew


def _same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def _alike(before: Any, after: Any) -> bool:
    numpy_then, numpy_now = before[1], after[1]
    return (
        before[0] == after[0]
        and bool((numpy_then[1] == numpy_now[1]).all())
        and numpy_then[2:] == numpy_now[2:]
        and torch.equal(before[2], after[2])
    )
