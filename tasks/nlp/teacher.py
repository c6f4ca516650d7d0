"""Loading a teacher, and knowing it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from ...core.errors import ConfigError, TeacherError, did_you_mean
from ...core.teacher import FrozenTeacher

__all__ = ["load_teacher", "model_of"]

_RUNS = ("precision", "compile", "device")
_OPTIONS = ("path", *_RUNS, "attn_implementation", "revision")


def load_teacher(
    source: str | Path | Mapping[str, Any], model_class: str = "AutoModel"
) -> FrozenTeacher:
    """Load a teacher with the head of the task.

    Args:
        source: A folder that ``save_pretrained`` or a Trainer wrote, or a name on the hub; or
            ``dict(path=..., precision=..., compile=..., device=..., attn_implementation=...,
            revision=...)``; see :class:`.FrozenTeacher` for the middle three.
        model_class: Name of the Auto class, ``"AutoModelForSequenceClassification"`` for instance.

    Raises:
        ConfigError: If the source is not of that form, or the folder does not exist.
        TeacherError: If it cannot be loaded, or lacks weights of that head: those would be random.
    """
    options: dict[str, Any] = dict(source) if isinstance(source, Mapping) else {"path": source}
    for key in options:
        if key not in _OPTIONS:
            raise ConfigError(
                f"A teacher has no {key!r}.{did_you_mean(key, _OPTIONS)} It has: "
                f"{', '.join(_OPTIONS)}."
            )
    if not isinstance(options.get("path"), (str, Path)) or not options["path"]:
        raise ConfigError(f"Teacher {options} has no 'path': a folder, or a name on the hub.")
    path = str(Path(options["path"]).expanduser())
    auto = getattr(transformers, model_class, None)
    if auto is None or not hasattr(auto, "from_pretrained"):
        raise ConfigError(f"transformers has no model class {model_class!r}.")
    _check_folder(path)
    settings = {k: options[k] for k in ("attn_implementation", "revision") if options.get(k)}
    try:
        # Said outright: left out, transformers asks at the keyboard whether to run a model's code.
        model, info = auto.from_pretrained(
            path, output_loading_info=True, trust_remote_code=False, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TeacherError(
            f"Teacher {path!r} cannot be loaded as {model_class}: {str(error).strip()}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise TeacherError(
            f"Teacher {path!r} has no weights for {', '.join(missing[:6])}"
            f"{', ...' if len(missing) > 6 else ''} of {type(model).__name__}: its answers would "
            "be random. Give a teacher that was trained for the task."
        )
    runs = {key: options[key] for key in _RUNS if key in options}
    return FrozenTeacher(model, source=path, **runs)


def _check_folder(path: str) -> None:
    """Tell a missing folder from a name on the hub, which has no more than one slash."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"Teacher folder {path!r} holds no config.json. Give a folder that save_pretrained "
                "or a Trainer wrote (OUTPUT_DIR/model, OUTPUT_DIR/checkpoint-N)."
            )
    elif folder.is_absolute() or path.count("/") > 1 or path.startswith("."):
        raise ConfigError(
            f"Teacher folder {path!r} does not exist. Train the teacher first, or mend the path."
        )


def model_of(teacher: PreTrainedModel | nn.Module | FrozenTeacher) -> nn.Module:
    """The network of a teacher, frozen already or not."""
    return teacher.model if isinstance(teacher, FrozenTeacher) else teacher
