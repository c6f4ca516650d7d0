from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taskdistill.core.losses import feature_imitation, hint


@pytest.fixture
def maps() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)


def test_is_half_the_feature_imitation(maps: Tensor):
    weight = torch.rand(3, 5, 6)
    torch.testing.assert_close(hint(*maps), feature_imitation(*maps) / 2)
    torch.testing.assert_close(
        hint(*maps, weight=weight, total=7.0), feature_imitation(*maps, mask=weight, total=7.0) / 2
    )


def test_factor_to_the_sum_in_the_paper(maps: Tensor):
    student, teacher = maps
    sums = [0.5 * ((t - s) ** 2).sum().item() for s, t in zip(student, teacher, strict=True)]
    assert hint(student, teacher).item() * (4 * 5 * 6) == pytest.approx(sum(sums) / 3, rel=1e-12)


def test_gradient_is_the_difference(maps: Tensor):
    student, teacher = maps[0].clone().requires_grad_(), maps[1]
    (grad,) = torch.autograd.grad(hint(student, teacher) * student.numel(), student)
    torch.testing.assert_close(grad, student.detach() - teacher)
