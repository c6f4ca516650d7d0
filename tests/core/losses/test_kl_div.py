from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import KLDivergence, backend, kl_div


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    log_sum = top + math.log(math.fsum(math.exp(z - top) for z in row))
    return [z - log_sum for z in row]


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def slow_kl(student: Tensor, teacher: Tensor, temperature: float, activation: str) -> float:
    """The definition, one number at a time; rows are (N, K)."""
    rows = []
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = [z / temperature for z in s_row], [z / temperature for z in t_row]
        if activation == "softmax":
            pairs = list(zip(log_softmax(s), log_softmax(t), strict=True))
        else:
            pairs = [(log_sigmoid(x * a), log_sigmoid(x * b)) for a, b in zip(s, t, strict=True)
                     for x in (1, -1)]  # fmt: skip
        rows.append(math.fsum(math.exp(lt) * (lt - ls) for ls, lt in pairs))
    return temperature**2 * math.fsum(rows) / len(rows)


def test_golden(golden_logits: tuple[Tensor, Tensor]):
    value = kl_div(*golden_logits, temperature=4.0).item()
    assert value == pytest.approx(8.00192642, rel=1e-6)
    # Ten times less is what dividing by the number of classes as well would give.
    assert value != pytest.approx(0.80019, rel=0.1)


def test_golden_without_temperature(golden_logits: tuple[Tensor, Tensor]):
    assert kl_div(*golden_logits).item() == pytest.approx(4.72599459, rel=1e-6)
    assert kl_div(*reversed(golden_logits)).item() != pytest.approx(4.72599459, rel=0.1)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_equals_the_definition(
    golden_logits: tuple[Tensor, Tensor], temperature: float, activation
):
    student, teacher = (tensor.double() for tensor in golden_logits)
    value = kl_div(student, teacher, temperature=temperature, activation=activation).item()
    assert value == pytest.approx(slow_kl(student, teacher, temperature, activation), rel=1e-10)


