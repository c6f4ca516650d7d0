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


@pytest.fixture(scope="module", autouse=True)
def single_process() -> Iterator[None]:
    """A command line of the mm tasks, run in this process before, leaves its rank behind."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        yield
