from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import (
    SparseLogits,
    TopKKLDivergence,
    kl_div,
    sparse_logits,
    top_k_kl_div,
)


def slow_bucket(student: Tensor, teacher: Tensor, k: int, temperature: float) -> float:
    """The definition, one number at a time; rows are (N, V)."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp((z - max(row)) / temperature) for z in row]
        return [power / math.fsum(powers) for power in powers]

    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = softmax(s), softmax(t)
        order = sorted(range(len(t)), key=lambda c, p=p_t: -p[c])
        merged = [
            [*(p[c] for c in order[:k]), math.fsum(p[c] for c in order[k:])] for p in (p_t, p_s)
        ]
        rows.append(math.fsum(a * math.log(a / b) for a, b in zip(*merged, strict=True)))
    return temperature**2 * math.fsum(rows) / len(rows)


def pair_of(rows: int = 8, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student.requires_grad_(), teacher


def same(value: Tensor, expected: Tensor, student: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(value, student, retain_graph=True),
        torch.autograd.grad(expected, student, retain_graph=True),
        rtol=1e-10,
        atol=1e-13,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_bucket_equals_the_definition(k: int, temperature: float):
    student, teacher = pair_of()
    kept = sparse_logits(teacher, k, temperature=temperature)
    value = top_k_kl_div(student, kept, temperature=temperature)
    expected = slow_bucket(student.detach(), teacher, k, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("k", "tail"), [(10, "bucket"), (9, "bucket"), (10, "renormalised")]
)  # a bucket of one class is that class
def test_with_all_classes_it_is_the_dense_divergence(k: int, tail, temperature: float):
    student, teacher = pair_of()
    kept = sparse_logits(teacher, k, tail=tail, temperature=temperature)
    value = top_k_kl_div(student, kept, tail=tail, temperature=temperature)
    same(value, kl_div(student, teacher, temperature=temperature), student)


@settings(deadline=None)
@given(classes=st.integers(2, 9), seed=st.integers(0, 10**6), data=st.data())
def test_merging_classes_never_adds_divergence(classes: int, seed: int, data):
    student, teacher = pair_of(4, classes, seed)
    values = [
        top_k_kl_div(student, sparse_logits(teacher, k)).item() for k in range(1, classes + 1)
    ]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(kl_div(student, teacher).item(), rel=1e-10)


def test_renormalised_is_the_divergence_within_the_kept_classes():
    student, teacher = pair_of()
    kept = sparse_logits(teacher, 4, tail="renormalised", temperature=3.0)
    value = top_k_kl_div(student, kept, tail="renormalised", temperature=3.0)
    columns = [tensor.gather(1, kept.indices) for tensor in (student, teacher)]
    same(value, kl_div(*columns, temperature=3.0), student)


def test_renormalised_does_not_look_at_the_other_classes():
    student, teacher = pair_of()
    kept = sparse_logits(teacher, 4, tail="renormalised")
    expected = top_k_kl_div(student, kept, tail="renormalised")
    hidden = torch.full_like(student, torch.nan).scatter(
        1, kept.indices, student.detach().gather(1, kept.indices)
    )
    hidden.requires_grad_()
    value = top_k_kl_div(hidden, kept, tail="renormalised")
    assert value.item() == expected.item()
    (grad,) = torch.autograd.grad(value, hidden)
    assert ((grad != 0).sum(1) == 4).all()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_sampled_is_unbiased(k: int, temperature: float):
    """Averaged over every possible draw with its probability: value and gradient of kl_div."""
    student, teacher = pair_of(1, 4)
    log_p = (teacher / temperature).log_softmax(1)
    mean = student.new_zeros(())
    for draw in itertools.product(range(4), repeat=k):
        indices = torch.tensor([draw])
        values = log_p.gather(1, indices)
        value = top_k_kl_div(student, (values, indices), tail="sampled", temperature=temperature)
        mean = mean + values.sum().exp() * value
    same(mean, kl_div(student, teacher, temperature=temperature), student)


def test_the_most_probable_classes_alone_are_biased():
    """Why `sampled` exists: a student at the teacher's distribution is pushed away from it."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    student = teacher.clone().requires_grad_()
    for tail, still in (("bucket", True), ("renormalised", True)):
        kept = sparse_logits(teacher, 2, tail=tail)
        (grad,) = torch.autograd.grad(top_k_kl_div(student, kept, tail=tail), student)
        assert (grad.abs().max() < 1e-6) == still
    # These two are at rest there, but also where the other classes are far from the teacher's.
    moved = torch.tensor([[2.0, 1.0, 0.5, -9.0]])
    moved[0, 2] = math.log(2 - math.exp(-9.0))  # the same mass in the rest
    kept = sparse_logits(teacher, 2)
    assert top_k_kl_div(moved, kept).item() == pytest.approx(0.0, abs=1e-6)
    assert kl_div(moved, teacher).item() > 0.1


