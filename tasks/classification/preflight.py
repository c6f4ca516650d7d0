"""Look at the data of a config before anything is built from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor

from ...core.errors import ConfigError, DataError, did_you_mean
from ..openmm.data.wrapped import inner_datasets
from .data import LabelledImages

__all__ = ["check_config_data", "sample_shape"]

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_SAMPLED = 4  # images drawn of each data set, the first and the last among them


def check_config_data(cfg: Config) -> None:
    """Check the files, the classes and the images that training would meet.

    Of each dataset of ``train_dataloader``, ``val_dataloader`` and ``test_dataloader`` that is one
    of ours: it can be opened; four images, evenly spaced, can be read and transformed, are uint8
    (C, H, W), have as many channels as the preprocessor has means, and, where batches hold more
    than one, have one size. All name the same classes in the same order, as many as the classifier
    has. Datasets inside wrappers (repeat, concatenate) are found too; those of other packages are
    left to their own classes.

    Args:
        cfg: A whole training config.

    Raises:
        DataError: If something of it does not hold; the message names dataset and loader.
        ConfigError: If an argument or transform of a dataset is unknown.

    Example:
        >>> data = dict(dataset=dict(type="SklearnDigits", split="train"))
        >>> network = dict(type="CifarResNet", depth=8, num_classes=12)
        >>> model = dict(type="ImageClassifier", network=network)
        >>> check_config_data(Config(dict(model=model, train_dataloader=data)))
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.DataError: SklearnDigits of train_dataloader has 10 classes (0, 1,
        2, ...), but the classifier has num_classes=12. Set num_classes to 10.
    """
    model = cfg.get("model") or {}
    preprocessor = cfg.get("data_preprocessor") or model.get("data_preprocessor") or {}
    classes: dict[str, tuple[str, ...]] = {}
    seen: list[Any] = []
    for key in _LOADERS:
        loader = cfg.get(key) or {}
        for config in inner_datasets(loader.get("dataset")):
            kind = config["type"]
            cls = kind if isinstance(kind, type) else DATASETS.get(kind)
            if not (isinstance(cls, type) and issubclass(cls, LabelledImages)):
                continue
            if config in seen:
                continue
            seen.append(config)
            name = f"{cls.__name__} of {key}"
            dataset = _opened(name, cls, config)
            _check_images(name, dataset, preprocessor, loader.get("batch_size", 1))
            _check_class_count(name, dataset, model)
            classes[name] = dataset.metainfo["classes"]
    _check_agreement(classes)


def sample_shape(cfg: Config) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images that a network is trained on.

    That of the first image of ``train_dataloader``, or where there is none, of the other two.

    Args:
        cfg: A whole training config.

    Raises:
        ConfigError: If the config has no data of labelled images.
        DataError: If the data cannot be opened.

    Example:
        >>> data = dict(dataset=dict(type="SklearnDigits", size=16))
        >>> sample_shape(Config(dict(train_dataloader=data)))
        (3, 16, 16)
    """
    for key in _LOADERS:
        for config in inner_datasets((cfg.get(key) or {}).get("dataset")):
            kind = config["type"]
            cls = kind if isinstance(kind, type) else DATASETS.get(kind)
            if isinstance(cls, type) and issubclass(cls, LabelledImages):
                dataset: Any = _opened(f"{cls.__name__} of {key}", cls, config)
            else:
                dataset = DATASETS.build(dict(config))
            with torch.random.fork_rng(devices=[]):
                sample = dataset[0]
            image = sample.get("inputs") if isinstance(sample, Mapping) else None
            if not isinstance(image, Tensor) or image.dim() != 3:
                raise DataError(
                    f"{kind} of {key} must give dict(inputs=uint8 Tensor (C, H, W), "
                    f"data_samples=label), got {type(sample).__name__}."
                )
            channels, height, width = image.shape
            return channels, height, width
    raise ConfigError("The config has no train_dataloader with a dataset.")


def _opened(name: str, cls: type[LabelledImages], config: Mapping[str, Any]) -> LabelledImages:
    arguments = {k: v for k, v in config.items() if k not in ("type", "_scope_")}
    parameters = inspect.signature(cls).parameters
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        unknown = next((key for key in arguments if key not in parameters), "")
        raise ConfigError(f"{name}: {error}.{did_you_mean(unknown, parameters)}") from error
    try:
        return cls(**arguments)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _check_images(
    name: str, dataset: LabelledImages, preprocessor: Mapping[str, Any], batch_size: int
) -> None:
    count = min(len(dataset), _SAMPLED)
    picked = [int(i) for i in np.linspace(0, len(dataset) - 1, count).round()]
    with torch.random.fork_rng(devices=[]):  # looking changes nothing of the run
        images = [dataset[index]["inputs"] for index in picked]
    for image in images:
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
            got = (
                f"{image.dtype} of shape {tuple(image.shape)}"
                if isinstance(image, Tensor)
                else type(image).__name__
            )
            raise DataError(
                f"{name} gives {got}; expected uint8 pixels (C, H, W). Leave scaling and "
                "normalising to the preprocessor, and take out of transforms what changes the type."
            )
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1 and batch_size > 1:
        raise DataError(
            f"{name} gives images of several sizes: {', '.join(map(str, shapes))}. Add a transform "
            "that gives all the same, e.g. dict(type='Resize', size=[224, 224])."
        )
    for option in ("mean", "std"):
        values = preprocessor.get(option)
        if isinstance(values, Sequence) and len(values) not in (1, shapes[0][0]):
            raise DataError(
                f"{name} gives images of {shapes[0][0]} channels, but {option} of the preprocessor "
                f"has {len(values)} numbers. Give one a channel."
            )


def _check_class_count(name: str, dataset: LabelledImages, model: Mapping[str, Any]) -> None:
    network = model.get("network")
    count = model.get("num_classes")
    if count is None and isinstance(network, Mapping):
        count = network.get("num_classes")
    classes = dataset.metainfo["classes"]
    if count is not None and count != len(classes):
        raise DataError(
            f"{name} has {len(classes)} classes ({', '.join(classes[:3])}"
            f"{', ...' if classes[3:] else ''}), but the classifier has num_classes={count}. Set "
            f"num_classes to {len(classes)}."
        )


def _check_agreement(classes: Mapping[str, tuple[str, ...]]) -> None:
    names = list(classes)
    for name in names[1:]:
        first, other = classes[names[0]], classes[name]
        if first == other:
            continue
        if len(first) != len(other):
            differ = f"{len(first)} and {len(other)} classes"
            if lacking := sorted(set(first) ^ set(other)):
                differ += f"; {', '.join(lacking[:3])} is in one alone"
        else:
            at = next(i for i, (a, b) in enumerate(zip(first, other, strict=True)) if a != b)
            differ = f"class {at} is {first[at]!r} and {other[at]!r}"
        raise DataError(
            f"{names[0]} and {name} do not have the same classes: {differ}. A label must mean the "
            "same in all; give each split the folders or names of all classes."
        )
