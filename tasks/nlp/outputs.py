"""What recipes may compare of an encoder of transformers, and over which positions.

========================  ======================================================================
``logits``                of the head: (B, K), or one row a token (B * T, K); the masked-language
                          part of a pre-training head
``seq_relationship_logits``  of the next-sentence head, (B, 2)
``start_logits``, ``end_logits``  of a question-answering head, (B, T), padding taken out
``hidden_states[i]``      (B, T, H); 0 is what the first layer is given, i the output of layer i
``embeddings``            the same as ``hidden_states[0]``
``attentions[i]``         (B, A, T, T), probabilities of layer i + 1
``attention_scores[i]``   the same before the softmax, from queries and keys
``queries[i]``, ``keys[i]``, ``values[i]``  (B, A, T, d)
========================  ======================================================================
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.distiller import Outputs
from ...core.errors import ConfigError, ShapeError, TeacherError, did_you_mean
from ...core.losses import SparseLogits
from ...core.taps import Captured, Taps
from .layers import depth_of, projections

__all__ = [
    "ADAPTED",
    "ANSWERS",
    "LAYERED",
    "OUTPUT_NAMES",
    "Reader",
    "columns_of",
    "count_positions",
    "default_regions",
    "example_inputs",
    "lay_out",
    "position_weights",
    "targets_of",
    "trial_inputs",
]

_VECTORS = ("queries", "keys", "values")
LAYERED = ("hidden_states", "attentions", "attention_scores", *_VECTORS)
"""Outputs with one tensor a layer."""
ANSWERS = ("start_logits", "end_logits")
"""Logits over the positions of a text."""
_HEADS = ("logits", "seq_relationship_logits", *ANSWERS)
OUTPUT_NAMES = (*_HEADS, "embeddings", *LAYERED)
ADAPTED = ("hidden_states", "embeddings")
"""Outputs whose width may differ: they go through adapters."""
REGIONS = ("samples", "tokens", "labelled")

# What each output is asked of a head's own output by.
_SYNONYMS = {"logits": ("logits", "prediction_logits")}
_TARGETS = {
    "logits": "labels",
    "seq_relationship_logits": "next_sentence_label",
    "start_logits": "start_positions",
    "end_logits": "end_positions",
}
# Columns that hold the truth, which no teacher is given.
_TRUTH = ("labels", "label", "label_ids", *_TARGETS.values())


def columns_of(model: nn.Module) -> list[str]:
    """The inputs that a model's forward names."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters
    return [name for name, p in parameters.items() if p.kind not in kinds]


