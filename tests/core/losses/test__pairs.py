"""What both relational losses do with a student that has collapsed, wholly or nearly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from taskdistill.core.losses import backend, rkd_angle, rkd_distance
from taskdistill.core.losses._pairs import arrange, squared_distances

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = {
    "distance": rkd_distance,
    "squared": partial(rkd_distance, squared=True),
    "plain": partial(rkd_distance, normalize=False),
    "angle": rkd_angle,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


@every_loss
@pytest.mark.parametrize("name", ["eager", "reference"])
@pytest.mark.parametrize("width", [3, 8, 12])
@pytest.mark.parametrize("at", [0.0, 3.7])
def test_a_collapsed_student_is_led_to_the_arrangement_of_the_teacher(
    loss: Loss, name, width: int, at: float
):
    """The authors' code has a large loss there and a gradient of exactly zero."""
    student, teacher = torch.full((10, width), at), torch.randn(10, 8)
    with backend(name):
        value, grad = gradient(loss, student, teacher)
        assert value > 0.05
        assert torch.isfinite(grad).all() and grad.norm() > 1e-3
        after = loss(student - 0.1 * grad, teacher)
    if loss is LOSSES["plain"]:
        assert after < value
    elif width < teacher.shape[1]:
        assert after < 0.9 * value
    else:
        assert after < 1e-6  # size does not count, and the rest is the teacher's


@every_loss
def test_what_is_left_of_rounding_counts_as_collapsed(loss: Loss):
    student = torch.full((10, 8), 3.7) * (1 + 1e-7 * torch.randn(10, 8))
    teacher = torch.randn(10, 8)
    assert student.unique().numel() > 1
    exact, there = gradient(loss, torch.full((10, 8), 3.7), teacher)
    value, grad = gradient(loss, student, teacher)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(grad, there)


@every_loss
@pytest.mark.parametrize("spread", [1e-6, 1e-10, 1e-30])
def test_a_nearly_collapsed_student_gets_its_exact_gradient(loss: Loss, spread: float):
    shape, teacher = torch.randn(10, 8), torch.randn(10, 8)
    value, grad = gradient(loss, spread * shape, teacher)
    assert torch.isfinite(grad).all() and grad.norm() > 0
    # A step as long as a hundredth of the spread.
    small, grad, fixed = (spread * shape).double(), grad.double(), teacher.double()
    step = 0.01 * small.norm() * grad / grad.norm()
    assert value.item() == pytest.approx(loss(small, fixed).item(), rel=1e-5)
    if loss is LOSSES["plain"] and spread < 1e-12:  # too small a part of the distance to see
        assert 0.1 < grad.norm() < 10
    else:
        assert loss(small - step, fixed) < loss(small, fixed)


@every_loss
def test_nothing_to_learn_from_a_collapsed_teacher(loss: Loss):
    student = torch.randn(10, 8)
    _, grad = gradient(loss, torch.zeros(10, 8), torch.full((10, 4), 2.5))
    assert torch.equal(grad, torch.zeros(10, 8))
    value, grad = gradient(loss, student, torch.full((10, 4), 2.5))
    assert value > 0 and torch.isfinite(grad).all()


@every_loss
def test_a_channel_that_is_large_and_constant_hides_nothing(loss: Loss):
    student, teacher = 1e-3 * torch.randn(10, 8), torch.randn(10, 8)
    beside = torch.cat([student, torch.full((10, 1), 1e4)], 1)
    value, grad = gradient(loss, beside, teacher)
    expected, wanted = gradient(loss, student, teacher)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad[:, :8], wanted)
    assert grad[:, 8].abs().max() <= 1e-6 * wanted.abs().max()


def test_arranged_points_are_around_zero_and_of_size_one():
    points, size, scale = arrange(7e5 + 300 * torch.randn(20, 4, dtype=torch.float64))
    assert points.abs().max().item() == pytest.approx(1.0)
    assert points.mean(0).abs().max() < 1e-9
    assert (size * scale).item() == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [1, 7, 128, 129, 300])
def test_squared_distances(rows: int):
    points = torch.randn(rows, 5, dtype=torch.float64)
    expected = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    squares = squared_distances(points)
    torch.testing.assert_close(squares, expected, rtol=1e-10, atol=1e-13)
    assert torch.equal(squares.diagonal(), torch.zeros(rows, dtype=torch.float64))


def test_a_margin_makes_rounding_zero():
    points = torch.randn(300, 40, dtype=torch.float64)
    points[200] = points[100]
    squares = squared_distances(points, margin=32.0)
    assert squares[200, 100] == 0 and squares[100, 200] == 0
    assert (squares == 0).sum() == 302
