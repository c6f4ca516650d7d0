from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import FeatureImitation, feature_imitation


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 6, 5, 7, generator=generator, dtype=torch.float64)
    return student, teacher + 0.5 * student


def pearson(a: Tensor, b: Tensor) -> float:
    a, b = (x - x.mean() for x in (a.flatten(), b.flatten()))
    return (a @ b / (a.norm() * b.norm())).item()


@settings(deadline=None)
@given(
    shape=st.sampled_from([(3, 4), (2, 5, 3), (1, 3, 2, 4), (2, 1, 1, 1), (2, 3, 2, 2, 2)]),
    seed=st.integers(0, 10**6),
)
def test_is_the_mean_over_every_element(shape: tuple[int, ...], seed: int):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    differences = (student - teacher).flatten().tolist()
    expected = sum(d * d for d in differences) / len(differences)
    assert feature_imitation(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("keep", [False, True])
def test_a_binary_mask_selects_positions(maps: tuple[Tensor, Tensor], keep: bool):
    student, teacher = maps
    mask = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.6
    chosen = [x.movedim(1, -1)[mask] for x in maps]
    value = feature_imitation(student, teacher, mask=mask[:, None] if keep else mask)
    torch.testing.assert_close(value, feature_imitation(*chosen))


def test_token_and_map_layouts_agree(maps: tuple[Tensor, Tensor]):
    tokens = [x.flatten(2).mT for x in maps]
    mask = torch.rand(4, 5, 7, dtype=torch.float64)
    expected = feature_imitation(*maps, mask=mask)
    for shape in ((4, 35), (4, 35, 1)):
        value = feature_imitation(*tokens, mask=mask.reshape(shape))
        torch.testing.assert_close(value, expected)


def test_normalised_value_is_twice_the_pearson_distance(maps: tuple[Tensor, Tensor]):
    student, teacher = maps
    r = [pearson(student[:, c], teacher[:, c]) for c in range(student.shape[1])]
    value = feature_imitation(student, teacher, normalize="channel").item()
    assert value / 2 == pytest.approx(1 - sum(r) / len(r), abs=1e-9)


def test_normalised_value_ignores_scale_and_shift(maps: tuple[Tensor, Tensor]):
    student, teacher = maps
    scale = torch.linspace(0.1, 40, 6, dtype=torch.float64)[:, None, None]
    moved = feature_imitation(scale * student - 3, teacher / scale + 9, normalize="channel")
    torch.testing.assert_close(moved, feature_imitation(*maps, normalize="channel"))


def test_normalised_gradcheck(maps: tuple[Tensor, Tensor]):
    student, teacher = (x[:2, :2, :3, :2] for x in maps)
    mask = torch.rand(2, 3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: feature_imitation(s, teacher, mask=mask, normalize="channel"),
        (student.clone().requires_grad_(),),
        atol=1e-7,
        rtol=1e-6,
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_channel_has_no_pattern(constant: float, dtype: torch.dtype):
    """A dead channel must get no gradient, above all not one divided by its rounding."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 2, 9, 9, generator=generator, dtype=dtype)
    student[:, 0] = constant
    student.requires_grad_()
    value = feature_imitation(student, teacher, normalize="channel")
    value.backward()
    assert student.grad is not None
    assert student.grad[:, 0].abs().max() == 0 < student.grad[:, 1].abs().max() < 1
    # The other side has variance 1, so the channel adds 1 and the other twice its distance.
    distance = 2 * (1 - pearson(student.detach()[:, 1], teacher[:, 1]))
    assert value.item() == pytest.approx((1 + distance) / 2, rel=1e-4)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 3, 0, 4), (1, 3, 1, 1)])
def test_normalising_next_to_nothing(shape: tuple[int, ...]):
    student = torch.ones(shape, requires_grad=True)
    value = feature_imitation(student, torch.zeros(shape), normalize="channel")
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(shape))


def test_normalised_extremes_are_finite():
    student = torch.full((1, 2, 4, 4), 1e4)
    student[0, 0, 0, 0] = -1e4
    student.requires_grad_()
    value = feature_imitation(student, -student.detach(), normalize="channel")
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_the_plain_form_copies_neither_feature():
    """Features stay alive in the student's graph anyway: keep them by reference."""
    student, teacher = torch.randn(2, 2, 3, 4, 4)
    student.requires_grad_()
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() == student.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        feature_imitation(student, teacher)
    assert kept <= {x.untyped_storage().data_ptr() for x in (student, teacher)}


@pytest.mark.parametrize("shape", [(3,), ()])
def test_a_feature_needs_a_channel_axis(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match="a feature must be"):
        feature_imitation(torch.ones(shape), torch.ones(shape))


def test_a_feature_needs_channels():
    with pytest.raises(ShapeError, match="needs channels"):
        feature_imitation(torch.ones(2, 0, 3, 3), torch.ones(2, 0, 3, 3))


def test_a_mask_of_another_resolution_is_refused(maps: tuple[Tensor, Tensor]):
    with pytest.raises(ShapeError, match=r"\(4, 5, 7\), got \(4, 10, 14\)"):
        feature_imitation(*maps, mask=torch.ones(4, 10, 14))


def test_unknown_normalisation():
    with pytest.raises(ConfigError, match="Did you mean 'channel'"):
        FeatureImitation(normalize="channels")  # type: ignore
