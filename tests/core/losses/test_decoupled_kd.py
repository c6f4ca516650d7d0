from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import DecoupledKD, decoupled_kd, kl_div


def slow_dkd(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> float:
    """The definition, one number at a time; rows are (N, K)."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp((z - max(row)) / temperature) for z in row]
        return [power / math.fsum(powers) for power in powers]

    def kl(p: list[float], q: list[float]) -> float:
        return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    total = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        p_s, p_t = softmax(s), softmax(t)
        yes_no = [[p[y], math.fsum(p[:y] + p[y + 1 :])] for p in (p_t, p_s)]
        others = [softmax(z[:y] + z[y + 1 :]) for z in (t, s)]
        total.append(alpha * kl(*yes_no) + beta * kl(*others))
    return temperature**2 * math.fsum(total) / len(total)


def common_code(student, teacher, target, alpha, beta, temperature) -> Tensor:
    """As the official code computes it: masks, logarithms of probabilities, 1000 off the target."""
    hit = F.one_hot(target, student.shape[1]).to(student)

    def yes_no(z: Tensor) -> Tensor:
        p = F.softmax(z / temperature, 1)
        return torch.stack([(p * hit).sum(1), (p * (1 - hit)).sum(1)], 1)

    tckd = F.kl_div(yes_no(student).log(), yes_no(teacher), reduction="sum")
    nckd = F.kl_div(
        F.log_softmax(student / temperature - 1000 * hit, 1),
        F.softmax(teacher / temperature - 1000 * hit, 1),
        reduction="sum",
    )
    return (alpha * tckd + beta * nckd) * temperature**2 / len(target)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
        {"alpha": 1.0, "beta": 0.5, "temperature": 1.0},
        {"alpha": 0.0, "beta": 2.0, "temperature": 0.7},
        {"alpha": 3.0, "beta": 0.0, "temperature": 20.0},
    ],
)
def test_equals_the_definition_and_the_common_code(golden_cls: dict[str, Tensor], options):
    student, teacher = golden_cls["ls"].double().requires_grad_(), golden_cls["lt"].double()
    value = decoupled_kd(student, teacher, golden_cls["y"], **options)
    assert value.item() == pytest.approx(
        slow_dkd(student, teacher, golden_cls["y"], **options), rel=1e-11
    )
    expected = common_code(student, teacher, golden_cls["y"], **options)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    (grad,) = torch.autograd.grad(value, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)


def test_defaults_on_the_golden_logits(golden_cls: dict[str, Tensor]):
    """Golden here means: the common code's value of these logits in float32."""
    tensors = golden_cls["ls"], golden_cls["lt"], golden_cls["y"]
    value = decoupled_kd(*tensors).item()
    assert value == pytest.approx(60.946045, rel=1e-6)
    assert value == pytest.approx(common_code(*tensors, 1.0, 8.0, 4.0).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_parts_make_up_the_divergence(golden_cls: dict[str, Tensor], temperature: float):
    """KL = TCKD + (1 - p_t[y]) NCKD, sample by sample."""
    student, teacher = golden_cls["ls"].double().requires_grad_(), golden_cls["lt"].double()
    target, common = golden_cls["y"], {"temperature": temperature}
    p_y = (teacher / temperature).softmax(1).gather(1, target[:, None]).squeeze(1)
    whole = decoupled_kd(student, teacher, target, alpha=1, beta=0, **common) + decoupled_kd(
        student, teacher, target, alpha=0, beta=1, weight=1 - p_y, total=8, **common
    )
    expected = kl_div(student, teacher, **common)
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(whole, student), torch.autograd.grad(expected, student)
    )


def test_what_each_part_looks_at(golden_cls: dict[str, Tensor]):
    student, teacher, target = golden_cls["ls"].double(), golden_cls["lt"].double(), golden_cls["y"]
    changed = student.scatter_add(1, target[:, None], torch.linspace(-3, 9, 8).double()[:, None])
    nckd = {"alpha": 0.0, "beta": 1.0}
    torch.testing.assert_close(
        decoupled_kd(changed, teacher, target, **nckd),
        decoupled_kd(student, teacher, target, **nckd),
    )
    # Moving probability among the other classes leaves the target's alone.
    order = torch.stack(
        [torch.tensor([y, *(c for c in range(10) if c != y)]) for y in target.tolist()]
    )
    first = torch.zeros_like(target)
    aligned_s, aligned_t = student.gather(1, order), teacher.gather(1, order)
    rolled = torch.cat([aligned_s[:, :1], aligned_s[:, 1:].roll(2, 1)], 1)
    torch.testing.assert_close(
        decoupled_kd(rolled, aligned_t, first, beta=0.0),
        decoupled_kd(student, teacher, target, beta=0.0),
    )


@settings(deadline=None)
@given(
    batch=st.integers(0, 3),
    classes=st.integers(3, 6),
    height=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes(batch: int, classes: int, height: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    size = (batch, classes, height, 2)
    maps = [4 * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    target = torch.randint(0, classes, (batch, height, 2), generator=generator)
    value = decoupled_kd(*maps, target)
    last = decoupled_kd(*(t.movedim(1, -1) for t in maps), target, dim=-1)
    torch.testing.assert_close(value, last)
    rows = [tensor.movedim(1, -1).reshape(-1, classes) for tensor in maps]
    if len(rows[0]):
        expected = slow_dkd(*rows, target.reshape(-1), 1.0, 8.0, 4.0)
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert value.item() == 0.0


def test_opposite_certainties_give_their_difference():
    """Where the logarithm of a probability would be that of 0, the loss is linear."""
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    value = decoupled_kd(student, teacher, torch.tensor([0]), beta=2.0, temperature=1.0)
    value.backward()
    # Target: from log-odds 1e4 to -2e4, that is 1e4. Others: the 1 has -1e4 against the 0 of the 2.
    assert value.item() == 1e4 + 2 * 1e4
    assert student.grad is not None and student.grad.tolist() == [[1.0, -2.0, 1.0]]


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_temperature_is_finite(golden_cls: dict[str, Tensor], temperature, dtype):
    student, teacher = golden_cls["ls"].to(dtype).requires_grad_(), golden_cls["lt"].to(dtype)
    for name in ("eager", "reference"):
        with losses.backend(name):
            value = decoupled_kd(student, teacher, golden_cls["y"], temperature=temperature)
        (grad,) = torch.autograd.grad(value, student)
        assert torch.isfinite(value) and torch.isfinite(grad).all()


def test_ignored_positions_need_any_class_and_no_weight(golden_cls: dict[str, Tensor]):
    student, teacher, target = golden_cls["ls"], golden_cls["lt"], golden_cls["y"].clone()
    keep = torch.arange(8) != 3
    expected = decoupled_kd(student[keep], teacher[keep], target[keep])
    target[3] = 255
    with pytest.raises(ShapeError, match=r"must lie in \[0, 10\), got values from . to 255"):
        decoupled_kd(student, teacher, target)
    target[3] = 0
    torch.testing.assert_close(decoupled_kd(student, teacher, target, weight=keep), expected)


def test_keeps_one_tensor_of_the_size_of_the_logits():
    student = torch.randn(64, 50, requires_grad=True)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoupled_kd(student, torch.randn(64, 50), torch.zeros(64, dtype=torch.long))
    assert sum(held.values()) <= student.numel() + 3 * student.shape[0]


def test_second_derivatives_are_refused(golden_cls: dict[str, Tensor]):
    student = golden_cls["ls"].requires_grad_()
    value = decoupled_kd(student, golden_cls["lt"], golden_cls["y"])
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


def test_bad_targets():
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="class numbers"):
        decoupled_kd(logits, logits, torch.zeros(2))
    with pytest.raises(ShapeError, match=r"shape \(2,\) .* got \(2, 1\)"):
        decoupled_kd(logits, logits, torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ShapeError, match="from -1 to 0"):
        decoupled_kd(logits, logits, torch.tensor([0, -1]))
    with pytest.raises(ShapeError, match="3 or more"):
        decoupled_kd(logits[:, :2], logits[:, :2], torch.tensor([0, 1]))
    assert decoupled_kd(logits, logits, torch.tensor([0, 1], dtype=torch.uint8)).item() == 0.0


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"beta": math.nan}, {"temperature": 0.0}])
def test_bad_options(options):
    (name,) = options
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=f"{name} must be a finite number"):
        DecoupledKD(**options)
    with pytest.raises(ConfigError, match=f"{name} must be a finite number"):
        decoupled_kd(logits, logits, torch.tensor([0, 1]), **options)
