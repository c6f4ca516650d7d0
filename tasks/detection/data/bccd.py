"""BCCD (blood cells: RBC, WBC, platelets) from Pascal VOC XML to COCO json.

The images stay where they are; only the annotations are rewritten, into the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....core.errors import DataError, did_you_mean
from ...openmm.data.cache import cache_root

__all__ = ["CLASSES", "image_folder", "prepare", "voc_to_coco"]

CLASSES = ("RBC", "WBC", "Platelets")

_log = logging.getLogger(__name__)


def image_folder(data_root: str | os.PathLike[str]) -> Path:
    """The folder of the photos."""
    return Path(data_root).expanduser() / "JPEGImages"


def _image_ids(root: Path, split: str) -> list[str]:
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir():
        raise DataError(
            f"{root} is not a Pascal VOC dataset: it has no ImageSets/Main. Give the folder that "
            "holds Annotations, ImageSets and JPEGImages as data_root, or set $TASKDISTILL_DATA "
            "to the folder that BCCD is in as 'bccd'."
        )
    path = lists / f"{split}.txt"
    if not path.is_file():
        splits = sorted(p.stem for p in lists.glob("*.txt"))
        raise DataError(
            f"{lists} has no split {split!r}, only {', '.join(splits)}."
            + did_you_mean(split, splits)
        )
    ids = path.read_text(encoding="utf-8").split()
    if not ids:
        raise DataError(f"{path} is empty: it must name one image a line.")
    return ids


def _number(path: Path, parent: ET.Element, tag: str) -> float:
    text = parent.findtext(tag, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{path}: expected a number in <{parent.tag}><{tag}>, got {text!r}. Correct the file, "
            "or take the image out of its list in ImageSets/Main."
        )
    return value


def _read_xml(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as XML: {error}. Restore the file, or take the image out of "
            "its list in ImageSets/Main."
        ) from error


def voc_to_coco(
    data_root: str | os.PathLike[str], split: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Read one split of a Pascal VOC dataset as a COCO dictionary.

    VOC counts pixels from 1 and COCO from 0, so that every coordinate is lowered by one (as
    mmdet's ``XMLDataset`` does). Difficult objects become crowd regions, which are not counted in
    the evaluation. Boxes narrower or lower than one pixel are left out; their number is logged in
    one line.

    Args:
        data_root: Folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: Name of a list in ``ImageSets/Main``, without ".txt".
        classes: Class names; category ``i + 1`` is ``classes[i]``.

    Raises:
        DataError: If the folder, the split or an XML file is absent or malformed, or an object's
            name is not one of the classes.
    """
    root = Path(data_root).expanduser()
    ids = _image_ids(root, split)
    annotation_of = {name: root / "Annotations" / f"{name}.xml" for name in ids}
    absent = [path for path in annotation_of.values() if not path.is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of the {len(ids)} annotation files of the split {split!r} do not "
            f"exist: {', '.join(map(str, absent[:3]))}{', ...' if len(absent) > 3 else ''}. "
            "Restore them, or take the images out of the list in ImageSets/Main."
        )
    category_of = {name: i for i, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    degenerate = 0
    for image_id, (name, path) in enumerate(annotation_of.items(), start=1):
        tree = _read_xml(path)
        size = tree.find("size")
        if size is None:
            raise DataError(f"{path}: expected <size> with <width> and <height>. Correct the file.")
        width, height = int(_number(path, size, "width")), int(_number(path, size, "height"))
        images.append(
            {"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height}
        )
        for entry in tree.iter("object"):
            label = (entry.findtext("name") or "").strip()
            if label not in category_of:
                raise DataError(
                    f"{path}: unknown object name {label!r}; the classes are "
                    f"{', '.join(classes)}.{did_you_mean(label, classes)}"
                )
            box = entry.find("bndbox")
            if box is None:
                raise DataError(f"{path}: an object {label!r} has no <bndbox>. Correct the file.")
            x1, y1, x2, y2 = (_number(path, box, k) - 1 for k in ("xmin", "ymin", "xmax", "ymax"))
            w, h = x2 - x1, y2 - y1
            if w < 1 or h < 1:
                degenerate += 1
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_of[label],
                    "bbox": [x1, y1, w, h],
                    "area": w * h,
                    "iscrowd": int(entry.findtext("difficult", "0").strip() == "1"),
                }
            )
    if degenerate:
        _log.warning(
            "Left out %d of %d boxes in %s (%s): narrower or lower than one pixel.",
            degenerate,
            degenerate + len(annotations),
            root,
            split,
        )
    return {
        "info": {"description": f"{root.name}, {split}, converted from Pascal VOC"},
        "categories": [{"id": i, "name": name} for name, i in category_of.items()],
        "images": images,
        "annotations": annotations,
    }


def prepare(data_root: str | os.PathLike[str], split: str) -> Path:
    """Convert one split of BCCD and return the COCO file, which is kept in the cache.

    The XML files are read every time (a fraction of a second), and the file is named after what
    they say: a changed annotation can never meet a stale conversion.

    Args:
        data_root: Folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: "train", "val", "trainval" or "test".

    Raises:
        DataError: As :func:`voc_to_coco` does, or if the cache cannot be written.
    """
    text = json.dumps(voc_to_coco(data_root, split, CLASSES))
    folder = cache_root() / "bccd"
    path = folder / f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder, suffix=".partial", delete=False
        ) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise DataError(
            f"The annotations of BCCD could not be written to {folder}: {error}. "
            "Set $TASKDISTILL_CACHE to a folder that is writable."
        ) from error
    return path
