"""BERT's pre-training: masked words, and whether one piece of text follows another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ....core.errors import DataError
from .arguments import DataArguments
from .encoding import Frame, encode_rows, padding
from .masked_lm import mask_for_good
from .masking import MaskingCollator, pretraining_logits, pretraining_metrics
from .prepared import Prepared
from .sentences import sentences
from .sources import Splits

__all__ = ["make_pairs", "prepare_pretraining"]

_PAIR_SEED = 0  # of validation and test sets: the same pairs in every run


def prepare_pretraining(
    args: DataArguments, splits: Splits, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Prepared:
    """Make pairs of pieces, half of them with a second piece from another document.

    ``next_sentence_label`` is 0 where the second piece follows the first and 1 where it is from
    elsewhere, as transformers' ``ForPreTraining`` heads have it. Pairs are made once; masks as in
    :func:`.masked_lm.prepare_masked_lm`.

    Args:
        args: What the data are.
        splits: Documents (:func:`.corpora.load_documents`), two at least in every set.
        tokenizer: A fast one with a mask token.
        seed: Of the training pairs and masks.

    Raises:
        DataError: If a set has fewer than two documents, or makes no pairs.

    Reference:
        Devlin et al., BERT, NAACL 2019, section 3.1.
    """
    frame = Frame.of(tokenizer)
    for name, rows in splits.each().items():
        if len(rows) < 2:
            raise DataError(
                f"The set {name!r} is one document; pairs from different documents need two at "
                "least. Separate documents by blank lines."
            )
    encoded = splits.map(
        lambda rows, name: encode_rows(rows, partial(_tokens, tokenizer=tokenizer), args)
    )
    pairs = encoded.map(
        lambda rows, name: encode_rows(
            rows,
            partial(
                _pairs,
                frame=frame,
                length=args.max_length,
                seed=seed if name == "train" else _PAIR_SEED,
            ),
            args,
            one_process=True,
            with_indices=True,
        )
    ).limited(args)
    for name, rows in pairs.each().items():
        if len(rows) == 0:
            raise DataError(
                f"No pairs can be made of {name}: its documents are single sentences. Give longer "
                "ones, or take task masked_lm."
            )
    collator = MaskingCollator(
        tokenizer, mlm_probability=args.mlm_probability, seed=seed, **padding(args)
    )
    pairs = mask_for_good(pairs, collator, args)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in pairs.each().items())
    return Prepared(
        model_class="AutoModelForPreTraining",
        config={},
        train=pairs.train,
        validation=pairs.for_trainer,
        test=pairs.test,
        collator=collator,
        compute_metrics=pretraining_metrics,
        preprocess_logits_for_metrics=pretraining_logits,
        metric="perplexity",
        greater_is_better=False,
        text=f"pairs of at most {args.max_length} tokens: {counts}",
    )


def make_pairs(
    documents: Sequence[Sequence[Sequence[int]]], length: int, rng: random.Random
) -> Iterator[tuple[list[int], list[int], int]]:
    """Pairs of pieces of documents.

    A document is read from its start in chunks of whole sentences that fill ``length``; a chunk is
    cut between two sentences, and in half of the cases its second part is left to the next chunk
    and replaced by a stretch of another document. One chunk in ten is shorter, by chance. What is
    too long is cut, the longer side first, at its front or back by chance.

    Args:
        documents: Token ids by sentence, none of them empty. With one document alone every second
            piece follows.
        length: Most tokens of both pieces together.
        rng: Where chance comes from.

    Yields:
        First piece, second piece, and 0 (it follows) or 1 (it is from another document).
    """
    for number, document in enumerate(documents):
        position = 0
        while position < len(document):
            target = rng.randint(2, length) if rng.random() < 0.1 else length
            end, size = position, 0
            while end < len(document) and (size < target or end < position + 2):
                size += len(document[end])
                end += 1
            if end < position + 2:  # one sentence is left, which nothing follows
                break
            cut = rng.randint(position + 1, end - 1)
            first = _joined(document[position:cut])
            is_random = len(documents) > 1 and rng.random() < 0.5
            if is_random:
                other = rng.randrange(len(documents) - 1)
                other += other >= number
                second = _stretch(documents[other], target - len(first), rng)
                position = cut
            else:
                second = _joined(document[cut:end])
                position = end
            yield (*_cut_to(first, second, length, rng), int(is_random))


def _stretch(document: Sequence[Sequence[int]], length: int, rng: random.Random) -> list[int]:
    start = rng.randrange(len(document))
    piece: list[int] = []
    for sentence in document[start:]:
        piece.extend(sentence)
        if len(piece) >= length:
            break
    return piece


def _cut_to(
    first: list[int], second: list[int], length: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    while len(first) + len(second) > length:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)
    return first, second


def _joined(parts: Sequence[Sequence[int]]) -> list[int]:
    return [token for part in parts for token in part]


def _tokens(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    found = []
    for text in batch["text"]:
        ids = tokenizer(sentences(text), add_special_tokens=False, verbose=False)["input_ids"]
        found.append([sentence for sentence in ids if sentence])
    return {"sentences": found}


def _pairs(
    batch: dict[str, list[Any]], indices: Sequence[int], frame: Frame, length: int, seed: int
) -> dict[str, list[Any]]:
    documents = [document for document in batch["sentences"] if document]
    made: dict[str, list[Any]] = {
        "input_ids": [],
        "token_type_ids": [],
        "attention_mask": [],
        "next_sentence_label": [],
    }
    rng = random.Random(f"{seed} {indices[0]}")
    for first, second, label in make_pairs(documents, length - frame.pair_cost, rng):
        ids, types = frame.pair(first, second)
        made["input_ids"].append(ids)
        made["token_type_ids"].append(types)
        made["attention_mask"].append([1] * len(ids))
        made["next_sentence_label"].append(label)
    return made
