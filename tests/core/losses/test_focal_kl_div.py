from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import FocalKLDivergence, focal_kl_div, kl_div

Pair = tuple[Tensor, Tensor]


def by_definition(student: Tensor, teacher: Tensor, gamma: float) -> float:
    rows = []
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        terms = []
        for z_s, z_t in zip(s_row, t_row, strict=True):
            s, t = (1 / (1 + math.exp(-z)) for z in (z_s, z_t))
            kl = t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
            terms.append(kl * ((t - s) ** 2 + 1e-6) ** (gamma / 2))
        rows.append(math.fsum(terms))
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_equals_the_definition(golden_logits: Pair, gamma: float):
    student, teacher = (z.double() for z in golden_logits)
    value = focal_kl_div(student, teacher, gamma=gamma).item()
    assert value == pytest.approx(by_definition(student, teacher, gamma), rel=1e-10)


def test_without_the_factor_it_is_the_divergence(golden_logits: Pair):
    student, teacher = (z.double() for z in golden_logits)
    student.requires_grad_()
    value = focal_kl_div(student, teacher, gamma=0.0)
    expected = kl_div(student, teacher, activation="sigmoid")
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(v, student)[0] for v in (value, expected)), rtol=1e-9, atol=1e-14
    )


def test_yes_and_no_are_alike(golden_logits: Pair):
    student, teacher = golden_logits
    torch.testing.assert_close(focal_kl_div(-student, -teacher), focal_kl_div(student, teacher))


def test_the_gradient_flows_through_the_factor():
    """It is more than the divergence's own, weighted: the factor itself falls on the way."""
    teacher = torch.tensor([[3.0]], dtype=torch.float64)
    student = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(focal_kl_div(student, teacher), student)
    (plain,) = torch.autograd.grad(kl_div(student, teacher, activation="sigmoid"), student)
    apart = (teacher.sigmoid() - student.sigmoid()).abs().item()
    assert abs(grad.item()) > 1.2 * apart**0.5 * abs(plain.item())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5])
def test_opposite_certainties(gamma: float):
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = focal_kl_div(student, -student.detach(), gamma=gamma)
    value.backward()
    assert value.item() == pytest.approx(2e4, rel=1e-5)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0]]), rtol=1e-5, atol=0)


def test_the_focus_is_on_what_differs():
    """A class where both nearly agree counts less, beside one where they do not, than in KL."""
    teacher = torch.tensor([[0.1], [4.0]], dtype=torch.float64)
    student = torch.zeros(2, 1, dtype=torch.float64)
    focal = [focal_kl_div(student[i : i + 1], teacher[i : i + 1]) for i in (0, 1)]
    plain = [kl_div(student[i : i + 1], teacher[i : i + 1], activation="sigmoid") for i in (0, 1)]
    assert focal[0] / focal[1] < 0.5 * plain[0] / plain[1]


@pytest.mark.parametrize("gamma", [-0.1, math.inf, math.nan])
def test_bad_gamma(gamma: float):
    with pytest.raises(ConfigError, match="gamma"):
        FocalKLDivergence(gamma=gamma)
    with pytest.raises(ConfigError, match="gamma"):
        focal_kl_div(torch.zeros(1, 2), torch.zeros(1, 2), gamma=gamma)


def test_classes_on_another_axis():
    student = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    teacher = student.flip(0)
    rows = [t.movedim(1, -1).reshape(-1, 3) for t in (student, teacher)]
    torch.testing.assert_close(focal_kl_div(student, teacher), focal_kl_div(*rows))
    last = [t.movedim(1, -1) for t in (student, teacher)]
    torch.testing.assert_close(focal_kl_div(student, teacher), focal_kl_div(*last, dim=-1))
    with pytest.raises(ShapeError, match="dim=4"):
        focal_kl_div(student, teacher, dim=4)
