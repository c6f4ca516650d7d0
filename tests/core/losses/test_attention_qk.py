from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import AttentionQK, _sequence, attention_map, attention_qk

Pair = tuple[Tensor, Tensor]


def qk(*shape: int, seed: int = 0, grad: bool = False) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    q, k = (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (q.requires_grad_(), k.requires_grad_()) if grad else (q, k)


def scores(pair: Pair, scale: float | None = None) -> Tensor:
    q, k = pair
    return torch.einsum("batd,baud->batu", q, k) * (scale or q.shape[-1] ** -0.5)


def slow(student: Pair, teacher: Pair) -> float:
    """The definition, one number at a time."""

    def rows(pair: Pair) -> list[list[float]]:
        found = []
        for q, k in zip(*(t.flatten(0, 1).tolist() for t in pair), strict=True):
            for query in q:
                row = [
                    math.fsum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(key))
                    for key in k
                ]
                exps = [math.exp(z) for z in row]
                found.append([e / math.fsum(exps) for e in exps])
        return found

    values = [
        math.fsum(b * math.log(b / a) for a, b in zip(s, t, strict=True))
        for s, t in zip(rows(student), rows(teacher), strict=True)
    ]
    return math.fsum(values) / len(values)


def test_equals_the_definition():
    student, teacher = qk(2, 3, 5, 4), qk(2, 3, 5, 7, seed=1)
    assert attention_qk(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-12)


