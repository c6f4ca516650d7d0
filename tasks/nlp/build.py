"""The student and its tokenizer: from pretrained weights, a teacher's layers, or from scratch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ...core.errors import CheckpointError, ConfigError, did_you_mean
from .arguments import ModelArguments, teacher_names
from .data import DataArguments, Prepared, tokenizer_from_vocab, train_wordpiece, training_texts
from .students import student_from_teacher

__all__ = ["build_model", "build_tokenizer", "load_trained", "read_model_config"]

_log = logging.getLogger(__name__)
_UNREADABLE = (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError)


def build_tokenizer(
    args: ModelArguments, data: DataArguments, distill: Mapping[str, Any] | None = None
) -> Any:
    """Make the tokenizer: loaded, from a vocabulary file, or trained on the training texts.

    Args:
        args: What the config says of the model.
        data: Where training texts come from, if a vocabulary is trained on them.
        distill: A ``distill`` entry, whose first teacher's tokenizer is taken where nothing else
            is said.

    Returns:
        A fast tokenizer.

    Raises:
        CheckpointError: If there is none under the name.
        ConfigError: If nothing says where it comes from.
    """
    if args.vocab_file is not None:
        return tokenizer_from_vocab(args.vocab_file, lowercase=args.lowercase)
    if args.vocab_size is not None:
        return train_wordpiece(
            training_texts(data), vocab_size=args.vocab_size, lowercase=args.lowercase
        )
    name = args.tokenizer or args.model or _start(args, distill)[0]
    if name is None:
        raise ConfigError(
            "Nothing says where the tokenizer comes from: give tokenizer (a folder or hub name), "
            "vocab_file, or vocab_size to train one."
        )
    return _load_tokenizer(name)


def build_model(
    args: ModelArguments,
    data: DataArguments,
    prepared: Prepared,
    tokenizer: Any,
    distill: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Build the student, in float32, and check that the data fit it.

    Weights that the student has and its start lacks, a head above all, begin anew; the log names
    them.

    Args:
        args: Where the student comes from.
        data: Its ``max_length`` must not exceed the student's positions.
        prepared: Which head it needs, and for which labels.
        tokenizer: Its vocabulary must not exceed the student's.
        distill: A ``distill`` entry, whose first teacher is the one that ``model_from_teacher``
            starts from where it names none.

    Raises:
        ConfigError: If nothing says what to build, a config key is unknown, or the data do not fit.
        CheckpointError: If a model to start from cannot be read or lacks weights of its encoder.
    """
    if args.model_config is not None:
        model = _from_scratch(_object(args.model_config), prepared, tokenizer, args)
    elif args.model is not None:
        model = _load(args.model, prepared, args.attn_implementation)
    else:
        name, options = _start(args, distill)
        if name is None:
            raise ConfigError(
                "Nothing says what to train: give model (a folder or hub name), model_config (from "
                "scratch) or model_from_teacher."
            )
        teacher = _load(name, prepared, args.attn_implementation)
        model = student_from_teacher(teacher, **options)
    _check_fit(model.config, data, tokenizer)
    return model


