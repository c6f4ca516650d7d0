"""Figures of classification and regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from transformers import EvalPrediction

__all__ = ["METRICS", "classification_metrics", "regression_metrics"]


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions.

    Example:
        >>> accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
        0.75
    """
    return float((predictions == labels).mean())


def binary_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0 where nothing is right.

    Example:
        >>> binary_f1(np.array([1, 1, 0, 1]), np.array([1, 0, 1, 1]))  # 2 of 3, 2 of 3
        0.6666666666666666
    """
    return _f1(predictions == 1, labels == 1)


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 of the classes that are predicted or right anywhere.

    Example:
        >>> macro_f1(np.array([0, 0, 2]), np.array([0, 2, 2]))
        0.6666666666666666
    """
    classes = np.union1d(predictions, labels)
    return float(np.mean([_f1(predictions == c, labels == c) for c in classes]))


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of prediction and label, of any number of classes; 0 where either is constant.

    Example:
        >>> matthews_correlation(np.array([1, 1, 0, 0]), np.array([1, 1, 0, 1]))
        0.5773502691896258
        >>> matthews_correlation(np.array([1, 1, 1]), np.array([1, 1, 1]))
        0.0

    Reference:
        Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient,
        Computational Biology and Chemistry 28, 2004.
    """
    classes = np.union1d(predictions, labels)
    p = (predictions[:, None] == classes).astype(np.float64)
    t = (labels[:, None] == classes).astype(np.float64)
    p -= p.mean(axis=0)
    t -= t.mean(axis=0)
    return _ratio((p * t).sum(), np.sqrt((p * p).sum() * (t * t).sum()))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Linear correlation; 0 where either is constant.

    Example:
        >>> round(pearson(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])), 4)
        0.982
    """
    p = predictions.astype(np.float64) - predictions.mean(dtype=np.float64)
    t = labels.astype(np.float64) - labels.mean(dtype=np.float64)
    return _ratio((p * t).sum(), np.sqrt((p * p).sum() * (t * t).sum()))


def spearmanr(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of the ranks, ties sharing theirs; 0 where either is constant.

    Example:
        >>> spearmanr(np.array([1.0, 2.0, 40.0]), np.array([1.0, 2.0, 3.0]))
        1.0
    """
    return pearson(pd.Series(predictions).rank().to_numpy(), pd.Series(labels).rank().to_numpy())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": binary_f1,
    "f1_macro": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
}
"""Every figure of predictions and labels, each of shape ``(n,)``, by its name."""


def classification_metrics(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """``compute_metrics`` of logits ``(n, classes)``."""
    return partial(_of_classes, names=tuple(names))


def regression_metrics(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """``compute_metrics`` of scores ``(n, 1)`` or ``(n,)``."""
    return partial(_of_scores, names=tuple(names))


def _of_classes(prediction: EvalPrediction, names: tuple[str, ...]) -> dict[str, float]:
    chosen = np.asarray(prediction.predictions).argmax(axis=-1)
    return {name: METRICS[name](chosen, np.asarray(prediction.label_ids)) for name in names}


def _of_scores(prediction: EvalPrediction, names: tuple[str, ...]) -> dict[str, float]:
    scores = np.asarray(prediction.predictions).reshape(-1)
    return {name: METRICS[name](scores, np.asarray(prediction.label_ids)) for name in names}


def _f1(predicted: np.ndarray, right: np.ndarray) -> float:
    return _ratio(2.0 * (predicted & right).sum(), predicted.sum() + right.sum())


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
