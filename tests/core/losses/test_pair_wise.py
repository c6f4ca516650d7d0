from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import PairWise, backend, pair_wise


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slow_nodes(channels: list[list[list[float]]], kernel: list[int], pooling: str) -> list:
    """One sample's nodes, each a list over the channels."""
    height, width = len(channels[0]), len(channels[0][0])
    nodes = []
    for top in range(0, height, kernel[0]):
        for left in range(0, width, kernel[1]):
            node = []
            for channel in channels:
                patch = [
                    x
                    for row in channel[top : top + kernel[0]]
                    for x in row[left : left + kernel[1]]
                ]
                node.append(max(patch) if pooling == "max" else math.fsum(patch) / len(patch))
            nodes.append(node)
    return nodes


def slow_cosine(x: list[float], y: list[float]) -> float:
    size = math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / size if size else 0.0


def slow(student: Tensor, teacher: Tensor, kernel: list[int], pooling: str = "avg") -> float:
    values = []
    for sample in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = (slow_nodes(channels, kernel, pooling) for channels in sample)
        squares = [
            (slow_cosine(s[i], s[j]) - slow_cosine(t[i], t[j])) ** 2
            for i in range(len(s))
            for j in range(len(s))
        ]
        values.append(math.fsum(squares) / len(squares))
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(
    ("patch", "expected"), [(0.5, 4.50063162e-05), (1 / 8, 0.00885721948), (None, 0.0521754362)]
)
@pytest.mark.parametrize("norm", ["exact", "detached"])
def test_golden(golden_dense: dict[str, Tensor], patch, expected: float, norm):
    student, teacher = golden_dense["hs"], golden_dense["ht"]
    value = pair_wise(student, teacher, patch=patch, pooling="max", norm=norm).item()
    # A small difference of large numbers: processors round its products otherwise.
    assert value == pytest.approx(expected, rel=1e-4)
    assert PairWise(patch=patch, pooling="max", norm=norm)(student, teacher).item() == value


def test_detached_norms_give_the_gradient_of_the_code(golden_dense: dict[str, Tensor]):
    """Which is far from the exact one; both of the pair at every node."""
    student, teacher = golden_dense["hs"].double(), golden_dense["ht"].double()

    def similarities(feature: Tensor, constant: bool) -> Tensor:
        flat = feature.flatten(2)
        norm = flat.square().sum(1, keepdim=True).sqrt()
        unit = flat / ((norm.detach() if constant else norm) + 1e-8)
        return torch.einsum("bci,bcj->bij", unit, unit)

    grads = {}
    for norm in ("exact", "detached"):
        s = student.clone().requires_grad_()
        difference = similarities(s, norm == "detached") - similarities(teacher, True)
        (expected,) = torch.autograd.grad(difference.square().mean(), s)
        (grads[norm],) = torch.autograd.grad(pair_wise(s, teacher, norm=norm), s)
        torch.testing.assert_close(grads[norm], expected, rtol=1e-6, atol=1e-12)
    distance = (grads["detached"] - grads["exact"]).norm() / grads["exact"].norm()
    assert distance.item() == pytest.approx(2.259456, rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 2),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    patch=st.sampled_from([None, 1, 2, 3, 0.4, 0.5, 1.0]),
    pooling=st.sampled_from(["avg", "max"]),
    dead=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(rows, widths, size, patch, pooling, dead, seed):
    student, teacher = (draw(rows, w, *size, seed=seed + i) for i, w in enumerate(widths))
    if dead:
        student[..., 0] = 0
    if isinstance(patch, float):
        kernel = [max(1, int(side * patch)) for side in size]
    else:
        kernel = [patch or 1] * 2
    student.requires_grad_()
    value = pair_wise(student, teacher, patch=patch, pooling=pooling)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.isfinite().all()
    expected = slow(student.detach(), teacher, kernel, pooling) if rows else 0.0
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("patch", [None, 2, 0.5])
@pytest.mark.parametrize("widths", [(3, 3), (3, 5), (12, 2)])
def test_gradcheck(patch, widths: tuple[int, int]):
    student, teacher = (draw(2, w, 3, 4, seed=w) for w in widths)

    def loss(s: Tensor) -> Tensor:
        return pair_wise(s, teacher, patch=patch)

    student.requires_grad_()
    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-7, rtol=1e-6)
    with backend("reference"):
        assert torch.autograd.gradgradcheck(loss, (student,), atol=1e-5)


