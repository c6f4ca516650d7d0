from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import HiddenStateTransfer, hidden_state_transfer


def states(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def normalised(token: list[float]) -> list[float]:
    mean, variance = statistics.fmean(token), statistics.pvariance(token)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in token]


def slow(student: Tensor, teacher: Tensor, normalize: str | None, beta: float, gamma: float):
    """The definition, one number at a time, a value a token."""
    values = []
    for s, t in zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True):
        a, b = (normalised(s), normalised(t)) if normalize else (s, t)
        value = statistics.fmean((x - y) ** 2 for x, y in zip(a, b, strict=True))
        value += beta * (statistics.fmean(s) - statistics.fmean(t)) ** 2
        values.append(value + gamma * abs(statistics.pvariance(s) - statistics.pvariance(t)))
    return values


def test_golden(golden_bert: dict[str, Tensor]):
    pair = golden_bert["hs"], golden_bert["ht"]
    assert hidden_state_transfer(*pair).item() == pytest.approx(15.8774872, rel=1e-6)
    value = hidden_state_transfer(*pair, normalize="layer_norm").item()
    assert value == pytest.approx(1.89846742, rel=1e-5)


@pytest.mark.parametrize("normalize", [None, "layer_norm"])
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.0), (50.0, 0.0), (0.0, 0.05), (2.0, 3.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition(normalize, beta: float, gamma: float, masked: bool):
    student, teacher = states(2, 5, 7), states(2, 5, 7, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]) if masked else None
    value = hidden_state_transfer(
        student,
        teacher,
        normalize=normalize,
        mean_weight=beta,
        variance_weight=gamma,
        mask=mask,
    )
    values = slow(student, teacher, normalize, beta, gamma)[: 7 if masked else 10]
    assert value.item() == pytest.approx(statistics.fmean(values), rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(0, 3),
    tokens=st.integers(1, 4),
    width=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes(batch: int, tokens: int, width: int, seed: int):
    student, teacher = (states(batch, tokens, width, seed=seed + i) for i in (0, 1))
    value = hidden_state_transfer(
        student, teacher, normalize="layer_norm", mean_weight=1.0, variance_weight=1.0
    ).item()
    expected = slow(student, teacher, "layer_norm", 1.0, 1.0)
    assert value == pytest.approx(statistics.fmean(expected) if batch else 0.0, rel=1e-9)


def test_what_lies_in_the_padding_does_not_matter():
    student, teacher = states(2, 3, 4).requires_grad_(), states(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    options = {"normalize": "layer_norm", "mean_weight": 1.0, "variance_weight": 1.0, "mask": mask}
    value = hidden_state_transfer(student, teacher, **options)  # type: ignore
    moved = torch.where(mask[..., None].bool(), teacher, 1e4)
    assert torch.equal(hidden_state_transfer(student, moved, **options), value)  # type: ignore
    (grad,) = torch.autograd.grad(value, student)
    assert torch.equal(grad.abs().sum(2) > 0, mask.bool())


def test_layers_are_averaged():
    student = tuple(states(2, 3, 4, seed=seed) for seed in range(24))
    teacher = [states(2, 3, 4, seed=seed) for seed in range(24, 48)]
    single = [
        hidden_state_transfer(s, t, normalize="layer_norm").item()
        for s, t in zip(student, teacher, strict=True)
    ]
    value = hidden_state_transfer(student, teacher, normalize="layer_norm").item()
    assert value == pytest.approx(statistics.fmean(single), rel=1e-12)
    # The published code's factor, on the sum over the layers.
    assert 100 * value == pytest.approx(100 / 24 * math.fsum(single), rel=1e-12)


def test_normalised_states_forget_shift_and_size():
    student, teacher = states(2, 3, 50), states(2, 3, 50, seed=1)
    expected = hidden_state_transfer(student, teacher, normalize="layer_norm")
    changed = 10 * student + states(2, 3, 1, seed=2)
    value = hidden_state_transfer(changed, 20 * teacher - 5, normalize="layer_norm")
    torch.testing.assert_close(value, expected, rtol=2e-5, atol=0)


def test_statistics_bring_back_what_the_norm_takes_out():
    student = states(2, 3, 4)
    shifted = hidden_state_transfer(student, student + 3, mean_weight=2.0, normalize="layer_norm")
    assert shifted.item() == pytest.approx(2.0 * 3**2)
    scaled = hidden_state_transfer(student, -student, variance_weight=5.0)
    assert scaled.item() == pytest.approx(4 * student.square().mean().item())
    doubled = hidden_state_transfer(student, 2 * student, variance_weight=1.0)
    expected = student.square().mean() + 3 * student.var(2, correction=0).mean()
    torch.testing.assert_close(doubled, expected)


@pytest.mark.parametrize("normalize", [None, "layer_norm"])
@pytest.mark.parametrize("mask", [None, torch.ones(1, 3)])
def test_the_teacher_may_come_from_inference_mode(normalize, mask):
    with torch.inference_mode():
        teacher = torch.rand(1, 3, 4)
    student = torch.rand(1, 3, 4, requires_grad=True)
    hidden_state_transfer(
        student, teacher, normalize=normalize, mask=mask, mean_weight=1.0, variance_weight=1.0
    ).backward()
    assert student.grad is not None and student.grad.any()


def test_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"must be \(B, T, H\)"):
        hidden_state_transfer(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ShapeError, match=r"must be \(B, T, H\)"):
        hidden_state_transfer(torch.zeros(2, 3, 0), torch.zeros(2, 3, 0))
    with pytest.raises(ShapeError, match="adapter"):
        hidden_state_transfer(torch.zeros(2, 3, 4), torch.zeros(2, 3, 8))
    layer = torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError, match="same number of layers.* 1 and 2"):
        hidden_state_transfer(layer, (layer, layer))
    with pytest.raises(ShapeError, match="one number a position"):
        hidden_state_transfer(layer, layer, mask=torch.ones(2, 4))


@pytest.mark.parametrize("option", ["mean_weight", "variance_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_weights(option: str, value: float):
    options = {option: value}
    with pytest.raises(ConfigError, match=f"{option} must be a finite number >= 0"):
        hidden_state_transfer(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), **options)  # type: ignore
    with pytest.raises(ConfigError, match=f"{option} must be a finite number >= 0"):
        HiddenStateTransfer(**options)  # type: ignore


def test_unknown_normalisation():
    with pytest.raises(ConfigError, match="Did you mean 'layer_norm'"):
        HiddenStateTransfer(normalize="layernorm")  # type: ignore
    with pytest.raises(ConfigError, match="normalize must be one of"):
        hidden_state_transfer(
            torch.zeros(1, 1, 1),
            torch.zeros(1, 1, 1),
            normalize="batch",  # type: ignore
        )
