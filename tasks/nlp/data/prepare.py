"""From what a config says to tokenised data."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from ....core.errors import ConfigError
from .arguments import PYDOC_TOPICS, DataArguments
from .classification import prepare_classification
from .columns import find_text_columns, first_of
from .corpora import load_documents
from .encoding import check_tokenizer
from .masked_lm import prepare_masked_lm
from .prepared import Prepared
from .pretraining import prepare_pretraining
from .question_answering import prepare_question_answering
from .sources import load_splits
from .token_classification import prepare_token_classification

__all__ = ["prepare_data", "training_texts"]

_ON_TOPICS = ("classification", "masked_lm", "pretraining")


def prepare_data(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0
) -> Prepared:
    """Read, split and tokenise the data of a task, and choose collator and figures for it.

    Args:
        args: What the data are.
        tokenizer: A fast one.
        seed: Of what is drawn for training: masks, and pairs of pre-training. What is validated on
            does not depend on it.

    Raises:
        ConfigError: If the arguments cannot be meant, or the tokenizer does not fit the task.
        DataError: If data are missing, unreadable, empty, or not of the task's form.

    Example:
        >>> import datasets
        >>> from taskdistill.tasks.nlp.data import train_wordpiece
        >>> datasets.disable_progress_bars()
        >>> args = DataArguments("classification", dataset_name="pydoc_topics")
        >>> tokenizer = train_wordpiece(training_texts(args), vocab_size=500)
        >>> prepared = prepare_data(args, tokenizer)
        >>> prepared.train.column_names
        ['labels', 'input_ids', 'token_type_ids', 'attention_mask']
        >>> prepared.config["num_labels"], prepared.metric
        (6, 'accuracy')
    """
    _check(args)
    check_tokenizer(tokenizer, args)
    if args.kind == "classification":
        return prepare_classification(args, load_splits(args), tokenizer)
    if args.kind == "token_classification":
        return prepare_token_classification(args, load_splits(args), tokenizer)
    if args.kind == "question_answering":
        return prepare_question_answering(args, load_splits(args), tokenizer)
    if args.kind == "masked_lm":
        return prepare_masked_lm(args, load_documents(args), tokenizer, seed)
    return prepare_pretraining(args, load_documents(args), tokenizer, seed)


def training_texts(args: DataArguments) -> Iterator[str]:
    """The texts of the training set, to train a vocabulary on; what is validated on is not read.

    Args:
        args: What the data are.

    Raises:
        ConfigError: If there is no training set.
        DataError: See :func:`prepare_data`.
    """
    _check(args)
    documents = args.kind in ("masked_lm", "pretraining")
    if documents:
        rows = load_documents(args).train
    else:
        rows = load_splits(args).with_validation(args.validation_split).train
    if rows is None:
        raise ConfigError(f"Task {args.task!r} has no training set to take texts from.")
    if not documents and args.max_train_samples is not None:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    if documents:
        columns: tuple[str, ...] = ("text",)
    elif args.kind == "token_classification":
        columns = tuple(args.text_columns or (first_of(rows, ("tokens", "words")),))
    else:
        columns = find_text_columns(rows, args)
    for column in columns:
        for value in rows[column]:
            yield " ".join(value) if isinstance(value, list) else value


def _check(args: DataArguments) -> None:
    args.check()
    if args.dataset_name == PYDOC_TOPICS and args.task not in _ON_TOPICS:
        raise ConfigError(
            f"{PYDOC_TOPICS} has no data for task {args.task!r}; it is for {', '.join(_ON_TOPICS)}."
        )
