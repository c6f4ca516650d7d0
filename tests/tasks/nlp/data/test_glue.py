from __future__ import annotations

from taskdistill.tasks.nlp.data.glue import GLUE
from taskdistill.tasks.nlp.data.metrics import METRICS


def test_all_nine_tasks_with_figures_that_exist() -> None:
    assert list(GLUE) == ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
    for task in GLUE.values():
        assert set(task.metrics) <= set(METRICS)
        assert len(task.columns) in (1, 2)


def test_figures_of_the_benchmark() -> None:
    assert GLUE["cola"].metrics == ("matthews_correlation",)
    assert set(GLUE["stsb"].metrics) == {"pearson", "spearmanr"}
    for name in ("mrpc", "qqp"):
        assert set(GLUE[name].metrics) == {"f1", "accuracy"}


def test_class_numbers_of_the_hub() -> None:
    assert GLUE["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert GLUE["rte"].labels == ("entailment", "not_entailment")
    assert GLUE["wnli"].labels == ("not_entailment", "entailment")
    assert GLUE["stsb"].labels == ()
