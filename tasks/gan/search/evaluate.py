"""The validation figures of a super-network at one configuration."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, EVALUATOR, DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Subset

from ....core.errors import ConfigError
from ....core.teacher import load_weights
from ...openmm.config import load_config, plain_config
from ...openmm.teacher import SAFE_GLOBALS
from ..generate import build_model
from ..models import SuperMobileResnetGenerator

__all__ = ["SubnetEvaluator", "load_supernet", "supernet_config"]


def supernet_config(path: str | Path) -> Config:
    """Read the plain config of a model whose generator is a super-network.

    Raises:
        ConfigError: If it cannot be read, or its generator is another.
    """
    cfg = plain_config(load_config(str(path)))
    generator = cfg.model.get("generator") or {}
    kind = generator.get("type")
    if kind not in ("SuperMobileResnetGenerator", SuperMobileResnetGenerator):
        raise ConfigError(
            f"Config {str(path)!r} has no super-network to search: expected "
            f"model.generator.type='SuperMobileResnetGenerator', found {kind!r}. Give the config "
            "that the once-for-all network was trained with."
        )
    return cfg


def load_supernet(
    config: str | Path, checkpoint: str | Path, device: str | torch.device = "cpu"
) -> tuple[Config, Any, str]:
    """Build a trained super-network.

    Args:
        config: The config it was trained with; a ``distill`` entry is left out.
        checkpoint: Its weights, which have to fit strictly.
        device: Where it is put.

    Returns:
        The plain config, the model in eval mode, and the checkpoint's SHA-256.

    Raises:
        ConfigError: If the config cannot be used.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    cfg = supernet_config(config)
    model = build_model(cfg)
    generator = getattr(model, "generator", None)
    if not isinstance(generator, SuperMobileResnetGenerator):
        raise ConfigError(
            f"{type(model).__name__} has no SuperMobileResnetGenerator as its 'generator', found "
            f"{type(generator).__name__}; such a model cannot be searched."
        )
    sha256 = load_weights(
        model,
        checkpoint,
        safe_globals=SAFE_GLOBALS,
        names=getattr(model, "checkpoint_names", None),
    )
    return cfg, model.to(device), sha256


class SubnetEvaluator:
    """Validates a super-network at one configuration after another.

    Each validation begins from the same random state and leaves that of the process as it was, so
    a figure depends on the configuration alone.

    Args:
        config: The config that the super-network was trained with. Its ``val_dataloader`` and
            ``val_evaluator`` are used, the data in order and without loader processes.
        checkpoint: Its weights.
        device: Where it runs.
        limit: Validate on that many images, spread evenly over the data; all by default.

    Raises:
        ConfigError: If the config has no super-network or no validation, or in use, if the
            configuration is not in its space.
        CheckpointError: If the checkpoint cannot be read or does not fit.

    Example:
        >>> evaluate = SubnetEvaluator("supernet.py", "supernet.pth")  # doctest: +SKIP
        >>> evaluate((16, 16, 24, 16, 32, 32, 16, 16))  # doctest: +SKIP
        {'SmallFD': 31.9, 'L1': 0.11}
        >>> SubnetEvaluator("supernet.py", "supernet.pth", limit=0)
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.ConfigError: Validation needs at least one image, got limit=0.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        device: str | torch.device = "cpu",
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"Validation needs at least one image, got limit={limit}.")
        self.cfg, self.model, self.sha256 = load_supernet(config, checkpoint, device)
        for key in ("val_dataloader", "val_evaluator"):
            if not self.cfg.get(key):
                raise ConfigError(
                    f"Config {str(config)!r} has no {key}: a search needs validation data and "
                    "metrics."
                )
        with DefaultScope.overwrite_default_scope(self.cfg.get("default_scope")):
            self.loader, meta = _loader(self.cfg.val_dataloader, limit)
            self.evaluator = _evaluator(self.cfg.val_evaluator)
        if meta is not None:
            self.evaluator.dataset_meta = meta

    def __call__(self, channels: Sequence[int]) -> dict[str, float]:
        """Return the figures of a configuration, by name."""
        self.model.generator.active = tuple(channels)
        self.model.eval()
        with torch.no_grad(), _same_chance():
            for batch in self.loader:
                self.evaluator.process(data_samples=self.model.val_step(batch), data_batch=batch)
            figures = self.evaluator.evaluate(len(self.loader.dataset))  # type: ignore[arg-type]
        return {name: float(v) for name, v in figures.items() if isinstance(v, Real)}


def _loader(options: Any, limit: int | None) -> tuple[DataLoader, dict | None]:
    options = dict(options)
    data: Dataset = DATASETS.build(options["dataset"])
    if hasattr(data, "full_init"):
        data.full_init()  # type: ignore[attr-defined]
    meta = getattr(data, "metainfo", None)
    count = len(data)  # type: ignore[arg-type]
    if not count:
        raise ConfigError("The validation data are empty; look at val_dataloader.dataset.")
    if limit is not None and limit < count:
        data = Subset(data, [index * count // limit for index in range(limit)])
    # Processes of the loader would be started anew for every configuration, and may not be by a
    # process of the pool.
    for key in ("batch_sampler", "persistent_workers", "prefetch_factor"):
        options.pop(key, None)
    options.setdefault("batch_size", 1)
    sampler = dict(type="DefaultSampler", shuffle=False)
    options.update(dataset=data, sampler=sampler, num_workers=0, drop_last=False)
    return Runner.build_dataloader(options), meta


def _evaluator(options: Any) -> Evaluator:
    if isinstance(options, dict) and "metrics" in options:
        return EVALUATOR.build({"type": "Evaluator", **options})
    return Evaluator(options)


@contextmanager
def _same_chance(seed: int = 0) -> Iterator[None]:
    """Seed every source of chance, and put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
