from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taskdistill.core.distiller import Distiller
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import WeightMatching, weight_matching


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_weights_by_the_textbook():
    student, teacher, left, right = normal(3, 2), normal(5, 4), normal(5, 3), normal(2, 4)
    expected = 0.5 * torch.linalg.matrix_norm(teacher - left @ student @ right) ** 2 / 20
    torch.testing.assert_close(weight_matching(student, teacher, left=left, right=right), expected)


def test_every_place_of_a_kernel_is_mapped_alike():
    student, teacher, left, right = (
        normal(3, 2, 2, 3),
        normal(5, 4, 2, 3),
        normal(5, 3),
        normal(2, 4),
    )
    places = [
        weight_matching(student[:, :, i, j], teacher[:, :, i, j], left=left, right=right)
        for i in range(2)
        for j in range(3)
    ]
    value = weight_matching(student, teacher, left=left, right=right)
    torch.testing.assert_close(value, torch.stack(places).mean())


def test_gradients_reach_student_and_maps():
    student, left, right = (
        x.requires_grad_() for x in (normal(3, 2, 1, 2), normal(5, 3), normal(2, 4))
    )
    teacher = normal(5, 4, 1, 2)
    assert torch.autograd.gradcheck(
        lambda s, a, b: weight_matching(s, teacher, left=a, right=b), (student, left, right)
    )


def test_trained_maps_leave_nothing_to_teach_a_weight_of_full_rank():
    """The reason for the warning in the docstring."""
    student, teacher = normal(4, 4, seed=1), normal(4, 4, seed=2)
    left = teacher @ torch.linalg.inv(student)
    assert weight_matching(student, teacher, left=left).item() < 1e-20


def test_the_module_starts_by_passing_channels_on():
    loss = WeightMatching((3, 2, 3, 3), (5, 4, 3, 3)).double()
    student, teacher = normal(3, 2, 3, 3), normal(5, 4, 3, 3)
    padded = torch.zeros(5, 4, 3, 3, dtype=torch.float64)
    padded[:3, :2] = student
    torch.testing.assert_close(loss(student, teacher), weight_matching(padded, teacher))
    assert set(loss.state_dict()) == {"left", "right"}
    equal = WeightMatching((3, 2), (3, 2)).double()
    torch.testing.assert_close(
        equal(normal(3, 2), normal(3, 2, seed=1)),
        weight_matching(normal(3, 2), normal(3, 2, seed=1)),
    )


@pytest.mark.parametrize(
    ("student", "teacher", "maps", "message"),
    [
        ((3, 2), (5, 2), {}, r"student \(3, 2\) is mapped to \(3, 2\), but teacher is \(5, 2\)"),
        ((3, 2), (5, 2), {"left": (3, 5)}, r"left must be \(5, 3\), got \(3, 5\)"),
        ((3, 2), (3, 4), {"right": (4, 2)}, r"right must be \(2, 4\), got \(4, 2\)"),
        ((3, 2, 3, 3), (3, 2, 1, 1), {}, "kernels of one size"),
        ((3,), (3,), {}, r"student \(3,\) and teacher \(3,\)"),
    ],
)
def test_what_does_not_fit(
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    maps: dict[str, tuple[int, ...]],
    message: str,
):
    given = {name: torch.zeros(shape) for name, shape in maps.items()}
    with pytest.raises(ShapeError, match=message):
        weight_matching(torch.zeros(student), torch.zeros(teacher), **given)


def test_the_module_refuses_at_once():
    with pytest.raises(ShapeError, match="kernels of one size"):
        WeightMatching((3, 2, 3, 3), (3, 2, 5, 5))


def test_in_a_recipe_it_takes_its_shapes_from_the_weights():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3))
    line = dict(student="*@weight", loss="WeightMatching")
    distiller = Distiller(student, teacher, [line])
    images = torch.randn(2, 3, 8, 8)
    distiller.setup(student, lambda name: teacher, images)
    _, terms = distiller(images)
    (term,) = terms.values()
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        padded = torch.zeros_like(theirs.weight)
        kept = min(ours.weight.shape[1], theirs.weight.shape[1])
        padded[: len(ours.weight), :kept] = ours.weight[:, :kept].detach()
        values.append(weight_matching(padded, theirs.weight))
    torch.testing.assert_close(term.raw, torch.stack(values).mean())
    term.weighted.backward()
    assert student[1].weight.grad is not None
    # Two layers, two maps each, which are trained beside the student.
    assert len(distiller.partner_parameters()) == 4
    assert all(p.grad is not None for p in distiller.partner_parameters())


def test_in_a_recipe_no_adapter_may_stand_before_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    line = dict(student="0@weight", loss="WeightMatching", adapter="conv1x1")
    with pytest.raises(ConfigError, match="WeightMatching compares what it is given as it is"):
        Distiller(net, nn.Sequential(nn.Conv2d(3, 4, 3)), [line])


def test_without_shapes_it_cannot_be_called():
    with pytest.raises(DistillError, match="has no maps yet"):
        WeightMatching()(normal(3, 2), normal(3, 2))
    with pytest.raises(ConfigError, match="both weights, or of neither"):
        WeightMatching((3, 2))
