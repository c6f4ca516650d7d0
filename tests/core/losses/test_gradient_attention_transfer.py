from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import (
    GradientAttentionTransfer,
    gradient_attention_transfer,
    gradient_symmetry,
    loss_gradient,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


LABELS = torch.tensor([0, 2, 1, 2])


def test_a_linear_model_in_closed_form():
    """z = W x: the gradient of the cross-entropy is W^T (p - onehot)."""
    weight_s, weight_t = randn(3, 5), randn(3, 5, seed=1)
    x = randn(4, 5, seed=2).requires_grad_()
    onehot = F.one_hot(LABELS, 3).double()
    found, expected = [], []
    for weight in (weight_s, weight_t):
        logits = x @ weight.T
        found.append(loss_gradient(cross_entropies(logits, LABELS), x))
        expected.append((logits.softmax(1) - onehot).detach() @ weight)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    norms = (expected[0] - expected[1]).norm(dim=1)
    torch.testing.assert_close(gradient_attention_transfer(*found), norms.mean())
    squared = gradient_attention_transfer(*found, squared=True)
    torch.testing.assert_close(squared, norms.square().mean())


OPTIONS = [
    {},
    {"squared": True},
    {"normalize": True},
    {"reduce_channels": "sum_abs", "normalize": True},
    {"reduce_channels": "sum_sq", "normalize": True, "squared": True},
    {"reduce_channels": "max"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_gradient_in_the_weights_of_a_student(options: dict[str, object]):
    """Through both backward passes, against finite differences."""
    student = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = randn(4, 2, 3, 3).requires_grad_()
    gradient_t = randn(4, 2, 3, 3, seed=1)
    names, weights = zip(*student.named_parameters(), strict=True)

    def loss(*values: Tensor) -> Tensor:
        logits = functional_call(student, dict(zip(names, values, strict=True)), (x,))
        gradient_s = loss_gradient(cross_entropies(logits, LABELS), x, create_graph=True)
        return gradient_attention_transfer(gradient_s, gradient_t, **options)  # type: ignore

    inputs = tuple(w.detach().clone().requires_grad_() for w in weights)
    assert torch.autograd.gradcheck(loss, inputs)
    grads = torch.autograd.grad(loss(*inputs), inputs, allow_unused=True, materialize_grads=True)
    assert all(g.abs().sum() > 0 for g in grads)


def test_the_value_does_not_depend_on_the_batch():
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = randn(4, 5)

    def value(times: int) -> Tensor:
        inputs = x.repeat(times, 1).requires_grad_()
        gradient = loss_gradient(cross_entropies(net(inputs), LABELS.repeat(times)), inputs)
        return gradient_attention_transfer(gradient, torch.zeros_like(gradient))

    torch.testing.assert_close(value(5), value(1), rtol=1e-12, atol=0)


def test_a_feature_map_with_other_numbers_of_channels():
    student, teacher = randn(4, 3, 5, 2), randn(4, 7, 5, 2, seed=1)
    value = gradient_attention_transfer(student, teacher, reduce_channels="sum_sq", normalize=True)
    maps = [F.normalize(x.square().sum(1).flatten(1)) for x in (student, teacher)]
    torch.testing.assert_close(value, (maps[0] - maps[1]).norm(dim=1).mean())
    value = gradient_attention_transfer(student, teacher, reduce_channels="max", squared=True)
    difference = student.abs().amax(1) - teacher.abs().amax(1)
    torch.testing.assert_close(value, difference.square().sum((1, 2)).mean())
    value = gradient_attention_transfer(student, teacher, reduce_channels="sum_abs")
    difference = student.abs().sum(1) - teacher.abs().sum(1)
    torch.testing.assert_close(value, difference.flatten(1).norm(dim=1).mean())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4])
def test_finite_with_every_option(options: dict[str, object], size: float):
    for teacher in (torch.zeros(2, 3, 4), size * torch.ones(2, 3, 4)):
        student = (size * torch.randn(2, 3, 4)).requires_grad_()
        value = gradient_attention_transfer(student, teacher, **options)  # type: ignore
        value.backward()
        assert torch.isfinite(value)
        assert student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_norm_whose_squares_are_out_of_range(size: float):
    student = torch.randn(3, 8)
    expected = gradient_attention_transfer(student, torch.zeros(3, 8))
    scaled = (size * student).requires_grad_()
    value = gradient_attention_transfer(scaled, torch.zeros(3, 8))
    value.backward()
    torch.testing.assert_close(value / size, expected)
    expected_grad = student / student.norm(dim=1, keepdim=True) / 3
    torch.testing.assert_close(scaled.grad, expected_grad)


def test_normalised_gradients_do_not_depend_on_their_size():
    student, teacher = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    value = gradient_attention_transfer(student, teacher, normalize=True)
    other = gradient_attention_transfer(1e6 * student, 0.01 * teacher, normalize=True)
    torch.testing.assert_close(other, value)


def test_a_symmetric_network_and_one_that_is_not():
    x = randn(4, 1, 3, 5).requires_grad_()
    mirrored = x.detach().flip(-1).requires_grad_()
    labels = LABELS
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3)).double()
    skew = nn.Sequential(nn.Flatten(), nn.Linear(15, 3)).double()

    def value(net: nn.Module, **options: object) -> Tensor:
        pair = [
            loss_gradient(cross_entropies(net(image), labels), image, create_graph=True)
            for image in (x, mirrored)
        ]
        return gradient_symmetry(*pair, **options)  # type: ignore

    assert value(flat).item() == pytest.approx(0.0, abs=1e-15)
    loss = value(skew)
    assert loss.item() > 0
    loss.backward()
    weight = skew[1].weight
    assert isinstance(weight, nn.Parameter) and weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_symmetry_is_the_norm_of_the_difference():
    a, b = randn(3, 2, 4, 5), randn(3, 2, 4, 5, seed=1)
    for axis in (-1, 2):
        norms = (a - b.flip(axis)).flatten(1).norm(dim=1)
        torch.testing.assert_close(gradient_symmetry(a, b, dim=axis), norms.mean())
        squares = gradient_symmetry(a, b, dim=axis, squared=True, total=1.0)
        torch.testing.assert_close(squares, norms.square().sum())
    weight = torch.tensor([0.0, 2.0, 0.0])
    one = gradient_symmetry(a, b, weight=weight)
    torch.testing.assert_close(one, (a - b.flip(-1))[1].norm())
    inputs = (a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(gradient_symmetry, inputs)


def test_the_teacher_must_not_run_without_gradients():
    net, x = nn.Linear(5, 3).double().requires_grad_(False), randn(4, 5)
    with torch.no_grad():
        loss = cross_entropies(net(x), LABELS)
    with pytest.raises(DistillError, match="inputs do not require a gradient.*before the forward"):
        loss_gradient(loss, x)
    x.requires_grad_()
    with pytest.raises(DistillError, match="loss does not require a gradient.*teacher"):
        loss_gradient(loss, x)
    other = randn(4, 5).requires_grad_()
    loss = cross_entropies(net(other), LABELS)
    with pytest.raises(DistillError, match="does not depend on these inputs"):
        loss_gradient(loss, x)
    gradient = loss_gradient(loss, other)
    assert not gradient.requires_grad and other.grad is None


def test_a_mean_over_the_batch_is_refused():
    x = randn(4, 5).requires_grad_()
    with pytest.raises(ShapeError, match=r"\(4,\).*reduction='none'"):
        loss_gradient(F.cross_entropy(x, LABELS), x)
    with pytest.raises(ShapeError, match=r"got loss \(2,\)"):
        loss_gradient(x.sum(1)[:2], x)
    pixels = loss_gradient(x.square().view(4, 5, 1), x)  # several losses a sample are summed
    torch.testing.assert_close(pixels, 2 * x.detach())


def test_options_and_shapes_are_checked():
    with pytest.raises(ConfigError, match="Did you mean 'sum_abs'"):
        gradient_attention_transfer(
            torch.ones(1, 2, 2),
            torch.ones(1, 2, 2),
            reduce_channels="sum_ab",  # type: ignore
        )
    with pytest.raises(ConfigError, match="reduce_channels must be one of"):
        GradientAttentionTransfer(reduce_channels="mean")  # type: ignore
    with pytest.raises(ShapeError, match="not empty"):
        gradient_attention_transfer(torch.ones(2, 0), torch.ones(2, 0))
    for student, teacher in (((2, 3), (2, 3)), ((2, 0, 3), (2, 0, 3)), ((2, 3, 4), (2, 3, 5))):
        with pytest.raises(ShapeError, match="reduce_channels needs|all but the channels"):
            gradient_attention_transfer(
                torch.ones(student), torch.ones(teacher), reduce_channels="max"
            )
    with pytest.raises(ShapeError, match=r"\(2, 3\) and \(2, 4\)"):
        gradient_symmetry(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ShapeError, match="no axis"):
        gradient_symmetry(torch.ones(2, 3), torch.ones(2, 3), dim=2)
    with pytest.raises(ShapeError, match="axis of the samples"):
        gradient_symmetry(torch.ones(2, 3), torch.ones(2, 3), dim=0)
    expected = "GradientAttentionTransfer(squared=True, reduce_channels=None, normalize=False)"
    assert repr(GradientAttentionTransfer(squared=True)) == expected