@pytest.mark.parametrize("block", [1, 7, 12, 30, 64, 2**18], ids=lambda n: f"block {n}")
@pytest.mark.parametrize("mask", [None, "padding", "weights"])
def test_equals_attention_map_however_it_is_cut(monkeypatch, block: int, mask):
    """Blocks of parts of a map, of one map, of several, and a last one that is smaller."""
    monkeypatch.setattr(_sequence, "_CPU_BLOCK", block)
    student, teacher = qk(3, 2, 5, 4, grad=True), qk(3, 2, 5, 3, seed=1)
    if mask == "padding":
        mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    elif mask == "weights":
        mask = torch.linspace(0, 3, 15).view(3, 5)
    value = attention_qk(student, teacher, mask=mask)
    expected = attention_map(scores(student), scores(teacher), form="scores", mask=mask)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for a, b in zip(
        torch.autograd.grad(2 * value, student),
        torch.autograd.grad(2 * expected, student),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(0, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 6),
    width=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes(batch: int, heads: int, tokens: int, width: int, seed: int):
    student = qk(batch, heads, tokens, width, seed=seed, grad=True)
    teacher = qk(batch, heads, tokens, 5 - width, seed=seed + 1)
    value = attention_qk(student, teacher)
    expected = attention_map(scores(student), scores(teacher), form="scores")
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v, student) for v in (value, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_layers_are_averaged():
    student = [qk(2, 2, 4, 3, seed=seed) for seed in (0, 1)]
    teacher = [qk(2, 2, 4, 3, seed=seed) for seed in (2, 3)]
    first, second = (attention_qk(s, t) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(attention_qk(student, teacher), (first + second) / 2)
    torch.testing.assert_close(attention_qk(student[:1], teacher[:1]), first)


def test_the_scale_is_that_of_the_product():
    student, teacher = qk(2, 2, 4, 3), qk(2, 2, 4, 5, seed=1)
    expected = attention_map(scores(student, 0.7), scores(teacher, 0.7), form="scores")
    torch.testing.assert_close(attention_qk(student, teacher, scale=0.7), expected)


def test_the_body_for_the_compiler_is_the_same():
    s, t = (scores(qk(2, 2, 4, 3, seed=seed))[0] for seed in (0, 1))
    expected = _sequence._in_place(s.clone(), t.clone(), torch.empty_like(s))
    for a, b in zip(_sequence._fused(s, t), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_vector_added_to_all_keys_changes_nothing():
    student, teacher = qk(2, 2, 4, 3), qk(2, 2, 4, 3, seed=1)
    shifted = student[0], student[1] + torch.tensor([5.0, -3.0, 1.0])
    torch.testing.assert_close(attention_qk(shifted, teacher), attention_qk(student, teacher))


@pytest.mark.parametrize("which", [0, 1])
def test_one_side_may_be_frozen(which: int):
    student, teacher = qk(2, 2, 4, 3, grad=True), qk(2, 2, 4, 3, seed=1)
    expected = torch.autograd.grad(attention_qk(student, teacher), student)[which]
    free = [tensor.detach() for tensor in student]
    free[which].requires_grad_()
    attention_qk((free[0], free[1]), teacher).backward()
    assert torch.equal(free[which].grad, expected)  # type: ignore
    assert free[1 - which].grad is None


def test_backward_twice():
    student, teacher = qk(1, 2, 4, 3, grad=True), qk(1, 2, 4, 3, seed=1)
    value = attention_qk(student, teacher)
    first = torch.autograd.grad(value, student, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(value, student), strict=True):
        assert torch.equal(a, b)


def test_large_scores_keep_the_digits_of_small_differences():
    """Scores of about 1e4 that differ by 1, where float32 has steps of 1e-3."""
    q, keys = torch.full((1, 1, 3, 1), 100.0), torch.tensor([100.0, 100.01, 99.99]).view(1, 1, 3, 1)
    student, teacher = (q, keys), (q, keys.flip(2))
    value = attention_qk(student, teacher, scale=1.0).item()
    exact = attention_qk(
        (q.double(), keys.double()), (q.double(), keys.double().flip(2)), scale=1.0
    ).item()
    assert value == pytest.approx(exact, rel=1e-3)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("related", [False, True])
def test_no_map_is_ever_whole(monkeypatch, related: bool):
    monkeypatch.setattr(_sequence, "_CPU_BLOCK", 2**10)
    (q, k), teacher = qk(1, 2, 64, 3, grad=True), qk(1, 2, 64, 3, seed=1)
    with Largest() as made:
        attention_qk((q, q if related else k), teacher).backward()
    assert made.numel <= 2**10 < 64 * 64


def test_keeps_the_gradients_and_nothing_else():
    student, teacher = qk(1, 2, 64, 3, grad=True), qk(1, 2, 64, 3, seed=1)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention_qk(student, teacher)
    assert sum(held.values()) <= sum(tensor.numel() for tensor in student) + 8


def test_the_teacher_may_come_from_inference_mode():
    with torch.inference_mode():
        teacher = qk(1, 2, 4, 3, seed=1)
    student = qk(1, 2, 4, 3, grad=True)
    attention_qk(student, teacher).backward()
    assert student[0].grad is not None and student[0].grad.any()


def test_second_derivatives_are_refused():
    student = qk(1, 2, 4, 3, grad=True)
    value = attention_qk(student, qk(1, 2, 4, 3, seed=1)) + student[0].square().sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student[0], create_graph=True)


def test_shapes_that_do_not_fit():
    pair = qk(2, 4, 3, 2)
    with pytest.raises(ShapeError, match=r"\(2, 4, 3, 2\).*\(2, 12, 3, 2\).*heads='mean'"):
        attention_qk(pair, qk(2, 12, 3, 2))
    with pytest.raises(ShapeError, match="same B, A and T"):
        attention_qk((pair[0], pair[1][:, :, :2]), pair)
    with pytest.raises(ShapeError, match="same B, A and T"):
        attention_qk(qk(2, 3, 2), qk(2, 3, 2))
    for empty in ((2, 0, 3, 2), (2, 4, 0, 2), (2, 4, 3, 0)):
        with pytest.raises(ShapeError, match="not empty"):
            attention_qk(qk(*empty), qk(*empty))
    with pytest.raises(ShapeError, match="a pair .queries, keys., got 3"):
        attention_qk((*pair, pair[0]), pair)  # type: ignore
    with pytest.raises(ShapeError, match="same number of layers.* 2 and 1"):
        attention_qk([pair, pair], pair)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale(scale: float):
    with pytest.raises(ConfigError, match="scale must be a finite number > 0"):
        attention_qk(qk(1, 1, 2, 2), qk(1, 1, 2, 2), scale=scale)
    with pytest.raises(ConfigError, match="scale must be a finite number > 0"):
        AttentionQK(scale=scale)


def test_a_tensor_instead_of_a_pair_is_named():
    single = torch.randn(2, 3, 4, 4)
    with pytest.raises(ShapeError, match=r"a pair \(queries, keys\).*one tensor .*\(2, 3, 4, 4\)"):
        attention_qk(single, single)  # type: ignore
