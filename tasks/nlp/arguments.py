"""What a run is made of: flags over a config over defaults, checked before anything is built."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from huggingface_hub.dataclasses import type_validator
from transformers import HfArgumentParser, TrainingArguments

from ...core.errors import ConfigError, did_you_mean
from .data import DataArguments
from .settings import fill_in, merge, read_settings

__all__ = ["DEFAULTS", "DistillArguments", "ModelArguments", "Run", "parse", "teacher_names"]

DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 50,
}
"""Where a run's defaults differ from those of transformers' ``TrainingArguments``."""


@dataclass
class ModelArguments:
    """The student and its tokenizer.

    One of ``model``, ``model_config`` and ``model_from_teacher`` says where the student comes from.

    Args:
        model: Folder or hub name of a pretrained model.
        model_config: Of a model from scratch: ``model_type`` and whatever its config class takes.
            The vocabulary's size and the labels are filled in.
        model_from_teacher: ``{"teacher": FOLDER, "layers": "every_other", ...}``: a student with
            some of the teacher's layers; see
            :func:`taskdistill.tasks.nlp.students.student_from_teacher` for the keys. Without
            ``teacher`` it is the one that is distilled from.
        tokenizer: Folder or hub name; by default the one beside the model, or else the teacher's.
        vocab_file: A WordPiece ``vocab.txt`` instead.
        lowercase: Whether that vocabulary, or the one to be trained, is of lower-case text.
        vocab_size: Train a WordPiece vocabulary of this many entries on the training texts.
        attn_implementation: ``"eager"``, ``"sdpa"``, ...; transformers' choice by default.
            Where attention maps are compared, ``"eager"`` is switched on by itself.

    Raises:
        ConfigError: If the entries contradict one another or an object is no JSON.

    Example:
        >>> ModelArguments(model_config='{"model_type": "bert"}').model_config
        {'model_type': 'bert'}
    """

    model: str | None = field(
        default=None, metadata={"help": "folder or hub name of the model to start from"}
    )
    # Objects are JSON strings as flags, which is why all three types are declared.
    model_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "config of a model from scratch, with its model_type; JSON"}
    )
    model_from_teacher: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "start from layers of a teacher: its folder and which layers; JSON"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or hub name of the tokenizer, if not the model's or teacher's"},
    )
    vocab_file: str | None = field(
        default=None, metadata={"help": "a WordPiece vocab.txt to make the tokenizer of"}
    )
    lowercase: bool = field(
        default=True, metadata={"help": "whether vocab_file or vocab_size is of lower-case text"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "train a WordPiece vocabulary of this size"}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "how attention is computed: eager, sdpa, ..."}
    )

    def __post_init__(self) -> None:
        self.model_config = _mapping("model_config", self.model_config)
        self.model_from_teacher = _mapping("model_from_teacher", self.model_from_teacher)
        for group in _EXCLUSIVE[:2]:
            given = [name for (name,) in group if getattr(self, name) is not None]
            if len(given) > 1:
                raise ConfigError(
                    f"{' and '.join(given)} are given, which exclude one another; set all but one "
                    "of them to null."
                )


@dataclass
class DistillArguments:
    """What is learnt from a teacher.

    Args:
        distill: The ``distill`` entry of a config: teacher, pairs or a ready recipe, stages. None
            trains the student on its labels alone.

    Raises:
        ConfigError: If it is no mapping, or names no teacher.

    Example:
        >>> DistillArguments('{"teacher": "runs/teacher", "recipe": "tinybert"}').distill["recipe"]
        'tinybert'
    """

    distill: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "teacher, and pairs or a recipe; JSON"}
    )

    def __post_init__(self) -> None:
        self.distill = _mapping("distill", self.distill)
        if self.distill is not None and not teacher_names(self.distill):
            near = [key for key in self.distill if did_you_mean(key, ["teacher", "teachers"])]
            meant = f" Should {near[0]!r} be that?" if near else ""
            raise ConfigError(
                f"distill has the keys {list(self.distill)} but no teacher: give 'teacher', a "
                f"folder or hub name, or 'teachers' by name.{meant}"
            )


@dataclass(frozen=True)
class Run:
    """A run as asked for.

    Args:
        data: What is learnt from.
        model: The student.
        distill: The teacher's part; None for plain training.
        training: How it is trained.
        given: Every key that the config or a flag set, with its value.
        resume: Whether to go on from the last checkpoint in the output folder.
        overwrite: Whether an earlier run in the output folder is deleted.
        eval_only: Folder of a trained model to evaluate instead of training one.
    """

    data: DataArguments
    model: ModelArguments
    distill: dict[str, Any] | None
    training: TrainingArguments
    given: Mapping[str, Any]
    resume: bool = False
    overwrite: bool = False
    eval_only: str | None = None


def parse(argv: Sequence[str] | None = None) -> Run:
    """Read a command line and the config it names.

    Args:
        argv: Arguments; those of the process by default.

    Raises:
        ConfigError: If a key or flag is unknown, a value has the wrong type, or values contradict
            one another.
    """
    flags = vars(_parser().parse_args(argv))
    name = flags.pop("config", None)
    resume, overwrite = flags.pop("resume", False), flags.pop("overwrite", False)
    eval_only = flags.pop("eval_only", None)
    where = f"config {name!r}" if name else "the flags"
    settings = _checked(read_settings(name), where) if name else {}
    for key in _OBJECTS & set(flags):
        flags[key] = _mapping(key, flags[key])
    settings = fill_in(merge(_without_replaced(settings, flags), flags))
    settings = _without_nulls(settings)
    if settings.get("resume_from_checkpoint") and (resume or overwrite):
        raise ConfigError(
            "resume_from_checkpoint names the checkpoint to go on from; leave out --resume and "
            "--overwrite."
        )
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite deletes it; take one.")
    if "task" not in settings:
        raise ConfigError(
            "No task is given; write it in the config or as --task, e.g. --task sst2."
        )
    if "output_dir" not in settings:
        if name is None and eval_only is None:
            raise ConfigError("No --output_dir is given, and no --config to name one after.")
        settings["output_dir"] = str(Path("work_dirs") / (Path(name).stem if name else "eval"))
    distill = _build(DistillArguments, settings, where).distill
    assert not isinstance(distill, str)
    return Run(
        data=_build(DataArguments, settings, where),
        model=_build(ModelArguments, settings, where),
        distill=distill,
        training=_training(settings, where),
        given=settings,
        resume=resume,
        overwrite=overwrite,
        eval_only=eval_only,
    )


def teacher_names(distill: Mapping[str, Any]) -> list[str]:
    """Return the folders or hub names of all teachers of a ``distill`` entry.

    Example:
        >>> teacher_names({"teachers": {"a": "runs/a", "b": {"path": "runs/b"}}})
        ['runs/a', 'runs/b']
    """
    several = distill.get("teachers")
    entries = list(several.values()) if isinstance(several, Mapping) else []
    if distill.get("teacher") is not None:
        entries.insert(0, distill["teacher"])
    paths = [entry.get("path") if isinstance(entry, Mapping) else entry for entry in entries]
    return [path for path in paths if isinstance(path, str)]


class _Parser(HfArgumentParser):
    """Tells which flags were given: the others stay out of the namespace."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        options.pop("required", None)  # the config may have it
        default = DEFAULTS.get(names[0].lstrip("-"), options.get("default"))
        shown = default not in (None, argparse.SUPPRESS) and options.get("action") != "help"
        # argparse fills in %(...)s itself.
        text = str(options.get("help", "")).replace("%", "%%")
        options["help"] = f"{text} (default: {str(default).replace('%', '%%')})" if shown else text
        options["default"] = argparse.SUPPRESS
        return super().add_argument(*names, **options)

    def error(self, message: str) -> Any:
        raise ConfigError(f"The flags cannot be read: {message}. --help lists them.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [
                f"--{key}" for key in (*_hints(), "config", "resume", "overwrite", "eval_only")
            ]
            flag = next((word for word in unknown if word.startswith("-")), unknown[0])
            hint = did_you_mean(flag.split("=")[0].replace("-", "_").replace("__", "--", 1), known)
            raise ConfigError(f"There is no flag {flag!r}.{hint} --help lists all of them.")
        return found


