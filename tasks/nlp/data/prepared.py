"""What a task hands to the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import EvalPrediction

__all__ = ["Prepared"]


@dataclass(frozen=True)
class Prepared:
    """Data, tokenised, with everything that transformers' ``Trainer`` needs beside them.

    Args:
        model_class: Name of the Auto class that has the head, ``"AutoModelForMaskedLM"`` for
            example.
        config: What the model's config has to say: ``num_labels``, ``id2label``, ``label2id``,
            ``problem_type``, as far as the task has them.
        train: Samples to train on.
        validation: Samples to validate on; a mapping where there are several sets, whose figures
            then begin with its keys (``matched_accuracy``).
        test: Samples that nothing is chosen by.
        collator: Makes a batch of samples.
        compute_metrics: Figures of ``validation`` (of any of its sets).
        preprocess_logits_for_metrics: Reduces the model's output of a batch to what
            ``compute_metrics`` reads.
        metric: The figure that decides which checkpoint is best, one of ``compute_metrics`` (with
            the set's key in front where there are several).
        greater_is_better: Whether more of it is better.
        text: One sentence on what and how much there is.
    """

    model_class: str
    config: dict[str, Any]
    train: Dataset | None
    validation: Dataset | dict[str, Dataset] | None
    test: Dataset | None
    collator: Callable[[list[Any]], dict[str, Any]]
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None
    metric: str
    greater_is_better: bool
    text: str
