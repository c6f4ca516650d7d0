"""The contract every public loss keeps, run over `losses.__all__`.

A new loss is covered by one line in SAMPLES.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Sample:
    """How to call a loss: everything but the number of rows, which is always axis 0."""

    module: type[nn.Module]
    shape: tuple[int, ...]  # of student and teacher, without the rows
    positions: tuple[int, ...] = ()  # of the weight, without the rows
    zero_at_equality: bool = True
    target: bool = False  # takes a third tensor of the same shape
    scale: float = 1.0
    options: dict[str, object] = field(default_factory=dict)

    def tensors(
        self, rows: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> list[Tensor]:
        """Student, teacher and, if wanted, the target; the student asks for a gradient."""
        generator = torch.Generator().manual_seed(seed)
        size = (rows, *self.shape)
        made = [
            (self.scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
            for _ in range(3 if self.target else 2)
        ]
        made[0].requires_grad_()
        return made

    def weight(self, rows: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.rand((rows, *self.positions), generator=generator, dtype=dtype)


SAMPLES: dict[str, Sample] = {
    "bounded_regression": Sample(
        losses.BoundedRegression, (4,), zero_at_equality=False, target=True
    ),
    "feature_imitation": Sample(losses.FeatureImitation, (3, 4, 2), (4, 2)),
    "hint": Sample(losses.Hint, (5, 3), (5,)),
    "kl_div": Sample(losses.KLDivergence, (7,), scale=3.0, options={"temperature": 4.0}),
    "localization_distillation": Sample(losses.LocalizationDistillation, (4 * 5,)),
    "weighted_soft_cross_entropy": Sample(
        losses.WeightedSoftCrossEntropy, (4, 2, 3), (2, 3), zero_at_equality=False
    ),
}

FUNCTIONS = sorted(name for name in losses.__all__ if name.islower())
MODULES = sorted(name for name in losses.__all__ if not name.islower())

every_loss = pytest.mark.parametrize("name", FUNCTIONS)


def call(name: str, *tensors: Tensor, weight: Tensor | None = None, total=None) -> Tensor:
    """Call the function, whose word for the weight may be `mask`."""
    function = getattr(losses, name)
    given_options = dict(SAMPLES[name].options)
    word = "mask" if "mask" in inspect.signature(function).parameters else "weight"
    return function(*tensors, total=total, **{word: weight}, **given_options)


def reference(name: str, rows: int = 6) -> Tensor:
    return call(name, *SAMPLES[name].tensors(rows)).detach()


def test_every_public_loss_has_a_sample_and_a_module():
    assert set(SAMPLES) == set(FUNCTIONS), "add one line to SAMPLES for a new loss"
    assert sorted(sample.module.__name__ for sample in SAMPLES.values()) == MODULES
    assert list(losses.__all__) == sorted(losses.__all__)


@every_loss
def test_signature(name: str):
    parameters = list(inspect.signature(getattr(losses, name)).parameters.values())
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == ["student", "teacher"] + ["target"] * SAMPLES[name].target
    forward = list(inspect.signature(SAMPLES[name].module.forward).parameters)
    assert forward == ["self", *positional, "weight", "total"]


@every_loss
def test_documented(name: str):
    text = inspect.getdoc(getattr(losses, name)) or ""
    for section in ("Args:", "Returns:", "Raises:", "Reference:", "Example:", ">>> "):
        assert section in text, f"{name} has no {section}"


@every_loss
def test_module_equals_function_and_keeps_no_state(name: str):
    sample = SAMPLES[name]
    module = sample.module(**sample.options)
    tensors, weight, total = sample.tensors(), sample.weight(), 3.5
    assert torch.equal(
        module(*tensors, weight=weight, total=total),
        call(name, *tensors, weight=weight, total=total),
    )
    assert not module.state_dict() and not list(module.parameters())


@every_loss
def test_gradient_is_exact(name: str):
    sample = SAMPLES[name]
    student, *others = sample.tensors(rows=3)
    weight = sample.weight(rows=3)

    def loss(student: Tensor) -> Tensor:
        return call(name, student, *others, weight=weight, total=1.7)

    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-7, rtol=1e-6)


@every_loss
def test_only_the_student_gets_a_gradient(name: str):
    sample = SAMPLES[name]
    tensors = [tensor.detach().requires_grad_() for tensor in sample.tensors()]
    weight = sample.weight().requires_grad_()
    total = torch.tensor(2.0, requires_grad=True)
    call(name, *tensors, weight=weight, total=total).backward()
    student, *others = tensors
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert all(other.grad is None for other in (*others, weight, total))


@every_loss
def test_works_without_any_gradient(name: str):
    tensors = SAMPLES[name].tensors()
    with torch.no_grad():
        value = call(name, *tensors)
    assert not value.requires_grad and torch.equal(value, reference(name))


@every_loss
def test_inputs_stay_as_they_were(name: str):
    tensors = SAMPLES[name].tensors(dtype=torch.float32)
    before = [tensor.detach().clone() for tensor in tensors]
    call(name, *tensors).backward()
    assert all(torch.equal(a.detach(), b) for a, b in zip(tensors, before, strict=True))


@every_loss
def test_zero_at_equality(name: str):
    student = SAMPLES[name].tensors()[0]
    if SAMPLES[name].zero_at_equality:
        value = call(name, student, student.detach())
        value.backward()
        assert value.item() == 0.0
        assert student.grad is not None and student.grad.abs().max() == 0.0
    else:
        assert reference(name) > 0


@every_loss
def test_shapes_can_be_found_without_data(name: str):
    tensors = [tensor.detach().to("meta") for tensor in SAMPLES[name].tensors()]
    assert call(name, *tensors).shape == ()


@every_loss
@pytest.mark.parametrize("times", [2, 5])
def test_value_does_not_depend_on_the_number_of_rows(name: str, times: int):
    tensors = [torch.cat([tensor.detach()] * times) for tensor in SAMPLES[name].tensors()]
    torch.testing.assert_close(call(name, *tensors), reference(name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if SAMPLES[name].positions])
def test_value_does_not_depend_on_the_map(name: str):
    sample = SAMPLES[name]
    axes = [1 + axis for axis in _position_axes(sample)]
    repeats = [2 if axis in axes else 1 for axis in range(1 + len(sample.shape))]
    tensors = [tensor.detach().repeat(repeats) for tensor in sample.tensors()]
    torch.testing.assert_close(call(name, *tensors), reference(name), rtol=1e-12, atol=0)


def _position_axes(sample: Sample) -> range:
    """Maps have the channels first, tokens last."""
    extra = len(sample.positions)
    start = len(sample.shape) - extra if len(sample.shape) > 2 else 0
    return range(start, start + extra)


@every_loss
def test_weights_select_and_scale(name: str):
    sample = SAMPLES[name]
    tensors = sample.tensors()
    ones = torch.ones_like(sample.weight())
    torch.testing.assert_close(call(name, *tensors, weight=ones), reference(name))
    first = ones.clone()
    first[2:] = 0
    torch.testing.assert_close(
        call(name, *tensors, weight=first.bool()), call(name, *(t[:2] for t in tensors))
    )
    weight = sample.weight()
    torch.testing.assert_close(
        call(name, *tensors, weight=weight), call(name, *tensors, weight=7 * weight)
    )


@every_loss
@pytest.mark.parametrize("as_tensor", [False, True])
def test_total_replaces_the_normaliser(name: str, as_tensor: bool):
    sample = SAMPLES[name]
    tensors, weight = sample.tensors(), sample.weight()
    total = torch.tensor(12.5) if as_tensor else 12.5
    torch.testing.assert_close(
        call(name, *tensors, weight=weight, total=total) * 12.5,
        call(name, *tensors, weight=weight) * weight.sum(),
    )
    torch.testing.assert_close(
        call(name, *tensors, total=total) * 12.5, reference(name) * weight.numel()
    )


@every_loss
@pytest.mark.parametrize("case", ["no rows", "zero weights", "zero total", "zero tensor total"])
def test_nothing_to_compare_is_zero_with_a_graph(name: str, case: str):
    sample = SAMPLES[name]
    rows = 0 if case == "no rows" else 6
    tensors = sample.tensors(rows)
    weight = torch.zeros_like(sample.weight(rows)) if case == "zero weights" else None
    total = {"zero total": 0, "zero tensor total": torch.tensor(0.0)}.get(case)
    value = call(name, *tensors, weight=weight, total=total)
    value.backward()
    assert value.item() == 0.0
    grad = tensors[0].grad
    assert grad is not None and torch.equal(grad, torch.zeros_like(grad))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_finite_at_extreme_inputs(name: str, dtype: torch.dtype):
    sample = SAMPLES[name]
    signs = [
        (1e4 * tensor.detach().sign()).to(dtype) for tensor in sample.tensors(dtype=torch.float64)
    ]
    for student in (signs[0], -signs[1], signs[1], torch.zeros_like(signs[1])):
        student = student.clone().requires_grad_()
        value = call(name, student, *signs[1:])
        value.backward()
        assert torch.isfinite(value) and value >= 0
        assert student.grad is not None and torch.isfinite(student.grad).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(name: str, dtype: torch.dtype):
    tensors = [tensor.detach() for tensor in SAMPLES[name].tensors(dtype=dtype)]
    value = call(name, *tensors)
    assert value.dtype == torch.float32
    assert torch.equal(value, call(name, *(tensor.float() for tensor in tensors)))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype):
    student, *others = SAMPLES[name].tensors(dtype=torch.float32)
    expected = call(name, student, *others)
    (expected_grad,) = torch.autograd.grad(expected, student)
    with torch.autocast("cpu", dtype=dtype):
        value = call(name, student, *others)
    (grad,) = torch.autograd.grad(value, student)
    assert torch.equal(value, expected) and torch.equal(grad, expected_grad)


@every_loss
def test_mixed_precision_pairs(name: str):
    student, teacher, *others = SAMPLES[name].tensors(dtype=torch.float32)
    value = call(name, student, teacher.bfloat16(), *others)
    assert value.dtype == torch.float32
    assert torch.equal(value, call(name, student, teacher.bfloat16().float(), *others))


@every_loss
def test_wrong_shapes_are_named(name: str):
    student, teacher, *others = SAMPLES[name].tensors()
    smaller = teacher[:1]  # would broadcast without a word
    with pytest.raises(ShapeError) as caught:
        call(name, student, smaller, *others)
    assert str(tuple(student.shape)) in str(caught.value)
    assert str(tuple(smaller.shape)) in str(caught.value)


@every_loss
def test_wrong_weight_and_total_are_named(name: str):
    sample = SAMPLES[name]
    tensors = sample.tensors()
    with pytest.raises(ShapeError, match="weight must hold one number a position"):
        call(name, *tensors, weight=sample.weight()[:1])
    with pytest.raises(ShapeError, match="total must be one number"):
        call(name, *tensors, total=torch.ones(2))
    for total in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="total must be a finite number"):
            call(name, *tensors, total=total)


@every_loss
@pytest.mark.parametrize("layout", ["strided", "expanded"])
def test_memory_layout_does_not_matter(name: str, layout: str):
    def arrange(tensor: Tensor) -> Tensor:
        if layout == "expanded":
            return tensor[:1].detach().expand(tensor.shape)
        return tensor.detach().mT.contiguous().mT

    tensors = [arrange(tensor).requires_grad_() for tensor in SAMPLES[name].tensors()]
    plain = [tensor.detach().contiguous().requires_grad_() for tensor in tensors]
    value, expected = call(name, *tensors), call(name, *plain)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, tensors[0])
    (expected_grad,) = torch.autograd.grad(expected, plain[0])
    torch.testing.assert_close(grad, expected_grad)


@every_loss
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 9), seed=st.integers(0, 10**6), spread=st.sampled_from([0.01, 1, 300]))
def test_average_over_rows(name: str, rows: int, seed: int, spread: float):
    """Any number of rows, 0 and 1 included: the loss is the mean of the losses of its rows."""
    tensors = [spread * tensor.detach() for tensor in SAMPLES[name].tensors(rows, seed=seed)]
    value = call(name, *tensors)
    single = [call(name, *(t[row : row + 1] for t in tensors)) for row in range(rows)]
    expected = torch.stack(single).mean() if single else torch.zeros(())
    torch.testing.assert_close(value, expected.double(), rtol=1e-9, atol=1e-9)


@every_loss
def test_compiles_in_one_graph(name: str):
    student, *others = SAMPLES[name].tensors()
    function: Callable[..., Tensor] = getattr(losses, name)
    options = SAMPLES[name].options
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    value, expected = compiled(student, *others, **options), function(student, *others, **options)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(grad, expected_grad)


@every_loss
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_without_waiting_for_it(name: str):
    sample = SAMPLES[name]
    student, *others = (tensor.detach().cuda() for tensor in sample.tensors())
    student.requires_grad_()
    weight = sample.weight().cuda()
    call(name, student, *others, weight=weight, total=weight.sum()).backward()  # warm up
    student.grad = None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = call(name, student, *others, weight=weight, total=weight.sum())
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = sample.tensors()
    expected = call(name, *on_cpu, weight=sample.weight())
    (expected_grad,) = torch.autograd.grad(expected, on_cpu[0])
    torch.testing.assert_close(value.cpu(), expected)
    assert student.grad is not None
    torch.testing.assert_close(student.grad.cpu(), expected_grad)
