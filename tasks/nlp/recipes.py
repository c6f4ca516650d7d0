"""From what a user writes to a recipe of the core: layer maps, head counts, ready recipes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import ConfigError, did_you_mean
from ...core.recipe import OUTPUTS, Pair, Recipe, members, output_name
from .layers import layer_map
from .outputs import LAYERED
from .progressive import LayerStages

__all__ = ["READY", "RECIPE_KEYS", "Plan", "Shape", "make_plan"]

logger = logging.getLogger(__name__)

RECIPE_KEYS = ("pairs", "recipe", "unit", "stages", "task_weight")


@dataclass(frozen=True)
class Shape:
    """What a recipe needs to know of a model.

    Attributes:
        layers: Encoder layers; None where the config names none.
        heads: Attention heads a layer; None where the config names none.
        labels: Classes; 1 for a regression.
    """

    layers: int | None
    heads: int | None
    labels: int | None = None

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read it from a config of transformers."""
        layers = getattr(config, "num_hidden_layers", None)
        heads = getattr(config, "num_attention_heads", None)
        labels = getattr(config, "num_labels", None)
        return cls(*(n if isinstance(n, int) else None for n in (layers, heads, labels)))


@dataclass(frozen=True)
class Plan:
    """What is matched, and how training goes along.

    Attributes:
        recipe: Pairs and stages.
        task_weight: Weight of the student's own loss, times that of the stage.
        layer_stages: Where layers are trained one after another.
        copy: Whether the student starts with the teacher's embeddings and head.
    """

    recipe: Recipe
    task_weight: float = 1.0
    layer_stages: LayerStages | None = None
    copy: bool = False


@dataclass(frozen=True)
class _Draft:
    pairs: list[Any]
    unit: str = "epoch"
    stages: Sequence[Mapping[str, Any]] = ()
    task_weight: float = 1.0
    layer_stages: LayerStages | None = None
    copy: bool = False


def make_plan(
    spec: str | Recipe | Mapping[str, Any] | Sequence[Any],
    student: Shape,
    teachers: Mapping[str, Shape],
) -> Plan:
    """Read what a user wrote.

    Args:
        spec: A list of pairs; ``dict(pairs=..., unit=..., stages=..., task_weight=...)``; the name
            of a ready recipe (:data:`READY`), or ``dict(name=..., **options)`` of one; a
            :class:`~taskdistill.core.recipe.Recipe`.
        student: The student's shape.
        teachers: The teachers' by name; the first serves pairs that name none.

    Raises:
        ConfigError: If anything in it cannot be meant.

    Example:
        >>> plan = make_plan(
        ...     [dict(student="outputs.hidden_states", loss="HiddenStateTransfer", layers="last")],
        ...     Shape(2, 2), {"teacher": Shape(4, 4)})
        >>> plan.recipe.pairs[0].student, plan.recipe.pairs[0].teacher
        ('outputs.hidden_states[1,2]', 'outputs.hidden_states[3,4]')
    """
    if isinstance(spec, Recipe):
        return Plan(spec)
    draft = _draft(spec, student, next(iter(teachers.values())))
    weight = draft.task_weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < 1e30:
        raise ConfigError(f"task_weight={weight!r} is no finite number >= 0.")
    pairs = [_expand(line, student, teachers) for line in draft.pairs]
    recipe = Recipe.from_config(pairs, draft.unit, draft.stages)
    if watched := [stage.name for stage in recipe.stages if stage.plateau is not None]:
        raise ConfigError(
            f"Stage {watched[0]!r} has a plateau, which is looked for in mmengine's training only. "
            "Give it an 'until'."
        )
    return Plan(recipe, float(weight), draft.layer_stages, draft.copy)


