from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")

from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS

from taskdistill.tasks.segmentation.metrics import ClassIoU, class_figures

CLASSES = ("road", "car", "sign", "tram")

# Rows: labels (255 is ignored) and predictions of two images. By hand, over both images:
#   road: labelled 4, predicted 4, both 3 -> 3 / 5
#   car:  labelled 3, predicted 2, both 2 -> 2 / 3
#   sign: labelled 0, predicted 1, both 0 -> 0
#   tram: nowhere -> no figure
LABELS = ([[0, 0, 0], [1, 1, 255]], [[0, 1, 255], [255, 255, 255]])
PREDICTED = ([[0, 0, 2], [1, 1, 3]], [[0, 0, 1], [1, 1, 1]])


def evaluate(metric: IoUMetric) -> dict[str, float]:
    metric.dataset_meta = {"classes": CLASSES}
    samples = [
        {
            "gt_sem_seg": {"data": torch.tensor([label])},
            "pred_sem_seg": {"data": torch.tensor([predicted])},
        }
        for label, predicted in zip(LABELS, PREDICTED, strict=True)
    ]
    metric.process({}, samples[:1])
    metric.process({}, samples[1:])
    return metric.evaluate(size=len(samples))


def test_iou_of_each_class_by_hand():
    figures = evaluate(ClassIoU())
    assert figures["IoU.road"] == 60.0
    assert figures["IoU.car"] == 66.67
    assert figures["IoU.sign"] == 0.0


def test_a_class_that_occurs_nowhere_has_no_entry_and_nothing_is_nan():
    figures = evaluate(ClassIoU())
    assert "IoU.tram" not in figures
    assert not any(math.isnan(value) for value in figures.values())


def test_the_other_figures_are_mmsegs():
    both = ["mIoU", "mFscore"]
    ours, theirs = evaluate(ClassIoU(iou_metrics=both)), evaluate(IoUMetric(iou_metrics=both))
    assert {key: ours[key] for key in theirs} == theirs
    assert set(ours) - set(theirs) == {"IoU.road", "IoU.car", "IoU.sign"}
    assert ours["mIoU"] == pytest.approx(np.mean([60, 200 / 3, 0]), abs=0.005)


def test_prefix_stands_before_every_figure():
    assert "street/IoU.car" in evaluate(ClassIoU(prefix="street"))


def test_only_formatting_gives_no_figures(tmp_path):
    metric = ClassIoU(format_only=True, output_dir=str(tmp_path))
    metric.dataset_meta = {"classes": CLASSES}
    predicted = {"pred_sem_seg": {"data": torch.tensor([PREDICTED[0]])}, "img_path": "a.jpg"}
    metric.process({}, [predicted])
    assert metric.evaluate(size=1) == {}
    assert (tmp_path / "a.png").is_file()


def test_found_by_name():
    assert METRICS.get("ClassIoU") is ClassIoU


def test_class_figures_need_a_value_for_each_class():
    with pytest.raises(ValueError):
        class_figures([0.5], ("road", "car"))
