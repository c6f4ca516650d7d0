"""How often the label is the class a network is surest of, or among the first few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ...core.errors import ConfigError, DataError, ShapeError

__all__ = ["Accuracy", "label_ranks"]


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label's.

    Of equal scores the class with the lower index comes first, so that a network that says the same
    of every class is not right about all. Where a score is NaN, all classes come before.

    Args:
        scores: (N, K), probabilities or logits.
        labels: (N,), int64.

    Returns:
        (N,), int64; the label is among the first k classes where it is below k.

    Example:
        >>> label_ranks(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]), torch.tensor([0, 2]))
        tensor([2, 1])
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return before.sum(1).masked_fill(scores.isnan().any(1), scores.shape[1])


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of the images, in per cent, whose label is among the first k classes.

    ``accuracy/top1``, ``accuracy/top5``, ...; ``accuracy/NAME_top1`` for each further way of
    predicting that the classifier offers (exits, ensembles); with ``per_class`` also
    ``accuracy/top1.CLASS``, the share of the class's own images.

    Args:
        topk: The k. One that is no less than the number of classes gives 100.
        per_class: Whether each class has a figure; one without images has none.
        collect_device: As for mmengine's metrics.
        prefix: Likewise; ``accuracy`` by default.

    Raises:
        ConfigError: If a k is no whole number above 0.
        DataError: In use, if an image has no label or one beyond the classes.
    """

    default_prefix = "accuracy"

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        per_class: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        if not topk or not all(isinstance(k, int) and k >= 1 for k in topk):
            raise ConfigError(f"topk={topk!r} of Accuracy; expected whole numbers above 0.")
        self.topk = tuple(topk)
        self.per_class = per_class

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep where the labels rank.

        Args:
            data_batch: Not needed.
            data_samples: What the classifier predicted; see :meth:`.ImageClassifier.predict`.
        """
        if not data_samples:
            return
        known = [sample["label"] for sample in data_samples]
        if any(label is None for label in known):
            raise DataError("Accuracy needs labels, but the data has none.")
        scores = torch.stack([sample["scores"] for sample in data_samples])
        if not 0 <= min(known) <= max(known) < scores.shape[1]:
            raise DataError(
                f"Labels from {min(known)} to {max(known)}, but the network knows "
                f"{scores.shape[1]} classes."
            )
        labels = torch.tensor(known, device=scores.device)
        ranks = label_ranks(scores, labels).tolist()
        further: dict[str, list[int]] = {}
        for name in data_samples[0].get("further") or ():
            other = torch.stack([sample["further"][name] for sample in data_samples])
            if other.shape != scores.shape:
                raise ShapeError(
                    f"Further scores {name!r} have shape {tuple(other.shape[1:])} a sample, the "
                    f"network's own {tuple(scores.shape[1:])}."
                )
            further[name] = label_ranks(other, labels).tolist()
        self.results += [
            (label, rank, {name: of[index] for name, of in further.items()})
            for index, (label, rank) in enumerate(zip(known, ranks, strict=True))
        ]

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """The figures, in per cent.

        Args:
            results: Of each image the label, its rank, and its ranks by the further scores.
        """
        labels = torch.tensor([result[0] for result in results])
        ranks = torch.tensor([result[1] for result in results])
        figures = {f"top{k}": _percent(ranks < k) for k in self.topk}
        for name in results[0][2]:
            figures[f"{name}_top1"] = _percent(torch.tensor([r[2][name] for r in results]) < 1)
        if self.per_class:
            names = (self.dataset_meta or {}).get("classes", ())
            for label in labels.unique().tolist():
                name = names[label] if label < len(names) else label
                figures[f"top1.{name}"] = _percent(ranks[labels == label] < 1)
        return figures


def _percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()
