"""The training data looked at before anything is remembered."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nlp_parts as parts
import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer

from taskdistill.core.errors import CacheError
from taskdistill.tasks.nlp import DistillationCallback
from taskdistill.tasks.nlp.survey import Survey

PAIRS = [dict(student="outputs.logits", loss="KLDivergence", temperature=2.0)]


def survey(folder: Path, head: str = "classification", **options: Any) -> Survey:
    collator, kind = options.pop("collator", parts.collate), options.pop("kind", Trainer)
    pairs = options.pop("pairs", PAIRS)
    callback = DistillationCallback(parts.teacher(head), pairs, cache=folder / "cache")
    run: Any = parts.trainer(
        folder, parts.model(head), head=head, callbacks=[callback], kind=kind, **options
    )
    run.data_collator = collator
    return Survey(run, ["teacher"])


def test_it_knows_every_text_and_length(tmp_path: Path):
    rows = parts.rows(count=10)
    found = survey(tmp_path, data=[*rows, rows[2]])
    assert len(found) == 11
    assert found.lengths["teacher"].tolist() == [len(row["input_ids"]) for row in [*rows, rows[2]]]
    ids = found.ids["teacher"]
    assert ids[10] == ids[2] and len(set(ids.tolist())) == 10
    assert found.padded


def test_texts_of_one_length_are_not_padded(tmp_path: Path):
    pairs = [dict(student="outputs.start_logits", loss="KLDivergence")]
    assert not survey(tmp_path, "answers", pairs=pairs).padded


def test_the_random_state_of_loaders_is_left_alone(tmp_path: Path):
    found = survey(tmp_path)
    state = torch.get_rng_state()
    list(found.batches([[0, 1], [2]]))
    assert torch.equal(torch.get_rng_state(), state)


def drop_words(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = parts.collate(rows)
    batch["input_ids"][torch.rand(batch["input_ids"].shape) < 0.2] = 3
    return batch


def neighbours(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Random numbers made of the whole batch, as the masking of this package does."""
    batch = parts.collate(rows)
    seed = torch.Generator().manual_seed(int(batch["input_ids"].sum()))
    batch["input_ids"][torch.rand(batch["input_ids"].shape, generator=seed) < 0.2] = 3
    return batch


def unmasked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in parts.collate(rows).items() if key != "attention_mask"}


def twice(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return parts.collate([*rows, *rows])


@pytest.mark.parametrize(
    ("collator", "message"),
    [
        (drop_words, r"\(drop_words\) is random.*Dataset.map"),
        (neighbours, "beside other texts"),
        (unmasked, "beside other texts"),
        (twice, "16 samples of 8 rows"),
    ],
)
def test_a_collator_that_makes_other_texts_each_time_is_refused(
    tmp_path: Path, collator: Any, message: str
):
    with pytest.raises(CacheError, match=message):
        survey(tmp_path, collator=collator)
    assert not (tmp_path / "cache").exists()


class Noisy(list):
    def __getitem__(self, index: Any) -> Any:
        row = super().__getitem__(index)
        return {**row, "input_ids": [random.randrange(1, 50) for _ in row["input_ids"]]}


def test_a_random_data_set_is_refused(tmp_path: Path):
    with pytest.raises(CacheError, match="is random"):
        survey(tmp_path, data=Noisy(parts.rows()))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(parts.rows())


def test_a_stream_is_refused(tmp_path: Path):
    with pytest.raises(CacheError, match="a stream without a length"):
        survey(tmp_path, data=Stream())


def test_a_teacher_with_inputs_of_its_own_is_refused(tmp_path: Path):
    class Asking(Trainer):
        def teacher_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"teacher": {**inputs, "input_ids": inputs["input_ids"].flip(0)}}

    with pytest.raises(CacheError, match="teacher_inputs of Asking"):
        survey(tmp_path, kind=Asking)


def label_padding(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = parts.collate(rows)
    batch["labels"][batch["attention_mask"] == 0] = 1
    return batch


def test_labelled_padding_is_refused_where_it_would_be_compared(tmp_path: Path):
    with pytest.raises(CacheError, match="Padding has labels"):
        survey(tmp_path / "a", "tokens", collator=label_padding)
    pairs = [dict(PAIRS[0], region="tokens")]
    found = survey(tmp_path / "b", "tokens", collator=label_padding, pairs=pairs)
    assert np.array_equal(
        found.lengths["teacher"], survey(tmp_path / "c", "tokens").lengths["teacher"]
    )
