"""Which layer of the student is matched with which of the teacher, and where layers are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...core.errors import ConfigError, did_you_mean

__all__ = ["LAYER_MAPS", "encoder_layers", "layer_map", "projections"]

LAYER_MAPS = ("uniform", "same", "first", "last")

# The last part of the name of a linear map, over the encoders of transformers.
_PROJECTIONS = {
    "queries": ("query", "q_lin", "q_proj", "query_proj"),
    "keys": ("key", "k_lin", "k_proj", "key_proj"),
    "values": ("value", "v_lin", "v_proj", "value_proj"),
}


def layer_map(
    spec: str | Mapping[Any, Any], student_layers: int, teacher_layers: int
) -> list[tuple[int, int]]:
    """Pair the student's layers with the teacher's, both counted from 1.

    Args:
        spec: ``"uniform"``: student layer m with teacher layer round(m * L_t / L_s), TinyBERT's
            map, whose last layers always meet; ``"same"``: equal depth, layer by layer;
            ``"first"``: the teacher's first layers; ``"last"``: its last ones; or a mapping of
            student layers to teacher layers, where 0 stands for the embeddings.
        student_layers: L_s.
        teacher_layers: L_t.

    Raises:
        ConfigError: If the map is unknown, or names a layer that is not there.

    Reference:
        Jiao et al.: TinyBERT, Findings of EMNLP 2020, section 4.1 (arXiv 1909.10351), for
        ``"uniform"``.

    Example:
        >>> layer_map("uniform", 4, 12)
        [(1, 3), (2, 6), (3, 9), (4, 12)]
        >>> layer_map("last", 2, 4), layer_map({0: 0, 2: 3}, 2, 4)
        ([(1, 3), (2, 4)], [(0, 0), (2, 3)])
    """
    ours, theirs = student_layers, teacher_layers
    if isinstance(spec, Mapping):
        return _by_hand(spec, ours, theirs)
    if spec not in LAYER_MAPS:
        raise ConfigError(
            f"layers={spec!r} is none of {LAYER_MAPS} and no mapping of student layers to teacher "
            f"layers.{did_you_mean(str(spec), LAYER_MAPS)}"
        )
    if spec == "same" and ours != theirs:
        raise ConfigError(
            f"layers='same' needs equal depth, but the student has {ours} layers and the teacher "
            f"{theirs}. Take 'uniform', 'first' or 'last'."
        )
    if ours > theirs:
        raise ConfigError(
            f"layers={spec!r}: the student has {ours} layers, more than the teacher's {theirs}. "
            "Give a mapping of student layers to teacher layers."
        )
    if spec == "uniform":
        # Halves up, so that no two student layers share a teacher layer.
        return [(m, (2 * m * theirs + ours) // (2 * ours)) for m in range(1, ours + 1)]
    skipped = theirs - ours if spec == "last" else 0
    return [(m, m + skipped) for m in range(1, ours + 1)]


def _by_hand(spec: Mapping[Any, Any], ours: int, theirs: int) -> list[tuple[int, int]]:
    try:
        pairs = [(int(s), int(t)) for s, t in spec.items()]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"layers={dict(spec)} must map student layers to teacher layers, both numbers."
        ) from error
    if not pairs:
        raise ConfigError("layers={} matches nothing.")
    for s, t in pairs:
        for who, layer, depth in (("student", s, ours), ("teacher", t, theirs)):
            if not 0 <= layer <= depth:
                raise ConfigError(
                    f"layers={dict(spec)} names layer {layer} of the {who}, which has 1 to "
                    f"{depth} (0 stands for the embeddings)."
                )
    return pairs


def encoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the list of a model's layers: its name, and the modules.

    Raises:
        ConfigError: If there is no list of ``config.num_hidden_layers`` modules, or several.
    """
    depth = depth_of(model)
    # A list within a layer of another list (a feed-forward stack) is not the encoder.
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside:
            found.append((name, module))
    if len(found) != 1:
        raise ConfigError(
            f"{type(model).__name__} has {len(found)} lists of {depth} layers "
            f"({', '.join(name for name, _ in found) or 'none'}); expected one, the encoder's."
        )
    return found[0]


def depth_of(model: nn.Module) -> int:
    """The number of layers that a model's config names.

    Raises:
        ConfigError: If it names none.
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise ConfigError(
            f"{type(model).__name__} has no config.num_hidden_layers, so its layers cannot be "
            "counted. Tap modules by name instead."
        )
    return depth


def projections(model: nn.Module, kind: str) -> list[str]:
    """Names of the linear maps that make queries, keys or values, in the order of the layers.

    Args:
        model: An encoder of transformers.
        kind: ``"queries"``, ``"keys"`` or ``"values"``.

    Returns:
        One name a layer; a single one where all layers share it (ALBERT).

    Raises:
        ConfigError: If the architecture names them otherwise, or makes them in one product.
    """
    endings = _PROJECTIONS[kind]
    names = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in endings and isinstance(module, nn.Linear)
    ]
    if len(names) not in (1, depth_of(model)):
        raise ConfigError(
            f"outputs.{kind} cannot be read from {type(model).__name__}: expected one linear map a "
            f"layer called {', '.join(endings)}, found {len(names)}. Tap the modules that make "
            "them, or compare hidden states or attentions."
        )
    return names