def _draft(spec: Any, student: Shape, teacher: Shape) -> _Draft:
    if isinstance(spec, str):
        return _ready(spec, {}, student, teacher)
    if isinstance(spec, Mapping):
        if "name" in spec:
            options = {k: v for k, v in spec.items() if k != "name"}
            return _ready(str(spec["name"]), options, student, teacher)
        for key in spec:
            if key not in RECIPE_KEYS:
                raise ConfigError(
                    f"A recipe has no {key!r}.{did_you_mean(str(key), RECIPE_KEYS)} It has: "
                    f"{', '.join(RECIPE_KEYS)}; or give a list of pairs."
                )
        if ("pairs" in spec) == ("recipe" in spec):
            raise ConfigError("A recipe has either 'pairs' or the 'recipe' that is ready-made.")
        if "recipe" in spec:
            draft = _draft(spec["recipe"], student, teacher)
            if set(spec) > {"recipe"}:
                more = sorted(set(spec) - {"recipe"})
                raise ConfigError(
                    f"Beside a ready 'recipe' stands {', '.join(more)}. Give its options with it: "
                    "recipe: {name: ..., option: ...}."
                )
            return draft
        given = {key: spec[key] for key in ("unit", "stages", "task_weight") if key in spec}
        return _Draft(list(spec["pairs"]), **given)
    if isinstance(spec, Sequence):
        return _Draft(list(spec))
    raise ConfigError(
        f"A recipe is a list of pairs, dict(pairs=...), or the name of a ready one "
        f"({', '.join(READY)}), not {spec!r}."
    )


def _ready(name: str, options: Mapping[str, Any], student: Shape, teacher: Shape) -> _Draft:
    if name not in READY:
        raise ConfigError(
            f"There is no ready recipe {name!r}.{did_you_mean(name, READY)} There are: "
            f"{', '.join(READY)}."
        )
    make = READY[name]
    takes = list(inspect.signature(make).parameters)[2:]
    for key in options:
        if key not in takes:
            raise ConfigError(
                f"Recipe {name!r} has no option {key!r}.{did_you_mean(key, takes)} It has: "
                f"{', '.join(takes) or 'none'}."
            )
    return make(student, teacher, **options)


# -- one line -------------------------------------------------------------------------------------


def _expand(line: Any, student: Shape, teachers: Mapping[str, Shape]) -> Any:
    """Replace ``layers`` by the layers themselves, and settle how heads are compared."""
    if isinstance(line, Pair) or not isinstance(line, Mapping) or "student" not in line:
        return line  # made already, or to be told by Pair.from_config
    line = dict(line)
    line["teacher"] = line.get("teacher") or line["student"]
    sides = line["student"], line["teacher"]
    if not all(side and isinstance(side, (str, list, tuple)) for side in sides):
        return line  # likewise
    parts, their_parts = (
        members(side) if isinstance(side, str) else list(map(str, side)) for side in sides
    )
    teacher = teachers.get(line.get("of") or next(iter(teachers)))
    if teacher is None:
        return line  # Distiller names the teachers there are
    if "layers" in line:
        spec = line.pop("layers")
        for part in [*parts, *their_parts]:
            if part.removeprefix(OUTPUTS) not in LAYERED or not part.startswith(OUTPUTS):
                raise ConfigError(
                    f"layers={spec!r} goes with outputs of every layer "
                    f"({', '.join(OUTPUTS + name for name in LAYERED)}), not with {part!r}."
                )
        if student.layers is None or teacher.layers is None:
            raise ConfigError(
                f"layers={spec!r}: the depth of student or teacher is not in its config "
                "(num_hidden_layers). Select layers by hand: 'outputs.hidden_states[1,2]'."
            )
        chosen = layer_map(spec, student.layers, teacher.layers)
        parts = [_select(part, [s for s, _ in chosen]) for part in parts]
        their_parts = [_select(part, [t for _, t in chosen]) for part in their_parts]
        line["student"], line["teacher"] = " + ".join(parts), " + ".join(their_parts)
    if line.get("loss") != "AttentionMap":
        return line
    known = None not in (student.heads, teacher.heads) and parts[0].startswith(OUTPUTS)
    if known and student.heads != teacher.heads and "heads" not in line:
        line["heads"] = "mean"
        logger.warning(
            "Pair %s: the student has %d attention heads and the teacher %d, so the averages "
            "over the heads are compared (heads='mean').",
            line["student"],
            student.heads,
            teacher.heads,
        )
    if output_name(parts[0]) == "attention_scores":
        line.setdefault("form", "scores")
    return line


def _select(output: str, layers: Sequence[int]) -> str:
    # Layers count from 1. Among the hidden states, the embeddings stand first; maps have none.
    shift = 0 if output_name(output) == "hidden_states" else 1
    if shift and 0 in layers:
        raise ConfigError(f"{output} has no layer 0: the embeddings pay no attention.")
    return f"{output}[{','.join(str(layer - shift) for layer in layers)}]"


