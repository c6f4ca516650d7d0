"""Students that begin as some of their teacher's layers.

A student that starts from its teacher's weights needs a fraction of the training that one from
random weights does (Sanh et al. 2019, section 3; Sun et al. 2019, section 4). It is a plain model
of transformers: saved, it opens by ``AutoModel.from_pretrained`` and nothing else.
"""

from __future__ import annotations

import copy
import logging
import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...core.errors import CheckpointError, ConfigError, TeacherError, did_you_mean
from .layers import encoder_layers

__all__ = ["STRATEGIES", "select_layers", "student_from_teacher"]

_log = logging.getLogger(__name__)

STRATEGIES = ("every_other", "uniform", "first", "last")
"""Names of ways to choose layers; see :func:`select_layers`."""

# Heads that predict what a masked language model predicts, in entries of the same names.
_PRETRAINING = ("ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction")

_DISTILBERT_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_DISTILBERT_HEAD = {
    "cls.predictions.transform.dense.": "vocab_transform.",
    "cls.predictions.transform.LayerNorm.": "vocab_layer_norm.",
    "cls.predictions.decoder.": "vocab_projector.",
}
# DistilBERT puts a ReLU between pooling and classifier where BERT has a tanh: the same numbers
# would be another function there, so only the heads without a pooler are carried over.
_DISTILBERT_KEEPS = (*_PRETRAINING, "ForQuestionAnswering", "ForTokenClassification")


