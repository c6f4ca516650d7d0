from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import DistillError, ShapeError
from taskdistill.core.losses import _gram, backend


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def textbook(s: Tensor, t: Tensor, a: float, b: float, axis: int) -> Tensor:
    """The P x P matrices, as the definition has them."""
    s, t = (x / torch.linalg.vector_norm(x, dim=axis, keepdim=True) for x in (s, t))
    return torch.stack(
        [
            torch.linalg.matrix_norm(a * x.T @ x - b * y.T @ y) ** 2
            for x, y in zip(s, t, strict=True)
        ]
    )


def value_and_grad(function, s: Tensor, *others) -> tuple[Tensor, Tensor]:
    s = s.clone().requires_grad_()
    value = function(s, *others)
    upstream = torch.linspace(0.5, 2.0, len(value), dtype=s.dtype)
    return value.detach(), torch.autograd.grad(value, s, upstream)[0]


# Fewer positions than channels (the residual is kept), more (channels are compared, of equal and of
# unequal number), and more than a block.
SHAPES = [(9, 7, 4), (3, 3, 10), (3, 6, 20), (10, 12, 11), (10, 10, 11)]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("width_s", "width_t", "positions"), SHAPES)
@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("cached", [1, 2**18])
def test_every_way_to_compute_it_is_the_same(
    monkeypatch, width_s: int, width_t: int, positions: int, axis, block: int, cached: int
):
    monkeypatch.setattr(_gram, "BLOCK", block)
    monkeypatch.setattr(_gram, "CACHED", cached)
    s, t = draw(3, width_s, positions), draw(3, width_t, positions, seed=1)
    for scales in ((1 / width_s, 1 / width_t), (0.7, 0.7)):
        value, grad = value_and_grad(
            lambda s, scales=scales: _gram.gram_distance(s, t, scales=scales, axis=axis), s
        )
        expected, expected_grad = value_and_grad(
            lambda s, scales=scales: textbook(s, t, *scales, axis), s
        )
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


def test_the_shapes_above_take_every_way(monkeypatch):
    """The test above would pass as well if all went one way."""
    taken = []
    for name in ("_over_channels", "_over_positions"):
        function = getattr(_gram, name)
        monkeypatch.setattr(_gram, name, lambda *a, n=name, f=function: taken.append(n) or f(*a))
    monkeypatch.setattr(_gram, "BLOCK", 3)
    for width_s, width_t, positions in SHAPES:
        before = len(taken)
        _gram.gram_distance(
            draw(1, width_s, positions), draw(1, width_t, positions), scales=(1, 1), axis=1
        )
        if len(taken) == before:
            taken.append("residual")
    assert taken == ["_over_positions", *["_over_channels"] * 2, *["_over_positions"] * 2]
    monkeypatch.setattr(_gram, "BLOCK", 512)
    before = len(taken)
    _gram.gram_distance(draw(1, 9, 4), draw(1, 7, 4), scales=(1, 1), axis=1)
    assert len(taken) == before


@pytest.mark.parametrize(("width_s", "width_t", "positions"), SHAPES)
@pytest.mark.parametrize("axis", [1, 2])
def test_detached_norms(width_s: int, width_t: int, positions: int, axis):
    s, t = draw(2, width_s, positions), draw(2, width_t, positions, seed=1)

    def function(s: Tensor) -> Tensor:
        return _gram.gram_distance(s, t, scales=(0.5, 0.5), axis=axis, detach_norm=True)

    value, grad = value_and_grad(function, s)
    with backend("reference"):
        expected, expected_grad = value_and_grad(function, s)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
    _, exact = value_and_grad(lambda s: _gram.gram_distance(s, t, scales=(0.5, 0.5), axis=axis), s)
    assert (grad - exact).norm() > 0.1 * exact.norm()


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 3),
    width_s=st.integers(1, 6),
    width_t=st.integers(1, 6),
    positions=st.integers(1, 12),
    axis=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes(rows, width_s, width_t, positions, axis, seed):
    s, t = draw(rows, width_s, positions, seed=seed), draw(rows, width_t, positions, seed=seed + 1)
    value, grad = value_and_grad(
        lambda s: _gram.gram_distance(s, t, scales=(0.3, 0.6), axis=axis), s
    )
    assert grad.isfinite().all()
    if rows:
        torch.testing.assert_close(value, textbook(s, t, 0.3, 0.6, axis), rtol=1e-9, atol=1e-12)
    else:
        assert value.shape == (0,)


