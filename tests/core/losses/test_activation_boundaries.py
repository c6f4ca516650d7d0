from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import (
    ActivationBoundaries,
    activation_boundaries,
    backend,
    boundary_disagreement,
)

Golden = dict[str, Tensor]


def by_hand(student: Tensor, teacher: Tensor, margin: float) -> float:
    """The definition, one neuron after the other, averaged over what is left of the shape."""
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t <= 0 and s > -margin:
            total += (s + margin) ** 2
        elif t > 0 and s <= margin:
            total += (s - margin) ** 2
    return total / (student.numel() / student.shape[1])


def test_reference_values(golden_cls: Golden):
    fs, ft = golden_cls["fs"], golden_cls["ft"]
    value = activation_boundaries(fs, ft).item()
    assert value * 64 * 3 / 1000 == pytest.approx(2.18721008, rel=1e-6)  # sum / B * 3 / 1000
    assert value / 6 == pytest.approx(1.89862001, rel=1e-6)  # mean over all neurons
    assert boundary_disagreement(fs, ft).item() == pytest.approx(0.4759114682674408, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)),
    axes=st.integers(2, 4),
    margin=st.sampled_from([0.1, 1.0, 2.5]),
    seed=st.integers(0, 999),
)
def test_the_definition_neuron_by_neuron(shape, axes, margin, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(shape[:axes], generator=generator, dtype=torch.float64) for _ in range(2)
    )
    value = activation_boundaries(student, teacher, margin=margin)
    assert value.item() == pytest.approx(by_hand(student, teacher, margin), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "value", "slope"),
    [
        (1.0, 2.0, 0.0, 0.0),  # on, by the margin
        (0.5, 2.0, 0.25, -1.0),
        (-1.0, 2.0, 4.0, -4.0),
        (-1.0, -2.0, 0.0, 0.0),  # off, by the margin
        (-0.5, -2.0, 0.25, 1.0),
        (1.0, -2.0, 4.0, 4.0),
        (0.0, 0.0, 1.0, 2.0),  # a teacher at zero, as behind a ReLU, is off
        (0.0, -0.0, 1.0, 2.0),
        (0.0, 1e-30, 1.0, -2.0),
    ],
)
def test_where_the_boundaries_lie(student: float, teacher: float, value: float, slope: float):
    for name in ("eager", "reference"):
        s = torch.tensor([[student]], requires_grad=True)
        with backend(name):
            loss = activation_boundaries(s, torch.tensor([[teacher]]))
        loss.backward()
        assert loss.item() == value
        assert s.grad is not None and s.grad.item() == slope


def test_only_the_signs_of_the_teacher_enter(golden_cls: Golden):
    fs, ft = golden_cls["fs"], golden_cls["ft"]
    value = activation_boundaries(fs, ft)
    for teacher in (ft.relu(), 100 * ft, ft > 0, ft.sign().bfloat16()):
        assert torch.equal(activation_boundaries(fs, teacher), value)
    for teacher in (ft.relu(), ft > 0):
        assert torch.equal(boundary_disagreement(fs, teacher), boundary_disagreement(fs, ft))


def test_a_bool_teacher_in_both_backends(golden_cls: Golden):
    student, teacher = golden_cls["fs"].double(), golden_cls["ft"] > 0
    value = activation_boundaries(student, teacher)
    with backend("reference"):
        torch.testing.assert_close(activation_boundaries(student, teacher), value)


def test_grows_with_the_margin(golden_cls: Golden):
    fs, ft = golden_cls["fs"], golden_cls["ft"]
    values = [activation_boundaries(fs, ft, margin=m).item() for m in (0.1, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


def test_stands_in_for_the_disagreement(golden_cls: Golden):
    """Following the gradient, the patterns come to agree, and the loss vanishes."""
    student, teacher = golden_cls["fs"].clone().requires_grad_(), golden_cls["ft"]
    for _ in range(60):
        (grad,) = torch.autograd.grad(activation_boundaries(student, teacher), student)
        student = (student - 20 * grad).detach().requires_grad_()
    assert boundary_disagreement(student, teacher) == 0
    assert activation_boundaries(student, teacher).item() < 1e-4


def test_behind_a_relu_a_wrong_neuron_gets_no_gradient():
    """What the docstring warns of."""
    before = torch.tensor([[-0.5]], requires_grad=True)
    activation_boundaries(before.relu(), torch.tensor([[-1.0]])).backward()
    assert before.grad is not None and before.grad.item() == 0
    activation_boundaries(before, torch.tensor([[-1.0]])).backward()
    assert before.grad.item() == 1.0


def test_the_student_may_go_and_the_teacher_may_come_from_inference_mode():
    student = torch.randn(4, 3, 8, 8, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(4, 3, 8, 8)
    held: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    adapted = 2 * student
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = activation_boundaries(adapted, teacher)
    assert all(tensor.numel() < student.numel() for tensor in held)
    loss.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_backward_twice():
    student = torch.randn(2, 3, 4, requires_grad=True)
    loss = activation_boundaries(student, torch.randn(2, 3, 4))
    first, second = (torch.autograd.grad(loss, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(DistillError, match="second derivatives"):
        torch.autograd.grad(loss, student, create_graph=True)


@pytest.mark.parametrize("shape", [(1, 700, 32, 32), (3, 3, 300, 300), (300, 4, 33), (5000, 70)])
def test_large_maps_are_worked_on_in_parts(shape: tuple[int, ...]):
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    weight = torch.rand(shape[:1] + shape[2:])
    value = activation_boundaries(student, teacher, weight=weight)
    (grad,) = torch.autograd.grad(value, student)
    with backend("reference"):
        expected = activation_boundaries(student, teacher, weight=weight)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_the_margin_is_checked(margin: float):
    with pytest.raises(ConfigError, match="margin must be a finite number > 0"):
        activation_boundaries(torch.ones(1, 1), torch.ones(1, 1), margin=margin)
    with pytest.raises(ConfigError, match="margin must be a finite number > 0"):
        ActivationBoundaries(margin=margin)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\).*\(2, 5, 4, 4\).*1x1 convolution"):
        activation_boundaries(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))
    with pytest.raises(ShapeError, match=r"got shape \(3,\)"):
        activation_boundaries(torch.ones(3), torch.ones(3))
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 2\)"):
        boundary_disagreement(torch.ones(2, 3), torch.ones(3, 2))


def test_the_disagreement_is_a_share():
    student = torch.randn(3, 5, requires_grad=True)
    assert boundary_disagreement(student, student).item() == 0.0
    assert boundary_disagreement(student, -student).item() == 1.0
    assert boundary_disagreement(student.half(), student > 0).dtype == torch.float32
    assert not boundary_disagreement(student, student).requires_grad
    assert boundary_disagreement(torch.empty(0, 4), torch.empty(0, 4)).item() == 0.0


def test_the_module_names_its_options():
    assert repr(ActivationBoundaries(margin=0.5)) == "ActivationBoundaries(margin=0.5)"