def select_layers(
    total: int, layers: str | Iterable[int] = "every_other", number: int | None = None
) -> list[int]:
    """Choose which of a teacher's layers a student takes, counted from 0.

    ==============  ==============================================  ==========================
    ``layers``      which                                           6 of 12
    ==============  ==============================================  ==========================
    "every_other"   one of two, beginning with the first            0, 2, 4, 6, 8, 10
    "uniform"       evenly spread, the first and the last included  0, 2, 4, 7, 9, 11
    "first"         the lowest                                      0, 1, 2, 3, 4, 5
    "last"          the highest                                     6, 7, 8, 9, 10, 11
    a list          these, in this order                            ``range(1, 12, 2)``, ...
    ==============  ==============================================  ==========================

    The DistilBERT paper says "one layer out of two"; what its script ``extract_distilbert.py``
    takes is "uniform". Patient KD starts from "first"; its "skip" and "last" name the layers whose
    output is imitated, not those a student starts from.

    Args:
        total: How many layers the teacher has.
        layers: A name of the table, or layer numbers. Negative ones count from the end, as
            Python's do. A list may repeat a layer and need not ascend; the names never do so.
        number: How many layers, for "uniform", "first" and "last"; half of them, rounded up, by
            default. "every_other" and a list say it themselves.

    Raises:
        ConfigError: If there is no such name, layer, or number of layers.

    Reference:
        V. Sanh et al., DistilBERT, a distilled version of BERT, 2019, section 3.
        S. Sun et al., Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019.

    Example:
        >>> select_layers(12, "uniform", 6)
        [0, 2, 4, 7, 9, 11]
        >>> select_layers(12, [0, 5, -1])
        [0, 5, 11]
    """
    if not isinstance(layers, str):
        return _explicit(total, layers, number)
    if layers not in STRATEGIES:
        raise ConfigError(
            f"layers={layers!r} is no way to choose layers. Expected one of {list(STRATEGIES)}, or "
            f"the layers' numbers, such as [0, 2, 4].{did_you_mean(layers, STRATEGIES)}"
        )
    half = (total + 1) // 2
    count = half if number is None else number
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= total:
        raise ConfigError(
            f"number={number!r} layers cannot be taken from a teacher of {total}: expected an "
            f"integer from 1 to {total}. To use layers twice, list them: layers=[0, 0, 1, 1]."
        )
    if layers == "every_other":
        if count != half:
            raise ConfigError(
                f"layers='every_other' takes {half} of {total} layers, not number={number}. Leave "
                f"out number, or use layers='uniform', number={number}."
            )
        return list(range(0, total, 2))
    if layers == "first":
        return list(range(count))
    if layers == "last":
        return list(range(total - count, total))
    # Rounded in integers, halves up, so that no machine's floats decide.
    steps = max(count - 1, 1)
    return [(2 * i * (total - 1) + steps) // (2 * steps) for i in range(count)]


def _explicit(total: int, layers: Iterable[int], number: int | None) -> list[int]:
    try:
        chosen = [operator.index(layer) for layer in layers]
    except TypeError as error:
        raise ConfigError(
            f"layers={layers!r} are no layer numbers. Expected integers, such as [0, 2, 4], or one "
            f"of {list(STRATEGIES)}."
        ) from error
    if not chosen:
        raise ConfigError(f"layers=[] leaves no layer. Give at least one of 0 to {total - 1}.")
    if number is not None and number != len(chosen):
        raise ConfigError(f"layers={chosen} are {len(chosen)}, not number={number}. Give only one.")
    if beyond := [layer for layer in chosen if not -total <= layer < total]:
        raise ConfigError(
            f"layers={chosen} asks for {beyond}, but the teacher has {total} layers: expected "
            f"numbers from 0 to {total - 1}, or from -{total} to -1 to count from the end."
        )
    return [layer % total for layer in chosen]


def student_from_teacher(
    teacher: PreTrainedModel | str | Path,
    layers: str | Iterable[int] = "every_other",
    *,
    number: int | None = None,
    as_class: type[PreTrainedModel] | str | None = None,
    keep_head: bool = True,
    token_type: int | None = 0,
    **config_changes: Any,
) -> PreTrainedModel:
    """Make a student of the teacher's architecture from some of the teacher's layers.

    Embeddings, the chosen layers and whatever else the encoder has are copied, by name; nothing
    is shared with the teacher, which stays as it is. Any encoder whose layers are one list of
    modules will do: BERT, RoBERTa, XLM-R, ELECTRA, MobileBERT, DeBERTa, DistilBERT, ... A
    ModernBERT student has to begin with layer 0, the only one without a norm in front.

    The student comes as from ``from_pretrained``: in eval mode (a Trainer switches it), every
    parameter to be trained, in the teacher's dtype and on its device.

    A BERT teacher may have a DistilBERT student (``as_class="DistilBertForMaskedLM"``). That has
    no pooler, and a classifier of its own kind, which begins anew; and it has no token types.
    The original script drops the teacher's embedding of them, which every token had; here type
    ``token_type`` is added to the positions' (each token has exactly one, and the words' are tied
    to the output layer), so that the student begins by computing what its teacher computes for a
    text without a second segment. DistilBERT's norms have an epsilon of 1e-12, as BERT's.

    Args:
        teacher: A model of transformers, or the folder (or hub name) of a saved one, which is
            opened as the class that it was saved as.
        layers: Which layers; see :func:`select_layers`.
        number: How many, where ``layers`` is a name; half of them by default.
        as_class: The student's class, or its name: another head on the same encoder, the bare
            encoder, or a DistilBERT class; the teacher's own class by default.
        keep_head: Whether the teacher's head is copied where the student has the same (the same
            class; or both of pre-training, entry by entry of equal name and shape). Otherwise it
            begins anew.
        token_type: For a DistilBERT student, the token type that is kept; ``None`` drops all, as
            the original script.
        **config_changes: Fields of the student's config to set, such as ``num_labels``,
            ``id2label`` or dropout rates. What changes a weight's shape in the encoder is
            refused.

    Returns:
        A plain model of transformers.

    Raises:
        CheckpointError: If the folder holds no complete model.
        TeacherError: If the teacher is no encoder of this kind, or its layers do not fit where
            they would go.
        ConfigError: If layers, class or a config field cannot be meant, or the student would be
            of another width.

    Reference:
        V. Sanh et al., DistilBERT, a distilled version of BERT, 2019, section 3.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> teacher = BertForMaskedLM(BertConfig(
        ...     vocab_size=30, hidden_size=8, num_hidden_layers=4, num_attention_heads=2,
        ...     intermediate_size=16, max_position_embeddings=16))
        >>> student = student_from_teacher(teacher, "every_other")
        >>> type(student).__name__, student.config.num_hidden_layers
        ('BertForMaskedLM', 2)
        >>> kept = teacher.bert.encoder.layer[2].output.dense.weight
        >>> bool((student.bert.encoder.layer[1].output.dense.weight == kept).all())
        True
        >>> type(student_from_teacher(teacher, as_class="DistilBertForMaskedLM")).__name__
        'DistilBertForMaskedLM'
    """
    if isinstance(teacher, str | Path):
        teacher = _open(teacher)
    stack = _layer_stack(teacher)
    chosen = select_layers(teacher.config.num_hidden_layers, layers, number)
    student_class = _student_class(as_class, type(teacher))
    distilbert = _is_distilbert(student_class, teacher)
    if distilbert:
        config = _distilbert_config(teacher.config)
    else:
        config = copy.deepcopy(teacher.config)
    config.name_or_path = ""  # it was not loaded from where the teacher was
    _set_layers(config, teacher.config, chosen)
    _change(config, config_changes)
    _check_same_width(config, teacher.config)

    student = _empty(student_class, config, teacher)
    body = _take_layers(teacher.base_model.state_dict(), stack, chosen)
    head = _head_state(teacher) if keep_head else {}
    if distilbert:
        body = _body_as_distilbert(body, token_type)
        head = _head_as_distilbert(head)
    copied = _body_plan(student, body)
    if head and _same_head(student_class, type(teacher), distilbert):
        own = _head_state(student)
        copied |= {n: v for n, v in head.items() if n in own and own[n].shape == v.shape}
    student.load_state_dict(copied, strict=False)
    _log.info(
        "The student takes layers %s of the teacher's %d; new are: %s.",
        chosen,
        teacher.config.num_hidden_layers,
        ", ".join(_new(student, copied)) or "none of its weights",
    )
    return student.eval()


def _open(where: str | Path) -> PreTrainedModel:
    """The model of a folder as the class it was saved as, every weight of it."""
    where = str(Path(where).expanduser())
    explanation = (
        f"Teacher {where!r} cannot be opened. Expected a folder that save_pretrained wrote "
        "(config.json and model.safetensors), or the name of one on the hub: "
    )
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{explanation}{error}") from error
    model_class: Any = _named_class(config.architectures[0]) if config.architectures else AutoModel
    try:
        model, info = model_class.from_pretrained(where, config=config, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{explanation}{error}") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"Teacher {where!r} lacks {len(missing)} of {type(model).__name__}'s weights, such as "
            f"{missing[0]!r}. Its config.json names that class; save the whole model again."
        )
    return model


def _named_class(name: str) -> type[PreTrainedModel]:
    """A model class by its name: of transformers, or any other that was imported."""
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    pending, known = [PreTrainedModel], {}
    while pending:
        subclass = pending.pop()
        known[subclass.__name__] = subclass
        pending.extend(subclass.__subclasses__())
    if name in known:
        return known[name]
    near = did_you_mean(name, {*known, *(n for n in dir(transformers) if "For" in n)})
    raise ConfigError(
        f"{name!r} is no model class of transformers. Expected a name such as "
        f"'BertForSequenceClassification'; a class of your own has to be imported first.{near}"
    )


def _layer_stack(teacher: object) -> str:
    """Name, within the encoder, of the list that holds the teacher's layers."""
    if not isinstance(teacher, PreTrainedModel):
        raise ConfigError(
            f"teacher is a {type(teacher).__name__}. Expected a model of transformers, unwrapped, "
            "or the folder of a saved one."
        )
    kind, config = type(teacher).__name__, teacher.config
    if hasattr(config, "num_hidden_groups"):
        raise TeacherError(
            f"The layers of {kind} share their weights, so there are none to choose from. A "
            f"student that applies them fewer times has the same weights: "
            f"{kind}.from_pretrained(folder, num_hidden_layers=6)."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise TeacherError(
            f"The teacher {kind} is quantised, and its weights cannot start a student that is to "
            "be trained. Load it in floating point, without quantization_config."
        )
    try:
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigError(f"{kind} is an encoder-decoder; expected an encoder.")
        return encoder_layers(teacher.base_model)[0]
    except ConfigError as error:
        raise TeacherError(f"{error} Build that student by hand.") from error


def _student_class(
    wanted: type[PreTrainedModel] | str | None, teacher: type[PreTrainedModel]
) -> type[PreTrainedModel]:
    if wanted is None:
        return teacher
    if isinstance(wanted, str):
        return _named_class(wanted)
    if isinstance(wanted, type) and issubclass(wanted, PreTrainedModel):
        return wanted
    raise ConfigError(
        f"as_class={wanted!r} is no model class. Expected a class of transformers or its name, "
        f"such as {teacher.__name__!r}."
    )


def _is_distilbert(student: type[PreTrainedModel], teacher: PreTrainedModel) -> bool:
    """Whether names have to be translated; an error where nothing of the teacher would fit."""
    config_class = student.config_class
    if config_class is type(teacher.config):
        return False
    if config_class is DistilBertConfig and type(teacher.config) is BertConfig:
        if teacher.config.is_decoder:
            raise TeacherError("DistilBERT is an encoder; the teacher's config says is_decoder.")
        return True
    raise ConfigError(
        f"A {student.__name__} cannot start from the weights of a {type(teacher).__name__}: they "
        f"are of different architectures ({getattr(config_class, 'model_type', None)!r} and "
        f"{teacher.config.model_type!r}). Expected another class of {teacher.config.model_type!r}, "
        "or a DistilBERT class for a BERT teacher. Otherwise start the student from weights of "
        "its own and distil into it."
    )


def _distilbert_config(bert: PreTrainedConfig) -> PreTrainedConfig:
    config = DistilBertConfig(
        vocab_size=bert.vocab_size,
        max_position_embeddings=bert.max_position_embeddings,
        n_layers=bert.num_hidden_layers,
        n_heads=bert.num_attention_heads,
        dim=bert.hidden_size,
        hidden_dim=bert.intermediate_size,
        dropout=bert.hidden_dropout_prob,
        attention_dropout=bert.attention_probs_dropout_prob,
        activation=bert.hidden_act,
        initializer_range=bert.initializer_range,
        pad_token_id=bert.pad_token_id,
        tie_word_embeddings=bert.tie_word_embeddings,
        problem_type=bert.problem_type,
        id2label=bert.id2label,
        label2id=bert.label2id,
    )
    config._attn_implementation = bert._attn_implementation
    return config


def _set_layers(config: PreTrainedConfig, teacher: PreTrainedConfig, chosen: list[int]) -> None:
    """Say the number of layers, and take along what the config lists layer by layer."""
    config.num_hidden_layers = len(chosen)
    for name, value in teacher.to_dict().items():
        by_layer = "layer" in name or name == "attention_window"  # the latter is Longformer's
        if by_layer and isinstance(value, list) and len(value) == teacher.num_hidden_layers:
            setattr(config, name, [value[layer] for layer in chosen])


def _change(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if config.attribute_map.get(name, name) == config.attribute_map.get(
            "num_hidden_layers", "num_hidden_layers"
        ):
            raise ConfigError(
                f"{name}={value!r} would contradict the layers that are taken. Say "
                f"layers='uniform', number={value!r}, or list them."
            )
        if not hasattr(config, name):
            near = did_you_mean(name, [*config.to_dict(), "num_labels", *config.attribute_map])
            raise ConfigError(f"{type(config).__name__} has no field {name!r} to change.{near}")
        if name == "id2label" and isinstance(value, Mapping):
            value = {int(index): label for index, label in value.items()}
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            raise ConfigError(
                f"{name}={value!r} is not what {type(config).__name__} expects: {error}"
            ) from error
    if config.id2label and "id2label" in changes and "label2id" not in changes:
        config.label2id = {str(label): int(index) for index, label in config.id2label.items()}


def _check_same_width(config: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    if config.hidden_size != teacher.hidden_size:
        raise ConfigError(
            f"hidden_size={config.hidden_size} is not the teacher's {teacher.hidden_size}: its "
            "weights do not fit a student of another width. Make that student from its own config "
            "and let a recipe teach it; HiddenStateTransfer has an adapter between the widths."
        )
    for name, why in (
        ("num_attention_heads", "the same weights would be cut into other heads"),
        ("tie_word_embeddings", "the output layer and the embeddings are one tensor or two"),
    ):
        mine, its = getattr(config, name, None), getattr(teacher, name, None)
        if mine != its:
            raise ConfigError(f"{name}={mine} is not the teacher's {its}: {why}. Leave it out.")


def _empty(
    student_class: type[PreTrainedModel], config: PreTrainedConfig, teacher: PreTrainedModel
) -> PreTrainedModel:
    """The student with random weights, in the teacher's dtype: its rotary tables stay float32."""
    try:
        student = student_class._from_config(config, dtype=teacher.dtype)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"No {student_class.__name__} can be made so: {error}") from error
    nn.Module.to(student, teacher.device)
    return student


def _take_layers(body: Mapping[str, Tensor], stack: str, chosen: list[int]) -> dict[str, Tensor]:
    """The encoder's state with the chosen layers under their new numbers."""
    layer = re.compile(rf"{re.escape(stack)}\.(\d+)\.(.+)")
    taken: dict[str, Tensor] = {}
    for name, value in body.items():
        if match := layer.fullmatch(name):
            for new, old in enumerate(chosen):
                if old == int(match[1]):
                    taken[f"{stack}.{new}.{match[2]}"] = value
        else:
            taken[name] = value
    return taken


def _body_as_distilbert(body: Mapping[str, Tensor], token_type: int | None) -> dict[str, Tensor]:
    """A BERT encoder's state under DistilBERT's names."""
    renamed: dict[str, Tensor] = {}
    for name, value in body.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", name):
            number, part, kind = match.groups()
            renamed[f"transformer.layer.{number}.{_DISTILBERT_LAYER[part]}.{kind}"] = value
        elif name.startswith("embeddings.") and "token_type" not in name:
            renamed[name] = value
    if token_type is not None:
        types = body["embeddings.token_type_embeddings.weight"]
        if not 0 <= token_type < len(types):
            raise ConfigError(
                f"token_type={token_type} is none of the teacher's {len(types)}. Expected 0 to "
                f"{len(types) - 1}, or None to drop them."
            )
        positions = renamed["embeddings.position_embeddings.weight"]
        renamed["embeddings.position_embeddings.weight"] = positions + types[token_type]
    return renamed


def _head_as_distilbert(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in head.items():
        for bert, distilbert in _DISTILBERT_HEAD.items():
            if name.startswith(bert):
                name = distilbert + name.removeprefix(bert)
        renamed[name] = value
    return renamed


def _head_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What is not the encoder's."""
    if model.base_model is model:
        return {}
    body = f"{model.base_model_prefix}."
    return {n: value for n, value in model.state_dict().items() if not n.startswith(body)}


def _same_head(
    student: type[PreTrainedModel], teacher: type[PreTrainedModel], distilbert: bool
) -> bool:
    # By class, not by names: a `classifier` of tokens and one of texts may agree in both name
    # and shape.
    if student is teacher or (student.__name__ == f"Distil{teacher.__name__}"):
        return not distilbert or student.__name__.endswith(_DISTILBERT_KEEPS)
    return student.__name__.endswith(_PRETRAINING) and teacher.__name__.endswith(_PRETRAINING)


def _body_plan(student: PreTrainedModel, body: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's entries under the student's full names, complete or an error.

    Only a pooler may be without a counterpart, as heads differ in whether they need one.
    """
    own = student.base_model.state_dict()
    lacking = [name for name in own if name not in body and not name.startswith("pooler.")]
    unused = [name for name in body if name not in own and not name.startswith("pooler.")]
    if lacking or unused:
        which = f"no weight for {lacking[0]!r}" if lacking else f"no place for {unused[0]!r}"
        raise TeacherError(
            f"The teacher's layers do not fit into the student: there is {which} (names in the "
            "student's numbering). A layer may differ from the others (the first of a ModernBERT "
            "has no norm in front): leave it in its place. Or a changed config field adds or "
            "removes a module."
        )
    shared = {name: value for name, value in body.items() if name in own}
    for name, value in shared.items():
        if value.shape != own[name].shape:
            raise ConfigError(
                f"{name} is {tuple(own[name].shape)} in the student and {tuple(value.shape)} in "
                "the teacher. Change no config field that gives the encoder other shapes; for "
                "another vocabulary size use student.resize_token_embeddings afterwards."
            )
    prefix = "" if student.base_model is student else f"{student.base_model_prefix}."
    return {prefix + name: value for name, value in shared.items()}


def _new(student: nn.Module, copied: Mapping[str, Tensor]) -> list[str]:
    """Parameters that keep their random values; a tied one has one name here."""
    return [name for name, _ in student.named_parameters() if name not in copied]
