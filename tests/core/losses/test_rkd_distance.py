from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import RKDDistance, backend, rkd_distance


def slow_distance(
    student: Tensor,
    teacher: Tensor,
    squared: bool = False,
    normalize: bool = True,
    pairs: str = "distinct",
    delta: float = 1.0,
) -> float:
    """The definition, one pair at a time."""
    count = len(student)
    couples = [(i, j) for i in range(count) for j in range(count) if i != j]
    psi = []
    for side in (student.tolist(), teacher.tolist()):
        apart = {(i, j): math.dist(side[i], side[j]) ** (2 if squared else 1) for i, j in couples}
        mean = math.fsum(apart.values()) / len(couples) if normalize else 1.0
        psi.append({pair: d / mean if mean else 0.0 for pair, d in apart.items()})
    values = []
    for pair in couples:
        gap = abs(psi[0][pair] - psi[1][pair])
        values.append(gap**2 / 2 if gap <= delta else delta * (gap - delta / 2))
    return math.fsum(values) / (len(couples) if pairs == "distinct" else count**2)


def test_golden(golden_cls: dict[str, Tensor]):
    """The authors' code averages over the diagonal as well, which is zero."""
    student, teacher = golden_cls["es"], golden_cls["et"]
    value = rkd_distance(student, teacher).item()
    assert value == pytest.approx(0.007948470301926136, rel=1e-5)
    code = rkd_distance(student, teacher, pairs="all").item()
    assert code == pytest.approx(0.007451691664755344, rel=1e-5)
    assert code == pytest.approx(value * 15 / 16, rel=1e-6)


def test_golden_squared(golden_cls: dict[str, Tensor]):
    """The lecture's vector of squared distances between pairs."""
    value = rkd_distance(golden_cls["es"], golden_cls["et"], squared=True).item()
    assert value == pytest.approx(0.031646937131881714, rel=1e-5)


@given(
    rows=st.integers(2, 7),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    squared=st.booleans(),
    normalize=st.booleans(),
    pairs=st.sampled_from(["distinct", "all"]),
    delta=st.sampled_from([0.1, 1.0, 10.0]),
    spread=st.sampled_from([1e-8, 1.0, 1e6]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(
    rows: int, widths: tuple[int, int], squared, normalize, pairs, delta, spread, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        spread * torch.randn(rows, width, generator=generator, dtype=torch.float64)
        for width in widths
    )
    options = {"squared": squared, "normalize": normalize, "pairs": pairs, "delta": delta}
    value = rkd_distance(student, teacher, **options)
    expected = slow_distance(student, teacher, **options)
    assert value.item() == pytest.approx(expected, rel=1e-8, abs=1e-14)
    assert torch.equal(RKDDistance(**options)(student, teacher), value)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rows", [5, 130])
def test_the_gradient_equals_that_of_the_formula(rows: int, squared: bool, normalize: bool):
    """130 rows are more than one panel of the matrix product."""
    student = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(rows, 3, dtype=torch.float64)
    found = []
    for name in ("eager", "reference"):
        with backend(name):  # type: ignore
            value = rkd_distance(
                student, teacher, squared=squared, normalize=normalize, delta=0.3, pairs="all"
            )
        found += [value, *torch.autograd.grad(3 * value, student)]
    torch.testing.assert_close(found[0], found[2], rtol=1e-11, atol=0)
    torch.testing.assert_close(found[1], found[3], rtol=1e-9, atol=1e-12)


def test_place_size_and_orientation_do_not_count():
    student = torch.randn(9, 4, dtype=torch.float64)
    teacher = torch.randn(9, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    expected = rkd_distance(student, teacher)
    torch.testing.assert_close(rkd_distance(300 * student @ turn - 7, teacher), expected)
    torch.testing.assert_close(rkd_distance(student, 1e-6 * teacher + 1), expected)
    moved = rkd_distance(300 * student @ turn - 7, teacher, normalize=False)
    assert moved > 100 * rkd_distance(student, teacher, normalize=False)


@pytest.mark.parametrize("offset", [30.0, 2000.0])
def test_small_distances_far_from_zero_keep_their_digits(offset: float):
    """A Gram matrix that is not centred has none left: 2000^2 times the rounding is 0.5."""
    spread = 0.02 * torch.randn(12, 32, dtype=torch.float64)
    single = (spread + offset).float().requires_grad_()
    teacher = torch.randn(12, 32)
    exact = single.detach().double().requires_grad_()
    value, expected = rkd_distance(single, teacher), rkd_distance(exact, teacher.double())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,), (wanted,) = torch.autograd.grad(value, single), torch.autograd.grad(expected, exact)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_compare(rows: int):
    student = torch.full((rows, 3), 1e38, requires_grad=True)
    value = rkd_distance(student, torch.ones(rows, 2))
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(rows, 3))


def test_two_samples_are_always_alike():
    value = rkd_distance(torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0, 1.0], [9.0, 3.0]]))
    assert value.item() == pytest.approx(0.0, abs=1e-12)