def test_draws_follow_the_teacher():
    teacher = torch.tensor([0.1, 0.2, 0.7]).log().expand(4, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = sparse_logits(teacher, 5000, tail="sampled", generator=generator)
    share = torch.stack([(drawn.indices == c).float().mean() for c in range(3)])
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.values, teacher.gather(1, drawn.indices))
    again = sparse_logits(teacher, 5000, tail="sampled", generator=generator.manual_seed(0))
    assert torch.equal(again.indices, drawn.indices)


def test_what_is_kept():
    _, teacher = pair_of()
    values, indices, tail = sparse_logits(teacher, 3, temperature=2.0)
    log_p = (teacher / 2).log_softmax(1)
    assert tail is not None
    torch.testing.assert_close(values, log_p.gather(1, indices))
    assert (values.min(1).values >= log_p.scatter(1, indices, -torch.inf).max(1).values).all()
    torch.testing.assert_close(tail.exp() + values.exp().sum(1), torch.ones(8).double())
    assert sparse_logits(teacher, 3, tail="renormalised").tail is None
    assert sparse_logits(teacher.half(), 3).values.dtype == torch.float32
    assert not sparse_logits(teacher.requires_grad_(), 3).values.requires_grad


def test_the_tail_can_be_left_out_or_the_values_be_logits():
    student, teacher = pair_of()
    kept = sparse_logits(teacher, 3)
    expected = top_k_kl_div(student, kept)
    same(top_k_kl_div(student, kept[:2]), expected, student)
    assert kept.tail is not None
    raised = (kept.values + 7, kept.indices, kept.tail + 7)
    same(top_k_kl_div(student, raised), expected, student)


def test_a_cache_in_half_precision():
    student, teacher = pair_of()
    kept = sparse_logits(teacher, 3)
    assert kept.tail is not None
    stored = SparseLogits(kept.values.half(), kept.indices.to(torch.int32), kept.tail.half())
    torch.testing.assert_close(
        top_k_kl_div(student, stored), top_k_kl_div(student, kept), rtol=2e-3, atol=0
    )


def test_a_rest_far_below_rounding_keeps_its_digits():
    """1 - sum(p) would be 0 or noise in float32."""
    logits = torch.tensor([[30.0, 25.0, 0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 2.0, 1.0, 2.0]])
    values = []
    for dtype in (torch.float32, torch.float64):
        kept = sparse_logits(teacher.to(dtype), 2)
        student = logits.detach().to(dtype)[:, [0, 1, 2, 3]].requires_grad_()
        value = top_k_kl_div(student, kept)
        (grad,) = torch.autograd.grad(value, student)
        values.append((value.double(), grad.double()))
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)
    assert values[1][0] > 5


@pytest.mark.parametrize("rest", [-torch.inf, 0.0])
def test_no_rest_at_all_and_nothing_but_rest(rest: float):
    student = torch.randn(2, 5, requires_grad=True)
    values = torch.zeros(2, 2) if rest else torch.full((2, 2), -1e4)
    teacher = (values, torch.tensor([[0, 1], [3, 2]]), torch.full((2,), rest))
    value = top_k_kl_div(student, teacher)
    value.backward()
    assert torch.isfinite(value) and student.grad is not None
    assert torch.isfinite(student.grad).all()
    # A rest of no mass must be pushed down, all of it alike; one of all mass be pulled up.
    assert (student.grad[0, 2:] > 0).all() == (rest != 0)


