from __future__ import annotations

import importlib
import itertools
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import RKDAngle, _backend, backend, rkd_angle, rkd_distance

MODULE = importlib.import_module("taskdistill.core.losses.rkd_angle")  # not the function


def cosine(at: list[float], first: list[float], last: list[float]) -> float:
    arms = [[x - y for x, y in zip(end, at, strict=True)] for end in (first, last)]
    lengths = [math.hypot(*arm) for arm in arms]
    if 0.0 in lengths:
        return 0.0
    return math.fsum(x * y for x, y in zip(*arms, strict=True)) / (lengths[0] * lengths[1])


def slow_angle(
    student: Tensor, teacher: Tensor, triplets: str = "distinct", delta: float = 1.0
) -> float:
    """The definition, one triplet at a time."""
    count = len(student)
    values = []
    for i, j, k in itertools.product(range(count), repeat=3):
        if triplets == "distinct" and len({i, j, k}) < 3:
            continue
        s, t = (cosine(x[j], x[i], x[k]) for x in (student.tolist(), teacher.tolist()))
        gap = abs(s - t)
        values.append(gap**2 / 2 if gap <= delta else delta * (gap - delta / 2))
    return math.fsum(values) / len(values)


def test_golden(golden_cls: dict[str, Tensor]):
    """The authors' code averages over degenerate triplets as well, which are zero."""
    student, teacher = golden_cls["es"], golden_cls["et"]
    code = rkd_angle(student, teacher, triplets="all").item()
    assert code == pytest.approx(0.008821634575724602, rel=1e-5)
    value = rkd_angle(student, teacher).item()
    assert code == pytest.approx(value * 15 * 14 / 16**2, rel=1e-6)


def test_golden_of_both(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["es"], golden_cls["et"]
    distance = rkd_distance(student, teacher, pairs="all")
    angle = rkd_angle(student, teacher, triplets="all")
    assert (25 * distance + 50 * angle).item() == pytest.approx(0.6273740530014038, rel=1e-5)


@given(
    rows=st.integers(3, 6),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    triplets=st.sampled_from(["distinct", "all"]),
    delta=st.sampled_from([0.1, 1.0, 10.0]),
    spread=st.sampled_from([1e-8, 1.0, 1e6]),
    seed=st.integers(0, 10**6),
    copies=st.booleans(),
)
def test_equals_the_definition(
    rows: int, widths: tuple[int, int], triplets, delta, spread, seed: int, copies: bool
):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        spread * torch.randn(rows, width, generator=generator, dtype=torch.float64)
        for width in widths
    )
    if copies:
        student[1] = student[0]
    options = {"triplets": triplets, "delta": delta}
    value = rkd_angle(student, teacher, **options)
    expected = slow_angle(student, teacher, **options)
    assert value.item() == pytest.approx(expected, rel=1e-7, abs=1e-13)
    assert torch.equal(RKDAngle(**options)(student, teacher), value)


def found_by(name: str, student: Tensor, teacher: Tensor, **options) -> list[Tensor]:
    with backend(name):  # type: ignore
        value = rkd_angle(student, teacher, **options)
    return [value, *torch.autograd.grad(3 * value, student)]


