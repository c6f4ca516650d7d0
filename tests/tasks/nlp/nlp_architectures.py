"""Tiny encoders of every architecture, and a padded batch for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from taskdistill.tasks.nlp.models import ib_bert

VOCABULARY = 50
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=20,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
_NARROW = dict(SIZES, embedding_size=4, intra_bottleneck_size=8, num_feedforward_networks=2)
_OF_KIND: dict[str, dict[str, Any]] = {
    "DistilBert": dict(
        vocab_size=VOCABULARY,
        dim=8,
        n_layers=2,
        n_heads=2,
        hidden_dim=16,
        max_position_embeddings=20,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "MobileBert": _NARROW,
    "IBBert": dict(_NARROW, num_feedforward_networks=1),
    "Albert": dict(SIZES, embedding_size=4),
    "FNet": {k: v for k, v in SIZES.items() if "attention" not in k},
    "ModernBert": dict(
        {k: v for k, v in SIZES.items() if not k.endswith("dropout_prob")},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
}


def encoder(
    kind: str, head: str = "ForSequenceClassification", seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A model of transformers (or ours) in eval mode, weights spread wider than at initialisation.

    Args:
        kind: What the classes' names begin with: ``"Bert"``, ``"MobileBert"``, ``"IBBert"``, ...
        head: What they end with.
        seed: Of the weights.
        **changes: Fields of the config that differ.
    """
    source: Any = ib_bert if kind == "IBBert" else transformers
    config = getattr(source, f"{kind}Config")(**{**_OF_KIND.get(kind, SIZES), **changes})
    torch.manual_seed(seed)
    made = getattr(source, kind + head)(config)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def texts(lengths: tuple[int, ...] = (6, 4, 1), seed: int = 0) -> dict[str, Tensor]:
    """Inputs of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}