@pytest.mark.parametrize("tail", ["bucket", "renormalised", "sampled"])
@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(0, 3),
    classes=st.integers(2, 6),
    width=st.integers(0, 3),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_every_layout_gives_the_same(tail, batch: int, classes: int, width: int, seed: int, data):
    k = data.draw(st.integers(2, classes))
    generator = torch.Generator().manual_seed(seed)
    size = (batch, classes, 2, width)
    student, teacher = (
        torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    student.requires_grad_()
    kept = sparse_logits(teacher, k, tail=tail, dim=1, generator=generator)
    value = top_k_kl_div(student, kept, tail=tail, dim=1)
    assert kept.values.shape == (batch, k, 2, width)
    rows = [x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (student, *kept[:2])]
    rest = () if kept.tail is None else (kept.tail.reshape(-1),)
    same(value, top_k_kl_div(rows[0], (rows[1], rows[2], *rest), tail=tail), student)
    with losses.backend("reference"):
        same(value, top_k_kl_div(student, kept, tail=tail, dim=1), student)


@pytest.mark.parametrize("tail", ["bucket", "sampled"])
def test_holds_the_logits_themselves_and_no_other_tensor_of_their_size(tail):
    student = torch.randn(64, 500, requires_grad=True)
    kept = sparse_logits(torch.randn(64, 500), 4, tail=tail)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        top_k_kl_div(student, kept, tail=tail)
    assert held.pop(student.untyped_storage().data_ptr()) == student.numel()
    assert sum(held.values()) <= 64 * 20


@pytest.mark.parametrize("tail", ["bucket", "renormalised", "sampled"])
def test_a_teacher_of_inference_mode(tail):
    student = torch.randn(3, 6, requires_grad=True)
    with torch.inference_mode():
        kept = sparse_logits(torch.randn(3, 6), 2, tail=tail)
    top_k_kl_div(student, kept, tail=tail).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_second_derivatives_are_refused():
    student, teacher = pair_of()
    value = top_k_kl_div(student, sparse_logits(teacher, 2))
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
@pytest.mark.parametrize("dim", [-1, 1])
def test_the_module_keeps_classes_of_a_whole_teacher(tail, dim: int):
    student, teacher = pair_of()
    if dim == 1:
        student, teacher = (x.view(2, 4, 10).movedim(-1, 1) for x in (student, teacher))
    loss = TopKKLDivergence(k=3, tail=tail, temperature=4.0, dim=dim)
    kept = sparse_logits(teacher, 3, tail=tail, temperature=4.0, dim=dim)
    expected = top_k_kl_div(student, kept, tail=tail, temperature=4.0, dim=dim)
    same(loss(student, teacher), expected, student)
    same(loss(student, kept), expected, student)
    weight = torch.rand(8).view(2, 4) if dim == 1 else torch.rand(8)
    weighted = top_k_kl_div(student, kept, tail=tail, temperature=4.0, dim=dim, weight=weight)
    same(loss(student, teacher, weight=weight), weighted, student)


def test_the_module_draws_anew_each_time():
    student, teacher = pair_of()
    loss = TopKKLDivergence(k=2, tail="sampled")
    torch.manual_seed(0)
    values = [loss(student, teacher) for _ in range(2)]
    torch.manual_seed(0)
    kept = sparse_logits(teacher, 2, tail="sampled")
    same(values[0], top_k_kl_div(student, kept, tail="sampled"), student)
    assert values[0] != values[1]


@pytest.mark.parametrize("tail", ["bucket", "renormalised", "sampled"])
def test_a_whole_teacher_of_no_positions(tail):
    student = torch.zeros(0, 5, requires_grad=True)
    value = TopKKLDivergence(k=2, tail=tail)(student, torch.zeros(0, 5))
    assert value.item() == 0


def test_how_many_classes_the_module_keeps():
    student, teacher = pair_of()
    with pytest.raises(ConfigError, match="add k=10, say. For all classes use KLDivergence"):
        TopKKLDivergence()(student, teacher)
    with pytest.raises(ConfigError, match="of k=4 classes, but 3 of the teacher's were kept"):
        TopKKLDivergence(k=4)(student, sparse_logits(teacher, 3))
    with pytest.raises(ShapeError, match="k=11 classes are to be kept"):
        TopKKLDivergence(k=11)(student, teacher)
    for k in (0, 2.0, True, "3"):
        with pytest.raises(ConfigError, match="k must be a whole number of at least 1"):
            TopKKLDivergence(k=k)  # type: ignore


def test_bad_teachers():
    student = torch.zeros(2, 5)
    values, indices = torch.zeros(2, 3), torch.tensor([[0, 1, 2], [2, 3, 4]])
    with pytest.raises(ConfigError, match="got Tensor. For all classes use kl_div"):
        top_k_kl_div(student, student)  # type: ignore
    with pytest.raises(ShapeError, match=r"student \(2, 5\) and values \(3, 3\)"):
        top_k_kl_div(student, (torch.zeros(3, 3), indices))
    with pytest.raises(ShapeError, match=r"values \(2, 3\) and indices \(2, 2\)"):
        top_k_kl_div(student, (values, indices[:, :2]))
    with pytest.raises(ShapeError, match=r"shape \(2,\), got \(2, 1\)"):
        top_k_kl_div(student, (values, indices, torch.zeros(2, 1)))
    with pytest.raises(ShapeError, match=r"in \[0, 5\) .* got 1 to 5"):
        top_k_kl_div(student, (values, indices + 1))
    with pytest.raises(ShapeError, match="of only 2"):
        top_k_kl_div(student[:, :2], (values, torch.zeros_like(indices)))
    with pytest.raises(ShapeError, match="at least 2 kept classes"):
        top_k_kl_div(student, (values[:, :1], indices[:, :1]), tail="renormalised")
    with pytest.raises(ConfigError, match="indices must be integers"):
        top_k_kl_div(student, (values, indices.float()))


def test_bad_options():
    logits = torch.zeros(2, 5)
    for make in (
        lambda **o: TopKKLDivergence(**o),
        lambda **o: sparse_logits(logits, 2, **o),
        lambda **o: top_k_kl_div(logits, sparse_logits(logits, 2), **o),
    ):
        with pytest.raises(ConfigError, match="Did you mean 'renormalised'"):
            make(tail="renormalized")
        with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
            make(temperature=0.0)
    with pytest.raises(ConfigError, match="k must be at least 1"):
        sparse_logits(logits, 0)
    with pytest.raises(ShapeError, match="k=6 classes"):
        sparse_logits(logits, 6)
