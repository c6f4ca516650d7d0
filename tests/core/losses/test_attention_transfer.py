from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import AttentionTransfer, attention_transfer, backend

Golden = dict[str, Tensor]


def by_hand(student: Tensor, teacher: Tensor, p: float, reduce: str, form: str) -> float:
    """The definition, one number after the other."""

    def attention(sample: Tensor) -> list[float]:
        places = sample.flatten(1).T.tolist()
        powers = [[abs(a) ** p for a in place] for place in places]
        q = [sum(place) if reduce == "sum" else max(place) for place in powers]
        length = sum(a * a for a in q) ** 0.5
        return [a / length for a in q]

    values = []
    for s, t in zip(student, teacher, strict=True):
        squares = [(a - b) ** 2 for a, b in zip(attention(s), attention(t), strict=True)]
        norm = sum(squares) ** 0.5
        values.append({"paper": norm, "squared": norm**2, "code": norm**2 / len(squares)}[form])
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("code", 0.00779825542), ("paper", 0.702791572), ("squared", 0.499088407)],
)
def test_reference_values(golden_cls: Golden, form: str, expected: float):
    value = attention_transfer(golden_cls["fs"], golden_cls["ft"], form=form)  # type: ignore
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_code_times_the_size_of_the_map_is_squared(golden_cls: Golden):
    fs, ft = golden_cls["fs"], golden_cls["ft"]
    code, squared = (attention_transfer(fs, ft, form=f) for f in ("code", "squared"))
    torch.testing.assert_close(64 * code, squared)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    p=st.sampled_from([1, 1.5, 2, 3, 4]),
    reduce=st.sampled_from(["sum", "max"]),
    form=st.sampled_from(["paper", "squared", "code"]),
    seed=st.integers(0, 999),
)
def test_the_definition_number_by_number(rows, channels, size, p, reduce, form, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(rows, c, *size, generator=generator, dtype=torch.float64) for c in channels
    )
    value = attention_transfer(student, teacher, p=p, reduce=reduce, form=form)
    expected = by_hand(student, teacher, p, reduce, form)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("p", [1, 1.5, 2, 4])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("form", ["paper", "squared", "code"])
def test_gradients_of_all_options(p: float, reduce: str, form: str):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, c, 3, 2, generator=generator, dtype=torch.float64) for c in (3, 5)
    )
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: attention_transfer(s, teacher, p=p, reduce=reduce, form=form),  # type: ignore
        student,
    )


def test_second_derivatives_exist_without_the_reference_backend():
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda s: attention_transfer(s, teacher), student)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_invariances(golden_cls: Golden, p: int):
    fs, ft = golden_cls["fs"].double(), golden_cls["ft"].double()
    value = attention_transfer(fs, ft, p=p)
    sizes = torch.tensor([1e-3, 7.0, -2.0, 1e5]).double().view(4, 1, 1, 1)
    same = [
        attention_transfer(sizes * fs, 0.1 * ft, p=p),  # the size of any sample
        attention_transfer(fs[:, torch.randperm(6)], ft, p=p),  # the order of the channels
        attention_transfer(fs.repeat(1, 3, 1, 1), ft, p=p),  # how many times each one is there
        attention_transfer(fs.flip(-1), ft.flip(-1), p=p),  # where the places are
        attention_transfer(ft, fs, p=p),  # who is the student
    ]
    for other in same:
        torch.testing.assert_close(other, value, rtol=1e-9, atol=0)


def test_a_larger_exponent_looks_at_the_strongest_place_only():
    student, teacher = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    student[..., 0], teacher[..., 1] = 2.0, 2.0
    values = [attention_transfer(student, teacher, p=p).item() for p in (1, 2, 4, 40)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(2**0.5, abs=1e-6)


@pytest.mark.parametrize("p", [1, 2, 4, 16])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("size", [1e-12, 1e4, 1e15])
def test_sizes_that_powers_do_not_survive(p: int, reduce: str, size: float):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    expected = attention_transfer(student, teacher, p=p, reduce=reduce)  # type: ignore
    scaled = (size * student).requires_grad_()
    value = attention_transfer(scaled, size * teacher, p=p, reduce=reduce)  # type: ignore
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    assert scaled.grad is not None and torch.isfinite(scaled.grad).all()
    assert scaled.grad.abs().max() > 0


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("form", ["paper", "code"])
def test_a_map_of_zeros_is_as_far_as_the_unit_vector_is_long(p: int, form: str):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention_transfer(student, torch.ones(2, 3, 4, 4), p=p, form=form)  # type: ignore
    value.backward()
    assert value.item() == pytest.approx(1.0 if form == "paper" else 1 / 16)
    assert student.grad is not None and student.grad.abs().max() == 0


def test_only_the_map_itself_is_held_until_backward():
    """By reference: the student's own graph has it anyway."""
    student, teacher = torch.randn(4, 32, 8, 8, requires_grad=True), torch.randn(4, 32, 8, 8)
    held: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        attention_transfer(student, teacher)
    assert teacher.data_ptr() not in held
    assert held.pop(student.data_ptr()) == 4 * student.numel()
    assert sum(held.values()) < 4 * student.numel() / 2  # vectors over the positions


@pytest.mark.parametrize("shape", [(1, 700, 32, 32), (3, 3, 300, 300), (300, 4, 8, 8), (2, 5, 9)])
def test_large_maps_are_worked_on_in_parts(shape: tuple[int, ...]):
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    value = attention_transfer(student, teacher)
    (grad,) = torch.autograd.grad(value, student)
    with backend("reference"):
        expected = attention_transfer(student, teacher)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_channels_last():
    student, teacher = torch.randn(3, 8, 5, 7), torch.randn(3, 4, 5, 7)
    moved = student.to(memory_format=torch.channels_last).requires_grad_()
    value = attention_transfer(moved, teacher)
    value.backward()
    torch.testing.assert_close(value.detach(), attention_transfer(student, teacher))
    assert moved.grad is not None and moved.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.5}, "p must be a finite number >= 1"),
        ({"p": float("inf")}, "p must be a finite number >= 1"),
        ({"reduce": "mean"}, "reduce must be one of 'sum', 'max'"),
        ({"form": "papers"}, "Did you mean 'paper'"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        attention_transfer(torch.ones(1, 2, 2), torch.ones(1, 2, 2), **options)  # type: ignore
    with pytest.raises(ConfigError, match=message):
        AttentionTransfer(**options)  # type: ignore


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3), (2, 3), "needs maps"),
        ((2, 3, 4, 4), (2, 3, 2, 2), "agree in all but the channels"),
        ((2, 3, 4, 4), (1, 3, 4, 4), "agree in all but the channels"),
        ((2, 0, 4, 4), (2, 3, 4, 4), "needs channels and positions"),
        ((2, 3, 0, 4), (2, 3, 0, 4), "needs channels and positions"),
    ],
)
def test_shapes_are_checked(student: tuple[int, ...], teacher: tuple[int, ...], message: str):
    with pytest.raises(ShapeError, match=message) as caught:
        attention_transfer(torch.ones(student), torch.ones(teacher))
    assert str(student) in str(caught.value) and str(teacher) in str(caught.value)


def test_the_module_names_its_options():
    assert repr(AttentionTransfer(p=4)) == "AttentionTransfer(p=4, reduce='sum', form='paper')"
