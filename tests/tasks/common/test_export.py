from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from taskdistill.core.errors import ConfigError, DistillError
from taskdistill.tasks.common.export import (
    add_targets,
    bare_state,
    export_first,
    read_targets,
    save_state,
)


def arguments(*words: str, checkpoint: str = "none.pth") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_targets(parser, "")
    args = parser.parse_args(words)
    args.checkpoint = checkpoint
    return args


def test_a_bare_state_is_a_copy():
    network = nn.Linear(2, 2)
    bare_state(network)["weight"].zero_()
    assert network.weight.abs().sum() > 0


def test_a_state_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "net.pth"
    save_state({"a": torch.ones(1)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(1))

    def full(state: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_state({"a": torch.zeros(1)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["net.pth"]
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(1))


def test_the_first_way_that_works_is_kept(tmp_path: Path):
    tried = []

    def write(way: str, part: Path) -> None:
        tried.append(way)
        part.write_text(way)
        if way != "plain":
            raise {"odd": ValueError("cannot"), "wrong": DistillError("differs")}[way]

    path = tmp_path / "net.onnx"
    assert export_first(write, ["odd", "wrong", "plain", "never"], path) == "plain"
    assert tried == ["odd", "wrong", "plain"] and path.read_text() == "plain"
    with pytest.raises(ConfigError, match="cannot export this network to .*net.onnx.: cannot"):
        export_first(write, ["wrong", "odd"], path)
    with pytest.raises(DistillError, match="differs"):
        export_first(write, ["odd", "wrong"], path)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_text() == "plain"


def test_files_are_replaced_on_purpose_only(tmp_path: Path):
    there = tmp_path / "there.pth"
    there.touch()
    read_targets(arguments("--out", str(tmp_path / "new.pth")))
    read_targets(arguments("--out", str(there), "--force"))
    for words, message in (
        ((), "Nothing to write: give --out, --onnx or --program"),
        (("--out", "a", "--onnx", "./a"), "--out, --onnx name the same file"),
        (("--out", str(tmp_path)), "is a folder"),
        (("--out", str(there)), "exists; choose another name, or add --force"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_targets(arguments(*words))
    with pytest.raises(ConfigError, match="is the checkpoint itself"):
        read_targets(arguments("--out", str(there), "--force", checkpoint=str(there)))