# -- ready recipes --------------------------------------------------------------------------------


def logits(
    student: Shape,
    teacher: Shape,
    temperature: float = 2.0,
    weight: float = 1.0,
    task_weight: float = 1.0,
) -> _Draft:
    """The classic: T^2 KL of the logits beside the student's own loss (Hinton et al. 2014).

    Of a regression, half the squared difference.
    """
    if student.labels == 1:
        pair = dict(student="outputs.logits", loss="L2Logits", weight=weight)
        return _Draft([pair], task_weight=task_weight)
    pair = dict(
        student="outputs.logits", loss="KLDivergence", temperature=temperature, weight=weight
    )
    return _Draft([pair], task_weight=task_weight)


def tinybert(
    student: Shape,
    teacher: Shape,
    phase: str = "both",
    intermediate: float = 3.0,
    temperature: float = 1.0,
) -> _Draft:
    """TinyBERT's two phases (Jiao et al. 2020, section 4): layers first, then the prediction.

    Phase ``"intermediate"``: embeddings, hidden states (through linear maps) and attention scores
    of every student layer with the teacher's layer of the uniform map, summed over layers; phase
    ``"prediction"``: soft cross-entropy. The student's own loss has no part in either. The paper
    shares one linear map over the hidden states; here each layer has its own.
    """
    if phase not in ("both", "intermediate", "prediction"):
        raise ConfigError(f"phase={phase!r} is not 'both', 'intermediate' or 'prediction'.")
    depth = student.layers or 1
    uniform = dict(layers="uniform", weight=float(depth))  # a pair is a mean, the paper's a sum
    first: list[dict[str, Any]] = [
        dict(student="outputs.embeddings", loss="HiddenStateTransfer", name="embeddings"),
        dict(student="outputs.hidden_states", loss="HiddenStateTransfer", name="hidden", **uniform),
        dict(
            student="outputs.attention_scores",
            loss="AttentionMap",
            divergence="mse",
            name="attention",
            **uniform,
        ),
    ]
    last = dict(
        student="outputs.logits",
        loss="SoftCrossEntropy",
        temperature=temperature,
        name="prediction",
    )
    if phase != "both":
        return _Draft(first if phase == "intermediate" else [last], task_weight=0.0)
    stages = [dict(name="intermediate", until=intermediate), dict(name="prediction")]
    pairs = [dict(line, stage="intermediate") for line in first]
    return _Draft([*pairs, dict(last, stage="prediction")], stages=stages, task_weight=0.0)


def minilm(student: Shape, teacher: Shape, task_weight: float = 0.0) -> _Draft:
    """MiniLM (Wang et al. 2020): attention and value relations of the last layer."""
    pairs = [
        dict(
            student="outputs.queries[-1] + outputs.keys[-1]", loss="AttentionQK", name="attention"
        ),
        dict(student="outputs.values[-1]", loss="SelfAttentionRelations", name="value_relations"),
    ]
    return _Draft(pairs, task_weight=task_weight)


def minilmv2(
    student: Shape,
    teacher: Shape,
    relation_heads: int = 12,
    teacher_layer: int = -1,
    task_weight: float = 0.0,
) -> _Draft:
    """MiniLMv2 (Wang et al. 2021): relations of queries, keys and values, split into other heads.

    Any widths and head counts. ``teacher_layer`` is an index from 0: -1 is the last, as for
    teachers of base size; for large ones the paper takes one further below (20 of 24).
    """
    kinds = ("queries", "keys", "values")
    pair = dict(
        student=[f"outputs.{kind}[-1]" for kind in kinds],
        teacher=[f"outputs.{kind}[{teacher_layer}]" for kind in kinds],
        loss="SelfAttentionRelations",
        relation_heads=relation_heads,
        name="relations",
    )
    return _Draft([pair], task_weight=task_weight)


