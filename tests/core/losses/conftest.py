"""Inputs whose values under the published reference codes are known.

The checksums are looked at first, so that a change of torch's random numbers is not taken for a
bug in a loss.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def golden_logits() -> tuple[Tensor, Tensor]:
    """Student and teacher logits, (8, 10)."""
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(8, 10, generator=generator)
    teacher = 3 * torch.randn(8, 10, generator=generator)
    assert student.sum().item() == pytest.approx(21.5691509, rel=1e-5)
    assert teacher.sum().item() == pytest.approx(-10.8848915, rel=1e-5)
    return student, teacher


@pytest.fixture
def golden_boxes() -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and target deltas, (16, 4)."""
    generator = torch.Generator().manual_seed(0)
    for size in ((8, 10), (8, 10)):
        torch.randn(size, generator=generator)
    torch.randint(0, 10, (8,), generator=generator)
    for size in ((4, 6, 8, 8), (4, 6, 8, 8)):
        torch.randn(size, generator=generator)
    student, teacher, target = (torch.randn(16, 4, generator=generator) for _ in range(3))
    sums = [tensor.sum().item() for tensor in (student, teacher, target)]
    assert sums == pytest.approx([14.0722971, 9.5771980, -10.2978687], rel=1e-5)
    return student, teacher, target


@pytest.fixture
def golden_edges() -> tuple[Tensor, Tensor]:
    """Student and teacher edge logits, (5, 4 * 17)."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 68, generator=generator)
    teacher = torch.randn(5, 68, generator=generator)
    sums = [student.sum().item(), teacher.sum().item()]
    assert sums == pytest.approx([-3.6396532, 44.7182007], rel=1e-5)
    return student, teacher


@pytest.fixture
def golden_cls() -> dict[str, Tensor]:
    """Logits, labels, two stages of maps and embeddings of a classifier pair."""
    g = torch.Generator().manual_seed(0)
    made = {"ls": 3 * torch.randn(8, 10, generator=g), "lt": 3 * torch.randn(8, 10, generator=g)}
    made["y"] = torch.randint(0, 10, (8,), generator=g)
    for name in ("fs", "ft"):
        made[name] = torch.randn(4, 6, 8, 8, generator=g)
    for name in ("f2s", "f2t"):
        made[name] = torch.randn(4, 12, 4, 4, generator=g)
    made["es"] = torch.randn(16, 32, generator=g)
    made["et"] = torch.randn(16, 64, generator=g)
    assert made["ls"].sum().item() == pytest.approx(21.569150924682617, rel=1e-5)
    assert made["et"].sum().item() == pytest.approx(-14.331236839294434, rel=1e-5)
    return made


@pytest.fixture
def golden_extra() -> dict[str, Tensor]:
    """Logits, labels, maps and boxes: student, teacher and (boxes) target."""
    g = torch.Generator().manual_seed(0)
    made = {"ls": 3 * torch.randn(8, 10, generator=g), "lt": 3 * torch.randn(8, 10, generator=g)}
    made["y"] = torch.randint(0, 10, (8,), generator=g)
    for name in ("fs", "ft"):
        made[name] = torch.randn(4, 6, 8, 8, generator=g)
    for name in ("rs", "rt", "yb"):
        made[name] = torch.randn(16, 4, generator=g)
    assert made["ls"].sum().item() == pytest.approx(21.5691509, rel=1e-5)
    assert made["yb"].sum().item() == pytest.approx(-10.2978687, rel=1e-5)
    return made


@pytest.fixture
def golden_dense() -> dict[str, Tensor]:
    """Segmentation logits ps, pt and features hs, ht."""
    g = torch.Generator().manual_seed(0)
    sizes = {"ps": (2, 19), "pt": (2, 19), "hs": (2, 32), "ht": (2, 48)}
    return {name: torch.randn(*size, 16, 16, generator=g) for name, size in sizes.items()}


@pytest.fixture
def golden_gan() -> Tensor:
    """Scores of a patch discriminator."""
    return torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def golden_bert() -> dict[str, Tensor]:
    """Hidden states hs, ht and attention scores as_, at of one layer."""
    g = torch.Generator().manual_seed(0)
    return {
        "hs": 2 * torch.randn(2, 7, 16, generator=g) + 1,
        "ht": 3 * torch.randn(2, 7, 16, generator=g) - 1,
        "as_": torch.randn(2, 4, 7, 7, generator=g),
        "at": torch.randn(2, 4, 7, 7, generator=g),
    }