def load_trained(
    folder: str, prepared: Prepared, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Load a trained model for the labels of the data; nothing in it may begin anew.

    Args:
        folder: What ``save_pretrained`` or a Trainer wrote.
        prepared: The head and the labels that it must have.
        attn_implementation: See :class:`~taskdistill.tasks.nlp.arguments.ModelArguments`.

    Raises:
        CheckpointError: If it cannot be read, lacks a weight, or was trained for other labels.
    """
    return _load(folder, prepared, attn_implementation, complete=True)


def read_model_config(name: str) -> PreTrainedConfig:
    """Read the config of a saved model, and nothing else of it.

    Args:
        name: Folder or hub name.

    Raises:
        CheckpointError: If there is no model of that name.
    """
    try:
        return AutoConfig.from_pretrained(name)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"Model {name!r} cannot be read: it is neither a folder with a config.json nor a model "
            f"of the hub that is on this disk or can be fetched. {_first_line(error)}"
        ) from error


def _start(
    args: ModelArguments, distill: Mapping[str, Any] | None
) -> tuple[str | None, dict[str, Any]]:
    """The teacher that the tokenizer or the layers come from, and which layers."""
    options = _object(args.model_from_teacher) if args.model_from_teacher is not None else {}
    named = options.pop("teacher", None)
    first = next(iter(teacher_names(distill or {})), None)
    return named or first, options


def _object(value: dict[str, Any] | str | None) -> dict[str, Any]:
    assert isinstance(value, dict)  # ModelArguments has read the JSON
    return dict(value)


def _load_tokenizer(name: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"There is no tokenizer under {name!r}; give tokenizer, vocab_file or vocab_size. "
            f"{_first_line(error)}"
        ) from error
    # transformers makes one with nothing but special tokens where the vocabulary is missing.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(
            f"{name!r} has a model but no vocabulary beside it; give tokenizer (another folder), "
            "vocab_file or vocab_size."
        )
    return tokenizer


def _from_scratch(
    given: dict[str, Any], prepared: Prepared, tokenizer: Any, args: ModelArguments
) -> PreTrainedModel:
    kind = given.pop("model_type", None)
    try:
        plain = AutoConfig.for_model(kind)
    except ValueError as error:
        known = list(transformers.CONFIG_MAPPING)
        raise ConfigError(
            f"model_config has the model_type {kind!r}, which transformers does not know."
            f"{did_you_mean(str(kind), known)}"
        ) from error
    known = {*plain.to_dict(), *plain.attribute_map, "num_labels"}
    known |= {field.name for field in fields(plain)} if is_dataclass(plain) else set()
    for key in given:
        if key not in known:  # transformers would keep it and do nothing with it
            raise ConfigError(
                f"model_config: a {kind!r} model has no {key!r}.{did_you_mean(key, known)}"
            )
    filled = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **_label_keys(prepared.config),
        **given,
    }
    try:
        config = AutoConfig.for_model(kind, **filled)
        return _auto(prepared).from_config(
            config, dtype=torch.float32, **_attention(args.attn_implementation)
        )
    except (ValueError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
        raise ConfigError(f"model_config {given} makes no {kind!r} model: {error}") from error


def _load(
    name: str, prepared: Prepared, attn_implementation: str | None, complete: bool = False
) -> PreTrainedModel:
    saved = read_model_config(name)
    labels = _label_keys(prepared.config)
    other = _other_labels(saved, prepared.config)
    if other and complete:
        raise CheckpointError(f"Model {name!r} is not for these data: {other}.")
    # `saved` stays as it is, so that what it said can be told.
    config = AutoConfig.from_pretrained(name, **labels)
    try:
        with _quiet():
            model, report = _auto(prepared).from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=config.num_labels != saved.num_labels,
                output_loading_info=True,
                **_attention(attn_implementation),
            )
    except (*_UNREADABLE, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"Model {name!r} cannot be loaded as {prepared.model_class}: {error}"
        ) from error
    new = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    lost = [key for key in new if key.startswith(body) and "pooler" not in key]
    if lost or (complete and new):
        missing = lost or new
        raise CheckpointError(
            f"Model {name!r} lacks {len(missing)} weights of a "
            f"{type(model).__name__}, among them {', '.join(missing[:3])}."
        )
    if other and (report["mismatched_keys"] or config.num_labels == saved.num_labels):
        _log.info("%s: %s.", name, other)
    if new:
        _log.info("%s: these weights begin anew: %s.", name, ", ".join(new))
    return model


def _check_fit(config: PreTrainedConfig, data: DataArguments, tokenizer: Any) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from behind the padding's.
    first = (config.pad_token_id or 0) + 1 if _counts_from_padding(config) else 0
    if positions is not None and 0 < positions - first < data.max_length:
        raise ConfigError(
            f"max_length={data.max_length} is more than the {positions - first} positions of the "
            "model; lower max_length."
        )
    vocab_size = getattr(config, "vocab_size", None)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ConfigError(
            f"The tokenizer has {len(tokenizer)} tokens, the model {vocab_size}; take the model's "
            "own tokenizer, or leave vocab_size out of model_config."
        )


def _counts_from_padding(config: PreTrainedConfig) -> bool:
    return config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def _other_labels(saved: PreTrainedConfig, wanted: Mapping[str, Any]) -> str:
    """How the labels of a saved model differ from the data's; empty where they agree."""
    if "num_labels" not in wanted and "id2label" not in wanted:
        return ""
    count = wanted.get("num_labels") or len(wanted["id2label"])
    if saved.num_labels != count:
        return f"it has {saved.num_labels} labels and the data {count}: the head begins anew"
    theirs = [str(name) for name in (saved.id2label or {}).values()]
    ours = [str(name) for name in (wanted.get("id2label") or {}).values()]
    named = not all(name.startswith("LABEL_") for name in theirs)
    if ours and named and ours != theirs and sorted(ours) == sorted(theirs):
        return f"its labels are in the order {theirs} and the data's in the order {ours}"
    return ""


def _label_keys(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the config must say, the number of labels once only."""
    counted = "id2label" in wanted
    return {k: v for k, v in wanted.items() if not (counted and k == "num_labels")}


def _auto(prepared: Prepared) -> Any:
    return getattr(transformers, prepared.model_class)


def _attention(implementation: str | None) -> dict[str, str]:
    return {} if implementation is None else {"attn_implementation": implementation}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of new weights, which one line of ours stands for."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
