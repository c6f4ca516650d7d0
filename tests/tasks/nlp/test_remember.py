"""Options of a cache, and what is looked up in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nlp_parts as parts
import numpy as np
import pytest
import torch

from taskdistill.core.answers import AnswerLayout, Probe
from taskdistill.core.cache import CacheSpec, TeacherCache
from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.core.taps import Captured, Taps
from taskdistill.tasks.nlp.outputs import Reader
from taskdistill.tasks.nlp.remember import CacheOptions, RememberedTeacher
from taskdistill.tasks.nlp.text_ids import TextTable, text_ids


def test_options_come_from_a_folder_or_a_mapping(tmp_path: Path):
    assert CacheOptions.of(None) is None
    for given in ("a/b", Path("a/b"), {"path": "a/b"}, CacheOptions("a/b")):
        assert CacheOptions.of(given) == CacheOptions("a/b", "fp16", True, 64)
    options = CacheOptions.of(dict(path=tmp_path, dtype="fp32", build=False, shard_mb=0.5))
    assert options == CacheOptions(str(tmp_path), "fp32", False, 0.5)
    assert options.folder("big") == tmp_path / "big"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "fp16"}, "has no path"),
        ({"path": "a", "dtpye": "fp16"}, "Did you mean 'dtype'"),
        ({"path": "a", "dtype": "int8"}, "'int8' is not one of"),
        ({"path": "a", "build": "no"}, "true or false"),
        ({"path": "a", "shard_mb": 0}, "above 0"),
        ({"path": "a", "shard_mb": True}, "above 0"),
        ("", "needs a path"),
        (7, "a folder, or a mapping"),
    ],
)
def test_options_that_cannot_be_meant(given: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        CacheOptions.of(given)


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "there").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        CacheOptions(str(tmp_path / "there"))


@pytest.fixture
def remembered(tmp_path: Path) -> RememberedTeacher:
    """Of each token of six texts, its own number as a hidden state."""
    teacher = parts.teacher()
    reader, taps = Reader(teacher, ["hidden_states"], "teacher"), Taps(teacher, [])
    batch = parts.collate(parts.rows(count=6))
    ids, lengths = text_ids(reader.inputs(batch))

    def states(ids: torch.Tensor) -> dict[str, Any]:
        return {"hidden_states": [None, ids[..., None].float()]}

    probes = [
        Probe(Captured.of(taps, {}), states(torch.ones(n, t).long()), n, t)
        for n, t in ((2, 5), (3, 4))
    ]
    layout = AnswerLayout.learn(probes, dtype="fp32")
    table = TextTable.of(ids, lengths)
    cache = TeacherCache(tmp_path / "teacher", CacheSpec(layout.fields, len(table), {}, 4))
    for shard in range(cache.shards):
        at = list(cache.positions(shard))
        answer = states(batch["input_ids"])["hidden_states"][1][at]
        rows = layout.take_apart(Captured.of(taps, {}), {"hidden_states": [None, answer]})
        cache.write(shard, rows, torch.from_numpy(lengths[at]))
    return RememberedTeacher(reader, taps, layout, table, cache)


@pytest.mark.parametrize("known", [False, True])
def test_a_batch_is_answered_text_by_text(remembered: RememberedTeacher, known: bool):
    rows = parts.rows(count=6)
    chosen = [5, 0, 3, 0]
    batch = parts.collate([rows[i] for i in chosen])
    positions = np.array(chosen) if known else None
    _, outputs = remembered.answer(batch, positions)
    first, second = outputs["hidden_states"]
    assert first is None
    assert torch.equal(second[..., 0], (batch["input_ids"] * batch["attention_mask"]).float())


def test_another_text_is_never_answered(remembered: RememberedTeacher):
    batch = parts.collate(parts.rows(count=6)[:3])
    for column in ("input_ids", "token_type_ids"):
        changed = {**batch, column: batch[column].clone()}
        changed[column][1, 0] += 1
        with pytest.raises(CacheError, match="1 of the 3 texts of a batch are not in cache"):
            remembered.answer(changed)
    shorter = {**batch, "attention_mask": batch["attention_mask"].clone()}
    shorter["attention_mask"][0, -1] = shorter["attention_mask"][1, 1:] = 0
    with pytest.raises(CacheError, match="of the 3 texts"):
        remembered.answer(shorter)
