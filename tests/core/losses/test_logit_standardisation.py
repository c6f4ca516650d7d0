from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    KLDivergence,
    LogitStandardisation,
    decoupled_kd,
    dist,
    kl_div,
    l2_logits,
    logit_standardisation,
    standardise_logits,
)


def common_code(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """As the official code computes it: with the sample's standard deviation, and 1e-7 added."""

    def z_score(z: Tensor) -> Tensor:
        return (z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True)) / temperature

    log_s, p_t = F.log_softmax(z_score(student), 1), F.softmax(z_score(teacher), 1)
    return F.kl_div(log_s, p_t, reduction="none").sum(1).mean() * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_the_common_code_with_its_standard_deviation(golden_logits, temperature: float):
    student, teacher = (tensor.double() for tensor in golden_logits)
    student.requires_grad_()
    value = logit_standardisation(student, teacher, temperature=temperature, sample_std=True)
    expected = common_code(student, teacher, temperature)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(value, student),
        torch.autograd.grad(expected, student),
        rtol=1e-5,
        atol=1e-9,
    )


def test_equals_its_definition(golden_logits):
    student, teacher = (tensor.double() for tensor in golden_logits)
    scored = [
        (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
        for z in (student, teacher)
    ]
    torch.testing.assert_close(
        logit_standardisation(student, teacher), kl_div(*scored, temperature=2.0)
    )


def test_z_scores(golden_logits):
    logits = golden_logits[0].double()
    scores = standardise_logits(logits)
    torch.testing.assert_close(scores.mean(1), torch.zeros(8).double(), atol=1e-14, rtol=0)
    torch.testing.assert_close(scores.std(1, correction=0), torch.ones(8).double())
    torch.testing.assert_close(
        standardise_logits(logits, sample_std=True).std(1), torch.ones(8).double()
    )
    torch.testing.assert_close(
        standardise_logits(logits, sample_std=True), math.sqrt(9 / 10) * scores
    )
    torch.testing.assert_close(standardise_logits(logits.T, dim=0), scores.T)


def test_z_scores_are_bounded():
    """By sqrt(K - 1), which one class alone above all others reaches."""
    scores = standardise_logits(torch.eye(10, dtype=torch.float64)[:1] * 1e4)
    assert scores.max().item() == pytest.approx(3.0)
    assert scores.min().item() == pytest.approx(-1 / 3)


@settings(deadline=None, max_examples=30)
@given(
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-50, 50),
    side=st.integers(0, 1),
    seed=st.integers(0, 10**6),
)
def test_ignores_scale_and_shift_of_either_side(scale: float, shift: float, side: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    pair = [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    expected = logit_standardisation(*pair)
    pair[side] = scale * pair[side] + shift
    torch.testing.assert_close(logit_standardisation(*pair), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4, 1e-30])
def test_constant_logits_have_no_score_and_no_gradient(level: float):
    student = torch.full((2, 7), level, requires_grad=True)
    teacher = torch.randn(2, 7)
    value = logit_standardisation(student, teacher)
    value.backward()
    assert student.grad is not None and student.grad.abs().max() == 0
    # What is left is the divergence from the uniform distribution.
    scores = standardise_logits(teacher)
    expected = kl_div(torch.zeros(2, 7), scores, temperature=2.0)
    torch.testing.assert_close(value, expected)


def test_eps_is_where_logits_count_as_constant():
    logits = torch.tensor([[0.0, 2e-4]])
    assert standardise_logits(logits).tolist() == [[-1.0, 1.0]]
    assert standardise_logits(logits, eps=1e-3).tolist() == [[0.0, 0.0]]


def test_wraps_other_losses(golden_cls: dict[str, Tensor]):
    student, teacher, target = golden_cls["ls"], golden_cls["lt"], golden_cls["y"]
    scored = standardise_logits(student), standardise_logits(teacher)
    torch.testing.assert_close(
        logit_standardisation(
            student,
            teacher,
            loss=decoupled_kd,
            options={"target": target, "beta": 6.0},
            weight=torch.arange(8),
        ),
        decoupled_kd(*scored, target, temperature=2.0, beta=6.0, weight=torch.arange(8)),
    )
    torch.testing.assert_close(
        logit_standardisation(student, teacher, loss=dist, temperature=4.0, options={"intra": 2.0}),
        dist(*scored, temperature=4.0, intra=2.0),
    )


def test_module_by_name_and_by_module(golden_logits):
    student, teacher = golden_logits
    scored = standardise_logits(student), standardise_logits(teacher)
    weight = torch.arange(8.0)
    expected = kl_div(*scored, temperature=3.0, weight=weight, total=5.0)
    by_name = LogitStandardisation(temperature=3.0)
    by_module = LogitStandardisation(KLDivergence(temperature=3.0))
    for module in (by_name, by_module):
        torch.testing.assert_close(module(student, teacher, weight, 5.0), expected)
    sigmoid = LogitStandardisation("KLDivergence", options={"activation": "sigmoid"})
    torch.testing.assert_close(
        sigmoid(student, teacher), kl_div(*scored, temperature=2.0, activation="sigmoid")
    )
    last = LogitStandardisation("DIST", dim=-1, temperature=1.0)
    torch.testing.assert_close(last(student, teacher), dist(*scored))


def test_what_the_module_refuses():
    with pytest.raises(ConfigError, match="Did you mean 'KLDivergence'"):
        LogitStandardisation("KLDiv")
    with pytest.raises(ConfigError, match="takes a temperature"):
        LogitStandardisation("L2Logits")
    with pytest.raises(ConfigError, match="Call the function"):
        LogitStandardisation("DecoupledKD")
    with pytest.raises(ConfigError, match="has its temperature and options already"):
        LogitStandardisation(KLDivergence(), temperature=2.0)
    with pytest.raises(ConfigError, match="dim=1 here but on dim=-1"):
        LogitStandardisation(KLDivergence(dim=-1))
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        LogitStandardisation(temperature=0.0)
    with pytest.raises(ConfigError, match="eps must be"):
        LogitStandardisation(eps=-1.0)


def test_what_the_functions_refuse():
    logits = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="eps must be"):
        standardise_logits(logits, eps=math.nan)
    with pytest.raises(ShapeError, match="at least 2"):
        standardise_logits(logits[:, :1])
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        logit_standardisation(logits, logits, temperature=-1.0)
    with pytest.raises(TypeError, match="temperature"):  # l2_logits has none
        logit_standardisation(logits, logits, loss=l2_logits)
