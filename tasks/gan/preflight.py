"""Look at the data of a config before anything is built from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from ...core.errors import DataError, did_you_mean
from ..openmm.data.wrapped import inner_datasets
from .data import AlignedImages, DigitOutlines, DigitRestyle, UnalignedImages

__all__ = ["check_config_data"]

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_FOLDERS = (AlignedImages, UnalignedImages)
_DIGITS = (DigitOutlines, DigitRestyle)
_RESNETS = ("ResnetGenerator", "MobileResnetGenerator", "SuperMobileResnetGenerator")


def check_config_data(cfg: Config) -> None:
    """Check the folders, the files and the sizes that training would meet.

    Of each dataset of the three dataloaders: its arguments are known and in range, its folders
    exist and hold pictures, three files of each side (the first, the middle, the last) can be read
    and are large enough, its channels are those of ``model.generator``, and its pictures can be
    halved as often as the generator does. Datasets inside wrappers (repeat, concat) are found too;
    those of other packages are left alone. The test data is looked at only where it is not the
    validation data.

    Args:
        cfg: A whole training config.

    Raises:
        DataError: If something of it does not hold; the message names dataset and file.

    Example:
        >>> from mmengine.config import Config
        >>> dataset = dict(type="DigitOutlines", split="val", size=30)
        >>> model = dict(generator=dict(type="ResnetGenerator"))
        >>> check_config_data(Config(dict(model=model, val_dataloader=dict(dataset=dataset))))
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.DataError: DigitOutlines of val_dataloader gives pictures of
        30 pixels, but ResnetGenerator halves them 2 times: a side must be divisible by 4. Set size
        of the dataset to 28 or 32.
    """
    generator = (cfg.get("model") or {}).get("generator") or {}
    seen = []
    for key in _LOADERS:
        loader = cfg.get(key) or {}
        for config in inner_datasets(loader.get("dataset")):
            if config in seen:
                continue
            seen.append(config)
            cls = _dataset_class(config["type"])
            if cls is not None:
                _check_dataset(f"{cls.__name__} of {key}", cls, config, generator)


def _dataset_class(kind: Any) -> Any:
    cls = kind if isinstance(kind, type) else DATASETS.get(kind)
    ours = isinstance(cls, type) and issubclass(cls, (*_FOLDERS, *_DIGITS))
    return cls if ours else None


def _check_dataset(
    name: str, cls: Any, config: Mapping[str, Any], generator: Mapping[str, Any]
) -> None:
    arguments = {k: v for k, v in config.items() if k not in ("type", "_scope_")}
    known = inspect.signature(cls).parameters
    for argument in arguments:
        if argument not in known:
            raise DataError(
                f"{name} has no argument {argument!r}.{did_you_mean(argument, known)} "
                f"Its arguments are {', '.join(known)}."
            )
    missing = [
        argument
        for argument, parameter in known.items()
        if parameter.default is parameter.empty and argument not in arguments
    ]
    if missing:
        raise DataError(f"{name} needs {' and '.join(missing)}. Set it in the config.")
    if issubclass(cls, _DIGITS) and arguments.get("limit") is None:
        arguments["limit"] = 2  # drawing all of them is training's affair
    try:
        dataset = cls(**arguments)
        if isinstance(dataset, _FOLDERS):
            dataset.check_files()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    _check_channels(name, dataset, generator)
    _check_sides(name, dataset, generator)


def _check_channels(name: str, dataset: Any, generator: Mapping[str, Any]) -> None:
    for argument, what in (("in_channels", "input"), ("out_channels", "target")):
        expected, given = _option(generator, argument), getattr(dataset, argument)
        if expected is not None and expected != given:
            raise DataError(
                f"{name} gives {what}s of {given} channels, but {argument} of model.generator "
                f"({generator['type']}) is {expected}. Set {argument} of both to the same number"
                f"{'' if isinstance(dataset, _FOLDERS) else ' (digits have 3)'}."
            )


def _check_sides(name: str, dataset: Any, generator: Mapping[str, Any]) -> None:
    kind = _type_name(generator)
    if kind in _RESNETS:
        halvings = 2
    elif kind == "UnetGenerator":
        halvings = _option(generator, "downs")
    else:
        return
    unit = 2**halvings
    for side in dataset.sides:
        if side % unit:
            below = side // unit * unit
            raise DataError(
                f"{name} gives pictures of {side} pixels, but {kind} halves them {halvings} times: "
                f"a side must be divisible by {unit}. Set {_side_name(dataset)} of the dataset to "
                f"{f'{below} or ' if below else ''}{below + unit}."
            )


def _side_name(dataset: Any) -> str:
    if isinstance(dataset, _DIGITS):
        return "size"
    transform = dataset.transform
    load = transform.preprocess == "scale_width" and not transform.test_mode
    return "load_size" if load else "crop_size"


def _type_name(config: Mapping[str, Any]) -> str:
    kind = config.get("type")
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]


def _option(config: Mapping[str, Any], name: str) -> Any:
    """An argument of a model's config, or the default of its class; ``None`` if unknown."""
    if name in config or not config:
        return config.get(name)
    kind = config["type"]
    cls = kind if isinstance(kind, type) else MODELS.get(kind)
    parameter = inspect.signature(cls).parameters.get(name) if cls is not None else None
    if parameter is None or parameter.default is parameter.empty:
        return None
    return parameter.default
