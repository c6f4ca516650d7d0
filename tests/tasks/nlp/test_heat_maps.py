"""What layers attend to, as numbers and as pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.tasks.nlp.heat_maps import (
    Panel,
    attention_distance,
    attention_maps,
    plot_attention,
)

TOKENS = ["[CLS]", "a", "dog", "##s", "[SEP]"]


def bert(attention: str = "eager") -> BertModel:
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertModel(config).eval()
    model.set_attn_implementation(attention)
    return model


def batch(texts: int = 1) -> dict[str, Tensor]:
    return {"input_ids": torch.arange(5 * texts).reshape(texts, 5)}


def test_a_map_a_layer_is_the_mean_over_its_heads():
    model = bert()
    maps = attention_maps(model, batch())
    heads = model(**batch(), output_attentions=True).attentions
    assert len(maps) == 3
    for ours, theirs in zip(maps, heads, strict=True):
        torch.testing.assert_close(ours, (theirs[0, 0] + theirs[0, 1]) / 2)
        assert not ours.requires_grad


def test_models_without_maps_and_batches_of_several_texts_are_told():
    with pytest.raises(ConfigError, match="eager"):
        attention_maps(bert("sdpa"), batch())
    with pytest.raises(ShapeError, match="got 2"):
        attention_maps(bert(), batch(2))


def test_distance_is_a_share_of_the_attention():
    one, other = torch.eye(4), torch.eye(4).roll(1, 0)
    assert attention_distance(one, one) == 0.0
    assert attention_distance(one, other) == 1.0
    assert attention_distance(one, 0.75 * one + 0.25 * other) == pytest.approx(0.25)
    uneven = torch.cat([one[:1], other[1:]])
    assert attention_distance(one, uneven) == attention_distance(uneven, one) == 0.75
    with pytest.raises(ShapeError, match=r"\(4, 4\) and \(3, 3\)"):
        attention_distance(one, torch.eye(3))


def dark(png: bytes) -> int:
    """How many pixels are of the scale's dark blue."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int(((pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 0] < 60)).sum())


def test_a_grid_of_maps_with_attention_where_it_is():
    diagonal, none = torch.eye(5), torch.zeros(5, 5)
    two = plot_attention([[Panel("a", diagonal), Panel("b", none)]], TOKENS)
    three = plot_attention([[Panel("a", diagonal), Panel("b", diagonal)]], TOKENS)
    wide = Image.open(io.BytesIO(two))
    assert wide.format == "PNG" and wide.width == 2 * wide.height
    scale = dark(two) - (dark(three) - dark(two))  # the bar beside the maps is in both
    assert dark(three) - dark(two) > 5 * 50**2 and scale >= 0


def test_faint_attention_is_seen():
    faint = torch.full((5, 5), 0.04) + 0.8 * torch.eye(5)
    tinted = []
    for weights in (faint, torch.eye(5)):
        png = plot_attention([[Panel("a", weights)]], TOKENS)
        grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        tinted.append(((grey > 150) & (grey < 245)).mean())
    assert tinted[0] > tinted[1] + 0.2


def test_a_map_of_another_length_is_told():
    with pytest.raises(ShapeError, match=r"'a'.*\(4, 4\).*5 tokens"):
        plot_attention([[Panel("a", torch.eye(4))]], TOKENS)
