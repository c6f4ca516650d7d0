"""Networks of 8 or 16 channels in every variant, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from taskdistill.tasks.nlp.models.ib_bert import IBBertConfig

SIZES: dict[str, Any] = dict(
    vocab_size=30,
    hidden_size=16,
    intra_bottleneck_size=8,
    embedding_size=6,
    intermediate_size=12,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=12,
)
VARIANTS: dict[str, Callable[..., IBBertConfig]] = {
    "large": IBBertConfig.large,
    "mobilebert": IBBertConfig.mobilebert,
    "straight": IBBertConfig.mobilebert_straight,
    "tiny": IBBertConfig.mobilebert_tiny,
}


@pytest.fixture
def small() -> Callable[..., IBBertConfig]:
    """A small config of a variant; dropout is off unless asked for."""

    def make(variant: str, **changes: Any) -> IBBertConfig:
        off = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return VARIANTS[variant](**{**SIZES, **off, **changes})

    return make


@pytest.fixture
def scramble() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Draw every parameter anew: biases and norms too, which start at 0 and 1."""

    def draw(model: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.5, generator=generator)
        return model.eval()

    return draw


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two texts of 7 and 4 tokens, in two segments."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return dict(
        input_ids=torch.randint(1, 30, (2, 7), generator=generator) * mask,
        attention_mask=mask,
        token_type_ids=torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]]),
    )
