from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import (
    ProjectedImitation,
    backend,
    feature_imitation,
    projected_imitation,
)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    tensors = {"student": normal(2, 3, 4, 5), "kernel": normal(6, 3), "bias": normal(6)}
    return {k: v.requires_grad_() for k, v in tensors.items()} | {"teacher": normal(2, 6, 4, 5)}


def check(expected: Tensor, found: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_is_imitation_behind_a_convolution(inputs: dict[str, Tensor], weighted: bool, biased: bool):
    student, teacher, kernel, bias = (inputs[x] for x in ("student", "teacher", "kernel", "bias"))
    weight = torch.rand(2, 4, 5, dtype=torch.float64) if weighted else None
    used = bias if biased else None
    projected = F.conv2d(student, kernel[:, :, None, None], used)
    check(
        feature_imitation(projected, teacher, mask=weight),
        projected_imitation(student, teacher, kernel=kernel, bias=used, weight=weight),
        (student, kernel, bias) if biased else (student, kernel),
    )


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(0, 3),
    sizes=st.tuples(*[st.integers(1, 4)] * 2),
    places=st.sampled_from([(), (5,), (3, 2), (0, 2), (2, 1, 3)]),
    seed=st.integers(0, 10**6),
)
def test_every_layout(batch: int, sizes: tuple[int, int], places: tuple[int, ...], seed: int):
    g = torch.Generator().manual_seed(seed)

    def normal(channels: int) -> Tensor:
        shape = (*places, channels) if len(places) == 1 else (channels, *places)
        return torch.randn((batch, *shape), generator=g, dtype=torch.float64)

    student, teacher = normal(sizes[0]).requires_grad_(), normal(sizes[1])
    kernel = torch.randn(sizes[::-1], generator=g, dtype=torch.float64, requires_grad=True)
    axis = -1 if len(places) == 1 else 1
    projected = (student.movedim(axis, -1) @ kernel.mT).movedim(-1, axis)
    expected = (projected - teacher).square().sum() / max(1, teacher.numel())
    check(expected, projected_imitation(student, teacher, kernel=kernel), (student, kernel))


def test_blocks_of_places_change_nothing(
    inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    g = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 10, 17, generator=g, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, 10, 17, generator=g, dtype=torch.float64)
    named = {"kernel": inputs["kernel"], "bias": inputs["bias"]}
    whole = projected_imitation(student, teacher, **named)
    monkeypatch.setitem(projected_imitation.__globals__, "BLOCK", 1)  # 64 of the 170 places
    found = projected_imitation(student, teacher, **named)
    check(whole, found, (student, *named.values()))


@pytest.mark.parametrize("frozen", ["student", "kernel", "bias"])
def test_what_needs_no_gradient_gets_none(inputs: dict[str, Tensor], frozen: str):
    inputs[frozen].requires_grad_(False)
    projected_imitation(**inputs).backward()  # type: ignore[arg-type]
    for name in ("student", "kernel", "bias"):
        assert (inputs[name].grad is None) == (name == frozen)


def test_gradients_of_kernel_and_bias_are_exact(inputs: dict[str, Tensor]):
    student, teacher = inputs["student"], inputs["teacher"]
    weight = torch.rand(2, 4, 5, dtype=torch.float64)

    def loss(kernel: Tensor, bias: Tensor) -> Tensor:
        return projected_imitation(student, teacher, kernel=kernel, bias=bias, weight=weight)

    named = (inputs["kernel"], inputs["bias"])
    assert torch.autograd.gradcheck(loss, named, eps=1e-6, atol=1e-7, rtol=1e-6)
    with backend("reference"):
        assert torch.autograd.gradgradcheck(loss, named)
    with pytest.raises(DistillError, match="no second derivatives"):
        torch.autograd.grad(loss(*named), named, create_graph=True)


def test_zero_where_the_map_fits(inputs: dict[str, Tensor]):
    student, kernel, bias = (inputs[x] for x in ("student", "kernel", "bias"))
    teacher = F.conv2d(student, kernel[:, :, None, None], bias)
    value = projected_imitation(student, teacher, kernel=kernel, bias=bias)
    value.backward()
    assert value.item() < 1e-28
    assert student.grad is not None and student.grad.abs().max() < 1e-14


def test_neither_map_of_the_teacher_s_size_is_kept():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    teacher, kernel = torch.randn(2, 64, 4, 4), torch.randn(64, 3, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        projected_imitation(student, teacher, kernel=kernel)
    assert max(kept, default=0) < teacher.numel()


def test_the_module_is_the_function_with_a_convolution():
    torch.manual_seed(0)
    loss = ProjectedImitation(3, 6)
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(
        loss(student, teacher), feature_imitation(loss.project(student), teacher)
    )
    weight = torch.rand(2, 4, 4)
    expected = feature_imitation(loss.project(student), teacher, mask=weight, total=3.0)
    torch.testing.assert_close(loss(student, teacher, weight, 3.0), expected)
    assert set(loss.state_dict()) == {"project.weight", "project.bias"}
    assert set(ProjectedImitation(3, 6, bias=False).state_dict()) == {"project.weight"}
    with pytest.raises(ConfigError, match="need channels"):
        ProjectedImitation(0, 6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": torch.zeros(3, 6)}, r"\(C_t, C_s\) = \(6, 3\)"),
        ({"kernel": torch.zeros(6, 3, 3, 3)}, r"\(6, 3, 3, 3\) for student \(2, 3, 4, 5\)"),
        ({"bias": torch.zeros(3)}, r"bias must be \(C_t,\) = \(6,\), got \(3,\)"),
        ({"teacher": torch.zeros(2, 6, 8, 5)}, r"\(2, 3, 4, 5\) and teacher \(2, 6, 8, 5\)"),
        ({"teacher": torch.zeros(2, 6)}, r"\(2, 3, 4, 5\) and teacher \(2, 6\)"),
        ({"weight": torch.zeros(2, 1, 4, 5)}, "one number a position"),
        ({"student": torch.zeros(3)}, "a feature must be"),
    ],
)
def test_what_does_not_fit(inputs: dict[str, Tensor], changed: dict[str, Tensor], message: str):
    with pytest.raises(ShapeError, match=message):
        projected_imitation(**(inputs | changed))  # type: ignore[arg-type]
