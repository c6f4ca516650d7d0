"""Look at the data of a config before anything is built from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from .data.checks import check_coco

__all__ = ["check_config_data"]


def check_config_data(cfg: Config) -> None:
    """Check every COCO-format annotation file that training would read.

    Datasets inside wrappers (repeat, concat, mosaic) are found too. Data that is not on local disk
    or not in COCO format is left to its own dataset class.

    Args:
        cfg: A whole training config.

    Raises:
        DataError: If a file is absent or malformed, or images are missing.
    """
    for key in ("train_dataloader", "val_dataloader"):
        loader = cfg.get(key)
        if not loader:
            continue
        for dataset in _datasets(loader.get("dataset")):
            if dataset.get("type") != "CocoDataset" or "://" in str(dataset.get("data_root", "")):
                continue
            root = dataset.get("data_root") or ""
            images = (dataset.get("data_prefix") or {}).get("img", "")
            classes = (dataset.get("metainfo") or {}).get("classes") or _default_classes(dataset)
            check_coco(
                Path(os.path.join(root, dataset.get("ann_file", ""))),
                Path(os.path.join(root, images)),
                list(classes),
            )


def _datasets(config: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(config, Mapping):
        if "ann_file" in config:
            yield config
        for key in ("dataset", "datasets"):
            yield from _datasets(config.get(key))
    elif isinstance(config, (list, tuple)):
        for item in config:
            yield from _datasets(item)


def _default_classes(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    cls = DATASETS.get(dataset["type"]) or CocoDataset
    return cls.METAINFO["classes"]
