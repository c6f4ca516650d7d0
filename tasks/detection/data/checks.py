"""Checks of a COCO annotation file before a training starts, each with one clear message."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....core.errors import DataError, did_you_mean

__all__ = ["check_coco"]

_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


def _first(items: Sequence[Any], limit: int = 3) -> str:
    listed = ", ".join(str(item) for item in items[:limit])
    return listed if len(items) <= limit else f"{listed}, ... ({len(items)} in all)"


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.json")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside) or (
            f" Its folder holds {_first(sorted(beside))}." if beside else ""
        )
        raise DataError(
            f"The annotation file {path} does not exist.{hint} "
            "Check data_root and ann_file of the dataset."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The annotation file {path} cannot be read: {error}.") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"The annotation file {path} is not valid JSON ({error}): it is damaged or incomplete. "
            "Copy or download it again."
        ) from None
    expected = f"expected a COCO file, an object with the lists {', '.join(_REQUIRED)}"
    if not isinstance(data, dict):
        raise DataError(f"{path}: {expected}; got a {type(data).__name__}.")
    missing = [key for key in _REQUIRED if not isinstance(data.get(key), list)]
    if missing:
        got = ", ".join(map(str, data)) or "nothing"
        raise DataError(f"{path}: {expected}; {', '.join(missing)} is not there, it has {got}.")
    for key, entries in _REQUIRED.items():
        for i, item in enumerate(data[key]):
            lacks = [e for e in entries if not isinstance(item, dict) or e not in item]
            if lacks:
                raise DataError(
                    f"{path}: entry {i} of {key} lacks {', '.join(lacks)}; "
                    f"each needs {', '.join(entries)}."
                )
    return data


def _check_box(path: Path, i: int, box: Any) -> None:
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        raise DataError(
            f"{path}: the bbox of entry {i} of annotations must be four finite numbers "
            f"[x, y, width, height] in pixels, got {box!r}."
        )


def _check_ids(path: Path, data: dict[str, list[dict[str, Any]]]) -> None:
    for key in ("images", "categories"):
        repeated = [i for i, n in Counter(item["id"] for item in data[key]).items() if n > 1]
        if repeated:
            raise DataError(f"{path}: ids of {key} must be unique; repeated: {_first(repeated)}.")
    images = {item["id"] for item in data["images"]}
    categories = {item["id"] for item in data["categories"]}
    for key, known, what in (
        ("image_id", images, "images"),
        ("category_id", categories, "categories"),
    ):
        unknown = [item[key] for item in data["annotations"] if item[key] not in known]
        if unknown:
            distinct = list(dict.fromkeys(unknown))
            raise DataError(
                f"{path}: {len(unknown)} annotations have a {key} that is not in {what}: "
                f"{_first(distinct)}; {what} has {_first(sorted(known, key=str))}. "
                "The file mixes two datasets or its ids were renumbered: export it again."
            )


def _check_classes(path: Path, categories: list[dict[str, Any]], classes: Sequence[str]) -> None:
    names = [category["name"] for category in categories]
    absent = [name for name in classes if name not in names]
    if absent:
        hint = did_you_mean(absent[0], map(str, names))
        raise DataError(
            f"{path}: the dataset's classes {_first(absent)} are not among its categories "
            f"{_first(names, limit=20)}.{hint} Set metainfo=dict(classes=...) of the dataset to "
            "names that the file has."
        )
    in_file_order = [name for name in names if name in set(classes)]
    if in_file_order != list(classes):
        raise DataError(
            f"{path}: the dataset's classes {tuple(classes)} must come in the order of the file's "
            f"categories {tuple(in_file_order)}: mmdet numbers labels by the file, and would call "
            "them by the wrong names."
        )


def check_coco(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
) -> None:
    """Check a COCO annotation file and that its images are on disk.

    An image without annotations is fine. Boxes without area are too: mmdet leaves them out.

    Args:
        path: The annotation file (COCO json).
        image_root: The folder that ``file_name`` of the images is relative to.
        classes: The dataset's class names in its order; None leaves them unchecked.

    Raises:
        DataError: If the file is absent, damaged, not COCO, holds no image, has ids that are
            repeated or refer to nothing, boxes that are not four finite numbers, not all of the
            classes in the same order; or if images are missing on disk (counted, the first three
            named).

    Example:
        >>> check_coco("no_such_folder/train.json", "images")
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.DataError: The annotation file no_such_folder/train.json does not \
exist. Check data_root and ann_file of the dataset.
    """
    path, image_root = Path(path), Path(image_root)
    data = _load(path)
    if not data["images"]:
        raise DataError(f"{path}: the list of images is empty, there is nothing to train on.")
    for i, annotation in enumerate(data["annotations"]):
        _check_box(path, i, annotation["bbox"])
    _check_ids(path, data)
    if classes is not None:
        _check_classes(path, data["categories"], classes)

    if not image_root.is_dir():
        raise DataError(
            f"The image folder {image_root} of {path} does not exist. "
            "Check data_root and data_prefix of the dataset."
        )
    # One listing per folder: asking for each file is slow on network disks.
    names = [str(image["file_name"]) for image in data["images"]]
    folders = {Path(name).parent for name in names}
    present = {
        os.path.normpath(folder / entry.name)
        for folder in folders
        if (image_root / folder).is_dir()
        for entry in os.scandir(image_root / folder)
    }
    missing = [name for name in names if os.path.normpath(name) not in present]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} images of {path} are not in {image_root}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. "
            "Check data_prefix of the dataset, or fetch the missing files."
        )
