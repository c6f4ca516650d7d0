from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.adapters import ADAPTERS, Adapter, describe, make_adapter
from taskdistill.core.errors import ConfigError, ShapeError

channels = st.integers(1, 6)
sides = st.integers(1, 9)


def grid_of_places(height: int, width: int) -> Tensor:
    """A map whose every cell holds its own number, ``(1, 1, H, W)``."""
    return torch.arange(float(height * width)).reshape(1, 1, height, width)


def as_tokens(grid: Tensor, class_token: bool = False) -> Tensor:
    """``(B, C, H, W)`` as ``(B, N, C)``, row by row, -1 in the class token."""
    tokens = grid.flatten(2).transpose(1, 2)
    extra = tokens.new_full((len(tokens), 1, tokens.shape[-1]), -1.0)
    return torch.cat([extra, tokens], 1) if class_token else tokens


# -- shapes ----------------------------------------------------------------------------------------


@given(st.integers(1, 3), channels, channels, sides, sides, sides, sides, st.sampled_from(ADAPTERS))
def test_maps_meet_at_the_teacher_s_channels_and_the_smaller_size(
    batch: int, ours: int, theirs: int, h: int, w: int, th: int, tw: int, kind: str
):
    student, teacher = torch.randn(batch, ours, h, w), torch.randn(batch, theirs, th, tw)
    if kind == "none" and ours != theirs:
        with pytest.raises(ShapeError, match=f"{ours} channels, teacher {theirs}"):
            make_adapter(student, teacher, kind)
        return
    adapter = make_adapter(student, teacher, kind)
    s, t = adapter(student, teacher)
    assert s.shape == t.shape == (batch, theirs, min(h, th), min(w, tw))
    if kind == "conv3x3":
        assert isinstance(adapter.project, nn.Conv2d) and adapter.project.kernel_size == (3, 3)
    projects = kind.startswith("conv") or (kind == "auto" and ours != theirs)
    assert (len(list(adapter.parameters())) > 0) == projects


@given(st.integers(1, 3), channels, channels, st.integers(1, 5), st.booleans())
def test_vectors_and_tokens(batch: int, ours: int, theirs: int, length: int, tokens: bool):
    shape = (batch, length) if tokens else (batch,)
    student, teacher = torch.randn(*shape, ours), torch.randn(*shape, theirs)
    s, t = make_adapter(student, teacher)(student, teacher)
    assert s.shape == (*shape, theirs)
    assert t is teacher


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.booleans())
def test_tokens_are_laid_out_in_the_place_they_have(
    h: int, w: int, finer: int, class_token: bool, teacher_has_tokens: bool
):
    # Tokens of a map `finer` times as large in both directions, pooled to the size of the grid.
    large = grid_of_places(h * finer, w * finer)
    tokens, grid = as_tokens(large, class_token), F.avg_pool2d(large, finer)
    student, teacher = (grid, tokens) if teacher_has_tokens else (tokens, grid)
    s, t = make_adapter(student, teacher)(student, teacher)
    torch.testing.assert_close(s, t)
    torch.testing.assert_close(s, grid)


def test_tokens_of_other_channels_become_a_projected_grid():
    student, teacher = torch.randn(2, 50, 6), torch.randn(2, 8, 14, 14)
    adapter = make_adapter(student, teacher)
    s, t = adapter(student, teacher)
    assert isinstance(adapter.project, nn.Conv2d)
    assert s.shape == t.shape == (2, 8, 7, 7)


# -- values ----------------------------------------------------------------------------------------


def test_equal_shapes_are_compared_as_they_are():
    student, teacher = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    s, t = make_adapter(student, teacher)(student, teacher)
    assert s is student and t is teacher


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_averaged(larger: str):
    big, small = torch.randn(2, 4, 8, 6), torch.randn(2, 4, 4, 3)
    pair = (big, small) if larger == "student" else (small, big)
    s, t = make_adapter(*pair)(*pair)
    pooled, kept = (s, t) if larger == "student" else (t, s)
    torch.testing.assert_close(pooled, F.avg_pool2d(big, 2))
    torch.testing.assert_close(kept, small)


