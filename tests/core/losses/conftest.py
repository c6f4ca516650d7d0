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
