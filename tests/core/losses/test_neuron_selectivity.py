from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import NeuronSelectivity, backend, neuron_selectivity

Vector = list[float]
KERNELS: dict[str, dict[str, object]] = {
    "squares": {},
    "cubes": {"degree": 3, "offset": 0.5},
    "linear": {"kernel": "linear"},
    "gaussian": {"kernel": "gaussian"},
    "narrow gaussian": {"kernel": "gaussian", "bandwidth": 0.3},
}
every_kernel = pytest.mark.parametrize("options", KERNELS.values(), ids=KERNELS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def directions(channels: Tensor) -> list[Vector]:
    found = []
    for channel in channels.flatten(1).tolist():
        length = math.sqrt(math.fsum(x * x for x in channel))
        found.append([x / length if length else 0.0 for x in channel])
    return found


def dot(x: Vector, y: Vector) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def distance(x: Vector, y: Vector) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def slow_mmd(
    student: Tensor, teacher: Tensor, kernel="polynomial", degree=2, offset=0.0, bandwidth=None
) -> float:
    """The definition, one pair of channels at a time."""
    values = []
    for s_map, t_map in zip(student, teacher, strict=True):
        s, t = directions(s_map), directions(t_map)
        both = s + t
        distances = [distance(x, y) for i, x in enumerate(both) for y in both[:i]]
        sigma = bandwidth or math.sqrt(math.fsum(distances) / len(distances)) or 1.0

        def k(x: Vector, y: Vector, sigma: float = sigma) -> float:
            if kernel == "gaussian":
                return math.exp(-distance(x, y) / (2 * sigma**2))
            return dot(x, y) if kernel == "linear" else (dot(x, y) + offset) ** degree

        def mean(xs: list[Vector], ys: list[Vector], k: Callable = k) -> float:
            return math.fsum(k(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

        values.append(mean(t, t) + mean(s, s) - 2 * mean(s, t))
    return math.fsum(values) / len(values)


def test_golden(golden_cls: dict[str, Tensor]):
    student, teacher = golden_cls["fs"], golden_cls["ft"]
    value = neuron_selectivity(student, teacher).item()
    assert value == pytest.approx(0.328453571, rel=1e-6)
    value = neuron_selectivity(student, teacher, kernel="linear").item()
    assert value == pytest.approx(0.3139323, rel=1e-6)


@every_kernel
@pytest.mark.parametrize("shape", [(2, 5, 2, 2), (2, 3, 3, 4), (1, 1, 2, 3)])
def test_equals_the_definition(options: dict, shape: tuple[int, ...]):
    student = draw(*shape)
    for width in (shape[1], shape[1] + 2):
        teacher = draw(shape[0], width, *shape[2:], seed=1)
        value = neuron_selectivity(student, teacher, **options).item()
        assert value == pytest.approx(slow_mmd(student, teacher, **options), rel=1e-10)


@every_kernel
@settings(deadline=None, max_examples=15)
@given(
    rows=st.integers(0, 3),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 10**6),
    dead=st.booleans(),
)
def test_odd_shapes(options: dict, rows, widths, size, seed, dead):
    student, teacher = (draw(rows, w, *size, seed=seed + i) for i, w in enumerate(widths))
    if dead:
        student[:, 0] = 0
        teacher[:, -1] = 0
    student.requires_grad_()
    value = neuron_selectivity(student, teacher, **options)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.isfinite().all()
    if dead:
        assert grad[:, 0].eq(0).all()
    expected = slow_mmd(student.detach(), teacher, **options) if rows else 0.0
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_kernel
def test_gradcheck(options: dict):
    if options.get("kernel") == "gaussian":
        options = {"bandwidth": 0.8, **options}  # the one from the pairs counts as a constant
    for widths in ((3, 3), (3, 5), (6, 2)):
        student, teacher = (draw(2, w, 2, 2, seed=w).requires_grad_() for w in widths)

        def loss(s: Tensor, t: Tensor = teacher, options: dict = options) -> Tensor:
            return neuron_selectivity(s, t, **options)

        assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-7, rtol=1e-6)
        with backend("reference"):
            assert torch.autograd.gradgradcheck(loss, (student,), atol=1e-5)


@every_kernel
def test_order_scale_and_repetition_do_not_matter(options: dict):
    student, teacher = draw(2, 5, 3, 3), draw(2, 4, 3, 3, seed=1)
    expected = neuron_selectivity(student, teacher, **options)
    scale = torch.rand(2, 5, 1, 1, dtype=torch.float64) + 0.1
    changed = (scale * student)[:, torch.randperm(5)]
    torch.testing.assert_close(
        neuron_selectivity(changed, 7 * teacher.flip(1), **options), expected
    )
    moved = torch.randperm(9)
    torch.testing.assert_close(
        neuron_selectivity(
            *(x.flatten(2)[..., moved].view_as(x) for x in (student, teacher)), **options
        ),
        expected,
    )
    if options.get("kernel") == "gaussian" and "bandwidth" not in options:
        return  # equal channels become further pairs
    torch.testing.assert_close(
        neuron_selectivity(student.repeat(1, 3, 1, 1), teacher.repeat(1, 2, 1, 1), **options),
        expected,
    )


@every_kernel
def test_zero_for_the_same_distribution(options: dict):
    teacher = draw(2, 5, 3, 3)
    student = 2 * teacher.flip(1)
    assert neuron_selectivity(student, teacher, **options).item() == pytest.approx(0, abs=1e-15)
    single = neuron_selectivity(student.float().repeat(1, 2, 1, 1), teacher.float(), **options)
    assert 0 <= single.item() < 1e-6


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_that_are_all_alike(options: dict, dtype: torch.dtype):
    """The pairs' mean distance is then 0 but for rounding."""
    one = draw(2, 1, 3, 3).to(dtype)
    student = (one * torch.tensor([0.3, 1.7, 5.1]).view(1, 3, 1, 1)).requires_grad_()
    value = neuron_selectivity(student, one, **options)
    (grad,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert grad.abs().max() < 1e-5


def test_sign_matters_to_the_linear_kernel_only():
    """Even powers of the cosine do not see it."""
    teacher = draw(2, 5, 3, 3)
    assert neuron_selectivity(-teacher, teacher).item() == pytest.approx(0, abs=1e-15)
    assert neuron_selectivity(-teacher, teacher, kernel="linear").item() > 0.1


def test_linear_is_the_polynomial_of_degree_one():
    student, teacher = draw(2, 5, 3, 3), draw(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(
        neuron_selectivity(student, teacher, kernel="linear"),
        neuron_selectivity(student, teacher, degree=1, offset=3.0),
    )


def test_general_polynomial_meets_the_fast_path():
    student, teacher = draw(2, 5, 3, 3), draw(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(
        neuron_selectivity(student, teacher),
        neuron_selectivity(student, teacher, offset=1e-14),
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize("kernel", ["linear", "gaussian", "polynomial"])
def test_compiles_in_one_graph(kernel):
    student, teacher = draw(2, 5, 3, 3).requires_grad_(), draw(2, 4, 3, 3, seed=1)
    compiled = torch.compile(neuron_selectivity, backend="aot_eager", fullgraph=True)
    value, expected = (f(student, teacher, kernel=kernel) for f in (compiled, neuron_selectivity))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, student) for v in (value, expected)))


def test_linear_keeps_the_feature_and_little_else():
    student, teacher = draw(4, 6, 5, 5).requires_grad_(), draw(4, 6, 5, 5, seed=1)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        neuron_selectivity(student, teacher, kernel="linear")
    own = student.untyped_storage().data_ptr()
    assert own in held
    assert sum(n for at, n in held.items() if at != own) <= 2 * 4 * 25 + 4 * 6 + 8


def test_second_derivatives_are_refused():
    student, teacher = draw(2, 5, 3, 3).requires_grad_(), draw(2, 4, 3, 3, seed=1)
    for kernel in ("linear", "polynomial"):
        value = neuron_selectivity(student, teacher, kernel=kernel) + student.square().sum()
        with pytest.raises(DistillError, match="create_graph=True"):
            torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "gausian"}, "Did you mean 'gaussian'"),
        ({"degree": 0}, "degree must be a whole number"),
        ({"degree": 1.5}, "degree must be a whole number"),
        ({"offset": -1.0}, "offset must be a finite number"),
        ({"bandwidth": 0.0}, "bandwidth must be a finite number"),
    ],
)
def test_wrong_options(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        NeuronSelectivity(**options)
    with pytest.raises(ConfigError, match=message):
        neuron_selectivity(draw(1, 2, 2, 2), draw(1, 2, 2, 2), **options)


def test_wrong_map_size():
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\).*Pool or resize"):
        neuron_selectivity(draw(2, 3, 4, 4), draw(2, 3, 2, 2))


def test_representation():
    assert repr(NeuronSelectivity(degree=3)).endswith("(kernel='polynomial', degree=3, offset=0.0)")
    assert "bandwidth=0.5" in repr(NeuronSelectivity(kernel="gaussian", bandwidth=0.5))