def test_conv1x1_is_the_same_linear_map_everywhere():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    adapter = make_adapter(student, teacher)
    assert isinstance(adapter.project, nn.Conv2d) and adapter.project.bias is not None
    weight = adapter.project.weight[:, :, 0, 0]
    expected = torch.einsum("oc,bchw->bohw", weight, student)
    expected = expected + adapter.project.bias[:, None, None]
    torch.testing.assert_close(adapter(student, teacher)[0], expected)


def test_only_the_student_s_side_is_projected():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    teacher = torch.randn(2, 5, 4, 4)
    adapter = make_adapter(student, teacher)
    s, t = adapter(student, teacher)
    assert t is teacher
    s.sum().backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert all(p.grad is not None for p in adapter.parameters())


# -- what cannot be related ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 4), (2, 4, 3, 3)),
        ((2, 4), (2, 7, 4)),
        ((2, 5, 4), (2, 4)),
        ((2,), (2,)),
        ((2, 3, 4, 4, 4), (2, 3, 4, 4, 4)),
        ((2, 7, 4), (2, 4, 3, 3)),
        ((2, 4, 3, 3), (2, 11, 4)),
    ],
)
def test_the_error_names_both_shapes(student: tuple[int, ...], teacher: tuple[int, ...]):
    with pytest.raises(ShapeError) as caught:
        make_adapter(torch.zeros(student), torch.zeros(teacher))
    assert str(student) in str(caught.value) and str(teacher) in str(caught.value)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
def test_no_token_is_invented_or_lost_but_a_class_token(count: int, h: int, w: int):
    tokens, grid = torch.arange(float(count)).reshape(1, count, 1), torch.zeros(1, 1, h, w)
    try:
        adapter = make_adapter(tokens, grid)
    except ShapeError:
        return
    s, _ = adapter(tokens, torch.zeros(1, 1, 60 * h, 60 * w))  # larger: tokens are not pooled
    assert s.numel() in (count, count - 1)
    assert s.flatten().tolist() == list(range(count - s.numel(), count))


def test_sequences_of_different_length():
    with pytest.raises(ShapeError, match="5 tokens, teacher 7.*tokenizer"):
        make_adapter(torch.zeros(2, 5, 4), torch.zeros(2, 7, 4))


def test_batches_of_different_size():
    student, teacher = torch.zeros(2, 4, 3, 3), torch.zeros(3, 4, 3, 3)
    with pytest.raises(ShapeError, match=r"\(2, 4, 3, 3\).*\(3, 4, 3, 3\)"):
        make_adapter(student, teacher)(student, teacher)


@pytest.mark.parametrize("shape", [(2, 4), (2, 5, 4)])
def test_a_3x3_window_needs_a_grid(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match="needs a grid.*conv1x1"):
        make_adapter(torch.zeros(shape), torch.zeros(shape), "conv3x3")


def test_unknown_kind_offers_the_nearest():
    with pytest.raises(ConfigError, match="'conv1x2'.*Did you mean 'conv1x1'"):
        Adapter(3, 4, 4, "conv1x2")


# -- the log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        ((1, 4, 3, 3), (1, 4, 3, 3), "compared as they are"),
        ((1, 4, 3, 3), (1, 8, 3, 3), "projected by Conv2d(4, 8"),
        ((1, 4, 6, 6), (1, 4, 3, 3), "the larger map pooled to the smaller"),
        ((1, 9, 4), (1, 4, 3, 3), "tokens laid out as a grid"),
    ],
)
def test_says_what_it_does(student: tuple[int, ...], teacher: tuple[int, ...], said: str):
    tensors = torch.zeros(student), torch.zeros(teacher)
    line = describe(make_adapter(*tensors), *tensors)
    assert said in line and str(student) in line and str(teacher) in line
