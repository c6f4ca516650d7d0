"""mmseg's IoU metric, with a figure for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS
from numpy.typing import NDArray

__all__ = ["ClassIoU", "class_figures"]

PREFIX = "IoU."


def class_figures(
    values: NDArray[np.floating] | Sequence[float], classes: Sequence[str]
) -> dict[str, float]:
    """Return a figure for each class that has one.

    Args:
        values: IoU of each class, from 0 to 1; NaN for a class that occurs neither in the labels
            nor in the predictions.
        classes: Names of the classes.

    Returns:
        ``{"IoU.<class>": per cent with two digits}``, without the classes that have no figure.

    Example:
        >>> class_figures([0.5, float("nan"), 0.12345], ("road", "tram", "car"))
        {'IoU.road': 50.0, 'IoU.car': 12.35}
    """
    return {
        f"{PREFIX}{name}": round(100 * float(value), 2)
        for name, value in zip(classes, values, strict=True)
        if np.isfinite(value)
    }


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's ``IoUMetric``, which puts the IoU of each class beside the means.

    mmseg prints the figures of the classes and logs the means alone; here ``IoU.<class>`` is in
    the log too (in per cent, two digits, as mIoU). A class that occurs neither in the labels nor in
    the predictions has no IoU and gives no entry, so that no NaN gets into a log. With ``prefix``
    or several metrics (``iou_metrics``) the other figures are mmseg's, unchanged.

    Args:
        *args: As for ``IoUMetric``.
        **kwargs: As for ``IoUMetric``.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmseg's figures and ``IoU.<class>`` for each class.

        Args:
            results: For each image the intersections, unions, predicted and labelled pixels of the
                classes.
        """
        figures = dict(super().compute_metrics(results))
        if not figures:  # format_only: nothing is evaluated
            return figures
        intersection, union = (sum(areas) for areas in list(zip(*results, strict=True))[:2])
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = np.asarray(intersection, dtype=np.float64) / np.asarray(union, dtype=np.float64)
        classes: Mapping[str, Sequence[str]] = self.dataset_meta  # type: ignore[assignment]
        return figures | class_figures(iou, classes["classes"])
