"""Labelled images in one file of numpy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS

from ....core.errors import ConfigError, DataError, did_you_mean
from ..transforms import Transform
from .images import DATA_VARIABLE, ArrayImages, located

__all__ = ["NpzImages"]


@DATASETS.register_module()
class NpzImages(ArrayImages):
    """Images of an ``.npz`` file: ``x_train``, ``y_train``, ``x_test``, ``y_test``, ``classes``.

    Of each split ``x_SPLIT`` holds the images, uint8 (N, H, W, C) or (N, H, W), and ``y_SPLIT``
    their labels, whole numbers (N,). ``classes`` holds the names. The file is read without running
    code (no pickled objects).

    Args:
        path: The file; a relative path is looked up in ``root``.
        split: ``"train"``, ``"test"`` or another that the file has.
        root: Folder; by default the one that the environment variable ``TASKDISTILL_DATA`` names,
            or the current one.
        transforms: See :func:`~..transforms.build_transforms`.
        subset: The first so many images of each class; all by default.

    Raises:
        DataError: If the file is missing, damaged or malformed.
        ConfigError: If it has no such split.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        root: str | None = None,
        transforms: Sequence[Mapping[str, Any] | Transform] | None = None,
        subset: int | None = None,
    ) -> None:
        file = located(path, root)
        if not file.is_file():
            raise DataError(
                f"Data file {str(file)!r} does not exist. Set path or root of the dataset, or the "
                f"environment variable {DATA_VARIABLE}, to where it lies."
            )
        try:
            with np.load(file, allow_pickle=False) as arrays:
                splits = [name.removeprefix("x_") for name in arrays if name.startswith("x_")]
                if split not in splits:
                    raise ConfigError(
                        f"Data file {str(file)!r} has no split {split!r}."
                        f"{did_you_mean(split, splits)} It has: {', '.join(splits) or 'none'}."
                    )
                images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
                classes = [str(name) for name in arrays["classes"]]
        except ConfigError:
            raise
        except KeyError as error:
            raise DataError(
                f"Data file {str(file)!r} is incomplete: {error.args[0]} It needs x_SPLIT, "
                "y_SPLIT and classes."
            ) from error
        except (ValueError, OSError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            raise DataError(
                f"Data file {str(file)!r} cannot be read as numpy arrays (.npz): {error}. Copy it "
                "again."
            ) from error
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.ndim != 1:
            raise DataError(
                f"Data file {str(file)!r}: expected x_{split} as uint8 (N, H, W, C) and y_{split} "
                f"as (N,), got {images.dtype} {images.shape} and {labels.shape}."
            )
        if images.ndim == 3:
            images = images[..., None]
        super().__init__(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            labels.astype(np.int64).tolist(),
            classes,
            transforms,
            subset,
        )
