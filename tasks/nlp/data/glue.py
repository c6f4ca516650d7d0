"""The tasks of GLUE: their columns, classes, and what they are measured by."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GLUE", "GLUE_HUB_NAME", "GlueTask"]

GLUE_HUB_NAME = "nyu-mll/glue"
"""Where the hub has them; each is a configuration of its own name."""


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Args:
        columns: The text's column, or both of a pair, as the hub names them.
        labels: Names of the classes in the order of their numbers; empty: a score is predicted.
        metrics: Figures to report; the first decides which checkpoint is best.
        validation: The validation splits by the name they are reported under, where there are
            several.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ()


_SENTENCES = ("sentence1", "sentence2")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(_SENTENCES, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "stsb": GlueTask(_SENTENCES, (), ("spearmanr", "pearson")),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation=("matched", "mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueTask(_SENTENCES, ("entailment", "not_entailment")),
    "wnli": GlueTask(_SENTENCES, ("not_entailment", "entailment")),
}
"""Every task by its name.

Reference:
    Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
    Understanding, ICLR 2019.
"""
