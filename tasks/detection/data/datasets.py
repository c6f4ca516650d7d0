"""The data of this package as mmdet datasets: ``DigitScenes`` and ``BCCD``.

Both make what they need at first use, are then ordinary ``CocoDataset``s, and evaluate with plain
``CocoMetric`` without ``ann_file`` (mmdet then takes the ground truth from the dataset, so that no
path has to be known when the config is written).
"""

from __future__ import annotations

from typing import Any, ClassVar

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ....core.errors import DataError
from ...openmm.data import digit_scenes
from . import bccd
from .checks import check_coco

__all__ = ["BCCD", "DigitScenes"]


@DATASETS.register_module()
class DigitScenes(CocoDataset):
    """The digit scenes of :func:`.digit_scenes.prepare`, composed at first use.

    Args:
        split: "train" or "val".
        scenes: Arguments of :func:`.digit_scenes.prepare` (``root``, ``train``, ``val``, ``size``,
            ``seed``, and ``options`` as a dict of :class:`.digit_scenes.SceneOptions`). Both
            splits of one experiment give the same ones, and so use the same folder.
        **kwargs: As for mmdet's ``CocoDataset``.

    Raises:
        DataError: If the split or an argument of ``scenes`` is unknown, or as ``prepare`` does.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": digit_scenes.CLASSES,
        "palette": list(digit_scenes.PALETTE),
    }

    def __init__(
        self, *args: Any, split: str, scenes: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if split not in digit_scenes.SPLITS:
            raise DataError(
                f"DigitScenes has the splits {' and '.join(digit_scenes.SPLITS)}, not {split!r}."
            )
        folder = digit_scenes.prepare_from_config(scenes or {})
        kwargs["data_root"] = str(folder)
        kwargs["ann_file"] = f"{split}.json"
        kwargs["data_prefix"] = {"img": split}
        super().__init__(*args, **kwargs)


@DATASETS.register_module()
class BCCD(CocoDataset):
    """Blood cells (BCCD): photos with Pascal VOC annotations, converted at first use.

    Boxes without area are left out and counted in the log.

    Args:
        split: A list in ``ImageSets/Main``: "train", "val", "trainval" or "test".
        data_root: Folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        **kwargs: As for mmdet's ``CocoDataset``.

    Raises:
        DataError: As :func:`.bccd.prepare` and :func:`.checks.check_coco` do.
    """

    METAINFO: ClassVar[dict[str, Any]] = {
        "classes": bccd.CLASSES,
        "palette": [(214, 40, 57), (44, 110, 235), (10, 147, 90)],
    }

    def __init__(self, *args: Any, split: str, data_root: str, **kwargs: Any) -> None:
        ann_file = str(bccd.prepare(data_root, split))
        images = str(bccd.image_folder(data_root))
        check_coco(ann_file, images, bccd.CLASSES)
        kwargs["ann_file"] = ann_file
        kwargs["data_prefix"] = {"img": images}
        super().__init__(*args, **kwargs)
