"""What the demos of the mm libraries share: data, models and predictions from their configs."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ....core.teacher import load_weights
from ..teacher import SAFE_GLOBALS
from .task import MmTask

__all__ = ["MmDemoTask"]


class MmDemoTask(MmTask):
    """A demo whose configs are those of an mm library.

    Attributes:
        scope: Registry scope of the library.
    """

    scope: ClassVar[str]

    def __init__(self) -> None:
        self._datasets: dict[str, Any] = {}

    def prepare(self, cfg: Config) -> str:
        """Make the data that the config names, if it is not there yet."""
        train = len(self.dataset(cfg, "train_dataloader"))
        val = len(self.dataset(cfg, "val_dataloader"))
        return f"Data: {train} images for training, {val} for validation."

    def load(self, cfg: Config, checkpoint: Path) -> nn.Module:
        """Build the model of a plain config and load a checkpoint strictly."""
        init_default_scope(self.scope)
        settings = copy.deepcopy(cfg.model)
        # No download of weights that are replaced anyway.
        settings.pop("pretrained", None)
        settings.backbone.pop("pretrained", None)
        settings.backbone.pop("init_cfg", None)
        with warnings.catch_warnings():
            # The libraries warn of names and defaults in their own configs.
            warnings.simplefilter("ignore", UserWarning)
            model = MODELS.build(settings)
        load_weights(model, checkpoint, safe_globals=SAFE_GLOBALS)
        return model.eval()

    def forward_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Run the network, without post-processing, on the first validation image."""
        batch = self._batch(model, cfg, 0)
        return lambda: model(batch["inputs"], batch["data_samples"], mode="tensor")

    def predict_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """Predict on the first validation image, post-processing included."""
        batch = self._batch(model, cfg, 0)
        return lambda: model(batch["inputs"], batch["data_samples"], mode="predict")

    def dataset(self, cfg: Config, loader: str) -> Any:
        """Return the data set of a loader of the config; built once."""
        settings = copy.deepcopy(cfg[loader].dataset)
        key = f"{loader} {settings}"
        if key not in self._datasets:
            init_default_scope(self.scope)
            with redirect_stdout(io.StringIO()):  # pycocotools prints what it is about to do
                self._datasets[key] = DATASETS.build(settings)
        return self._datasets[key]

    def predict(self, model: nn.Module, cfg: Config, index: int) -> Any:
        """Return what a model says of a validation image, as the library's data sample."""
        batch = self._batch(model, cfg, index)
        with torch.no_grad():
            return model(batch["inputs"], batch["data_samples"], mode="predict")[0]

    def _batch(self, model: nn.Module, cfg: Config, index: int) -> dict[str, Any]:
        preprocess: Any = model.data_preprocessor
        sample = self.dataset(cfg, "val_dataloader")[index]
        return preprocess(pseudo_collate([sample]), False)