def test_lengths_and_rotations_do_not_matter():
    student, teacher = draw(2, 4, 3, 3), draw(2, 5, 3, 3, seed=1)
    expected = pair_wise(student, teacher)
    lengths = torch.rand(2, 1, 3, 3, dtype=torch.float64) + 0.1
    rotation = torch.linalg.qr(draw(4, 4, seed=2))[0]
    turned = torch.einsum("dc,bchw->bdhw", rotation, lengths * student)
    torch.testing.assert_close(pair_wise(turned, 9 * teacher), expected)
    moved = [x.flatten(2).flip(2).view_as(x) for x in (student, teacher)]
    torch.testing.assert_close(pair_wise(*moved), expected)
    assert pair_wise(7 * teacher, teacher).item() == pytest.approx(0, abs=1e-15)


def test_the_exact_gradient_does_not_stretch():
    student, teacher = draw(2, 4, 3, 3).requires_grad_(), draw(2, 5, 3, 3, seed=1)
    (grad,) = torch.autograd.grad(pair_wise(student, teacher), student)
    assert (grad * student).sum(1).abs().max() < 1e-15
    (grad,) = torch.autograd.grad(pair_wise(student, teacher, norm="detached"), student)
    assert (grad * student).sum(1).abs().max() > 1e-4


def test_fractions_follow_the_size_of_the_map():
    student, teacher = draw(2, 4, 4, 4), draw(2, 5, 4, 4, seed=1)
    larger = [x.repeat_interleave(3, 2).repeat_interleave(3, 3) for x in (student, teacher)]
    torch.testing.assert_close(
        pair_wise(*larger, patch=0.5), pair_wise(student, teacher, patch=0.5)
    )
    torch.testing.assert_close(pair_wise(*larger, patch=6), pair_wise(student, teacher, patch=2))


def test_never_holds_the_similarities():
    """24 x 24 = 576 positions: their matrix would be 144 times the student."""
    student, teacher = draw(1, 4, 24, 24).requires_grad_(), draw(1, 6, 24, 24, seed=1)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        pair_wise(student, teacher).backward()
    assert largest == teacher.numel()


def test_compiles_in_one_graph():
    for size in ((2, 2), (4, 5)):
        student, teacher = draw(2, 7, *size).requires_grad_(), draw(2, 5, *size, seed=1)
        compiled = torch.compile(pair_wise, backend="aot_eager", fullgraph=True)
        value, expected = (f(student, teacher, patch=1) for f in (compiled, pair_wise))
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, student) for v in (value, expected)))


def test_second_derivatives_are_refused():
    for size in ((2, 2), (4, 5)):
        student, teacher = draw(2, 7, *size).requires_grad_(), draw(2, 5, *size, seed=1)
        value = pair_wise(student, teacher) + student.square().sum()
        with pytest.raises(DistillError, match="create_graph=True"):
            torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize("patch", [0, -1, 0.0, 1.5, float("nan")])
def test_wrong_patch(patch):
    with pytest.raises(ConfigError, match="patch must be a number of positions"):
        PairWise(patch=patch)
    with pytest.raises(ConfigError, match="patch must be a number of positions"):
        pair_wise(draw(1, 2, 4, 4), draw(1, 2, 4, 4), patch=patch)


def test_wrong_options():
    with pytest.raises(ConfigError, match="Did you mean 'avg'"):
        PairWise(pooling="average")  # type: ignore
    with pytest.raises(ConfigError, match="norm must be one of"):
        pair_wise(draw(1, 2, 4, 4), draw(1, 2, 4, 4), norm="none")  # type: ignore


def test_wrong_map_size():
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\).*Pool or resize"):
        pair_wise(draw(2, 3, 4, 4), draw(2, 3, 2, 2))


def test_at_65x65_no_matrix_of_all_pairs_is_held():
    student = torch.randn(2, 128, 65, 65, requires_grad=True)
    teacher = torch.randn(2, 512, 65, 65)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        pair_wise(student, teacher).backward()
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    # One matrix of 4225 x 4225 similarities would be 68 MiB an image; the gradient alone is 4.
    assert 4 * 2**20 < peak < 40 * 2**20
