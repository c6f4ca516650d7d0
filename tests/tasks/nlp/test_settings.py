"""Configs that build on one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.settings import (
    config_path,
    fill_in,
    merge,
    packaged_configs,
    read_settings,
)


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_bases_come_first_and_mappings_are_merged(tmp_path: Path):
    write(tmp_path / "a.yaml", "x: 1\nd: {p: 1, q: [1, 2], r: {s: 1}}\n")
    write(tmp_path / "sub" / "b.json", json.dumps({"x": 2, "d": {"p": 2}}))
    path = write(
        tmp_path / "sub" / "c.yaml", "_base_: [../a.yaml, b.json]\nd: {q: [3], r: {t: null}}\n"
    )
    assert read_settings(path) == {"x": 2, "d": {"p": 2, "q": [3], "r": {"s": 1, "t": None}}}


def test_a_mapping_and_a_value_replace_one_another():
    assert merge({"a": {"b": 1}}, {"a": "c"}) == {"a": "c"}
    assert merge({"a": "c"}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_merging_leaves_its_arguments_alone():
    base, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    merge(base, changes)
    assert base == {"a": {"b": 1}} and changes == {"a": {"c": 2}}


def test_numbers_and_switches_are_read_as_they_are_written(tmp_path: Path):
    path = write(
        tmp_path / "a.yaml",
        "a: 1e-5\nb: 3\nc: 0.5\nd: no\ne: true\nf: .inf\ng: '1e-5'\nh: 2.E+3\ni: null\n"
        "j: e5\nk: -1\n",
    )
    assert read_settings(path) == {
        "a": 1e-5,
        "b": 3,
        "c": 0.5,
        "d": "no",
        "e": True,
        "f": float("inf"),
        "g": "1e-5",
        "h": 2000.0,
        "i": None,
        "j": "e5",
        "k": -1,
    }
    assert type(read_settings(path)["b"]) is int


def test_packaged_configs_are_found_and_can_be_built_on(tmp_path: Path):
    path = write(tmp_path / "a.yaml", "_base_: taskdistill::nlp/glue/teacher.yaml\ntask: mrpc\n")
    settings = read_settings(path)
    assert settings["task"] == "mrpc" and settings["model"] == "bert-base-uncased"
    assert (packaged_configs() / "nlp").is_dir()


def test_an_installed_package_has_its_configs_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "taskdistill"
    write(folder / ".mim" / "configs" / "a.yaml", "x: 1")
    monkeypatch.setattr("taskdistill.__file__", str(folder / "__init__.py"))
    assert read_settings("taskdistill::a.yaml") == {"x": 1}


def test_a_checkout_has_them_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "configs" / "a.yaml", "x: 1")
    monkeypatch.setattr("taskdistill.__file__", str(tmp_path / "taskdistill" / "__init__.py"))
    assert read_settings("taskdistill::a.yaml") == {"x": 1}


def test_references_take_the_value_of_another_key():
    settings = {"task": "mrpc", "seed": 3, "root": "runs/${task}", "l": ["${root}/${seed}"]}
    assert fill_in(settings)["l"] == ["runs/mrpc/3"]
    assert settings["root"] == "runs/${task}"


def test_a_name_that_is_no_key_is_a_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OWN_DATA", "/data")
    monkeypatch.setenv("task", "not this")
    filled = fill_in({"task": "sst2", "train_file": "${OWN_DATA}/${task}/train.tsv"})
    assert filled["train_file"] == "/data/sst2/train.tsv"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "mrpc", "a": "${taks}"}, "'taks', which neither.*sets. Did you mean 'task'?"),
        ({"task": None, "a": "${task}"}, "'task', which neither.*--task"),
        ({"a": "${b}", "b": "${a}"}, "leads back to itself"),
        ({"a": "${b}", "b": {"c": 1}}, "no plain value"),
    ],
)
def test_references_that_lead_nowhere_are_told(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        fill_in(settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: [1", "cannot be read"),
        ("- x", "must be a mapping"),
        ("1: x", "must be a mapping"),
        ("", "must be a mapping"),
        ("x: 1\ny: 2\nx: 3", "'x' stands there twice, again in line 3"),
        ("d: {x: 1, x: 2}", "'x' stands there twice"),
        ("_base_: 3", "expected a file or a list"),
        ("_base_: nothing.yaml", "does not exist"),
        ("_base_: own.yaml", "builds on itself"),
    ],
)
def test_files_that_cannot_be_meant_are_told(tmp_path: Path, text: str, message: str):
    path = write(tmp_path / "own.yaml", text)
    with pytest.raises(ConfigError, match=message):
        read_settings(path)


def test_a_misspelt_file_is_offered_its_neighbours(tmp_path: Path):
    write(tmp_path / "student.yaml", "x: 1")
    write(tmp_path / "student.txt", "x: 1")
    with pytest.raises(ConfigError, match=r"Did you mean 'student\.yaml'\?$"):
        config_path(str(tmp_path / "studnet.yaml"))
    with pytest.raises(ConfigError, match="must be a YAML or JSON file"):
        config_path(str(tmp_path / "student.txt"))
