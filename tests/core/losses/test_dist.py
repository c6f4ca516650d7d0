from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import DIST, dist


def slow_dist(
    student: Tensor, teacher: Tensor, inter: float, intra: float, temperature: float
) -> float:
    """The definition with the standard library's correlation; rows are (N, K), N > 1."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp((z - max(row)) / temperature) for z in row]
        return [power / math.fsum(powers) for power in powers]

    p_s, p_t = [[softmax(row) for row in side.tolist()] for side in (student, teacher)]

    def distance(left: list[list[float]], right: list[list[float]]) -> float:
        pairs = zip(left, right, strict=True)
        return statistics.fmean(1 - statistics.correlation(a, b) for a, b in pairs)

    columns = [list(map(list, zip(*side, strict=True))) for side in (p_s, p_t)]
    return inter * distance(p_s, p_t) + intra * distance(*columns)


def common_code(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """As the official code computes it: cosines of centred rows, 1e-8 added to the norms, T^2."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    p_s, p_t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return (distance(p_s, p_t) + distance(p_s.T, p_t.T)) * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("inter", "intra"), [(1.0, 1.0), (2.0, 0.0), (0.0, 0.3)])
def test_equals_the_definition(golden_logits, inter: float, intra: float, temperature: float):
    student, teacher = (tensor.double() for tensor in golden_logits)
    value = dist(student, teacher, inter=inter, intra=intra, temperature=temperature).item()
    expected = slow_dist(student, teacher, inter, intra, temperature)
    assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("spread", [1.0, 8.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_common_code_with_its_eps(golden_logits, temperature: float, spread: float):
    """T^2 lies between the two; at a large spread its eps changes the value."""
    student, teacher = (spread * tensor.double() for tensor in golden_logits)
    student.requires_grad_()
    expected = common_code(student, teacher, temperature)
    value = temperature**2 * dist(student, teacher, temperature=temperature, eps=1e-8)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(value, student),
        torch.autograd.grad(expected, student),
        rtol=1e-7,
        atol=1e-9,
    )
    exact = temperature**2 * dist(student, teacher, temperature=temperature)
    assert (abs(exact - value) > 1e-3 * value) == (spread / temperature > 4)


@settings(deadline=None)
@given(
    batch=st.integers(0, 3),
    classes=st.integers(2, 6),
    width=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_every_pixel_is_a_sample(batch: int, classes: int, width: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    size = (batch, classes, 2, width)
    maps = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    value = dist(*maps)
    torch.testing.assert_close(value, dist(*(t.movedim(1, -1) for t in maps), dim=-1))
    rows = [tensor.movedim(1, -1).reshape(-1, classes) for tensor in maps]
    if len(rows[0]):
        expected = slow_dist(rows[0], rows[1], 1.0, 1.0, 1.0)
        assert value.item() == pytest.approx(expected, rel=1e-8, abs=1e-12)
    else:
        assert value.item() == 0.0


def test_order_of_samples_and_classes_does_not_matter(golden_logits):
    student, teacher = (tensor.double() for tensor in golden_logits)
    expected = dist(student, teacher)
    rows, columns = torch.randperm(8), torch.randperm(10)
    torch.testing.assert_close(dist(student[rows], teacher[rows]), expected)
    torch.testing.assert_close(dist(student[:, columns], teacher[:, columns]), expected)


def test_high_temperatures_correlate_the_logits(golden_logits):
    """Neither value nor gradient fades, which is why there is no factor T^2."""
    student, teacher = (tensor.double() for tensor in golden_logits)
    student.requires_grad_()
    limit = statistics.fmean(
        1 - statistics.correlation(s, t)
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    )
    norms = []
    for temperature in (1e4, 1e6):
        value = dist(student, teacher, intra=0.0, temperature=temperature)
        assert value.item() == pytest.approx(limit, rel=1e-2)
        norms.append(torch.autograd.grad(value, student)[0].norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-2, atol=0)


def test_a_single_sample_has_no_relation_to_others(golden_logits):
    student, teacher = (tensor[:1].double() for tensor in golden_logits)
    assert dist(student, teacher, inter=0.0).item() == 0.0
    torch.testing.assert_close(dist(student, teacher, intra=5.0), dist(student, teacher, intra=0.0))


def test_constants_count_as_uncorrelated_unless_both_are():
    varied, constant = torch.tensor([[0.0, 1.0, 5.0]]), torch.full((1, 3), 7.0)
    for student, teacher, expected in (
        (varied, constant, 1.0),
        (constant, varied, 1.0),
        (constant, constant + 1, 0.0),
    ):
        student = student.clone().requires_grad_()
        value = dist(student, teacher)
        value.backward()
        assert value.item() == expected
        assert student.grad is not None and torch.equal(student.grad, torch.zeros(1, 3))


def test_rounding_is_no_variation():
    """The mean of equal numbers is not exactly that number."""
    student = torch.full((7, 3), 0.1, requires_grad=True)
    value = dist(student, torch.randn(7, 3), temperature=0.3)
    value.backward()
    assert value.item() == 2.0
    assert student.grad is not None and student.grad.abs().max() == 0


def test_classes_without_any_probability_in_float32_still_count():
    """e^-200 is 0 in float32, but its ratio to e^-201 is not."""
    student = torch.tensor([[0.0, -200.0], [0.0, -201.0], [0.0, -203.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, -210.0], [0.0, -216.0], [0.0, -212.0]])
    value = dist(student, teacher, inter=0.0)
    value.backward()
    powers = [[1, math.exp(-1), math.exp(-3)], [1, math.exp(-6), math.exp(-2)]]
    # The first class is constant in float32, on both sides.
    assert value.item() == pytest.approx((1 - statistics.correlation(*powers)) / 2, rel=1e-4)
    assert student.grad is not None and student.grad[:, 1].abs().min() > 1e-3


def test_second_derivatives_are_refused(golden_logits):
    student, teacher = golden_logits
    value = dist(student.requires_grad_(), teacher)
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_by_hand_is_that_of_the_formula(golden_logits, eps: float, temperature):
    student, teacher = (tensor.double() for tensor in golden_logits)
    student.requires_grad_()
    options = {"eps": eps, "temperature": temperature, "inter": 0.7, "intra": 1.3}
    value = dist(student, teacher, **options)
    with losses.backend("reference"):
        expected = dist(student, teacher, **options)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(value, student),
        torch.autograd.grad(expected, student),
        rtol=1e-9,
        atol=1e-14,
    )


def test_bounds():
    student = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert dist(student, student.flip(1)).item() == pytest.approx(4.0)
    assert dist(student, student).item() == 0.0


def test_errors():
    logits = torch.zeros(2, 3)
    for options, message in (
        ({"inter": -1.0}, "inter must be"),
        ({"intra": math.inf}, "intra must be"),
        ({"eps": -1e-8}, "eps must be"),
        ({"temperature": 0.0}, "temperature must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            DIST(**options)
        with pytest.raises(ConfigError, match=message):
            dist(logits, logits, **options)
    with pytest.raises(ShapeError, match="at least 2"):
        dist(logits[:, :1], logits[:, :1])