class Reader:
    """Reads the outputs that a recipe names from one model.

    Args:
        model: Student or teacher.
        names: The outputs wanted.
        who: What to call it in messages.

    Raises:
        ConfigError: If a name is unknown, or the model cannot give that output.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], who: str) -> None:
        self.names = sorted(set(names))
        for name in self.names:
            if name not in OUTPUT_NAMES:
                raise ConfigError(
                    f"There is no outputs.{name} of a language model."
                    f"{did_you_mean(name, OUTPUT_NAMES)} There are: {', '.join(OUTPUT_NAMES)}."
                )
        self.who = who
        self.kind = type(model).__name__
        self.columns = columns_of(model)
        self.projections: dict[str, list[str]] = {}
        wanted = {name for name in _VECTORS if name in self.names}
        if "attention_scores" in self.names:
            self._check_scores(model)
            wanted |= {"queries", "keys"}
        if wanted:
            self.depth = depth_of(model)
            self.projections = {kind: projections(model, kind) for kind in sorted(wanted)}
            self.heads = int(model.config.num_attention_heads)  # type: ignore[union-attr]

    def _check_scores(self, model: nn.Module) -> None:
        config: Any = model.config
        relative = getattr(config, "relative_attention", False)
        kind = getattr(config, "position_embedding_type", None) or "absolute"
        if relative or kind not in ("absolute", "rotary"):
            raise ConfigError(
                f"outputs.attention_scores of the {self.who} cannot be made from queries and keys "
                f"alone: {self.kind} adds relative positions. Compare outputs.attentions."
            )
        if kind == "rotary" or getattr(config, "rope_parameters", None):
            raise ConfigError(
                f"outputs.attention_scores of the {self.who} cannot be made from queries and keys "
                f"as they are projected: {self.kind} turns them by position. Compare "
                "outputs.attentions."
            )

    @property
    def reads(self) -> list[str]:
        """Taps that the outputs are made from."""
        return [name for names in self.projections.values() for name in names]

    @property
    def asks(self) -> dict[str, Any]:
        """What forward has to be asked for."""
        wanted = {}
        if {"hidden_states", "embeddings"} & set(self.names):
            wanted["output_hidden_states"] = True
        if "attentions" in self.names:
            wanted["output_attentions"] = True
        return wanted

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a batch that this model takes, without the truth."""
        return {k: v for k, v in batch.items() if k in self.columns and k not in _TRUTH}

    def read(self, output: Any, captured: Captured, mask: Tensor | None) -> Outputs:
        """Return the outputs by name.

        Args:
            output: What forward returned.
            captured: What the taps saw.
            mask: (B, T), 1 for tokens and 0 for padding; None where there is none.

        Raises:
            ConfigError: If the model does not give one of them.
        """
        return lay_out(self.gather(output, captured), mask)

    def gather(self, output: Any, captured: Captured) -> Outputs:
        """The same as :meth:`read`, but each with its samples on the first axis.

        Args:
            output: What forward returned.
            captured: What the taps saw.

        Raises:
            ConfigError: If the model does not give one of them.
        """
        found: dict[str, Tensor | Sequence[Tensor]] = {}
        for name in self.names:
            if name in _HEADS:
                found[name] = self._of_head(name, output)
            elif name in ("hidden_states", "embeddings"):
                states = self._layers(output, "hidden_states")
                found[name] = states[0] if name == "embeddings" else states
            elif name == "attentions":
                found[name] = self._layers(output, "attentions")
            elif name == "attention_scores":
                pairs = zip(
                    self._vectors("queries", captured),
                    self._vectors("keys", captured),
                    strict=True,
                )
                found[name] = [_scores(q, k) for q, k in pairs]
            else:
                found[name] = self._vectors(name, captured)
        return found

    def check_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Check that the model's own maps are the softmax of the scores made from its parts.

        Some architectures do more between the two than their configs show (RoFormer turns queries
        and keys, ConvBERT multiplies them).

        Args:
            model: The model, in eval mode.
            batch: Inputs without padding.

        Raises:
            ConfigError: If they differ.
        """
        if "attention_scores" not in self.names:
            return
        before = use_attention_maps(model, self.who)
        try:
            with torch.no_grad(), Taps(model, self.reads).capture() as captured:
                output = model(**self.inputs(batch), output_attentions=True)
        finally:
            if before is not None:
                model.set_attn_implementation(before)  # type: ignore[operator]
        maps = output.get("attentions") if isinstance(output, Mapping) else None
        queries, keys = (self._vectors(kind, captured) for kind in ("queries", "keys"))
        for map_, q, k in zip(maps or (), queries, keys, strict=False):
            maps_of = _scores(q, k).float().softmax(-1), map_.float()
            made, own = (m.clamp(min=1e-6).log() for m in maps_of)
            slack = 8 * torch.finfo(map_.dtype).eps + 0.1 * (own - own.mean(-1, True)).abs().max()
            if made.shape != own.shape or (made - own).abs().max() > slack:
                raise ConfigError(
                    f"outputs.attention_scores of the {self.who} cannot be made from queries and "
                    f"keys alone: {self.kind} attends by more than their product. Compare "
                    "outputs.attentions."
                )

    def _of_head(self, name: str, output: Any) -> Tensor:
        keys = _SYNONYMS.get(name, (name,))
        logits = next(
            (output[k] for k in keys if isinstance(output, Mapping) and k in output), None
        )
        if not isinstance(logits, Tensor):
            given = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
            raise ConfigError(
                f"The {self.who} ({self.kind}) gives no {name}; it gives: {given}. Load it with "
                "the head of the task (AutoModelFor...), with return_dict as it is by default."
            )
        return logits

    def _layers(self, output: Any, name: str) -> Sequence[Tensor]:
        layers = output.get(name) if isinstance(output, Mapping) else None
        if not layers or not all(isinstance(layer, Tensor) for layer in layers):
            raise ConfigError(
                f"The {self.who} ({self.kind}) returns no {name}. Where its attention "
                "implementation gives none out, load it with attn_implementation='eager'; "
                "AttentionQK on outputs.queries + outputs.keys needs none."
            )
        return layers

    def _vectors(self, kind: str, captured: Captured) -> list[Tensor]:
        taps = [captured.tensors(tap) for tap in self.projections[kind]]
        if len(taps) == self.depth:
            # The first: DeBERTa's maps also make vectors of the relative positions, afterwards.
            taps = [tensors[:1] for tensors in taps]
        vectors = [tensor for tensors in taps for tensor in tensors]
        if len(vectors) != self.depth:
            raise ShapeError(
                f"outputs.{kind} of the {self.who} ({self.kind}): {len(vectors)} were made in one "
                f"forward, expected one a layer, {self.depth}."
            )
        return [v.unflatten(2, (self.heads, -1)).transpose(1, 2) for v in vectors]


def lay_out(found: Outputs, mask: Tensor | None) -> Outputs:
    """Lay outputs out as they are compared.

    Args:
        found: From :meth:`Reader.gather`.
        mask: (B, T), 1 for tokens and 0 for padding; None where there is none.

    Returns:
        The same outputs; logits a token as (B * T, K), padding taken out of those of answers.
    """
    return {
        name: _head_laid_out(name, value, mask) if name in _HEADS else value
        for name, value in found.items()
    }


def _head_laid_out(name: str, logits: Any, mask: Tensor | None) -> Any:
    if isinstance(logits, SparseLogits):
        values, indices, tail = logits
        if values.ndim < 3:
            return logits
        rest = None if tail is None else tail.flatten(0, 1)
        return SparseLogits(values.flatten(0, 1), indices.flatten(0, 1), rest)
    if name in ANSWERS and mask is not None:
        # Any position is a class there; of padding both sides say the same: impossible.
        lowest = torch.finfo(logits.dtype).min / 4
        return logits.masked_fill(mask == 0, lowest)
    return logits.flatten(0, 1) if logits.ndim == 3 else logits


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.mT / math.sqrt(queries.shape[-1])


def example_inputs(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Two short sequences, one padded, that every one of the models can read."""
    sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in models]
    vocabulary = min([size for size in sizes if isinstance(size, int)], default=2)
    device = next((p.device for p in models[0].parameters()), torch.device("cpu"))
    ids = torch.arange(12, device=device).view(2, 6) % vocabulary
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def trial_inputs(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Eight sequences of up to 128 tokens, on which teachers are timed."""
    positions = [
        getattr(getattr(model, "config", None), "max_position_embeddings", None) for model in models
    ]
    # Some count from a number above 0.
    length = min([128, *(p // 2 for p in positions if isinstance(p, int) and p > 1)])
    example = example_inputs(models)
    ids = example["input_ids"].flatten().repeat(8 * length)[: 8 * length].view(8, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def default_regions(token_level: bool) -> dict[str, str]:
    """Over which positions each output is averaged where its pair names no region.

    Args:
        token_level: Whether the head gives a row a token.
    """
    tokens = dict.fromkeys((*LAYERED, "embeddings"), "tokens")
    heads = dict.fromkeys(_HEADS, "samples")
    return {**tokens, **heads, "logits": "labelled" if token_level else "samples"}


def token_mask(batch: Mapping[str, Any]) -> Tensor | None:
    """The mask of tokens (B, T) of a batch, None where it has none.

    Raises:
        ShapeError: If it is no mask of tokens.
    """
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim != 2:
        raise ShapeError(
            f"attention_mask must be (B, T) to know the padding, got {tuple(mask.shape)}."
        )
    return mask


def position_weights(
    batch: Mapping[str, Any], names: Iterable[str], token_level: bool
) -> dict[str, Tensor]:
    """Return 1 for every position of a region and 0 elsewhere.

    Args:
        batch: The inputs.
        names: ``"samples"`` (B,), ``"tokens"`` (B, T): no padding, ``"labelled"``: whose label is
            not -100, (B, T) or (B,).
        token_level: Whether labels are one a token.

    Raises:
        ConfigError: If a region is unknown, or the batch lacks what it is made from.
    """
    sequence = batch.get("input_ids", batch.get("inputs_embeds"))
    if not isinstance(sequence, Tensor):
        raise ConfigError(
            f"A batch for distillation needs input_ids or inputs_embeds; it has {list(batch)}."
        )
    found = {}
    for name in names:
        if name == "tokens":
            mask = token_mask(batch)
            ones = torch.ones(sequence.shape[:2], device=sequence.device)
            found[name] = ones if mask is None else (mask != 0).float()
        elif name == "samples" or (name == "labelled" and not token_level):
            found[name] = torch.ones(len(sequence), device=sequence.device)
        elif name == "labelled":
            labels = batch.get("labels")
            if not isinstance(labels, Tensor):
                raise ConfigError(
                    "Region 'labelled' needs labels, one a token, and the batch has none. Compare "
                    "every token: region='tokens'."
                )
            found[name] = (labels != -100).float()
        else:
            raise ConfigError(
                f"There is no region {name!r} of a text.{did_you_mean(name, REGIONS)} There are: "
                f"{', '.join(REGIONS)}."
            )
    return found


def count_positions(
    batches: Sequence[Mapping[str, Any]], names: Sequence[str], token_level: bool
) -> Tensor:
    """Count the positions of each region over several batches, in the order of the names."""
    counts = [
        torch.stack([weight.sum() for weight in position_weights(b, names, token_level).values()])
        for b in batches
    ]
    return torch.stack(counts).sum(0)


def targets_of(batch: Mapping[str, Any], names: Iterable[str]) -> dict[str, Tensor]:
    """The truth of each output that has one, laid out as the output is."""
    found = {}
    for name in names:
        truth = batch.get(_TARGETS.get(name, ""))
        if isinstance(truth, Tensor):
            found[name] = truth.flatten()
    return found


def use_attention_maps(model: nn.Module, who: str) -> str | None:
    """Make a model give out its attention maps, where its implementation gives none.

    Returns:
        The implementation it had, to be put back, or None where nothing was changed.

    Raises:
        TeacherError: If it cannot be switched, with the reason.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if before in (None, "eager"):
        return None
    model.set_attn_implementation("eager")  # type: ignore[operator]
    if config._attn_implementation != "eager":
        raise TeacherError(
            f"The {who} ({type(model).__name__}) runs attn_implementation={before!r}, which gives "
            "out no attention maps, and cannot be switched. Load it with "
            "attn_implementation='eager', or compare outputs.queries + outputs.keys by AttentionQK."
        )
    return before
