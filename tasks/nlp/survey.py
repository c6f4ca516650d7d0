"""The training data as the teachers of a trainer are given them, read once before training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ...core.errors import CacheError
from .text_ids import text_ids

if TYPE_CHECKING:
    from .trainer import DistillingTrainer

__all__ = ["Survey", "groups_of"]

logger = logging.getLogger(__name__)


class Survey:
    """Which texts the training data hold, and whether a text is always the same.

    Args:
        trainer: Its data, collator and batch size are those of training.
        names: The teachers.

    Attributes:
        ids: For each teacher, an id a row of the data.
        lengths: Likewise, the number of tokens.
        padded: Whether training may pad.
        size: Rows a batch.

    Raises:
        CacheError: If the data have no length, or are empty, or the collator is random, depends on
            a text's neighbours or does not make a sample of each row; if a teacher is given other
            inputs than the student, or padding has labels that a pair would compare.
    """

    def __init__(self, trainer: DistillingTrainer, names: Sequence[str]) -> None:
        self._trainer, self.names = trainer, list(names)
        plan = trainer.distillation
        self._readers = plan.readers
        self.dataset, self.collator = trainer.training_source()
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise CacheError(
                f"The training data ({type(self.dataset).__name__}) are a stream without a length: "
                "which texts will come is not known. Give a data set with a length, or leave cache "
                "out."
            )
        self.size = trainer.args.train_batch_size
        # Labelled padding would be compared.
        pairs = [pair for name in self.names for pair in plan.distiller.pairs_of(name)]
        self._labelled = any(plan.distiller.region_of(pair) == "labelled" for pair in pairs)
        self.ids: dict[str, np.ndarray] = {}
        self.lengths: dict[str, np.ndarray] = {}
        self.padded = False
        self._survey()
        self._check_steady()

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, groups: list[list[int]], workers: int | None = None) -> Iterator[Any]:
        """Batches of given rows of the data set, as training would make them."""
        args = self._trainer.args
        workers = args.dataloader_num_workers if workers is None else workers
        loader = DataLoader(
            self.dataset,
            batch_sampler=groups,
            collate_fn=self.collator,
            num_workers=workers,
            generator=torch.Generator(),
        )
        return iter(loader)

    def identify(self, batch: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and numbers of tokens of a batch's texts, as one teacher is given them."""
        return text_ids(self._readers[name].inputs(batch))

    def _survey(self) -> None:
        rows = len(self.dataset)
        if rows == 0:
            raise CacheError("The training data are empty: there is nothing to remember.")
        logger.info("All %d rows of the training data are read once, to know their texts.", rows)
        groups = groups_of(range(rows), self.size)
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in self.names}
        for number, batch in enumerate(self.batches(groups)):
            if number == 0:
                self._check_inputs_of(batch)
            for name in self.names:
                ids, lengths = self.identify(batch, name)
                if len(ids) != len(groups[number]):
                    raise CacheError(
                        f"The data collator makes {len(ids)} samples of {len(groups[number])} rows "
                        "of the data; to remember a teacher it must make one of each."
                    )
                found[name].append((ids, lengths))
                self._look_at_padding(batch, lengths)
        for name, parts in found.items():
            self.ids[name] = np.concatenate([ids for ids, _ in parts])
            self.lengths[name] = np.concatenate([lengths for _, lengths in parts])
            if len(np.unique(self.lengths[name])) > 1:
                self.padded = True

    def _check_inputs_of(self, batch: Mapping[str, Any]) -> None:
        ask = getattr(self._trainer, "teacher_inputs", None)
        if ask is not None and (others := ask(self._trainer._prepare_inputs(dict(batch)))):
            raise CacheError(
                f"teacher_inputs of {type(self._trainer).__bases__[-1].__name__} gives teacher "
                f"{next(iter(others))!r} other inputs than the student's batch; such a teacher "
                "cannot be remembered. Leave cache out."
            )

    def _look_at_padding(self, batch: Mapping[str, Any], lengths: np.ndarray) -> None:
        sequence = batch.get("input_ids", batch.get("inputs_embeds"))
        assert isinstance(sequence, Tensor)
        padding = np.arange(sequence.shape[1]) >= lengths[:, None]
        self.padded = self.padded or bool(padding.any())
        labels = batch.get("labels")
        if self._labelled and isinstance(labels, Tensor) and labels.shape == padding.shape:
            if (labels.numpy() != -100)[padding].any():
                raise CacheError(
                    "Padding has labels, and a pair of region 'labelled' would compare it; of "
                    "padding nothing is remembered. Pad labels with -100, or leave cache out."
                )

    def _check_steady(self) -> None:
        """See that a text is the same whenever, and beside whatever others, it comes."""
        rows = len(self.dataset)
        groups = groups_of(range(rows), self.size)
        last = len(groups) - 1
        windows = [groups[at] for at in sorted({0, last // 3, 2 * last // 3, last})]
        again = zip(windows, self.batches(windows, workers=0), strict=True)
        for window, batch in again:
            self._compare(window, batch, "is random: it makes something else of the same rows")
        # One text alone, and a few in another order.
        others = [[row] for window in windows for row in window[:4]]
        others += [window[: len(window) // 2 + 1][::-1] for window in windows]
        for window, batch in zip(others, self.batches(others, workers=0), strict=True):
            self._compare(
                window, batch, "makes something else of a text beside other texts of a batch"
            )

    def _compare(self, rows: list[int], batch: Mapping[str, Any], what: str) -> None:
        for name in self.names:
            ids, _ = self.identify(batch, name)
            if not np.array_equal(ids, self.ids[name][rows]):
                row = rows[int((ids != self.ids[name][rows]).argmax())]
                made_by = self._trainer.data_collator
                collator = getattr(made_by, "__name__", type(made_by).__name__)
                raise CacheError(
                    f"The data set or its collator ({collator}) {what} (row {row}), so what a "
                    "teacher says of it cannot be kept. Do it once, as a map over the data set "
                    "(masking words: Dataset.map), or leave cache out."
                )


def groups_of(rows: Sequence[int], size: int) -> list[list[int]]:
    """Rows in groups of one size; the last may be smaller.

    Example:
        >>> groups_of(range(3), 2)
        [[0, 1], [2]]
    """
    return [[int(row) for row in rows[i : i + size]] for i in range(0, len(rows), size)]
