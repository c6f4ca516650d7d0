from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    DiscriminatorLoss,
    GeneratorLoss,
    discriminator_loss,
    generator_loss,
)

OBJECTIVES = ("lsgan", "vanilla", "hinge", "wgan")
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)

# Of the code of GAN compression: discriminator on real, on fake, generator.
GOLDEN = {
    "lsgan": (1.811104655265808, 0.9760686159133911, 1.811104655265808),
    "vanilla": (0.7627965807914734, 0.8452785015106201, 0.7627965807914734),
    "hinge": (1.01777982711792, 1.153775930404663, -0.0824819803237915),
    "wgan": (-0.0824819803237915, 0.0824819803237915, -0.0824819803237915),
}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def slow_term(score: float, objective: str, label: float, real: bool) -> float:
    if objective == "lsgan":
        return (score - label) ** 2
    if objective == "vanilla":
        return -label * log_sigmoid(score) - (1 - label) * log_sigmoid(-score)
    if objective == "hinge":
        return max(0.0, 1 - score if real else 1 + score)
    return -score if real else score


@every_objective
def test_golden(golden_gan: Tensor, objective):
    real, fake, generator = GOLDEN[objective]
    found = discriminator_loss(golden_gan, objective=objective).item()
    assert found == pytest.approx(real, rel=1e-6)
    found = discriminator_loss(fake=golden_gan, objective=objective).item()
    assert found == pytest.approx(fake, rel=1e-6)
    both = discriminator_loss(golden_gan, golden_gan, objective=objective).item()
    assert both == pytest.approx(real + fake, rel=1e-6, abs=1e-7)
    found = generator_loss(golden_gan, objective=objective).item()
    assert found == pytest.approx(generator, rel=1e-6)


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    objective=st.sampled_from(OBJECTIVES),
    labels=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(sizes: tuple[int, int, int], objective, labels, seed: int):
    """Batches of real and fake samples of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    real, fake = (
        4 * torch.randn(rows, 1, sizes[2], 2, generator=generator, dtype=torch.float64)
        for rows in sizes[:2]
    )
    a, b = labels if objective in ("lsgan", "vanilla") else (1.0, 0.0)
    options = {"objective": objective, "real_label": a, "fake_label": b}
    expected = [
        math.fsum(slow_term(d, objective, label, side) for d in scores.flatten().tolist())
        / scores.numel()
        for scores, label, side in ((real, a, True), (fake, b, False))
    ]
    value = discriminator_loss(real, fake, **options)
    assert value.item() == pytest.approx(sum(expected), rel=1e-10, abs=1e-12)
    assert torch.equal(DiscriminatorLoss(**options)(real, fake), value)
    del options["fake_label"]
    value = generator_loss(fake, **options)
    if objective == "hinge":
        assert value.item() == pytest.approx(-fake.mean().item())
    else:
        scores = fake.flatten().tolist()
        expected = math.fsum(slow_term(d, objective, a, True) for d in scores) / len(scores)
        assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert torch.equal(GeneratorLoss(**options)(fake), value)


@every_objective
def test_scales_count_alike_whatever_their_size(objective):
    large, small = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 4, 4)
    parts = [generator_loss(x, objective=objective) for x in (large, small)]
    for scales in ([large, small], (large, small)):
        value = generator_loss(scales, objective=objective)
        torch.testing.assert_close(value, (parts[0] + parts[1]) / 2)
    value = discriminator_loss([large, small], (small,), objective=objective)
    parts = [discriminator_loss(x, objective=objective) for x in (large, small)]
    fake = discriminator_loss(fake=small, objective=objective)
    torch.testing.assert_close(value, (parts[0] + parts[1]) / 2 + fake)


@every_objective
def test_gradient_is_exact_twice(objective):
    real = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    fake = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def both(real: Tensor, fake: Tensor) -> Tensor:
        return discriminator_loss(real, fake, objective=objective)

    assert torch.autograd.gradcheck(both, (real, fake))
    assert torch.autograd.gradcheck(lambda x: generator_loss(x, objective=objective), (fake,))
    if objective in ("lsgan", "vanilla"):  # the others are linear
        assert torch.autograd.gradgradcheck(both, (real, fake))


@every_objective
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_when_the_discriminator_is_sure(objective, dtype: torch.dtype):
    for sign in (1, -1):
        scores = torch.full((2, 3), sign * 1e4, dtype=dtype, requires_grad=True)
        value = discriminator_loss(scores, -scores, objective=objective)
        value = value + generator_loss(scores, objective=objective)
        value.backward()
        assert value.dtype == torch.float32 and torch.isfinite(value)
        assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_a_sure_discriminator_still_moves_the_generator():
    """The form that the paper trains with: log(1 - D) would have no gradient left here."""
    fake = torch.full((1,), -50.0, requires_grad=True)
    generator_loss(fake, objective="vanilla").backward()
    assert fake.grad is not None and fake.grad.item() == -1.0


@every_objective
def test_no_rows_give_zero_with_a_graph(objective):
    scores = torch.zeros(0, 1, requires_grad=True)
    value = discriminator_loss(scores, scores, objective=objective)
    value = value + generator_loss(scores, objective=objective)
    value.backward()
    assert value.item() == 0.0 and scores.grad is not None


@every_objective
def test_autocast_changes_nothing(objective):
    real, fake = torch.randn(3, 2), torch.randn(4, 2)
    expected = discriminator_loss(real, fake, objective=objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(discriminator_loss(real, fake, objective=objective), expected)


@every_objective
def test_compiles_in_one_graph(objective):
    def both(real: Tensor, fake: Tensor) -> Tensor:
        value = discriminator_loss(real, fake, objective=objective)
        return value + generator_loss(fake, objective=objective)

    real, fake = torch.randn(3, 2), torch.randn(4, 2)
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(real, fake), both(real, fake))


def test_smoothed_labels_have_their_optimum_at_the_label():
    score = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    discriminator_loss(score, objective="vanilla", real_label=0.9).backward()
    assert score.grad is not None and abs(score.grad.item()) < 1e-6
    assert discriminator_loss(torch.tensor([0.9]), real_label=0.9).item() == 0.0


def test_bad_options():
    with pytest.raises(ConfigError, match="Did you mean 'lsgan'"):
        GeneratorLoss(objective="lsgn")  # type: ignore
    with pytest.raises(ConfigError, match="objective must be one of"):
        discriminator_loss(torch.zeros(1), objective="wgan-gp")  # type: ignore
    with pytest.raises(ConfigError, match="'hinge' has no labels, got real_label=0.9"):
        discriminator_loss(torch.zeros(1), objective="hinge", real_label=0.9)
    with pytest.raises(ConfigError, match="'wgan' has no labels, got fake_label=0.1"):
        DiscriminatorLoss(objective="wgan", fake_label=0.1)
    with pytest.raises(ConfigError, match="real_label must be a probability"):
        generator_loss(torch.zeros(1), objective="vanilla", real_label=1.5)
    with pytest.raises(ConfigError, match="fake_label must be a finite number"):
        DiscriminatorLoss(fake_label=float("nan"))


def test_bad_scores():
    with pytest.raises(ShapeError, match="give real, fake, or both"):
        discriminator_loss()
    with pytest.raises(ShapeError, match="got an empty list"):
        generator_loss([])
    with pytest.raises(ShapeError, match="got a list with a list"):
        generator_loss([[torch.zeros(1)]])  # type: ignore


@pytest.mark.parametrize("function", [discriminator_loss, generator_loss])
def test_documented(function):
    text = inspect.getdoc(function) or ""
    for section in (".. math::", "Args:", "Returns:", "Raises:", "Reference:", "Lecture:",
                    "When it helps:", "Example:"):  # fmt: skip
        assert section in text