def mobilebert(
    student: Shape,
    teacher: Shape,
    strategy: str = "progressive",
    steps_per_layer: int = 10_000,
    transfer_steps: int = 240_000,
    lower: float = 0.0,
    warmup: float = 0.1,
    alpha: float = 0.5,
    next_sentence: bool = True,
    feature_weight: float = 1.0,
    attention_weight: float = 1.0,
    normalize: str | None = None,
    copy: bool = True,
) -> _Draft:
    """MobileBERT's knowledge transfer and pre-training distillation (Sun et al. 2020, section 3).

    Feature maps (``HiddenStateTransfer``) and attention maps (``AttentionMap``) layer by layer, and
    alpha * MLM + (1 - alpha) * KD + NSP on the head. Strategies:

    * ``"progressive"``: layer l alone for ``steps_per_layer`` steps, the layers below frozen
      (``lower=0``) or slowed (0.1 in the published code), embeddings and head copied from the
      teacher; then distillation of everything.
    * ``"joint"``: all layers together for ``transfer_steps`` steps, then distillation.
    * ``"auxiliary"``: all of it together from the start.

    Args:
        student: The student's shape; as many layers as the teacher's.
        teacher: The teacher's.
        strategy: See above.
        steps_per_layer: Length of a progressive stage; the published code has 240,000 in all.
        transfer_steps: Length of the joint stage.
        lower: Learning-rate factor of the layers below the one in turn.
        warmup: Share of a progressive stage in which the learning rate rises from 0.
        alpha: Share of the labels in the masked-language loss.
        next_sentence: Whether the data and the heads have next-sentence prediction.
        feature_weight: Weight of the feature maps; the published code, on normalised features, has
            100 of the mean over layers.
        attention_weight: Weight of the attention maps.
        normalize: ``"layer_norm"`` compares normalised features, as the published code does.
        copy: Whether the student starts with the teacher's embeddings and head.
    """
    if student.layers is None or student.layers != teacher.layers:
        raise ConfigError(
            f"Recipe 'mobilebert' matches layer by layer, but the student has {student.layers} "
            f"layers and the teacher {teacher.layers}."
        )
    if strategy not in ("progressive", "joint", "auxiliary"):
        raise ConfigError(f"strategy={strategy!r} is not 'progressive', 'joint' or 'auxiliary'.")
    if not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha!r}, the labels' share of the loss, is not in 0 to 1.")
    depth = student.layers

    def transfer(layers: Mapping[int, int] | str, suffix: str, **more: Any) -> list[dict[str, Any]]:
        features = dict(student="outputs.hidden_states", loss="HiddenStateTransfer", layers=layers)
        if normalize is not None:
            features["normalize"] = normalize
        maps = dict(student="outputs.attentions", loss="AttentionMap", layers=layers)
        return [
            dict(features, name=f"feature{suffix}", weight=feature_weight, **more),
            dict(maps, name=f"attention{suffix}", weight=attention_weight, **more),
        ]

    def head(**more: Any) -> list[dict[str, Any]]:
        mixed = dict(loss="CrossEntropyKLDivergence", temperature=1.0)
        # The loss's alpha is the teacher's share, the paper's that of the labels.
        lines = [dict(mixed, student="outputs.logits", alpha=1 - alpha, name="mlm", **more)]
        if next_sentence:
            pair = dict(mixed, student="outputs.seq_relationship_logits", alpha=0.0)
            lines.append(dict(pair, name="next_sentence", **more))
        return lines

    shared: dict[str, Any] = dict(unit="step", task_weight=0.0, copy=copy)
    if strategy == "auxiliary":
        return _Draft([*transfer("same", ""), *head()], **shared)
    if strategy == "joint":
        stages = [dict(name="transfer", until=transfer_steps), dict(name="distillation")]
        pairs = transfer("same", "", stage="transfer") + head(stage="distillation")
        return _Draft(pairs, stages=stages, **shared)
    pairs, stages = [], []
    for layer in range(1, depth + 1):
        stages.append(dict(name=f"layer{layer}", until=layer * steps_per_layer))
        pairs += transfer({layer: layer}, f"_{layer}", stage=f"layer{layer}")
    stages.append(dict(name="distillation"))
    pairs += head(stage="distillation")
    layer_stages = LayerStages(depth, steps_per_layer, lower, warmup)
    return _Draft(pairs, stages=stages, layer_stages=layer_stages, **shared)


READY: dict[str, Callable[..., _Draft]] = {
    "logits": logits,
    "tinybert": tinybert,
    "minilm": minilm,
    "minilmv2": minilmv2,
    "mobilebert": mobilebert,
}
"""Ready recipes by name; each takes the shapes of student and teacher, and its options."""
