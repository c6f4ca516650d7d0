from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import FSP, fsp

Maps = tuple[Tensor, Tensor]


def draw(*shapes: tuple[int, ...], seed: int = 0) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return first, second


def slow_matrix(first: Tensor, second: Tensor) -> list[float]:
    """One sample's matrix, one entry at a time."""
    a, b = first.flatten(1).tolist(), second.flatten(1).tolist()
    return [math.fsum(x * y for x, y in zip(i, j, strict=True)) / len(i) for i in a for j in b]


def slow_fsp(student: Maps, teacher: Maps) -> float:
    values = []
    for s1, s2, t1, t2 in zip(*student, *teacher, strict=True):
        pairs = zip(slow_matrix(s1, s2), slow_matrix(t1, t2), strict=True)
        values.append(math.fsum((a - b) ** 2 for a, b in pairs))
    return math.fsum(values) / len(values)


def golden_maps(golden: dict[str, Tensor]) -> tuple[Maps, Maps]:
    return (golden["fs"], golden["f2s"]), (golden["ft"], golden["f2t"])


@pytest.mark.parametrize(("pooling", "expected"), [("avg", 0.0284999534), ("max", 0.180821568)])
def test_golden(golden_cls: dict[str, Tensor], pooling, expected: float):
    student, teacher = golden_maps(golden_cls)
    value = fsp(student, teacher, pooling=pooling, reduction="mean").item()
    assert value == pytest.approx(expected, rel=1e-5)
    # The paper's sum over the 6 x 12 entries is the default.
    assert fsp(student, teacher, pooling=pooling).item() == pytest.approx(72 * expected, rel=1e-5)


def test_the_default_is_the_papers(golden_cls: dict[str, Tensor]):
    student, teacher = golden_maps(golden_cls)
    expected = fsp(student, teacher, pooling="max", reduction="sum")
    assert torch.equal(fsp(student, teacher), expected)
    assert torch.equal(FSP()(student, teacher), expected)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(0, 3),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    other=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(rows, widths, size, other, seed):
    """The teacher's maps may have another size: the matrices have no space."""
    student = draw(*((rows, w, *size) for w in widths), seed=seed)
    teacher = draw(*((rows, w, *other) for w in widths), seed=seed + 1)
    expected = slow_fsp(student, teacher) if rows else 0.0
    assert fsp(student, teacher).item() == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize(
    "sizes", [((4, 6), (2, 3)), ((2, 3), (4, 6)), ((5, 5), (3, 2)), ((4, 2), (2, 4))]
)
def test_the_larger_map_is_pooled(pooling, sizes):
    """Either of the two, and each axis by itself."""
    student = draw((2, 3, *sizes[0]), (2, 2, *sizes[1]))
    teacher = draw((2, 3, 4, 4), (2, 2, 4, 4), seed=1)
    size = [min(sides) for sides in zip(*sizes, strict=True)]
    pool = F.adaptive_max_pool2d if pooling == "max" else F.adaptive_avg_pool2d
    pooled = (pool(student[0], size), pool(student[1], size))
    value = fsp(student, teacher, pooling=pooling).item()
    assert value == pytest.approx(slow_fsp(pooled, teacher), rel=1e-10)


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_gradcheck_with_pooling(pooling):
    student = draw((2, 2, 4, 4), (2, 3, 2, 2))
    teacher = draw((2, 2, 2, 2), (2, 3, 4, 4), seed=1)
    assert torch.autograd.gradcheck(
        lambda *s: fsp(s, teacher, pooling=pooling, reduction="mean"),
        tuple(s.requires_grad_() for s in student),
    )


def test_positions_may_move_together():
    student, teacher = draw((2, 3, 3, 3), (2, 4, 3, 3)), draw((2, 3, 3, 3), (2, 4, 3, 3), seed=1)
    order = torch.randperm(9)
    moved = tuple(m.flatten(2)[..., order].view_as(m) for m in student)
    torch.testing.assert_close(fsp(moved, teacher), fsp(student, teacher))
    turned = (student[1], student[0]), (teacher[1], teacher[0])
    torch.testing.assert_close(fsp(*turned), fsp(student, teacher))


def test_one_map_of_the_student_may_be_fixed():
    student, teacher = draw((2, 3, 3, 3), (2, 4, 3, 3)), draw((2, 3, 3, 3), (2, 4, 3, 3), seed=1)
    student[1].requires_grad_()
    fsp(student, teacher).backward()
    assert student[0].grad is None and student[1].grad is not None


def test_keeps_the_features_and_one_matrix():
    student, teacher = draw((2, 3, 8, 8), (2, 4, 8, 8)), draw((2, 3, 8, 8), (2, 4, 8, 8), seed=1)
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fsp(tuple(m.requires_grad_() for m in student), teacher)  # type: ignore
    own = [m.untyped_storage().data_ptr() for m in student]
    assert sum(n for at, n in held.items() if at not in own) <= 2 * 3 * 4


def test_second_derivatives_are_refused():
    student, teacher = draw((2, 3, 3, 3), (2, 4, 3, 3)), draw((2, 3, 3, 3), (2, 4, 3, 3), seed=1)
    student[0].requires_grad_()
    value = fsp(student, teacher) + student[0].square().sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student[0], create_graph=True)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4, 4), (2, 5, 4, 4)), ((2, 5, 4, 4), (2, 4, 4, 4)), ((2, 3, 4, 4),) * 2]
)
def test_channels_must_agree_at_both_ends(shapes):
    student, teacher = draw((2, 3, 4, 4), (2, 4, 4, 4)), draw(*shapes)
    with pytest.raises(ShapeError, match="1x1 convolution") as caught:
        fsp(student, teacher)
    for shape in ((2, 3, 4, 4), (2, 4, 4, 4), *shapes):
        assert str(shape) in str(caught.value)


def test_sides_must_be_two_maps_of_one_batch():
    pair = draw((2, 3, 4, 4), (2, 4, 4, 4))
    with pytest.raises(ShapeError, match="student must be two maps"):
        fsp((*pair, pair[0]), pair)  # type: ignore
    with pytest.raises(ShapeError, match="teacher must be two maps"):
        fsp(pair, (pair[0], pair[1][0]))
    with pytest.raises(ShapeError, match="agree in batch"):
        fsp(draw((2, 3, 4, 4), (1, 4, 4, 4)), draw((2, 3, 4, 4), (1, 4, 4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pooling": "mx"}, "Did you mean 'max'"), ({"reduction": "none"}, "reduction must be one")],
)
def test_wrong_options(options: dict, message: str):
    pair = draw((2, 3, 4, 4), (2, 4, 4, 4))
    with pytest.raises(ConfigError, match=message):
        FSP(**options)
    with pytest.raises(ConfigError, match=message):
        fsp(pair, pair, **options)


def test_one_map_instead_of_two_is_named():
    single = torch.randn(2, 3, 4, 4)
    with pytest.raises(ShapeError, match=r"student must be two maps.*one tensor .*\(2, 3, 4, 4\)"):
        fsp(single, single)  # type: ignore