@pytest.mark.parametrize("triplets", ["distinct", "all"])
@pytest.mark.parametrize("rows", [4, 70])
def test_the_gradient_equals_that_of_the_formula(rows: int, triplets: str):
    """70 rows are several blocks, the last one smaller."""
    student = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(rows, 3, dtype=torch.float64)
    options = {"triplets": triplets, "delta": 0.3}
    eager = found_by("eager", student, teacher, **options)
    reference = found_by("reference", student, teacher, **options)
    torch.testing.assert_close(eager[0], reference[0], rtol=1e-11, atol=0)
    torch.testing.assert_close(eager[1], reference[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("triplets", ["distinct", "all"])
@pytest.mark.parametrize("copies", [False, True])
def test_the_compiled_body_computes_the_same(monkeypatch: pytest.MonkeyPatch, triplets, copies):
    """Uncompiled: whether a compiler gets it right is for the contract to say."""
    student = torch.randn(20, 6, dtype=torch.float64)
    teacher = torch.randn(20, 3, dtype=torch.float64)
    if copies:
        student[3], teacher[5] = student[2], teacher[4]
    student.requires_grad_()
    options = {"triplets": triplets, "delta": 0.3}
    eager = found_by("eager", student, teacher, **options)
    monkeypatch.setattr(MODULE, "_blocked", MODULE._whole)
    whole = found_by("eager", student, teacher, **options)
    torch.testing.assert_close(whole[0], eager[0], rtol=1e-11, atol=0)
    torch.testing.assert_close(whole[1], eager[1], rtol=1e-9, atol=1e-12)


def test_without_a_compiler_the_angles_still_pass_by_in_blocks(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    def whole(*args: object) -> None:
        raise AssertionError("N^3 numbers at once")

    monkeypatch.setattr(torch, "compile", lambda body, **_: refuse)
    monkeypatch.setattr(_backend, "logger", logging.getLogger("unheard"))
    fresh = _backend.compilable(MODULE._fused.__wrapped__)
    monkeypatch.setattr(MODULE, "_fused", fresh)
    monkeypatch.setattr(MODULE, "_whole", whole)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    for a, b in zip(*(found_by(n, student, teacher) for n in ("compiled", "eager")), strict=True):
        assert torch.equal(a, b)


def test_place_size_and_orientation_do_not_count():
    student = torch.randn(9, 4, dtype=torch.float64)
    teacher = torch.randn(9, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    expected = rkd_angle(student, teacher)
    torch.testing.assert_close(rkd_angle(300 * student @ turn - 7, teacher), expected)
    torch.testing.assert_close(rkd_angle(student, 1e-6 * teacher + 1), expected)


@pytest.mark.parametrize("near", [1e-2, 1e-3])
def test_angles_between_near_samples_keep_their_digits(near: float):
    """Two tight groups: float32 products alone would lose near^-2 of the digits, not near^-1."""
    groups = torch.randn(2, 1, 16, dtype=torch.float64)
    student = (groups + near * torch.randn(2, 6, 16, dtype=torch.float64)).flatten(0, 1)
    single = student.float().requires_grad_()
    exact = single.detach().double().requires_grad_()
    teacher = torch.randn(12, 16)
    value, expected = rkd_angle(single, teacher), rkd_angle(exact, teacher.double())
    assert value.item() == pytest.approx(expected.item(), rel=1e-6 / near)
    (found,), (wanted,) = torch.autograd.grad(value, single), torch.autograd.grad(expected, exact)
    assert (found - wanted).norm() < 1e-6 / near * wanted.norm()


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_nothing_to_compare(rows: int):
    student = torch.full((rows, 3), 1e38, requires_grad=True)
    value = rkd_angle(student, torch.ones(rows, 2))
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(rows, 3))


def test_exactly_zero_at_equality():
    student = torch.randn(30, 20)
    student[3] = student[4]
    student.requires_grad_()
    value = rkd_angle(student, student)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and student.grad.abs().max() == 0.0


def test_holds_neither_all_differences_nor_all_angles():
    """Of 60 samples: 216 000 angles and as many numbers in the differences."""
    student, teacher = torch.randn(60, 60, requires_grad=True), torch.randn(60, 60)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rkd_angle(student, teacher)
    assert sum(held.values()) <= 2 * 60 * 60


def test_second_derivatives_are_refused():
    student = torch.randn(4, 3, requires_grad=True)
    value = rkd_angle(student, torch.randn(4, 3)) + student.square().sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


def test_only_matrices():
    with pytest.raises(ShapeError, match=r"must be \(B, D\).*student \(4, 3, 2, 2\)"):
        rkd_angle(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3))


def two() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 2), torch.zeros(3, 2)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_delta(delta: float):
    for call in (lambda: RKDAngle(delta=delta), lambda: rkd_angle(*two(), delta=delta)):
        with pytest.raises(ConfigError, match="delta must be a finite number > 0"):
            call()


def test_bad_triplets():
    for call in (lambda: RKDAngle(triplets="no"), lambda: rkd_angle(*two(), triplets="no")):  # type: ignore
        with pytest.raises(ConfigError, match="triplets must be one of 'distinct', 'all'"):
            call()
