"""Data of language tasks: read, tokenised, with collators and figures, ready for a ``Trainer``."""

from .arguments import PYDOC_TOPICS, TASKS, DataArguments
from .glue import GLUE
from .prepare import prepare_data, training_texts
from .prepared import Prepared
from .tokenizer import tokenizer_from_vocab, train_wordpiece
from .topics import THEMES, topic_datasets, topic_documents, topic_passages

__all__ = [
    "GLUE",
    "PYDOC_TOPICS",
    "TASKS",
    "THEMES",
    "DataArguments",
    "Prepared",
    "prepare_data",
    "tokenizer_from_vocab",
    "topic_datasets",
    "topic_documents",
    "topic_passages",
    "train_wordpiece",
    "training_texts",
]
