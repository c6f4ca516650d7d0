"""Masked language modelling: texts in blocks, some of their words hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ....core.errors import DataError
from .arguments import DataArguments
from .encoding import Frame, encode_rows, padding
from .masking import MASK_SEED, MaskingCollator, masked_logits, masked_metrics
from .prepared import Prepared
from .sources import Splits

__all__ = ["mask_for_good", "prepare_masked_lm"]


def prepare_masked_lm(
    args: DataArguments, splits: Splits, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Prepared:
    """Fill blocks of ``max_length`` tokens with texts one after another, or take lines one by one.

    Training batches are masked when they are made, validation and test sets once and always alike.

    Args:
        args: What the data are.
        splits: Documents (:func:`.corpora.load_documents`).
        tokenizer: A fast one with a mask token.
        seed: Of the training masks.

    Raises:
        DataError: If there is no text.
    """
    frame = Frame.of(tokenizer)
    function = partial(
        _lines if args.line_by_line else _blocks,
        tokenizer=tokenizer,
        frame=frame,
        length=args.max_length - frame.single_cost,
    )
    # What fills one block with another depends on the batch: one process, so that the number of
    # processes changes nothing.
    blocks = splits.map(
        lambda rows, name: encode_rows(rows, function, args, one_process=not args.line_by_line)
    ).limited(args)
    for name, rows in blocks.each().items():
        if len(rows) == 0:
            raise DataError(f"There is no text in {name}.")
    collator = MaskingCollator(
        tokenizer, mlm_probability=args.mlm_probability, seed=seed, **padding(args)
    )
    blocks = mask_for_good(blocks, collator, args)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in blocks.each().items())
    return Prepared(
        model_class="AutoModelForMaskedLM",
        config={},
        train=blocks.train,
        validation=blocks.for_trainer,
        test=blocks.test,
        collator=collator,
        compute_metrics=masked_metrics,
        preprocess_logits_for_metrics=masked_logits,
        metric="perplexity",
        greater_is_better=False,
        text=f"{'lines' if args.line_by_line else 'blocks'} of at most {args.max_length} tokens: "
        f"{counts}",
    )


def mask_for_good(splits: Splits, collator: MaskingCollator, args: DataArguments) -> Splits:
    """The same splits, with all but the training set masked once."""
    fixed = replace(collator, seed=MASK_SEED)
    return splits.map(
        lambda rows, name: rows if name == "train" else encode_rows(rows, fixed.mask_rows, args)
    )


def _lines(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, frame: Frame, length: int
) -> dict[str, list[Any]]:
    lines = [line for text in batch["text"] for line in text.split("\n")]
    ids = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]
    return _rows([line[:length] for line in ids if line], frame)


def _blocks(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, frame: Frame, length: int
) -> dict[str, list[Any]]:
    ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    return _rows(list(_packed(ids, frame.after, length)), frame)


def _packed(
    documents: Sequence[Sequence[int]], border: Sequence[int], length: int
) -> Iterator[list[int]]:
    """Cut all documents, joined at borders, into equal pieces; the last may be shorter."""
    stream: list[int] = []
    for ids in documents:
        if not ids:
            continue
        if stream:
            stream.extend(border)
        stream.extend(ids)
        while len(stream) >= length:
            yield stream[:length]
            del stream[:length]
    if stream:
        yield stream


def _rows(sequences: Sequence[Sequence[int]], frame: Frame) -> dict[str, list[Any]]:
    ids = [frame.single(sequence) for sequence in sequences]
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
