from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import PixelWise, kl_div, pixel_wise, soft_cross_entropy

Maps = dict[str, Tensor]


def test_golden_of_the_paper(golden_dense: Maps):
    value = pixel_wise(golden_dense["ps"], golden_dense["pt"]).item()
    assert value == pytest.approx(0.907823622, rel=1e-5)


def test_golden_of_the_other_order(golden_dense: Maps):
    value = pixel_wise(golden_dense["ps"], golden_dense["pt"], divergence="teacher_student").item()
    assert value == pytest.approx(0.907571197, rel=1e-5)


def test_golden_of_the_code(golden_dense: Maps):
    """It does not divide by the number of images, 2 here."""
    value = pixel_wise(golden_dense["ps"], golden_dense["pt"], divergence="cross_entropy").item()
    assert 2 * value == pytest.approx(6.83939695, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_the_definition(golden_dense: Maps, temperature: float):
    student, teacher = (golden_dense[k][:, :, :2, :3].double() for k in ("ps", "pt"))
    pixels = []
    for s, t in zip(
        student.movedim(1, -1).reshape(-1, 19).tolist(),
        teacher.movedim(1, -1).reshape(-1, 19).tolist(),
        strict=True,
    ):
        q, p = ([math.exp(z / temperature) for z in row] for row in (s, t))
        q, p = [x / math.fsum(q) for x in q], [x / math.fsum(p) for x in p]
        pixels.append(math.fsum(a * math.log(a / b) for a, b in zip(q, p, strict=True)))
    expected = temperature**2 * math.fsum(pixels) / len(pixels)
    value = pixel_wise(student, teacher, temperature=temperature).item()
    assert value == pytest.approx(expected, rel=1e-10)


def test_the_orders_are_each_others_mirror(golden_dense: Maps):
    student, teacher = golden_dense["ps"].double(), golden_dense["pt"].double()
    torch.testing.assert_close(
        pixel_wise(student, teacher), pixel_wise(teacher, student, divergence="teacher_student")
    )


def test_relatives(golden_dense: Maps):
    pair = golden_dense["ps"], golden_dense["pt"]
    assert torch.equal(pixel_wise(*pair, divergence="teacher_student"), kl_div(*pair))
    assert torch.equal(pixel_wise(*pair, divergence="cross_entropy"), soft_cross_entropy(*pair))


@pytest.mark.parametrize("divergence", ["student_teacher", "teacher_student", "cross_entropy"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_is_exact(golden_dense: Maps, divergence, temperature: float):
    student, teacher = (golden_dense[k][:, :5, :2, :2].double() for k in ("ps", "pt"))
    assert torch.autograd.gradcheck(
        lambda s: pixel_wise(s, teacher, divergence=divergence, temperature=temperature),
        (student.requires_grad_(),),
    )


def test_ignored_pixels_do_not_count(golden_dense: Maps):
    student, teacher = golden_dense["ps"].clone().requires_grad_(), golden_dense["pt"].clone()
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    kept = labels != 2
    value = pixel_wise(student, teacher, weight=kept)
    (grad,) = torch.autograd.grad(value, student)
    assert torch.equal(grad.abs().amax(1) > 0, kept)
    rows = [z.detach().movedim(1, -1)[kept] for z in (student, teacher)]
    torch.testing.assert_close(value, kl_div(rows[1], rows[0]))


def test_opposite_certainties_give_their_difference():
    student = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1).requires_grad_()
    value = pixel_wise(student, -student.detach())
    value.backward()
    assert value.item() == 2e4
    assert student.grad is not None and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("options", [{"divergence": "kl"}, {"temperature": 0.0}])
def test_bad_options(options: dict):
    maps = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ConfigError, match=next(iter(options))):
        PixelWise(**options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        pixel_wise(maps, maps, **options)


def test_a_single_class_is_refused():
    maps = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ShapeError, match="at least 2"):
        pixel_wise(maps, maps)
