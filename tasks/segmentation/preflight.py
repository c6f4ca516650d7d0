"""Look at the data of a config before anything is built from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS

from ...core.errors import DataError, did_you_mean
from ..openmm.data.wrapped import inner_datasets
from .data.datasets import first_names

__all__ = ["check_config_data"]

_SAMPLED = 8  # label maps read of each dataset: a wrong label map is wrong in most of them


def check_config_data(cfg: Config) -> None:
    """Check the files, the class count and the label values that training would meet.

    Of each dataset of ``train_dataloader`` and ``val_dataloader``: the folders and the list of
    images exist, every image has its label file, the head has as many classes as the dataset, and
    eight label maps, evenly spaced and read as training reads them, hold nothing but classes of
    the head and its ignore label. Datasets inside wrappers (repeat, concat, mosaic) are found too.
    Data that is not on local disk or not in the layout of mmseg's ``BaseSegDataset`` is left to its
    own dataset class.

    Args:
        cfg: A whole training config.

    Raises:
        DataError: If something of it does not hold; the message names the files.
    """
    head = (cfg.get("model") or {}).get("decode_head") or {}
    if isinstance(head, Sequence):  # a cascade: the last head predicts
        head = head[-1]
    for key in ("train_dataloader", "val_dataloader"):
        loader = cfg.get(key) or {}
        for config in inner_datasets(loader.get("dataset")):
            kind = config["type"]
            cls = kind if isinstance(kind, type) else DATASETS.get(kind)
            if _is_plain(cls) and _is_local(config):
                _check_dataset(f"{cls.__name__} of {key}", cls, config, head)


def _is_plain(cls: Any) -> TypeGuard[type[BaseSegDataset]]:
    """Whether the class finds its files as mmseg's ``BaseSegDataset`` does."""
    return (
        isinstance(cls, type)
        and issubclass(cls, BaseSegDataset)
        and cls.load_data_list is BaseSegDataset.load_data_list
    )


def _is_local(config: Mapping[str, Any]) -> bool:
    prefixes = (config.get("data_prefix") or {}).values()
    paths = [config.get("data_root"), config.get("ann_file"), *prefixes]
    return not config.get("backend_args") and not any("://" in str(path) for path in paths)


def _check_dataset(
    name: str, cls: type[BaseSegDataset], config: Mapping[str, Any], head: Mapping[str, Any]
) -> None:
    # Before the class is built: several of mmseg's end in a bare assertion where files are absent.
    root = config.get("data_root") or ""
    prefixes = {k: os.path.join(root, v) for k, v in (config.get("data_prefix") or {}).items() if v}
    listed = config.get("ann_file")
    _check_paths(name, prefixes, os.path.join(root, listed) if listed else "")

    arguments = {k: v for k, v in config.items() if k not in ("type", "_scope_", "pipeline")}
    dataset = cls(**{**arguments, "lazy_init": True})
    _check_paths(name, dataset.data_prefix, dataset.ann_file)
    dataset.serialize_data = False  # of no use here, and an error where there are no images
    dataset.full_init()
    samples = dataset.data_list
    images = dataset.data_prefix["img_path"]
    if not samples:
        raise DataError(
            f"{name}: {images} holds no image that ends in {dataset.img_suffix!r}"
            f"{_endings(images)}. Set img_suffix of the dataset, or check its data_prefix."
        )
    _check_present(
        f"images of {name}", [s["img_path"] for s in samples], images, "data_prefix and ann_file"
    )
    _check_class_count(name, dataset.metainfo.get("classes"), head)

    step = _loading_step(config.get("pipeline") or [])
    if step is None:
        return
    if any("seg_map_path" not in sample for sample in samples):
        raise DataError(
            f"{name} is to load label maps, but its data_prefix names no folder of them. "
            "Set seg_map_path in data_prefix."
        )
    _check_present(
        f"label files of {name}",
        [sample["seg_map_path"] for sample in samples],
        dataset.data_prefix["seg_map_path"],
        "data_prefix and seg_map_suffix",
    )
    picked = np.linspace(0, len(samples) - 1, min(len(samples), _SAMPLED)).round().astype(int)
    for i in picked:
        _check_label_map(step, dataset.get_data_info(int(i)), head)


