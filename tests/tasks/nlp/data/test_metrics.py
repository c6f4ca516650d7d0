from __future__ import annotations

import numpy as np
import pytest
from transformers import EvalPrediction

from taskdistill.tasks.nlp.data.metrics import (
    METRICS,
    classification_metrics,
    regression_metrics,
)

stats = pytest.importorskip("scipy.stats")
sklearn = pytest.importorskip("sklearn.metrics")

DRAWN = np.random.default_rng(0)
PREDICTED, RIGHT = DRAWN.integers(0, 4, 200), DRAWN.integers(0, 4, 200)
SCORES, TRUTH = DRAWN.integers(0, 9, 50) / 2.0, DRAWN.integers(0, 9, 50) / 2.0


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_of_classes_equal_scikit_learns(classes: int) -> None:
    p, t = PREDICTED % classes, RIGHT % classes
    expected = {
        "accuracy": sklearn.accuracy_score(t, p),
        "f1": sklearn.f1_score(t == 1, p == 1),
        "f1_macro": sklearn.f1_score(t, p, average="macro"),
        "matthews_correlation": sklearn.matthews_corrcoef(t, p),
    }
    assert {name: METRICS[name](p, t) for name in expected} == pytest.approx(expected)


def test_correlations_equal_scipys_ties_included() -> None:
    assert METRICS["pearson"](SCORES, TRUTH) == pytest.approx(
        stats.pearsonr(SCORES, TRUTH).statistic
    )
    assert METRICS["spearmanr"](SCORES, TRUTH) == pytest.approx(
        stats.spearmanr(SCORES, TRUTH).statistic
    )


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearmanr", "f1"])
def test_a_constant_prediction_scores_nothing(name: str) -> None:
    value = METRICS[name](np.zeros(4), np.array([0.0, 1.0, 1.0, 0.0]))
    assert value == 0.0


def test_logits_and_scores_are_read() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 3.0]])
    metrics = classification_metrics(["accuracy", "f1"])
    assert metrics(EvalPrediction(logits, np.array([0, 0]))) == {"accuracy": 0.5, "f1": 0.0}
    scores = np.array([[1.0], [2.0], [4.0]], dtype=np.float32)
    metrics = regression_metrics(["spearmanr"])
    assert metrics(EvalPrediction(scores, np.array([0.1, 0.2, 0.3]))) == pytest.approx(
        {"spearmanr": 1.0}
    )
