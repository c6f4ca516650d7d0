"""The head has no rows, so this loss runs the shared contract here, in its own terms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import LinearKLDivergence, kl_div, linear_kl_div


def sides(
    *positions: int,
    classes: int = 11,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Hidden states, head and bias of student (3 channels) and teacher (5)."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for hidden in (3, 5):
        shapes = [(*positions, hidden), (classes, hidden), (classes,)][: 2 + bias]
        made.append(tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes))
    for tensor in made[0]:
        tensor.requires_grad_()
    return made[0], made[1]


def dense(student, teacher, **options) -> Tensor:
    """Through the logits."""
    return kl_div(F.linear(*student), F.linear(*teacher), dim=-1, **options)


def same(value: Tensor, expected: Tensor, student: tuple[Tensor, ...], rtol: float = 1e-10):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-13)
    wanted = [tensor for tensor in student if tensor.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(value, wanted, retain_graph=True),
        torch.autograd.grad(expected, wanted),
        rtol=10 * rtol,
        atol=1e-12,
    )


@pytest.mark.parametrize("rows", [None, 1, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_divergence_of_the_logits(rows: int | None, bias: bool):
    student, teacher = sides(7, bias=bias)
    value = linear_kl_div(student, teacher, temperature=2.0, rows=rows)
    same(value, dense(student, teacher, temperature=2.0), student)
    assert value > 0.1


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 4),
    classes=st.integers(2, 7),
    rows=st.integers(1, 5),
    total=st.sampled_from([None, 0, 3.5, "tensor"]),
    weighted=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes_weights_and_totals(batch, length, classes, rows, total, weighted, seed: int):
    student, teacher = sides(batch, length, classes=classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(batch, length, generator=generator).round() if weighted else None
    total = torch.tensor(2.0) if total == "tensor" else total
    options = {"weight": weight, "total": total}
    value = linear_kl_div(student, teacher, rows=rows, **options)
    same(value, dense(student, teacher, **options), student)


@pytest.mark.parametrize("case", ["no rows", "zero weights", "zero total", "zero tensor total"])
def test_nothing_to_compare_is_zero_with_a_graph(case: str):
    student, teacher = sides(0 if case == "no rows" else 6)
    weight = torch.zeros(6) if case == "zero weights" else None
    total = {"zero total": 0, "zero tensor total": torch.tensor(0.0)}.get(case)
    value = linear_kl_div(student, teacher, weight=weight, total=total)
    value.backward()
    assert value.item() == 0.0
    for tensor in student:
        assert tensor.grad is not None and torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_value_does_not_depend_on_batch_or_length():
    student, teacher = sides(2, 3)
    expected = linear_kl_div(student, teacher)
    for repeats in ((4, 1, 1), (1, 5, 1)):
        value = linear_kl_div(
            (student[0].repeat(repeats), *student[1:]), (teacher[0].repeat(repeats), *teacher[1:])
        )
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_gradient_is_exact(backend):
    student, teacher = sides(3, classes=4)
    weight = torch.rand(3, dtype=torch.float64)

    def loss(*parts: Tensor) -> Tensor:
        return linear_kl_div(parts, teacher, temperature=3.0, rows=2, weight=weight)

    with losses.backend(backend):
        assert torch.autograd.gradcheck(loss, student, eps=1e-6, atol=1e-7, rtol=1e-6)


def test_the_reference_backend_has_second_derivatives():
    student, teacher = sides(3, classes=4)
    expected = linear_kl_div(student, teacher)
    with losses.backend("reference"):
        value = linear_kl_div(student, teacher)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
        assert torch.autograd.gradgradcheck(
            lambda *parts: linear_kl_div(parts, teacher), student, atol=1e-5, rtol=1e-4
        )


def test_second_derivatives_are_refused_otherwise():
    student, teacher = sides(3)
    value = linear_kl_div(student, teacher)
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize("frozen", range(3))
def test_what_is_frozen_gets_no_gradient(frozen: int):
    student, teacher = sides(5)
    student[frozen].requires_grad_(False)
    same(linear_kl_div(student, teacher), dense(student, teacher), student)


def test_only_the_student_gets_a_gradient():
    student, teacher = sides(5)
    weight = torch.rand(5, requires_grad=True)
    for tensor in teacher:
        tensor.requires_grad_()
    linear_kl_div(student, teacher, weight=weight).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in student)
    assert all(tensor.grad is None for tensor in (*teacher, weight))


def test_without_any_gradient():
    student, teacher = sides(5)
    expected = linear_kl_div(student, teacher)
    with torch.no_grad():
        value = linear_kl_div(student, teacher)
    assert not value.requires_grad
    assert value.item() == expected.item()
    with torch.inference_mode():
        other = [tuple(tensor.clone() for tensor in side) for side in (student, teacher)]
        assert linear_kl_div(*other).item() == expected.item()  # type: ignore
    torch.testing.assert_close(linear_kl_div(student, other[1]), expected)


def test_a_head_shared_with_the_embedding():
    """The gradients of both uses add up."""
    student, teacher = sides(6, bias=False)
    tokens = torch.arange(6)
    head = student[1]
    value = linear_kl_div((head[tokens] * 2, head), teacher)
    expected = dense((head[tokens] * 2, head), teacher)
    same(value, expected, (head,))


def test_zero_at_equality():
    student, _ = sides(5)
    same_side = tuple(tensor.detach() for tensor in student)
    value = linear_kl_div(student, same_side)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-14)
    assert all(tensor.grad is not None and tensor.grad.abs().max() < 1e-14 for tensor in student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite(dtype: torch.dtype):
    head = torch.tensor([[1e4], [-1e4]], dtype=dtype)
    hidden = torch.ones(3, 1, dtype=dtype, requires_grad=True)
    value = linear_kl_div((hidden, head), (-hidden.detach(), head))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(2e4, rel=1e-2)
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    student, teacher = sides(6, dtype=dtype)
    value = linear_kl_div(student, teacher)
    single = [tuple(tensor.detach().float() for tensor in side) for side in (student, teacher)]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(linear_kl_div(*single).item(), rel=1e-6)  # type: ignore
    value.backward()
    assert all(t.grad is not None and t.grad.dtype == dtype for t in student)


def test_autocast_changes_nothing():
    student, teacher = sides(6, dtype=torch.float32)
    expected = linear_kl_div(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = linear_kl_div(student, teacher)
    assert torch.equal(value, expected)


def test_mixed_precision():
    """Hidden states of autocast, a head in float32."""
    student, teacher = sides(6, dtype=torch.float32)
    half = (student[0].detach().bfloat16().requires_grad_(), *student[1:])
    value = linear_kl_div(half, teacher)
    expected = dense((half[0].float(), *half[1:]), teacher)
    same(value, expected, half, rtol=1e-5)


def test_backward_twice():
    student, teacher = sides(6)
    value = linear_kl_div(student, teacher)
    first = torch.autograd.grad(value, student, retain_graph=True)
    second = torch.autograd.grad(3 * value, student)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_inputs_stay_as_they_were():
    student, teacher = sides(6, dtype=torch.float32)
    before = [tensor.detach().clone() for side in (student, teacher) for tensor in side]
    linear_kl_div(student, teacher, rows=4).backward()
    after = [tensor.detach() for side in (student, teacher) for tensor in side]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_shapes_can_be_found_without_data():
    meta = [tuple(t.detach().to("meta") for t in side) for side in sides(6)]
    assert linear_kl_div(*meta).shape == ()  # type: ignore


def test_compiles_in_one_graph():
    student, teacher = sides(6)
    compiled = torch.compile(linear_kl_div, backend="aot_eager", fullgraph=True)
    same(compiled(student, teacher, temperature=2.0), dense(student, teacher, temperature=2.0),
         student)  # fmt: skip


@pytest.mark.slow
def test_the_compiled_backend_agrees():
    student, teacher = sides(6)
    with losses.backend("compiled"):
        value = linear_kl_div(student, teacher)
    same(value, dense(student, teacher), student)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_without_waiting_for_it():
    student, teacher = sides(6)
    expected = linear_kl_div(student, teacher)
    gpu = [tuple(t.detach().cuda() for t in side) for side in (student, teacher)]
    for tensor in gpu[0]:
        tensor.requires_grad_()
    weight = torch.ones(6, device="cuda")
    torch.autograd.grad(linear_kl_div(gpu[0], gpu[1], weight=weight), gpu[0])  # type: ignore
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = linear_kl_div(gpu[0], gpu[1], weight=weight)  # type: ignore
        found = torch.autograd.grad(value, gpu[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.cpu(), expected)
    for a, b in zip(found, torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(a.cpu(), b)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operation made, and did not just view."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, tensor.numel())
        return out


def test_never_makes_all_logits():
    student, teacher = sides(64, classes=100, dtype=torch.float32)
    with Largest() as largest:
        linear_kl_div(student, teacher, rows=8).backward()
    assert largest.elements <= 8 * 100
    with Largest() as frozen:
        linear_kl_div((student[0], student[1].detach()), teacher[:2], rows=2).backward()
    assert frozen.elements < student[1].numel()


def test_module_equals_function():
    student, teacher = sides(5)
    weight = torch.rand(5)
    module = LinearKLDivergence(temperature=3.0, rows=2)
    assert torch.equal(
        module(student, teacher, weight, 2.0),
        linear_kl_div(student, teacher, temperature=3.0, rows=2, weight=weight, total=2.0),
    )
    assert not module.state_dict()


def test_wrong_shapes_are_named():
    student, teacher = sides(5)
    hidden, head, bias = teacher
    for wrong, message in (
        ((hidden[:1], head), r"\(5, 3\) and \(1, 5\)"),
        ((hidden, head[:7]), r"\(11, 3\) and \(7, 5\)"),
        ((hidden, head[:, :2]), r"teacher's head .* \(5, 5\) and head \(11, 2\)"),
        ((hidden, head, bias[:3]), r"11 classes, got \(3,\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            linear_kl_div(student, wrong)
    single = (hidden, head[:1])
    with pytest.raises(ShapeError, match="at least 2"):
        linear_kl_div(single, single)
    with pytest.raises(ConfigError, match="got Tensor. For logits use kl_div"):
        linear_kl_div(hidden, teacher)  # type: ignore


def test_wrong_weights_and_options():
    student, teacher = sides(5)
    with pytest.raises(ShapeError, match="weight must hold one number a position"):
        linear_kl_div(student, teacher, weight=torch.ones(1))
    with pytest.raises(ConfigError, match="total must be a finite number"):
        linear_kl_div(student, teacher, total=-1.0)
    for make in (lambda **o: LinearKLDivergence(**o), lambda **o: linear_kl_div(*sides(5), **o)):
        with pytest.raises(ConfigError, match="rows must be at least 1"):
            make(rows=0)
        with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
            make(temperature=0.0)