# Alternatives, each of one or more keys.
_EXCLUSIVE = (
    (("model",), ("model_config",), ("model_from_teacher",)),
    (("tokenizer",), ("vocab_file",), ("vocab_size",)),
    (("dataset_name", "dataset_config_name"), ("train_file", "validation_file", "test_file")),
)
_CLASSES = (DataArguments, ModelArguments, DistillArguments, TrainingArguments)
_OBJECTS = {"model_config", "model_from_teacher", "distill"}


def _parser() -> _Parser:
    parser = _Parser(
        list(_CLASSES),  # type: ignore[arg-type]
        description="Train a language model, distilling where the config has a distill entry. "
        "Every flag is a key of a config too, but for --config, --resume, --overwrite and "
        "--eval_only.",
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    group = parser.add_argument
    group("--config", help="YAML or JSON file, or taskdistill::nlp/... for a packaged one")
    group(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in output_dir (from the start if there is none)",
    )
    group("--overwrite", action="store_true", help="delete an earlier run in output_dir")
    group(
        "--eval_only",
        "--eval-only",
        metavar="FOLDER",
        help="evaluate this trained model instead of training one",
    )
    return parser


def _hints() -> dict[str, Any]:
    """The type of every key."""
    found: dict[str, Any] = {}
    for kind in _CLASSES:
        hints = get_type_hints(kind)
        found.update({f.name: hints[f.name] for f in fields(kind) if f.init})
    return found


def _checked(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of a config, each known and with a value of its type."""
    hints = _hints()
    checked: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in hints:
            raise ConfigError(f"{where} has the unknown key {key!r}.{did_you_mean(key, hints)}")
        hint = hints[key]
        kinds = get_args(hint) or (hint,)
        if isinstance(value, int) and not isinstance(value, bool) and int not in kinds:
            value = float(value) if float in kinds else value
        try:
            # "${task}" stands for a value that may be a number.
            if value is not None and not (isinstance(value, str) and "${" in value):
                type_validator(key, value, hint)
        except TypeError as error:
            kind = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ConfigError(f"{key} of {where} is {value!r}; expected {kind}.") from error
        checked[key] = value
    return checked


def _without_replaced(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the alternatives to what the flags chose."""
    replaced: set[str] = set()
    for group in _EXCLUSIVE:
        chosen = [set(keys) & set(flags) for keys in group]
        if any(chosen):
            replaced.update(*(keys for keys, found in zip(group, chosen, strict=True) if not found))
    return {key: value for key, value in settings.items() if key not in replaced}


def _without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is left when keys set back to their defaults are taken out, in nested mappings too."""
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value is not None
    }


def _build(kind: type, settings: Mapping[str, Any], where: str) -> Any:
    own = {f.name: settings[f.name] for f in fields(kind) if f.init and f.name in settings}
    missing = [
        f.name
        for f in fields(kind)
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in own
    ]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given.")
    try:
        return kind(**own)
    except ConfigError:
        raise
    except (TypeError, ValueError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _training(settings: Mapping[str, Any], where: str) -> TrainingArguments:
    training = _build(TrainingArguments, {**DEFAULTS, **settings}, where)
    if training.fp16 and training.device.type == "cpu":
        raise ConfigError(
            "fp16 needs a GPU, and there is none that torch can use; take bf16, which works on a "
            "CPU too, or leave both out."
        )
    return training


def _mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(
                f"{name} is {value!r}, which is no JSON ({error}); write it as "
                f"""--{name} '{{"key": "value"}}'."""
            ) from error
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}; expected a mapping.")
    return value
