"""Tiny language models: everything real, seconds to train."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # nlp_parts, which several files share

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """No registry of the mm libraries is looked at here."""
    yield