def test_coincident_samples_count_as_pairs():
    """In the mean distance as well, as in the paper and, but for its rounding, its code."""
    student = torch.tensor([[0.0], [0.0], [6.0]])
    teacher = torch.tensor([[0.0], [3.0], [6.0]])
    # Student distances 0, 6, 6 with mean 4; teacher 3, 6, 3 with mean 4.
    expected = (0.75**2 + 0.0 + 0.75**2) / 2 / 3
    assert rkd_distance(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_exactly_zero_at_equality():
    student = torch.randn(50, 20, requires_grad=True)
    value = rkd_distance(student, student)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and student.grad.abs().max() == 0.0


def test_near_copies_are_driven_apart():
    """Below the resolution of float32 products, where one over the distance would be noise."""
    student = torch.randn(8, 16)
    student[1] = student[0] + 1e-4 * torch.randn(16)
    teacher = torch.randn(8, 16)
    student.requires_grad_()
    (grad,) = torch.autograd.grad(rkd_distance(student, teacher), student)
    gap = (student[1] - student[0]).detach()
    towards = torch.dot(grad[1] - grad[0], gap / gap.norm())
    assert towards < 0  # a step against the gradient widens the gap
    assert grad.norm() < 10


def test_keeps_little_until_backward():
    student, teacher = torch.randn(40, 25, requires_grad=True), torch.randn(40, 70)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rkd_distance(student, teacher)
    assert sum(held.values()) <= 40 * 40 + 40 * 25


def test_an_inference_teacher_will_do():
    student = torch.randn(5, 3, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(5, 3)
    rkd_distance(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_second_derivatives_are_refused():
    student = torch.randn(4, 3, requires_grad=True)
    value = rkd_distance(student, torch.randn(4, 3)) + student.square().sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


def test_backward_twice_gives_the_same():
    student = torch.randn(4, 3, requires_grad=True)
    value = rkd_distance(student, torch.randn(4, 3))
    first, second = (torch.autograd.grad(value, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2, 2), (4, 0)])
def test_only_matrices(shape: tuple[int, ...]):
    for pair in ((torch.zeros(shape), torch.zeros(4, 3)), (torch.zeros(4, 3), torch.zeros(shape))):
        with pytest.raises(ShapeError, match=r"must be \(B, D\).*Flatten or pool"):
            rkd_distance(*pair)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_delta(delta: float):
    for call in (lambda: RKDDistance(delta=delta), lambda: rkd_distance(*two(), delta=delta)):
        with pytest.raises(ConfigError, match="delta must be a finite number > 0"):
            call()


def test_bad_pairs():
    for call in (lambda: RKDDistance(pairs="every"), lambda: rkd_distance(*two(), pairs="every")):  # type: ignore
        with pytest.raises(ConfigError, match="pairs must be one of 'distinct', 'all'"):
            call()


def two() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 2), torch.zeros(3, 2)
