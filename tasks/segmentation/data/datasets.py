"""The data of this package as mmseg datasets: ``DigitScenes`` and ``CamVid``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ....core.errors import DataError, did_you_mean
from ...openmm.data import digit_scenes

__all__ = ["CamVid", "DigitScenes", "first_names"]


def first_names(names: Sequence[str]) -> str:
    """The first three of some file names.

    Example:
        >>> first_names(["a.png", "b.png", "c.png", "d.png"])
        'a.png, b.png, c.png, ...'
    """
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@DATASETS.register_module()
class DigitScenes(BaseSegDataset):
    """The digit scenes of :func:`.digit_scenes.prepare`, composed at first use.

    Eleven classes: the background, and the visible ink of each of the ten digits.

    Args:
        split: "train" or "val".
        scenes: Arguments of :func:`.digit_scenes.prepare` (``root``, ``train``, ``val``, ``size``,
            ``seed``, and ``options`` as a dict of :class:`.digit_scenes.SceneOptions`). Both
            splits of one experiment give the same ones, and so use the same folder.
        **kwargs: As for mmseg's ``BaseSegDataset``.

    Raises:
        DataError: If the split or an argument of ``scenes`` is unknown, or as ``prepare`` does.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": digit_scenes.SEGMENTATION_CLASSES,
        "palette": [list(colour) for colour in digit_scenes.SEGMENTATION_PALETTE],
    }

    def __init__(self, *, split: str, scenes: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if split not in digit_scenes.SPLITS:
            raise DataError(
                f"DigitScenes has the splits {' and '.join(digit_scenes.SPLITS)}, not {split!r}."
            )
        folder = digit_scenes.prepare_from_config(scenes or {})
        kwargs["data_root"] = str(folder)
        kwargs["data_prefix"] = {"img_path": split, "seg_map_path": f"{split}_masks"}
        super().__init__(**kwargs)


@DATASETS.register_module()
class CamVid(BaseSegDataset):
    """Street scenes (CamVid) with the eleven classes of SegNet.

    Label 11 is void. It is a class of the label files but none of the dataset, so that mmseg's own
    label map turns it into the ignore label 255.

    Args:
        split: A folder in ``images`` and ``labels``: "train", "val" or "test".
        data_root: Folder with ``images/SPLIT/*.jpg`` and ``labels/SPLIT/*.png`` (index maps).
        **kwargs: As for mmseg's ``BaseSegDataset``. ``metainfo=dict(classes=...)`` takes some of
            the classes, and ignores the others.

    Raises:
        DataError: If the folder or the split is absent, there are no images, or images and label
            files do not pair up.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": (
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "cyclist",
            "void",
        ),
        # The colours that results on CamVid are mostly drawn in.
        "palette": [
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
            [0, 0, 0],
        ],
    }

    def __init__(self, *, split: str, data_root: str, **kwargs: Any) -> None:
        root = Path(data_root).expanduser()
        _check_camvid(root, split)
        classes = self.METAINFO["classes"][:-1]
        kwargs["metainfo"] = {"classes": classes, **(kwargs.get("metainfo") or {})}
        kwargs["data_root"] = str(root)
        kwargs["data_prefix"] = {"img_path": f"images/{split}", "seg_map_path": f"labels/{split}"}
        super().__init__(**kwargs)


def _check_camvid(root: Path, split: str) -> None:
    layout = "images/SPLIT/*.jpg and labels/SPLIT/*.png"
    lacking = [name for name in ("images", "labels") if not (root / name).is_dir()]
    if lacking:
        raise DataError(
            f"{root} is not CamVid: it has no folder {' and no folder '.join(lacking)}. Give the "
            f"folder that holds {layout} as data_root, or set $TASKDISTILL_DATA to the folder that "
            f"CamVid is in as {root.name!r}."
        )
    for kind in ("images", "labels"):
        if not (root / kind / split).is_dir():
            splits = sorted(entry.name for entry in (root / kind).iterdir() if entry.is_dir())
            raise DataError(
                f"{root / kind} has no split {split!r}, only {', '.join(splits) or 'nothing'}."
                f"{did_you_mean(split, splits)} Expected {layout}: give one of its splits, or copy "
                "the missing folder into the data that $TASKDISTILL_DATA names."
            )
    images = {path.stem for path in (root / "images" / split).glob("*.jpg")}
    labels = {path.stem for path in (root / "labels" / split).glob("*.png")}
    for kind, present, suffix in (("images", images, "jpg"), ("labels", labels, "png")):
        if not present:
            raise DataError(
                f"{root / kind / split} holds no .{suffix} file. Expected {layout}: copy CamVid "
                "again to the folder that $TASKDISTILL_DATA names."
            )
    for what, of, present, absent in (
        ("images", "label file", images, images - labels),
        ("label files", "image", labels, labels - images),
    ):
        if absent:
            raise DataError(
                f"{len(absent)} of the {len(present)} {what} in the split {split!r} of {root} have "
                f"no {of}: {first_names(sorted(absent))}. Expected {layout}, of the same names: "
                "restore the missing files in the data that $TASKDISTILL_DATA names, or remove "
                "those without a partner."
            )
