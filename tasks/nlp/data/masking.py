"""Masked words: the collator that masks, and what is measured under masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling, EvalPrediction

__all__ = [
    "MASK_SEED",
    "MaskingCollator",
    "masked_logits",
    "masked_metrics",
    "pretraining_logits",
    "pretraining_metrics",
]

IGNORED = -100
MASK_SEED = 0
"""Of validation sets, which are masked once: figures of all runs are about the same words."""


@dataclass
class MaskingCollator(DataCollatorForLanguageModeling):
    """Pads and masks as BERT does: 80 % become ``[MASK]``, 10 % another token, 10 % stay.

    What is masked depends on the seed and on what is in the batch, and on no random state. So the
    masks change from epoch to epoch as the shuffled batches do, and a resumed run sees the very
    masks of one that was never stopped, in whatever processes batches are made. (Without shuffling
    every epoch has the same masks.) A batch in which chance masks nothing gets one mask, since its
    loss would be no number.

    Rows that have ``labels`` are masked already, and are padded only.

    Args:
        tokenizer: With a mask token.
        mlm_probability: Share of the tokens that are masked, special ones (``[UNK]`` too) aside.
        seed: Other seed, other masks.
        padding: ``True``, or ``"max_length"``.
        max_length: To pad to, in tokens, with ``"max_length"``.

    Reference:
        Devlin et al., BERT, NAACL 2019, section 3.1; Liu et al., RoBERTa, 2019 (masks that change).
    """

    padding: bool | str = True
    max_length: int | None = None

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Make a batch of rows."""
        labels = [row["labels"] for row in examples if "labels" in row]
        rows = [{key: row[key] for key in row if key != "labels"} for row in examples]
        batch = dict(
            self.tokenizer.pad(
                rows, padding=self.padding, max_length=self.max_length, return_tensors="pt"
            )
        )
        if labels:
            batch["labels"] = _padded(labels, batch["input_ids"])
        else:
            batch["input_ids"], batch["labels"] = self.masked(batch["input_ids"])
        return batch

    def masked(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mask token ids, shape ``(rows, length)``: returns them masked, and the labels."""
        special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        seed = hashlib.blake2b(ids.numpy().tobytes(), key=str(self.seed).encode(), digest_size=7)
        self.generator = torch.Generator().manual_seed(int.from_bytes(seed.digest(), "big"))
        masked, labels = self.torch_mask_tokens(ids.clone(), special_tokens_mask=special)
        if (labels == IGNORED).all() and not special.all():
            places = (~special).nonzero()
            pick = torch.randint(len(places), (), generator=self.generator)
            row, column = places[pick].tolist()
            labels[row, column] = ids[row, column]
            masked[row, column] = self.tokenizer.mask_token_id
        return masked, labels

    def mask_rows(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Mask rows for good, each by itself: for ``Dataset.map(..., batched=True)``."""
        pairs = [self.masked(torch.tensor([ids])) for ids in batch["input_ids"]]
        return {
            **batch,
            "input_ids": [masked[0].tolist() for masked, _ in pairs],
            "labels": [labels[0].tolist() for _, labels in pairs],
        }


def _padded(labels: Sequence[Sequence[int]], ids: Tensor) -> Tensor:
    padded = torch.full_like(ids, IGNORED)
    for row, values in zip(padded, labels, strict=True):
        row[: len(values)] = torch.tensor(values)
    return padded


def masked_logits(outputs: Tensor | tuple[Any, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits over the vocabulary: the chosen token, and the loss where there is a label.

    Args:
        outputs: Logits ``(rows, length, vocabulary)``, or a tuple that begins with them.
        labels: Shape ``(rows, length)``.

    Returns:
        Two tensors ``(rows, length)``: a vocabulary smaller than the logits were.

    Example:
        >>> chosen, loss = masked_logits(torch.zeros(1, 2, 4), torch.tensor([[-100, 3]]))
        >>> loss  # ln 4 where there is a label
        tensor([[0.0000, 1.3863]])
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    kept = labels != IGNORED
    loss = torch.zeros(labels.shape, device=logits.device)
    loss[kept] = F.cross_entropy(logits[kept].float(), labels[kept], reduction="none")
    return logits.argmax(dim=-1), loss


def masked_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy under the masks and perplexity, from what :func:`masked_logits` keeps."""
    kept: Any = prediction.predictions
    chosen, loss = kept
    return _masked(chosen, loss, np.asarray(prediction.label_ids))


def pretraining_logits(
    outputs: tuple[Any, ...], labels: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as :func:`masked_logits`, with the chosen class of the pair behind it.

    Args:
        outputs: Begins with the logits of tokens and of pairs, ``(rows, 2)``.
        labels: Of tokens and of pairs.

    Example:
        >>> outputs = torch.zeros(1, 2, 4), torch.tensor([[0.0, 1.0]])
        >>> pretraining_logits(outputs, (torch.tensor([[-100, 3]]), torch.tensor([1])))[2]
        tensor([1])
    """
    return (*masked_logits(outputs[0], labels[0]), outputs[1].argmax(dim=-1))


def pretraining_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Figures of both tasks, from what :func:`pretraining_logits` keeps."""
    kept: Any = prediction.predictions
    labels: Any = prediction.label_ids
    chosen, loss, pairs = kept
    right = np.asarray(pairs) == np.asarray(labels[1])
    return {**_masked(chosen, loss, np.asarray(labels[0])), "nsp_accuracy": float(right.mean())}


def _masked(chosen: np.ndarray, loss: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    kept = labels != IGNORED
    if not kept.any():
        return {"mlm_accuracy": 0.0, "perplexity": float("inf")}
    with np.errstate(over="ignore"):
        perplexity = np.exp(loss[kept].mean(dtype=np.float64))
    return {
        "mlm_accuracy": float((chosen == labels)[kept].mean()),
        "perplexity": float(perplexity),
    }
