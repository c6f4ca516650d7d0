from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ShapeError
from taskdistill.core.losses import SimilarityPreserving, similarity_preserving


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slow_rows(feature: Tensor) -> list[list[float]]:
    samples = feature.flatten(1).tolist()
    rows = []
    for a in samples:
        row = [math.fsum(x * y for x, y in zip(a, b, strict=True)) for b in samples]
        length = math.sqrt(math.fsum(x * x for x in row))
        rows.append([x / length if length else 0.0 for x in row])
    return rows


def slow(student: Tensor, teacher: Tensor) -> float:
    squares = [
        (a - b) ** 2
        for left, right in zip(slow_rows(student), slow_rows(teacher), strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    return math.fsum(squares) / len(student)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 6),
    student=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    teacher=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    dead=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition(rows, student, teacher, dead, seed):
    s, t = draw(rows, *student, seed=seed), draw(rows, *teacher, seed=seed + 1)
    if dead and rows:
        s[0] = 0
    s.requires_grad_()
    value = similarity_preserving(s, t)
    (grad,) = torch.autograd.grad(value, s)
    assert grad.isfinite().all()
    expected = slow(s.detach(), t) if rows else 0.0
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_known_value(golden_cls: dict[str, Tensor]):
    """Embeddings of another width than the teacher's, through the definition in float64."""
    student, teacher = golden_cls["es"], golden_cls["et"]
    value = similarity_preserving(student, teacher).item()
    assert value == pytest.approx(slow(student, teacher), rel=1e-5)


def test_scale_and_rotation_do_not_matter():
    student, teacher = draw(6, 4), draw(6, 9, seed=1)
    expected = similarity_preserving(student, teacher)
    rotation = torch.linalg.qr(draw(4, 4, seed=2))[0]
    torch.testing.assert_close(similarity_preserving(3 * student @ rotation, teacher), expected)
    torch.testing.assert_close(similarity_preserving(student, teacher.view(6, 3, 3)), expected)
    order = torch.randperm(6)
    torch.testing.assert_close(similarity_preserving(student[order], teacher[order]), expected)
    assert similarity_preserving(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("times", [2, 5])
def test_a_repeated_batch_has_the_same_value(times: int):
    student, teacher = draw(4, 5), draw(4, 7, seed=1)
    value = similarity_preserving(student.repeat(times, 1), teacher.repeat(times, 1))
    torch.testing.assert_close(value, similarity_preserving(student, teacher))


def test_one_sample_has_no_relations():
    student = draw(1, 4).requires_grad_()
    value = similarity_preserving(student, draw(1, 4, seed=1))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None and student.grad.abs().max() < 1e-15


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_float32_survives_its_fourth_powers(scale: float):
    student, teacher = draw(6, 4), draw(6, 9, seed=1)
    expected = similarity_preserving(student, teacher).item()
    value = similarity_preserving((scale * student).float(), (scale * teacher).float()).item()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("teacher", [(5, 4), (6,), ()])
def test_wrong_shapes(teacher: tuple[int, ...]):
    for loss in (similarity_preserving, SimilarityPreserving()):
        with pytest.raises(ShapeError, match=r"\(6, 4\).*same batch") as caught:
            loss(draw(6, 4), draw(*teacher))
        assert str(teacher) in str(caught.value)
