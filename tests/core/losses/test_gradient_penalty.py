from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import GradientPenalty, gradient_penalty


class Critic(nn.Module):
    """A small one with scores as a map, smooth enough for numerical derivatives."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 3, 3)
        self.last = nn.Conv2d(3, 1, 2)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            images = torch.cat([images, condition], 1)
        return self.last(torch.tanh(self.first(images)))


def slow_penalty(critic: nn.Module, points: Tensor, target: float = 1.0) -> float:
    """Central differences, one sample and one number at a time."""
    values = []
    with torch.no_grad():
        for point in points:
            squares = 0.0
            for index in range(point.numel()):
                step = torch.zeros(point.numel(), dtype=point.dtype)
                step[index] = 1e-5
                ahead, behind = (
                    critic((point + sign * step.view_as(point))[None]).sum().item()
                    for sign in (1, -1)
                )
                squares += ((ahead - behind) / 2e-5) ** 2
            values.append((squares**0.5 - target) ** 2)
    return sum(values) / len(values)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rows=st.integers(1, 4),
    kind=st.sampled_from(["mixed", "real", "fake"]),
    target=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_of_a_linear_critic_it_does_not_depend_on_the_data(
    shape: list[int], rows: int, kind, target: float, scale: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    real, fake = (scale * torch.randn(rows, *shape, dtype=torch.float64) for _ in range(2))

    def critic(points: Tensor) -> Tensor:
        return (points * weight).flatten(1).sum(1)

    value = gradient_penalty(critic, real, fake, kind=kind, target=target)
    expected = (weight.norm() - target).square()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, weight), torch.autograd.grad(expected, weight)
    )


@pytest.mark.parametrize("kind", ["real", "fake"])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_equals_numerical_slopes(kind, target: float):
    critic = Critic().double()
    real, fake = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    value = gradient_penalty(critic, real, fake, kind=kind, target=target)
    points = real if kind == "real" else fake
    assert value.item() == pytest.approx(slow_penalty(critic, points, target), rel=1e-6)


def test_mixes_each_sample_with_its_own_share():
    seen: list[Tensor] = []

    def critic(points: Tensor) -> Tensor:
        seen.append(points.detach())
        return points.square().flatten(1).sum(1)

    real, fake = torch.zeros(5, 3, 2), torch.ones(5, 3, 2)
    for seed in (1, 1, 2):
        gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(seed))
    shares = seen[0].flatten(1)
    assert torch.equal(shares, shares[:, :1].expand_as(shares))
    assert shares[:, 0].unique().numel() == 5 and 0 <= shares.min() and shares.max() <= 1
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_the_parameters_get_the_exact_gradient():
    critic = Critic().double()
    real = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    names = [name for name, _ in critic.named_parameters() if name != "last.bias"]

    def loss(*parameters: Tensor) -> Tensor:
        swapped = dict(zip(names, parameters, strict=True))
        return gradient_penalty(
            lambda points: torch.func.functional_call(critic, swapped, (points,)),
            real,
            kind="real",
        )

    parameters = tuple(p.detach().clone().requires_grad_() for n, p in critic.named_parameters()
                       if n in names)  # fmt: skip
    assert torch.autograd.gradcheck(loss, parameters)


def test_several_outputs_and_maps_are_summed_up():
    critic = Critic()
    real = torch.randn(3, 2, 5, 5)
    whole = gradient_penalty(lambda x: critic(x).flatten(1).sum(1), real, kind="real")
    torch.testing.assert_close(gradient_penalty(critic, real, kind="real"), whole)

    def split(points: Tensor) -> object:
        scores = critic(points)
        return [scores[..., :1], (scores[..., 1:],)]

    torch.testing.assert_close(gradient_penalty(split, real, kind="real"), whole)


def test_the_condition_is_handed_on():
    critic = Critic(channels=3)
    real, condition = torch.randn(3, 2, 5, 5), torch.randn(3, 1, 5, 5, requires_grad=True)
    value = gradient_penalty(critic, real, kind="real", condition=condition)
    fixed = condition.detach()
    expected = gradient_penalty(lambda x: critic(x, fixed), real, kind="real")
    assert torch.equal(value, expected)
    value.backward()
    assert condition.grad is None
    with pytest.raises(RuntimeError):  # the critic's own: one channel too few
        gradient_penalty(critic, real, kind="real")


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_finite_where_the_slope_is_zero(target: float):
    """The square root of a sum of zeros has an infinite derivative, and infinity times 0 is NaN."""
    weight = torch.zeros(3, requires_grad=True)
    value = gradient_penalty(lambda x: x @ weight, torch.randn(4, 3), kind="real", target=target)
    value.backward()
    assert value.item() == target**2
    assert weight.grad is not None and torch.equal(weight.grad, torch.zeros(3))
    dead = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(dead[0].bias, -1e6)
    value = gradient_penalty(dead, torch.randn(4, 3), torch.randn(4, 3), target=target)
    value.backward()
    assert value.item() == target**2
    grads = [p.grad for p in dead.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("size", [1e-30, 1e15])
def test_slopes_whose_squares_leave_the_range(size: float):
    weight = torch.full((4,), size, requires_grad=True)
    value = gradient_penalty(lambda x: x @ weight, torch.randn(2, 4), kind="real")
    value.backward()
    assert value.item() == pytest.approx((2 * size - 1) ** 2, rel=1e-5)
    assert weight.grad is not None
    expected = 2 * (2 * size - 1) * 0.5
    assert weight.grad.tolist() == pytest.approx([expected] * 4, rel=1e-5)


def test_one_sided_leaves_a_gentle_slope_alone():
    for size, expected in ((0.5, 0.0), (3.0, 4.0)):
        value = gradient_penalty(
            lambda x, size=size: size * x, torch.randn(4, 1), kind="real", one_sided=True
        )
        assert value.item() == pytest.approx(expected)


def test_touches_neither_samples_nor_parameters():
    critic = Critic()
    real = torch.randn(3, 2, 5, 5)
    fake = torch.randn(3, 2, 5, 5, requires_grad=True)
    before = real.clone()
    gradient_penalty(critic, real, fake).backward()
    assert not real.requires_grad and torch.equal(real, before)
    assert fake.grad is None
    assert all(p.grad is not None for n, p in critic.named_parameters() if n != "last.bias")


def test_a_frozen_critic_has_a_value():
    critic = Critic().requires_grad_(False)
    real = torch.randn(3, 2, 5, 5)
    value = gradient_penalty(critic, real, kind="real")
    assert value > 0
    critic.requires_grad_(True)
    torch.testing.assert_close(gradient_penalty(critic, real, kind="real"), value)


def test_a_value_to_log_where_gradients_are_off():
    critic = Critic()
    real = torch.randn(3, 2, 5, 5)
    with torch.no_grad():
        value = gradient_penalty(critic, real, kind="real")
    assert not value.requires_grad
    torch.testing.assert_close(value, gradient_penalty(critic, real, kind="real").detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype):
    critic = Critic()
    real = torch.randn(3, 2, 5, 5).to(dtype)
    expected = gradient_penalty(critic, real.float(), kind="real")
    with torch.autocast("cpu", dtype=dtype):
        value = gradient_penalty(critic, real, kind="real")
    assert value.dtype == torch.float32 and torch.equal(value, expected)


def test_no_samples():
    critic = Critic()
    value = gradient_penalty(critic, torch.zeros(0, 2, 5, 5), torch.zeros(0, 2, 5, 5))
    value.backward()
    assert value.item() == 0.0


def test_module():
    critic = Critic()
    real, fake = torch.randn(3, 2, 5, 5), torch.randn(3, 2, 5, 5)
    options = {"kind": "mixed", "target": 0.2, "one_sided": True}
    module = GradientPenalty(**options)
    value = module(critic, real, fake, generator=torch.Generator().manual_seed(3))
    expected = gradient_penalty(
        critic, real, fake, generator=torch.Generator().manual_seed(3), **options
    )
    assert torch.equal(value, expected)
    assert not list(module.parameters())


@pytest.mark.parametrize(
    "critic",
    [
        lambda x: F.linear(x.detach(), torch.ones(1, 3)),
        lambda x: torch.ones(len(x), 1, requires_grad=True),
        torch.no_grad()(lambda x: 2 * x),
    ],
)
def test_a_critic_that_ignores_its_input(critic):
    with pytest.raises(DistillError, match="does not depend on its input.*detach"):
        gradient_penalty(critic, torch.randn(2, 3), kind="real")


def test_bad_samples():
    real = torch.zeros(4, 3)
    with pytest.raises(ShapeError, match=r"real \(4, 3\) and fake \(2, 3\)"):
        gradient_penalty(nn.Linear(3, 1), real, real[:2])
    with pytest.raises(ShapeError, match="kind='mixed' needs fake samples"):
        gradient_penalty(nn.Linear(3, 1), real)
    with pytest.raises(ShapeError, match="kind='fake' needs fake samples"):
        gradient_penalty(nn.Linear(3, 1), real, kind="fake")
    with pytest.raises(ShapeError, match=r"must be \(B, ...\), got shape \(4,\)"):
        gradient_penalty(nn.Linear(3, 1), real[:, 0], kind="real")


@pytest.mark.parametrize("scores", [None, {}, [], 3.0])
def test_a_critic_that_returns_no_scores(scores: object):
    with pytest.raises(ShapeError, match="must return a tensor of scores or a list"):
        gradient_penalty(lambda x: scores, torch.zeros(4, 3), kind="real")


def test_bad_options():
    samples = torch.zeros(4, 3)
    for call in (GradientPenalty, lambda **o: gradient_penalty(nn.Linear(3, 1), samples, **o)):
        with pytest.raises(ConfigError, match="Did you mean 'mixed'"):
            call(kind="mixd")
        for target in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="target must be a finite number >= 0"):
                call(target=target, kind="real")


def test_documented():
    text = inspect.getdoc(gradient_penalty) or ""
    for section in (".. math::", "Args:", "Returns:", "Raises:", "Reference:", "Lecture:",
                    "When it helps:", "Example:"):  # fmt: skip
        assert section in text