@pytest.mark.parametrize("axis", [1, 2])
def test_vectors_of_zeros_stay_zeros(axis):
    """And get no gradient, on every way."""
    for width_s, width_t, positions in SHAPES:
        s, t = draw(2, width_s, positions), draw(2, width_t, positions, seed=1)
        dead = (slice(None), slice(None), 1) if axis == 1 else (slice(None), 1)
        s[dead] = 0
        value, grad = value_and_grad(
            lambda s, t=t: _gram.gram_distance(s, t, scales=(1, 1), axis=axis), s
        )
        assert value.isfinite().all() and grad.isfinite().all()
        assert grad[dead].eq(0).all() and grad.abs().sum() > 0


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("difference", [1e-2, 1e-4])
def test_float32_near_agreement(axis, difference: float):
    """Equal widths keep the value's digits, unequal widths an absolute accuracy."""
    base = draw(2, 24, 90).relu() + 0.1
    near = [base + difference * draw(2, 24, 90, seed=seed) for seed in (1, 2)]

    def both(t: Tensor) -> tuple[float, float]:
        scales = (1 / 90, 1 / 90) if axis == 1 else (1 / 24, 1 / t.shape[1])
        exact, single = (
            _gram.gram_distance(s, t, scales=scales, axis=axis).sum().item()
            for s, t in ((base, t), (base.float(), t.float()))
        )
        return single, exact

    single, exact = both(near[0])
    assert single == pytest.approx(exact, rel=10 * 1e-7 / difference)
    assert exact < difference**2
    single, exact = both(torch.cat(near, 1))
    assert abs(single - exact) < 3e-8
    assert exact < difference**2


def saved_numbers(function) -> int:
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(held.values())


def test_holds_one_gradient_or_less():
    s = draw(2, 8, 100).requires_grad_()
    t = draw(2, 30, 100, seed=1)
    held = saved_numbers(lambda: _gram.gram_distance(s, t, scales=(1, 1), axis=1))
    assert held == s.numel()
    s = draw(2, 50, 4).requires_grad_()
    t = draw(2, 80, 4, seed=1)
    held = saved_numbers(lambda: _gram.gram_distance(s, t, scales=(1, 1), axis=1))
    assert held == s.numel() + 2 * 4 * 4  # the feature itself, which is kept anyway, and residuals
    with torch.no_grad():
        assert saved_numbers(lambda: _gram.gram_distance(s, t, scales=(1, 1), axis=1)) == 0


def test_takes_a_teacher_from_inference_mode():
    with torch.inference_mode():
        teachers = [draw(2, width, 10) for width in (3, 6)]
    for t in teachers:
        s = draw(2, 3, 10, seed=1).requires_grad_()
        _gram.gram_distance(s, t, scales=(1, 1), axis=2).sum().backward()
        assert s.grad is not None and s.grad.abs().sum() > 0


def test_second_derivatives_are_refused():
    s = draw(2, 3, 10).requires_grad_()
    value = _gram.gram_distance(s, draw(2, 3, 10, seed=1), scales=(1, 1), axis=1).sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value + s.square().sum(), s, create_graph=True)


def test_same_positions_names_both_shapes():
    student = torch.zeros(2, 3, 4, 4)
    for shape in ((2, 3, 4, 5), (1, 3, 4, 4), (2, 3, 2, 8)):
        with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\).*adapter") as caught:
            _gram.same_positions(student, torch.zeros(shape))
        assert str(shape) in str(caught.value)
    with pytest.raises(ShapeError, match=r"must be \(B, C, H, W\)"):
        _gram.same_positions(torch.zeros(2, 0, 4, 4), student)
    with pytest.raises(ShapeError, match=r"teacher \(2, 3\)"):
        _gram.same_positions(student, torch.zeros(2, 3))
