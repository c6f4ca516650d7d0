from __future__ import annotations

from typing import Any

import pytest
from nlp_architectures import encoder
from torch import nn
from transformers import BertConfig

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.layers import depth_of, encoder_layers, layer_map, projections

LAYERS = {
    "Bert": "bert.encoder.layer",
    "DistilBert": "distilbert.transformer.layer",
    "Roberta": "roberta.encoder.layer",
    "Electra": "electra.encoder.layer",
    "DebertaV2": "deberta.encoder.layer",
    "MobileBert": "mobilebert.encoder.layer",
    "ModernBert": "model.layers",
    "IBBert": "ib_bert.encoder.layer",
}


# -- which with which -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "ours", "theirs", "expected"),
    [
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT-4
        ("uniform", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),  # TinyBERT-6
        ("uniform", 2, 3, [(1, 2), (2, 3)]),
        ("same", 2, 2, [(1, 1), (2, 2)]),
        ("first", 2, 4, [(1, 1), (2, 2)]),
        ("last", 2, 4, [(1, 3), (2, 4)]),
        ({0: 0, 2: 3}, 2, 4, [(0, 0), (2, 3)]),
        ({"1": "4", "2": "2"}, 2, 4, [(1, 4), (2, 2)]),
    ],
)
def test_map(spec: Any, ours: int, theirs: int, expected: list[tuple[int, int]]):
    assert layer_map(spec, ours, theirs) == expected


@pytest.mark.parametrize("theirs", range(1, 25))
def test_uniform_map_of_any_depth(theirs: int):
    for ours in range(1, theirs + 1):
        pairs = layer_map("uniform", ours, theirs)
        assert [s for s, _ in pairs] == list(range(1, ours + 1))
        assert pairs[-1] == (ours, theirs)
        taken = [t for _, t in pairs]
        assert taken == sorted(set(taken)) and taken[0] >= 1
        assert all(abs(t - s * theirs / ours) <= 0.5 for s, t in pairs)


@pytest.mark.parametrize(
    ("spec", "ours", "theirs", "message"),
    [
        ("unifrom", 2, 4, "Did you mean 'uniform'"),
        (None, 2, 4, "layers=None is none of"),
        ("same", 2, 4, "the student has 2 layers and the teacher 4"),
        ("uniform", 4, 2, "4 layers, more than the teacher's 2"),
        ("last", 4, 2, "Give a mapping"),
        ({}, 2, 4, "matches nothing"),
        ({"one": 1}, 2, 4, "both numbers"),
        ({1: None}, 2, 4, "both numbers"),
        ({3: 1}, 2, 4, "names layer 3 of the student, which has 1 to 2"),
        ({1: 5}, 2, 4, "names layer 5 of the teacher, which has 1 to 4"),
        ({1: -1}, 2, 4, "names layer -1 of the teacher"),
    ],
)
def test_maps_that_cannot_be_meant(spec: Any, ours: int, theirs: int, message: str):
    with pytest.raises(ConfigError, match=message):
        layer_map(spec, ours, theirs)


# -- where layers are -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_found(kind: str):
    model = encoder(kind)
    name, layers = encoder_layers(model)
    assert name == LAYERS[kind]
    assert layers is model.get_submodule(name)
    assert len(layers) == depth_of(model) == 2


def test_a_list_within_a_layer_is_not_the_encoder():
    # Two feed-forward networks beside the last make a list as long as the encoder.
    model = encoder("MobileBert", num_feedforward_networks=3)
    assert len(model.get_submodule("mobilebert.encoder.layer.0.ffn")) == 2  # type: ignore[arg-type]
    assert encoder_layers(model)[0] == LAYERS["MobileBert"]


def test_shared_layers_are_not_told_apart():
    with pytest.raises(
        ConfigError, match="AlbertForSequenceClassification has 0 lists of 2 layers"
    ):
        encoder_layers(encoder("Albert"))


def test_two_lists_are_ambiguous():
    class Twice(nn.Module):
        config = BertConfig(num_hidden_layers=1)

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList([nn.Identity()])
            self.second = nn.ModuleList([nn.Identity()])

    with pytest.raises(ConfigError, match=r"Twice has 2 lists of 1 layers \(first, second\)"):
        encoder_layers(Twice())


def test_a_model_without_config_has_no_depth():
    with pytest.raises(ConfigError, match="Linear has no config.num_hidden_layers"):
        depth_of(nn.Linear(1, 1))


# -- queries, keys and values ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "Electra", "DebertaV2",
                                  "MobileBert", "IBBert"])  # fmt: skip
def test_projections_are_found(kind: str):
    model = encoder(kind)
    layers = encoder_layers(model)[0]
    found = {kind: projections(model, kind) for kind in ("queries", "keys", "values")}
    for kind, names in found.items():
        assert [name.removeprefix(f"{layers}.")[0] for name in names] == ["0", "1"]
        assert all(kind[0] in name.rpartition(".")[2] for name in names)
    assert len({name for names in found.values() for name in names}) == 6


def test_shared_projections_are_one():
    assert len(projections(encoder("Albert"), "queries")) == 1


@pytest.mark.parametrize("kind", ["ModernBert", "Deberta"])
def test_fused_projections_are_refused(kind: str):
    with pytest.raises(ConfigError, match="called query, q_lin, q_proj, query_proj, found 0"):
        projections(encoder(kind), "queries")
