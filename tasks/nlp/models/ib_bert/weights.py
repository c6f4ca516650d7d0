"""Weights under other names: transformers' MobileBERT, and Google's TensorFlow release.

The variable names below were read off google-research/mobilebert (``modeling.py``,
``run_pretraining.py``, ``run_squad.py``, ``run_classifier.py``, ``lamb_optimizer.py``) and agree
with the importer that transformers had until version 4. Of the checkpoints themselves only
MobileBERT's is published; IB-BERT's is not, and none of them was at hand here.

==============================================  ================================================
variable                                        name here
==============================================  ================================================
``bert/embeddings/word_embeddings``             ``ib_bert.embeddings.word_embeddings.weight``
``bert/encoder/layer_0/...``                    ``ib_bert.encoder.layer.0...``
``.../ffn_layer_0/intermediate/dense/kernel``   ``...ffn.0.intermediate.dense.weight``, transposed
``.../LayerNorm/gamma``, ``.../beta``           ``...LayerNorm.weight``, ``...bias``
``.../FakeLayerNorm/gamma``, ``.../beta``       the same; the norm of ``"no_norm"``
``cls/predictions/output_bias``                 ``cls.predictions.bias``
``cls/predictions/extra_output_weights``        ``cls.predictions.dense.weight``, transposed
``cls/seq_relationship/output_weights``         ``cls.seq_relationship.weight``
``cls/squad/output_weights``                    ``qa_outputs.weight``
``output_weights``, ``output_bias``             ``classifier.weight``, ``classifier.bias``
==============================================  ================================================
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from .....core.errors import CheckpointError
from .....core.teacher import file_sha256, read_checkpoint

__all__ = ["from_google", "from_mobilebert", "load_original"]

# A variable of the optimizer or of training, not of the network.
_SLOTS = re.compile(
    r"(^|/)(adam_m|adam_v|global_step|AdamWeightDecayOptimizer(_\d+)?|LAMBOptimizer(_\d+)?)(/|$)"
    r"|^hidden_distill_\d+/"  # the layer norms that compare hidden states
)
_RENAMED = {
    "FakeLayerNorm": "LayerNorm",
    "beta": "bias",
    "extra_output_weights": "dense.weight",
    "gamma": "weight",
    "kernel": "weight",
    "output_bias": "bias",
    "output_weights": "weight",
    "position_embeddings": "position_embeddings.weight",
    "token_type_embeddings": "token_type_embeddings.weight",
    "word_embeddings": "word_embeddings.weight",
}
_TRANSPOSED = ("kernel", "extra_output_weights")


def from_google(
    variables: Mapping[str, Any], prefix: str = "ib_bert", scope: str = ""
) -> dict[str, Tensor]:
    """Name and lay out the variables of a TensorFlow checkpoint of Google's as a state dict.

    Optimizer slots, the step and the norms of the distillation losses are left out. Output layers
    that are tied appear under both names.

    Args:
        variables: Arrays or tensors by variable name (``":0"`` at the end is allowed).
        prefix: Of the network's entries: ``"ib_bert"``, ``"mobilebert"`` for transformers' class,
            ``""`` for a model without a head.
        scope: Where in the graph to look. ``"teacher"`` takes the teacher out of a distillation
            checkpoint; by default its variables are left out.

    Raises:
        CheckpointError: If the scope holds no network.

    Example:
        >>> kernel = np.zeros((384, 512), np.float32)
        >>> state = from_google({"bert/embeddings/embedding_transformation/kernel": kernel})
        >>> {name: tuple(value.shape) for name, value in state.items()}
        {'ib_bert.embeddings.embedding_transformation.weight': (512, 384)}
    """
    found = {}
    for name, value in variables.items():
        name = re.sub(r":\d+$", "", name)
        if scope and not name.startswith(f"{scope}/"):
            continue
        name = name.removeprefix(f"{scope}/")
        if not _SLOTS.search(name) and not name.startswith("teacher/"):
            found[name] = value
    if not any(name.startswith("bert/") for name in found):
        raise CheckpointError(
            f"No variable {f'{scope}/' if scope else ''}bert/... is among the {len(variables)} "
            f"given ({_some(variables)}). Expected those of Google's MobileBERT code."
        )
    state = {}
    for name, value in found.items():
        tensor = torch.as_tensor(value)
        if name.rsplit("/", 1)[-1] in _TRANSPOSED:
            tensor = tensor.t().contiguous()
        state[_google_name(name, prefix)] = tensor
    return _with_tied(state, prefix)


def from_mobilebert(state: Mapping[str, Tensor], prefix: str = "ib_bert") -> dict[str, Tensor]:
    """Name the entries of a transformers MobileBERT's state dict as IB-BERT's.

    Output layers that are tied appear under both names, and the positions, which old versions
    saved, are left out.

    Args:
        state: A state dict, with a head (``mobilebert.`` in front of the network) or without.
        prefix: What the network's entries have in front instead; ``""`` for nothing.

    Example:
        >>> list(from_mobilebert({"mobilebert.encoder.layer.0.output.dense.bias": torch.zeros(1)}))
        ['ib_bert.encoder.layer.0.output.dense.bias']
    """
    own = f"{prefix}." if prefix else ""
    bare = not any(name.startswith("mobilebert.") for name in state)
    renamed = {
        own + name if bare else re.sub(r"^mobilebert\.", own, name): value
        for name, value in state.items()
        if not name.endswith("embeddings.position_ids")
    }
    return _with_tied(renamed, prefix)


def load_original(model: PreTrainedModel, path: str | Path, *, scope: str = "") -> str:
    """Load a file of Google's variables, or of a transformers MobileBERT, into a model.

    A TensorFlow checkpoint is first saved as ``.npz`` or ``.safetensors``, each variable under its
    own name (``np.savez(path, **variables)``). Everything the model has must be in the file, and
    the file's network must be the model's. Heads that the model does not have are left out; to
    start a model whose head is new, load ``model.base_model``.

    Args:
        model: An IB-BERT, or a MobileBERT of transformers.
        path: A ``.safetensors`` or ``.npz`` file, or one that ``torch.load`` reads.
        scope: See :func:`from_google`.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: If the file cannot be read, or does not fit; lists what is missing,
            unexpected or of another shape. The model is then unchanged.
    """
    path = Path(path).expanduser()
    entries = _read(path)
    base = model.base_model
    prefix = "" if model is base else model.base_model_prefix
    if any("/" in name for name in entries):
        state = from_google(entries, prefix, scope)
    else:
        state = from_mobilebert(entries, prefix)
    own = model.state_dict()

    # Google's graph always has a pooler and every head, a model of ours what its task needs.
    network = tuple(f"{prefix}.{name}.".removeprefix(".") for name, _ in base.named_children())
    state = {n: value for n, value in state.items() if n in own or n.startswith(network)}

    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "other shape": [
            f"{name} (model {tuple(own[name].shape)}, file {tuple(value.shape)})"
            for name, value in state.items()
            if name in own and own[name].shape != value.shape
        ],
    }
    if any(problems.values()):
        listed = "".join(
            f"\n  {what} ({len(names)}): {_some(names)}"
            for what, names in problems.items()
            if names
        )
        raise CheckpointError(
            f"Checkpoint {str(path)!r} does not fit {type(model).__name__}: its config is not that "
            f"of the file, or the file lacks the model's head.{listed}\n"
            "To start a model whose head is new, load model.base_model."
        )
    model.load_state_dict(state)
    return file_sha256(path)


def _google_name(name: str, prefix: str) -> str:
    name = re.sub(r"^output_(?=weights$|bias$)", "classifier/output_", name)
    name = name.replace("cls/squad/", "qa_outputs/")
    name = re.sub(r"^bert/", f"{prefix}/" if prefix else "", name)
    parts = [_RENAMED.get(part, part) for part in name.split("/")]
    return ".".join(re.sub(r"^(ffn_)?layer_(\d+)$", _numbered, part) for part in parts)


def _numbered(match: re.Match[str]) -> str:
    return f"{'ffn' if match[1] else 'layer'}.{match[2]}"


def _with_tied(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    words = f"{prefix}.embeddings.word_embeddings.weight".removeprefix(".")
    if "cls.predictions.bias" in state:
        state.setdefault("cls.predictions.decoder.bias", state["cls.predictions.bias"])
        if words in state:
            state.setdefault("cls.predictions.decoder.weight", state[words])
    return state


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.is_file() and path.suffix == ".safetensors":
            return load_file(path)
        if path.is_file() and path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
    except (SafetensorError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} is damaged or no {path.suffix} file of plain arrays: "
            f"{error}. Save or copy it again."
        ) from error
    entries = read_checkpoint(path)
    if not isinstance(entries, Mapping) or not all(isinstance(v, Tensor) for v in entries.values()):
        raise CheckpointError(
            f"Checkpoint {str(path)!r} is no state dict of tensors by name. Save the state dict "
            "alone."
        )
    return entries


def _some(names: Any, limit: int = 8) -> str:
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
