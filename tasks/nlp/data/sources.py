"""Where rows come from: files, folders, the hub; and how they are split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ....core.errors import ConfigError, DataError, did_you_mean
from .arguments import PYDOC_TOPICS, DataArguments
from .conll import read_conll
from .glue import GLUE, GLUE_HUB_NAME
from .squad import read_squad
from .topics import topic_datasets

__all__ = ["Splits", "load_splits"]

SPLIT_SEED = 0
"""Of ``validation_split``. It is no option: a teacher must not have trained on what its students
are measured on, whatever their seeds."""

_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
    ".arrow": "arrow",
    ".parquet": "parquet",
}
_CONLL = (".txt", ".conll", ".bio", ".iob")


@dataclass(frozen=True)
class Splits:
    """The rows of a data set.

    Args:
        train: To train on.
        validation: To validate on: one set under the name ``""``, or several under names.
        test: What is left out of everything.
    """

    train: Dataset | None
    validation: dict[str, Dataset]
    test: Dataset | None

    def each(self) -> dict[str, Dataset]:
        """Every set there is, by a name to say to people."""
        sets = {} if self.train is None else {"train": self.train}
        for name, rows in self.validation.items():
            sets[_said(name)] = rows
        return sets if self.test is None else {**sets, "test": self.test}

    def map(self, function: Callable[[Dataset, str], Dataset]) -> Splits:
        """The same splits with a function of rows and the set's name applied to each."""
        done = {name: function(rows, name) for name, rows in self.each().items()}
        return Splits(
            done.get("train"),
            {name: done[_said(name)] for name in self.validation},
            done.get("test"),
        )

    def limited(self, args: DataArguments) -> Splits:
        """The first samples of each set, as many as ``args`` allows."""
        return Splits(
            None if self.train is None else _first(self.train, args.max_train_samples),
            {name: _first(rows, args.max_eval_samples) for name, rows in self.validation.items()},
            None if self.test is None else _first(self.test, args.max_eval_samples),
        )

    def with_validation(self, share: float | None) -> Splits:
        """Cut a validation set off the training set where there is none.

        Args:
            share: How much of it, 0 to 1; ``None`` cuts nothing.

        Raises:
            DataError: If there are too few rows for both.
        """
        if share is None or self.validation or self.train is None:
            return self
        count = round(share * len(self.train))
        if not 0 < count < len(self.train):
            raise DataError(
                f"validation_split={share} of {len(self.train)} training rows leaves one side "
                "empty: give more rows, or a validation_file."
            )
        parts = self.train.train_test_split(test_size=count, seed=SPLIT_SEED)
        return Splits(parts["train"], {"": parts["test"]}, self.test)

    @property
    def for_trainer(self) -> Dataset | dict[str, Dataset] | None:
        """``validation`` as the trainer takes it."""
        if not self.validation:
            return None
        return self.validation.get("", self.validation)


def load_splits(args: DataArguments) -> Splits:
    """Read the rows that the arguments name, as they are.

    Raises:
        ConfigError: If a file's kind is unknown or ``column_names`` do not fit.
        DataError: If something is missing, unreadable or empty.
    """
    args.check()
    if args.dataset_name == PYDOC_TOPICS:
        splits = _split(dict(topic_datasets()), args)
    elif args.files:
        if args.column_names and not any(_is_table(file) for file in args.files.values()):
            raise ConfigError(
                "column_names are for csv and tsv without a header, but the files are "
                f"{', '.join(args.files.values())}. Leave them out."
            )
        splits = _split({name: _read(file, args) for name, file in args.files.items()}, args)
    else:
        splits = _split(_load_named(args), args)
    for name, rows in splits.each().items():
        if len(rows) == 0:
            raise DataError(f"The set {name!r} of task {args.task!r} has no rows.")
    return splits


def _said(name: str) -> str:
    """A validation set's name, to people."""
    return f"validation_{name}" if name else "validation"


def _first(rows: Dataset, count: int | None) -> Dataset:
    return rows if count is None or count >= len(rows) else rows.select(range(count))


def _is_table(file: str) -> bool:
    return Path(file).suffix.lower() in (".csv", ".tsv")


