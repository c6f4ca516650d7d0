from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    LocalizationDistillation,
    kl_div,
    localization_distillation,
)

Edges = tuple[Tensor, Tensor]


def slow(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The definition, one edge at a time; (P, 4, bins)."""

    def distribution(edge: list[float]) -> list[float]:
        top = max(edge)
        powers = [math.exp((z - top) / temperature) for z in edge]
        return [p / math.fsum(powers) for p in powers]

    values = []
    for s_box, t_box in zip(student.tolist(), teacher.tolist(), strict=True):
        for s_edge, t_edge in zip(s_box, t_box, strict=True):
            pairs = zip(distribution(t_edge), distribution(s_edge), strict=True)
            values.append(math.fsum(p * math.log(p / q) for p, q in pairs))
    return temperature**2 * math.fsum(values) / len(values)


def test_golden(golden_edges: Edges):
    assert localization_distillation(*golden_edges).item() == pytest.approx(0.882985115, rel=1e-5)


@settings(deadline=None)
@given(
    rows=st.integers(1, 4),
    bins=st.integers(2, 9),
    temperature=st.sampled_from([1.0, 2.5, 10.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(rows: int, bins: int, temperature: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    pair = 2 * torch.randn(2, rows, 4, bins, generator=generator, dtype=torch.float64)
    expected = slow(pair[0], pair[1], temperature)
    value = localization_distillation(*pair, temperature=temperature)
    assert value.item() == pytest.approx(expected, rel=1e-8)
    flat = localization_distillation(*pair.flatten(2), temperature=temperature, bins=bins)
    assert torch.equal(flat, value)


def test_is_the_divergence_of_the_edges(golden_edges: Edges):
    edges = [z.double().reshape(-1, 17) for z in golden_edges]
    torch.testing.assert_close(
        localization_distillation(*(z.double() for z in golden_edges)),
        kl_div(*edges, temperature=10.0),
    )


def test_maps_of_a_head_need_no_permuting():
    """The rows of (B, H, W), as LDHead takes them apart, and a weight for each place."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 4 * 5, 3, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64)
    rows = [z.permute(0, 2, 3, 1).reshape(-1, 20) for z in maps]
    maps.requires_grad_()
    value = localization_distillation(*maps, weight=weight)
    torch.testing.assert_close(value, localization_distillation(*rows, weight=weight.flatten()))
    (grad,) = torch.autograd.grad(value, maps)
    leaf = rows[0].detach().requires_grad_()
    (expected,) = torch.autograd.grad(
        localization_distillation(leaf, rows[1], weight=weight.flatten()), leaf
    )
    torch.testing.assert_close(grad[0].permute(0, 2, 3, 1).reshape(-1, 20), expected)


def test_factor_to_the_head_of_mmdet(golden_edges: Edges):
    """Its reduction written out: mean over bins, weights repeated per edge, divided by 4."""
    student, teacher = (z.double() for z in golden_edges)
    student.requires_grad_()
    weight = torch.rand(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_s = F.log_softmax(student.reshape(-1, 17) / 10, dim=1)
    p_t = F.softmax(teacher.reshape(-1, 17) / 10, dim=1)
    per_edge = F.kl_div(log_s, p_t, reduction="none").mean(1) * 10**2
    head = (per_edge * weight[:, None].expand(-1, 4).reshape(-1)).sum() / 4
    ours = localization_distillation(student, teacher, weight=weight) * weight.sum() / 17
    torch.testing.assert_close(ours, head, rtol=1e-10, atol=0)
    (head_grad,) = torch.autograd.grad(head, student)
    (our_grad,) = torch.autograd.grad(ours, student)
    torch.testing.assert_close(our_grad, head_grad, rtol=1e-9, atol=1e-14)


def test_golden_of_the_head(golden_edges: Edges):
    """The reference code's own number: a mean over the bins, 1/17 of ours."""
    assert localization_distillation(*golden_edges).item() / 17 == pytest.approx(
        0.0519402996, rel=1e-5
    )


def test_gradient_is_exact(golden_edges: Edges):
    """Per position and edge T * (p_s - p_t), over 4 edges and 5 positions."""
    student, teacher = (z.double() for z in golden_edges)
    student.requires_grad_()
    (grad,) = torch.autograd.grad(localization_distillation(student, teacher), student)
    p_s, p_t = ((z.detach().reshape(5, 4, 17) / 10).softmax(2) for z in (student, teacher))
    torch.testing.assert_close(grad, (10 * (p_s - p_t) / 20).flatten(1), rtol=1e-10, atol=1e-15)


def test_bins_are_checked(golden_edges: Edges):
    assert torch.equal(
        localization_distillation(*golden_edges, bins=17), localization_distillation(*golden_edges)
    )
    with pytest.raises(ShapeError, match=r"expected 16 bins an edge, got 17 .*same reg_max"):
        localization_distillation(*golden_edges, bins=16)


@pytest.mark.parametrize("shape", [(5, 67), (5, 3, 17), (68,), (5, 67, 2, 1), (5, 4, 17, 1, 1)])
def test_not_a_distribution_of_edges(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match="edge logits must be"):
        localization_distillation(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 0)])
def test_plain_box_regression_is_refused(shape: tuple[int, ...]):
    """One bin an edge would always give 0."""
    with pytest.raises(ShapeError, match="at least 2 bins"):
        localization_distillation(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"), [({"bins": 1}, "at least 2"), ({"temperature": 0.0}, "temperature")]
)
def test_bad_options(golden_edges: Edges, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        LocalizationDistillation(**options)
    with pytest.raises(ConfigError, match=message):
        localization_distillation(*golden_edges, **options)