def _check_paths(name: str, prefixes: Mapping[str, str | None], listed: str) -> None:
    for key, what in (("img_path", "image"), ("seg_map_path", "label")):
        folder = prefixes.get(key)
        if folder and not os.path.isdir(folder):
            raise DataError(
                f"The {what} folder {folder} ({name}) does not exist. "
                f"Check data_root and data_prefix ({key}) of the dataset."
            )
    if listed and not os.path.exists(listed):
        folder, file = os.path.split(listed)
        beside = os.listdir(folder) if os.path.isdir(folder) else []
        raise DataError(
            f"The list of images {listed} ({name}) does not exist.{did_you_mean(file, beside)} "
            "Check data_root and ann_file of the dataset."
        )


def _endings(folder: str) -> str:
    found = {os.path.splitext(name)[1] for _, _, names in os.walk(folder) for name in names}
    return f", only {', '.join(sorted(found))}" if found else ", nor any other file"


def _check_present(what: str, paths: Sequence[str], root: str, settings: str) -> None:
    # One listing per folder: asking for each file is slow on network disks.
    folders = {os.path.dirname(path) for path in paths}
    present = {
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
    }
    missing = [os.path.relpath(path, root) for path in paths if path not in present]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(paths)} {what} are not in {root}: "
            f"{first_names(missing)}. Check {settings} of the dataset, or fetch the missing files."
        )


def _check_class_count(name: str, classes: Sequence[str] | None, head: Mapping[str, Any]) -> None:
    heads = head.get("num_classes")
    # A head of one class is binary: it takes the labels 0 and 1, whatever they are called.
    if classes is None or heads is None or len(classes) in {heads, max(heads, 2)}:
        return
    raise DataError(
        f"{name} has {len(classes)} classes ({first_names(classes)}), but "
        f"model.decode_head.num_classes is {heads}. Set num_classes of every head to "
        f"{len(classes)}, or choose the classes by metainfo=dict(classes=...) of the dataset."
    )


def _loading_step(pipeline: Sequence[Mapping[str, Any]]) -> LoadAnnotations | None:
    """The step of a pipeline that reads the label maps, built."""
    for config in pipeline:
        kind = config["type"]
        cls = kind if isinstance(kind, type) else TRANSFORMS.get(kind)
        if isinstance(cls, type) and issubclass(cls, LoadAnnotations):
            return cls(**{k: v for k, v in config.items() if k not in ("type", "_scope_")})
    return None


def _check_label_map(
    step: LoadAnnotations, sample: dict[str, Any], head: Mapping[str, Any]
) -> None:
    path = sample["seg_map_path"]
    try:
        labels = step.transform(sample)["gt_seg_map"]
    except Exception as error:  # whatever a decoder raises for a damaged file
        raise DataError(
            f"The label map {path} cannot be read: {error}. Restore the file, or set "
            "LoadAnnotations and reduce_zero_label of the dataset as its label maps need it."
        ) from error
    if labels.ndim != 2:
        raise DataError(
            f"The label map {path} has the shape {labels.shape}: expected one number a pixel, the "
            "index of its class, not a colour picture. Convert the label maps to indices."
        )
    num_classes, ignore = head.get("num_classes"), head.get("ignore_index", 255)
    if num_classes is None:
        return
    largest = max(num_classes, 2) - 1  # a head of one class is binary, as above
    known = {*range(largest + 1), ignore}
    counts = np.bincount(labels.ravel())
    wrong = [int(value) for value in np.flatnonzero(counts) if value not in known]
    if wrong:
        raise DataError(
            f"The label map {path} has the label {wrong[0]} in {counts[wrong[0]]} pixels"
            f"{f' (and {len(wrong) - 1} more such labels)' if len(wrong) > 1 else ''}; the head "
            f"knows 0 to {largest} (num_classes={num_classes}) and ignores {ignore}. "
            "If it is a class, name it in the dataset's metainfo and raise num_classes; if not, "
            f"write {ignore} in its place; if labels begin at 1 (0 is void), set "
            "reduce_zero_label=True of the dataset."
        )