def _split(sets: dict[str, Dataset], args: DataArguments) -> Splits:
    """Sort sets by what they are for."""
    several = GLUE[args.task].validation if args.task in GLUE else ()
    validation = {name: sets[_said(name)] for name in several if _said(name) in sets}
    if "validation" in sets:  # one file is one set, whatever the task
        validation = {"": sets["validation"]}
    test = sets.get("test", sets.get(f"test_{several[0]}") if several else None)
    if "train" not in sets and not validation and test is None:
        raise DataError(
            f"{args.dataset_name or 'The data'} has the splits {', '.join(sets)}; expected "
            "'train', 'validation' or 'test'."
        )
    return Splits(sets.get("train"), validation, test)


def _read(file: str, args: DataArguments) -> Dataset:
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"There is no file {file!r} (looked in {Path.cwd()}).")
    suffix = path.suffix.lower()
    if args.kind == "token_classification" and suffix in _CONLL:
        return read_conll(path)
    if args.kind == "question_answering" and suffix == ".json":
        return read_squad(path)
    if suffix not in _BUILDERS:
        raise ConfigError(
            f"{file!r} ends in {suffix!r}; known are {', '.join(_BUILDERS)}."
            f"{did_you_mean(suffix, _BUILDERS)}"
        )
    options: dict[str, Any] = {}
    if _is_table(file):
        # A sentence may be "null" or "NA"; and in a tsv a quote is a letter like any other, where
        # reading it as one would swallow every line up to the next.
        options["keep_default_na"] = False
        if suffix == ".tsv":
            options.update(sep="\t", quoting=csv.QUOTE_NONE)
        if args.column_names:
            options["column_names"] = args.column_names
            _check_header(path, args.column_names, options.get("sep", ","))
    try:
        return load_dataset(_BUILDERS[suffix], data_files=str(path), split="train", **options)
    except (DatasetsError, ValueError, OSError) as error:
        if path.stat().st_size == 0 or "no data" in str(error):
            raise DataError(f"{file} has no rows.") from error
        raise DataError(
            f"{file} cannot be read as {suffix[1:]}: {error.__cause__ or error}"
        ) from error


def _check_header(path: Path, names: list[str], separator: str) -> None:
    with path.open(encoding="utf-8") as lines:
        first = lines.readline().rstrip("\r\n")
    fields = [field.strip('"') for field in first.split(separator)]
    if fields == list(names):
        raise ConfigError(
            f"{path} has a header of its own, {fields}, which would be read as a row: leave "
            "column_names out."
        )
    if len(fields) != len(names) and separator == "\t":
        raise ConfigError(
            f"column_names={list(names)} are {len(names)}, but the first line of {path} has "
            f"{len(fields)} columns."
        )


def _load_named(args: DataArguments) -> dict[str, Dataset]:
    name = args.dataset_name or GLUE_HUB_NAME
    folder = Path(name).expanduser()
    if folder.is_dir() and any(
        (folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")
    ):
        loaded: Any = load_from_disk(str(folder))
    else:
        loaded = _load_from_hub(name, args)
    if isinstance(loaded, Dataset):
        return {"train": loaded}
    if not isinstance(loaded, DatasetDict):
        raise DataError(f"{name!r} holds a {type(loaded).__name__}; expected rows by split.")
    return {str(split): rows for split, rows in loaded.items()}


def _load_from_hub(name: str, args: DataArguments) -> Any:
    config = args.dataset_config_name
    if config is None and args.task in GLUE and name in (GLUE_HUB_NAME, "glue"):
        config = args.task
    shown = ", ".join(repr(part) for part in (name, config) if part)
    try:
        return load_dataset(name, config)
    except (OSError, DatasetsError) as error:
        raise DataError(
            f"The data set {shown} is not on this disk and the hub cannot be reached or does not "
            f"have it ({error}). Download it once where there is a network, with `python -c "
            f'"import datasets; datasets.load_dataset({shown}).save_to_disk(FOLDER)"`, and give '
            "the folder as dataset_name; or give train_file and validation_file."
        ) from error
    except ValueError as error:  # no such configuration, for one
        raise DataError(f"The data set {shown} cannot be read: {error}") from error
