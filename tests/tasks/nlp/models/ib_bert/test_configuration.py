"""Published shapes, and what cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import MobileBertConfig

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.models.ib_bert import IBBertConfig


def test_the_default_is_google_s_teacher() -> None:
    # config/uncased_L-24_H-1024_B-512_A-4.json of google-research/mobilebert
    published = dict(
        attention_probs_dropout_prob=0.1,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        hidden_size=512,
        initializer_range=0.02,
        intermediate_size=4096,
        max_position_embeddings=512,
        num_attention_heads=4,
        num_hidden_layers=24,
        type_vocab_size=2,
        vocab_size=30522,
        embedding_size=128,
        trigram_input=True,
        use_bottleneck=True,
        intra_bottleneck_size=1024,
    )
    config = IBBertConfig()
    assert {key: getattr(config, key) for key in published} == published
    assert config.straight_attention
    assert (config.num_feedforward_networks, config.normalization_type) == (1, "layer_norm")


@pytest.mark.parametrize(
    ("config", "straight", "networks"),
    [
        (IBBertConfig.large(), True, 1),
        (IBBertConfig.mobilebert(), False, 4),
        (IBBertConfig.mobilebert_straight(), True, 4),
        (IBBertConfig.mobilebert_tiny(), False, 2),
        (IBBertConfig.large(use_bottleneck=False), False, 1),
    ],
)
def test_variants(config: IBBertConfig, straight: bool, networks: int) -> None:
    assert config.straight_attention is straight
    assert config.num_feedforward_networks == networks


def test_changes_win_over_a_shape() -> None:
    config = IBBertConfig.mobilebert_straight(hidden_act="gelu", num_hidden_layers=6)
    assert (config.hidden_act, config.num_hidden_layers) == ("gelu", 6)
    assert config.normalization_type == "no_norm"


def test_a_mobilebert_config_maps_one_to_one() -> None:
    theirs = MobileBertConfig(num_hidden_layers=5, num_labels=3, hidden_act="silu")
    ours = IBBertConfig.from_mobilebert(theirs)
    same = set(theirs.to_dict()) - {"model_type", "architectures", "transformers_version"}
    assert {key: getattr(ours, key) for key in same} == {key: getattr(theirs, key) for key in same}
    assert ours.model_type == "ib_bert"
    assert IBBertConfig.from_mobilebert(theirs, hidden_act="gelu").hidden_act == "gelu"


def test_the_inner_width_follows_a_change_of_a_saved_config(tmp_path: Path) -> None:
    IBBertConfig.large().save_pretrained(tmp_path)
    config = IBBertConfig.from_pretrained(tmp_path)
    assert config.to_dict() == IBBertConfig.from_pretrained(tmp_path).to_dict()
    assert config.true_hidden_size == 1024
    narrow = IBBertConfig(**{**config.to_dict(), "intra_bottleneck_size": 64})
    assert narrow.true_hidden_size == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_attention_heads=3), "intra_bottleneck_size=1024 cannot be divided"),
        (dict(num_attention_heads=3, use_bottleneck=False), "hidden_size=512 cannot be divided"),
        (dict(normalization_type="layernorm"), "Did you mean 'layer_norm'"),
        (dict(hidden_act="gelo"), "Did you mean 'gelu'"),
        (dict(embedding_size=513), "embedding_size=513 is larger than hidden_size=512"),
        (dict(num_hidden_layers=0), "num_hidden_layers=0"),
        (
            dict(use_bottleneck_attention=True, key_query_shared_bottleneck=True),
            "would never be read",
        ),
    ],
)
def test_what_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IBBertConfig(**changes)
