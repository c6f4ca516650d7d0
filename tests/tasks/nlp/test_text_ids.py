"""Texts told apart by what a teacher is given of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nlp_parts as parts
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import CacheError
from taskdistill.tasks.nlp.outputs import Reader
from taskdistill.tasks.nlp.text_ids import POSITIONS, PositionsCollator, TextTable, text_ids


def inputs(
    rows: list[list[int]], padding: int = 0, **columns: list[list[int]]
) -> dict[str, Tensor]:
    longest = max(map(len, rows)) + padding
    filled = {
        name: torch.tensor([row + [0] * (longest - len(row)) for row in values])
        for name, values in {"input_ids": rows, **columns}.items()
    }
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {**filled, "attention_mask": mask}


def ids(**columns: Any) -> list[int]:
    return text_ids(columns)[0].tolist()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_two_texts_have_one_id_where_they_are_the_same_and_only_there(rows, padding):
    found, lengths = text_ids(inputs(rows, padding))
    assert lengths.tolist() == [len(row) for row in rows]
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert (found[i] == found[j]) == (a == b)
        assert text_ids(inputs([a]))[0][0] == found[i]


def test_every_input_counts_for_its_real_tokens():
    rows = [[4, 5, 6], [4, 5]]
    plain = inputs(rows, token_type_ids=[[0, 0, 1], [0, 1]])
    before = ids(**plain)
    for name in ("input_ids", "token_type_ids"):
        changed = {key: value.clone() for key, value in plain.items()}
        changed[name][1, 1] += 1
        after = ids(**changed)
        assert after[0] == before[0] and after[1] != before[1]
        changed = {key: value.clone() for key, value in plain.items()}
        changed[name][1, 2] += 1  # padding
        assert ids(**changed) == before
    without = {key: value for key, value in plain.items() if key != "token_type_ids"}
    assert not set(ids(**without)) & set(before)


def test_an_id_does_not_depend_on_dtypes_or_the_order_of_columns():
    plain = inputs([[4, 5, 6], [4, 5]], token_type_ids=[[0, 0, 1], [0, 1]])
    narrow = {key: value.int() for key, value in reversed(plain.items())}
    assert ids(**plain) == ids(**narrow)


def test_inputs_of_a_whole_sample_count():
    rows = torch.tensor([[4, 5], [4, 5]])
    found = ids(input_ids=rows, cls_index=torch.tensor([0, 1]))
    assert found[0] != found[1]


def test_without_a_mask_every_token_is_real():
    found, lengths = text_ids({"input_ids": torch.tensor([[4, 5, 0]])})
    assert lengths.tolist() == [3]
    assert found[0] != text_ids({"input_ids": torch.tensor([[4, 5]])})[0][0]


@pytest.mark.parametrize(
    "mask",
    [[[0, 1, 1]], [[1, 0, 1]], [[2, 1, 1]], [[0.5, 0.5, 0.0]]],
    ids=["left", "hole", "number", "weights"],
)
def test_other_masks_than_ones_before_zeros_are_refused(mask: list[list[float]]):
    with pytest.raises(CacheError, match="padding must be on the right"):
        text_ids({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor(mask)})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pixel_values": torch.ones(1, 3)}, "given none"),
        ({"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 1, 3)}, r"must be \(B, T"),
        ({"input_ids": torch.ones(2, 3), "position_ids": torch.ones(1, 3)}, "'position_ids'"),
        ({"input_ids": torch.ones(2, 3), "mode": "fast"}, "'mode'"),
    ],
)
def test_inputs_that_cannot_be_told_apart_are_refused(columns: dict[str, Any], message: str):
    with pytest.raises(CacheError, match=message):
        text_ids(columns)


# -- the table ------------------------------------------------------------------------------------


def made(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype="<u8")


def test_a_table_holds_each_text_once_in_order():
    table = TextTable.of(made(9, 2**63 + 5, 9, 1), np.array([4, 2, 4, 3]))
    assert table.ids.tolist() == [9, 2**63 + 5, 1]
    assert table.lengths.tolist() == [4, 2, 3]
    assert table.positions(made(1, 9, 7, 2**64 - 1, 2**63 + 5)).tolist() == [2, 0, -1, -1, 1]


def test_rows_with_a_text_are_found_again():
    table = TextTable.of(made(9, 5, 1), np.array([1, 1, 1]))
    assert table.rows(made(1, 8, 9, 1)).tolist() == [2, -1, 0]


def test_a_table_comes_back_from_its_file(tmp_path: Path):
    table = TextTable.of(made(9, 5, 2**64 - 1), np.array([4, 2, 3]))
    table.save(tmp_path / "texts.npy")
    held = TextTable.load(tmp_path / "texts.npy")
    assert held is not None and held.sha256 == table.sha256
    assert held.lengths.tolist() == [4, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["texts.npy"]
    assert TextTable.of(made(9, 5, 7), np.array([4, 2, 3])).sha256 != table.sha256


@pytest.mark.parametrize("content", [None, b"", b"no table", b"\x93NUMPY\x01\x00v\x00{"])
def test_what_is_no_table_is_none(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "texts.npy").write_bytes(content)
    assert TextTable.load(tmp_path / "texts.npy") is None


def test_an_array_of_something_else_is_none(tmp_path: Path):
    np.save(tmp_path / "texts.npy", np.ones((3, 2)))
    assert TextTable.load(tmp_path / "texts.npy") is None


def test_a_table_that_cannot_be_written_leaves_the_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "texts.npy"
    first = TextTable.of(made(9), np.array([4]))
    first.save(path)

    def full(*args: Any, **kw: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CacheError, match="No space left"):
        TextTable.of(made(8), np.array([4])).save(path)
    held = TextTable.load(path)
    assert held is not None and held.sha256 == first.sha256
    assert len(list(tmp_path.iterdir())) == 1


def test_the_collator_adds_where_texts_are_and_can_be_sent_to_a_process():
    reader = Reader(parts.model(), ["logits"], "teacher")
    rows = parts.rows(count=6)
    batch = parts.collate(rows)
    found, lengths = text_ids(reader.inputs(batch))
    table = TextTable.of(found[:4], lengths[:4])
    collator = pickle.loads(pickle.dumps(PositionsCollator(parts.collate, {"a": (reader, table)})))
    made_batch = collator(rows[2:])
    assert made_batch.pop(POSITIONS)["a"].tolist() == [2, 3, -1, -1]
    for key, value in parts.collate(rows[2:]).items():
        assert torch.equal(made_batch[key], value)
