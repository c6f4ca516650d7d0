"""A small tokenizer and somewhere to write."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import pytest
from transformers import BertTokenizer

from taskdistill.tasks.nlp.data import train_wordpiece

WORDS = (
    "the cat sat on a mat . a dog ran in the big park , and it was good ! was it bad ? no one knew "
    "who wrote Ada Lovelace London wrote programs for engine yes"
)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    """Knows every word of WORDS whole, and other words letter by letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return train_wordpiece([WORDS] * 3 + [letters] + list(letters), vocab_size=400)