@settings(deadline=None)
@given(
    batch=st.integers(0, 3),
    classes=st.integers(1, 6),
    height=st.integers(0, 3),
    activation=st.sampled_from(["softmax", "sigmoid"]),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes(batch: int, classes: int, height: int, activation, seed: int):
    """Every layout of the same rows gives the same number, empty maps and B=1 included."""
    classes += activation == "softmax"
    generator = torch.Generator().manual_seed(seed)
    size = (batch, classes, height, 2)
    maps = [4 * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    rows = [tensor.movedim(1, -1).reshape(-1, classes) for tensor in maps]
    value = kl_div(*maps, activation=activation)
    torch.testing.assert_close(
        value, kl_div(*(t.movedim(1, -1) for t in maps), dim=-1, activation=activation)
    )
    if batch * height:
        expected = slow_kl(rows[0], rows[1], 1.0, activation)
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert value.item() == 0.0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradcheck(golden_logits: tuple[Tensor, Tensor], temperature: float, activation):
    student, teacher = (tensor[:3].double() for tensor in golden_logits)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: kl_div(s, teacher, temperature=temperature, activation=activation),
        (student,),
        eps=1e-6,
        atol=1e-7,
        rtol=1e-6,
    )


def test_softmax_ignores_a_shift_of_either_side(golden_logits: tuple[Tensor, Tensor]):
    student, teacher = (tensor.double() for tensor in golden_logits)
    shift = torch.linspace(-50, 50, 8, dtype=torch.float64)[:, None]
    expected = kl_div(student, teacher, temperature=4.0)
    torch.testing.assert_close(kl_div(student + shift, teacher, temperature=4.0), expected)
    torch.testing.assert_close(kl_div(student, teacher - shift, temperature=4.0), expected)


def test_gradient_tends_to_the_difference_of_logits(golden_logits: tuple[Tensor, Tensor]):
    """Section 2.1 of the paper: high temperatures match centred logits."""
    student, teacher = (t.double() - t.double().mean(1, keepdim=True) for t in golden_logits)
    student.requires_grad_()
    errors = []
    for temperature in (1e3, 1e5):
        value = kl_div(student, teacher, temperature=temperature)
        (grad,) = torch.autograd.grad(value * len(student), student)
        expected = (student - teacher).detach() / student.shape[1]
        errors.append(((grad - expected).norm() / expected.norm()).item())
    assert errors[0] < 2e-3
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_zero_at_equality_and_never_below(golden_logits: tuple[Tensor, Tensor], activation):
    student, teacher = golden_logits
    assert kl_div(student, student, temperature=7.0, activation=activation).item() == 0.0
    near = kl_div(student.double(), student.double() + 1e-6 * teacher, activation=activation)
    assert near >= -1e-15


def test_one_sigmoid_class_is_a_softmax_over_two():
    student, teacher = torch.randn(2, 9, 1, dtype=torch.float64)
    pair = [torch.cat([z, torch.zeros_like(z)], 1) for z in (student, teacher)]
    torch.testing.assert_close(
        kl_div(student, teacher, activation="sigmoid", temperature=2.0),
        kl_div(*pair, temperature=2.0),
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_opposite_certainties_give_their_difference(activation):
    """At +-1e4 the loss is linear, neither infinite nor cut off."""
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    teacher = -student.detach()
    value = kl_div(student, teacher, activation=activation)
    value.backward()
    assert value.item() == 2e4
    assert student.grad is not None and student.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("sign", [1, -1])
def test_small_sigmoid_divergences_keep_their_digits(sign: int):
    """Most anchors of a detector are confidently background; 80 classes of them add up."""
    student, teacher = torch.tensor([[-13.0]]), torch.tensor([[-12.0]])
    value = kl_div(sign * student, sign * teacher, activation="sigmoid").item()
    assert value == pytest.approx(slow_kl(student, teacher, 1.0, "sigmoid"), rel=1e-4)


def test_keeps_one_tensor_of_the_size_of_the_logits():
    student = torch.randn(64, 50, requires_grad=True)
    teacher = torch.randn(64, 50)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kl_div(student, teacher, temperature=4.0)
    assert sum(held.values()) <= student.numel() + student.shape[0]


def test_second_derivatives_are_refused():
    """Also next to a term that has them: a missing part would not be noticed."""
    student = torch.randn(2, 3, requires_grad=True)
    value = kl_div(student, torch.randn(2, 3)) + student.square().sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


def test_the_reference_backend_has_second_derivatives():
    student = torch.randn(2, 3, requires_grad=True)
    with backend("reference"):
        value = kl_div(student, torch.randn(2, 3))
    (grad,) = torch.autograd.grad(value, student, create_graph=True)
    assert grad.requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_consumed_teacher_becomes_the_gradient(layout: str, activation):
    student, teacher = torch.randn(2, 3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    if layout == "channels last":
        student, teacher = (z.to(memory_format=torch.channels_last) for z in (student, teacher))
    student.requires_grad_()
    expected = kl_div(student, teacher, temperature=2.0, activation=activation)
    (expected_grad,) = torch.autograd.grad(expected, student)
    place = teacher.data_ptr()
    value = kl_div(student, teacher, temperature=2.0, activation=activation, consume_teacher=True)
    value.backward()
    assert torch.equal(value, expected)
    assert student.grad is not None and torch.equal(student.grad, expected_grad)
    assert student.grad.data_ptr() == place


def inference_teacher(teacher: Tensor) -> Tensor:
    with torch.inference_mode():
        return teacher.clone()


@pytest.mark.parametrize(
    "make",
    [
        inference_teacher,
        lambda teacher: teacher.clone().requires_grad_(),
        lambda teacher: teacher.t().contiguous().t(),
        lambda teacher: teacher[:1].expand(6, 5),
    ],
    ids=["inference", "requires grad", "other layout", "expanded"],
)
def test_a_teacher_that_cannot_be_consumed_stays_as_it_is(make):
    student = torch.randn(6, 5, requires_grad=True)
    teacher = make(torch.randn(6, 5))
    before = teacher.detach().clone()
    value = kl_div(student, teacher, consume_teacher=True)
    value.backward()
    assert torch.equal(teacher, before)
    torch.testing.assert_close(value, kl_div(student, before))


def test_without_a_gradient_nothing_is_consumed():
    student, teacher = torch.randn(2, 6, 5)
    before = teacher.clone()
    kl_div(student, teacher, consume_teacher=True)
    assert torch.equal(teacher, before)


def test_the_module_leaves_the_teacher_to_other_pairs():
    student, teacher = torch.randn(2, 6, 5)
    before = teacher.clone()
    KLDivergence()(student.requires_grad_(), teacher).backward()
    assert torch.equal(teacher, before)


def test_does_not_save_the_teacher():
    """An inference tensor may not be saved, and its memory is better let go."""
    student = torch.randn(6, 5, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(6, 5)
    kl_div(student, teacher).backward()
    assert student.grad is not None


def test_backward_can_be_repeated_where_the_graph_is_kept():
    student = torch.randn(6, 5, requires_grad=True)
    value = kl_div(student, torch.randn(6, 5))
    (first,) = torch.autograd.grad(value, student, torch.tensor(2.0), retain_graph=True)
    (second,) = torch.autograd.grad(value, student, torch.tensor(3.0), retain_graph=True)
    (last,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(first / 2, last)
    torch.testing.assert_close(second / 3, last)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(temperature: float):
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        kl_div(logits, logits, temperature=temperature)
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        KLDivergence(temperature=temperature)


def test_bad_activation():
    with pytest.raises(ConfigError, match="Did you mean 'sigmoid'"):
        KLDivergence(activation="sigmod")  # type: ignore
    with pytest.raises(ConfigError, match="activation must be one of"):
        kl_div(torch.zeros(2, 3), torch.zeros(2, 3), activation="relu")  # type: ignore


def test_a_single_softmax_class_is_refused():
    with pytest.raises(ShapeError, match="softmax needs at least 2"):
        kl_div(torch.zeros(2, 1), torch.zeros(2, 1))
