"""What a command line or a config says about the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....core.errors import ConfigError, did_you_mean
from .glue import GLUE

__all__ = ["PYDOC_TOPICS", "TASKS", "DataArguments"]

TASKS = (
    "classification",
    "token_classification",
    "question_answering",
    "masked_lm",
    "pretraining",
)
"""Tasks that bring no data set of their own; the names of :data:`.glue.GLUE` are tasks too."""

PYDOC_TOPICS = "pydoc_topics"
"""The ``dataset_name`` of the embedded corpus (:mod:`.topics`)."""


@dataclass
class DataArguments:
    """The data of one run; flat and typed, so that ``HfArgumentParser`` makes flags of it.

    ``task`` decides what the columns are and what is measured; the data are a name
    (``dataset_name``) or files. A GLUE task with neither means its set on the hub.

    Example:
        >>> args = DataArguments("sst2", train_file="train.tsv", column_names=["sentence", "label"])
        >>> args.check()
        >>> args.kind
        'classification'
    """

    task: str = field(
        metadata={
            "help": "classification, token_classification, question_answering, masked_lm, "
            "pretraining (masked words and next sentence), or a task of GLUE: "
            f"{', '.join(GLUE)}"
        }
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "a data set of the hub ('nyu-mll/glue', 'squad'), a folder written by "
            f"save_to_disk, or {PYDOC_TOPICS!r}: the texts that Python itself carries"
        },
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={"help": "configuration of the hub's data set; GLUE tasks know theirs"},
    )
    train_file: str | None = field(
        default=None, metadata={"help": "csv, tsv, json, jsonl, txt, conll, arrow or parquet"}
    )
    validation_file: str | None = field(default=None, metadata={"help": "as train_file"})
    test_file: str | None = field(default=None, metadata={"help": "as train_file"})
    column_names: list[str] | None = field(
        default=None, metadata={"help": "names of the columns of a csv or tsv without a header"}
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={"help": "the text's column, or both of a pair; usual names are found"},
    )
    label_column: str = field(
        default="label", metadata={"help": "the labels' column; usual names are found"}
    )
    max_length: int = field(default=128, metadata={"help": "longest sequence, in tokens"})
    doc_stride: int = field(
        default=64,
        metadata={"help": "question answering: tokens that two windows of a context share"},
    )
    mlm_probability: float = field(
        default=0.15, metadata={"help": "share of the tokens that are masked"}
    )
    line_by_line: bool = field(
        default=False,
        metadata={"help": "masked_lm: one sequence a row; otherwise rows fill whole blocks"},
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "pad to max_length, not to the longest of a batch"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on the first so many only"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "validate and test on the first so many only"}
    )
    preprocessing_workers: int | None = field(
        default=None, metadata={"help": "processes that tokenise"}
    )
    validation_split: float | None = field(
        default=None,
        metadata={
            "help": "share of the training set to validate on where there is no validation set; "
            "the same rows whatever the seed"
        },
    )

    @property
    def kind(self) -> str:
        """The one of :data:`TASKS` that ``task`` is."""
        return "classification" if self.task in GLUE else self.task

    @property
    def files(self) -> dict[str, str]:
        """The files given, by split."""
        given = {
            "train": self.train_file,
            "validation": self.validation_file,
            "test": self.test_file,
        }
        return {split: file for split, file in given.items() if file is not None}

    def check(self) -> None:
        """Check what can be checked without reading any data.

        Raises:
            ConfigError: If a value cannot be meant, or two exclude one another.
        """
        known = (*TASKS, *GLUE)
        if self.task not in known:
            raise ConfigError(
                f"task={self.task!r} is not one of {', '.join(known)}."
                f"{did_you_mean(str(self.task), known)}"
            )
        if self.dataset_name and self.files:
            raise ConfigError(
                f"dataset_name={self.dataset_name!r} and files ({', '.join(self.files)}) exclude "
                "one another: give one of them."
            )
        if not self.dataset_name and not self.files and self.task not in GLUE:
            raise ConfigError(
                f"Task {self.task!r} has no data: give dataset_name, or train_file and "
                "validation_file."
            )
        if self.text_columns is not None and len(self.text_columns) not in (1, 2):
            raise ConfigError(
                f"text_columns={self.text_columns!r}: expected one column, or two for a pair."
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, least in (
            ("max_length", 8),
            ("doc_stride", 0),
            ("max_train_samples", 1),
            ("max_eval_samples", 1),
            ("preprocessing_workers", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} is too small; the least is {least}.")
        for name in ("mlm_probability", "validation_split"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{name}={value} is no share; expected 0 < {name} < 1.")
        if self.kind == "question_answering" and self.doc_stride >= self.max_length:
            raise ConfigError(
                f"doc_stride={self.doc_stride} tokens are shared by windows of "
                f"max_length={self.max_length}: windows would never move on. Take a smaller "
                "doc_stride, half of max_length for example."
            )
