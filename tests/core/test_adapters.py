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
POOLING = [kind for kind in ADAPTERS if not kind.startswith("fitnets")]


def grid_of_places(height: int, width: int) -> Tensor:
    """A map whose every cell holds its own number, ``(1, 1, H, W)``."""
    return torch.arange(float(height * width)).reshape(1, 1, height, width)


def as_tokens(grid: Tensor, class_token: bool = False) -> Tensor:
    """``(B, C, H, W)`` as ``(B, N, C)``, row by row, -1 in the class token."""
    tokens = grid.flatten(2).transpose(1, 2)
    extra = tokens.new_full((len(tokens), 1, tokens.shape[-1]), -1.0)
    return torch.cat([extra, tokens], 1) if class_token else tokens


# -- shapes ----------------------------------------------------------------------------------------


@given(st.integers(1, 3), channels, channels, sides, sides, sides, sides, st.sampled_from(POOLING))
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
    assert t.shape == (batch, theirs, min(h, th), min(w, tw))
    assert s.shape == (batch, ours if kind == "resize" else theirs, *t.shape[2:])
    if kind == "conv3x3":
        assert isinstance(adapter.project, nn.Conv2d) and adapter.project.kernel_size == (3, 3)
    projects = kind.startswith(("conv", "sliced")) or (kind == "auto" and ours != theirs)
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


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((2, 3), (2, 5)), ((2, 7, 3), (2, 7, 5)), ((2, 50, 6), (2, 8, 14, 14))],
)
def test_resizing_alone_leaves_the_channels(ours: tuple[int, ...], theirs: tuple[int, ...]):
    student, teacher = torch.randn(ours), torch.randn(theirs)
    adapter = make_adapter(student, teacher, "resize")
    s, t = adapter(student, teacher)
    assert not list(adapter.parameters())
    channel = -1 if s.ndim == 3 else 1
    assert s.shape[channel] == ours[-1] and t.shape[channel] == teacher.shape[channel]
    assert s.movedim(channel, 0)[0].shape == t.movedim(channel, 0)[0].shape
    with pytest.raises(ShapeError, match="After the adapter"):
        adapter(student[:1], teacher)


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


# -- the regressor of FitNets ----------------------------------------------------------------------


@given(st.integers(1, 3), channels, channels, sides, sides, sides, sides)
def test_a_fitnets_regressor_meets_the_teacher_s_size_exactly(
    batch: int, ours: int, theirs: int, h: int, w: int, th: int, tw: int
):
    student = torch.randn(batch, ours, max(h, th), max(w, tw))
    teacher = torch.randn(batch, theirs, th, tw)
    for kind in ("fitnets", "fitnets_relu"):
        s, t = make_adapter(student, teacher, kind)(student, teacher)
        assert t is teacher and s.shape == teacher.shape
        assert kind == "fitnets" or s.min() >= 0


@given(st.integers(2, 6), channels, st.booleans())
def test_sliced_serves_the_first_channels_of_the_widest_student(widest, theirs, tokens):
    shape = (2, 5) if tokens else (2,)
    tail = () if tokens else (4, 3)
    teacher = torch.randn(*shape, theirs, *tail)
    student = torch.randn(*shape, widest, *tail)
    adapter = make_adapter(student, teacher, "sliced")
    axis = len(shape)
    for width in range(1, widest + 1):
        narrow = student.narrow(axis, 0, width)
        wide = torch.zeros_like(student)
        wide.narrow(axis, 0, width).copy_(narrow)
        # The channels that are not there count as 0.
        torch.testing.assert_close(adapter(narrow, teacher)[0], adapter(wide, teacher)[0])
    with pytest.raises(ShapeError, match=f"made for {widest} channels, got {widest + 1}"):
        adapter(torch.randn(*shape, widest + 1, *tail), teacher)


def test_the_fitnets_window_is_as_small_as_it_can_be():
    student, teacher = torch.randn(2, 3, 9, 7), torch.randn(2, 5, 6, 7)
    convolution = make_adapter(student, teacher, "fitnets").project
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.kernel_size == (4, 1) and convolution.padding == (0, 0)
    # At one size it is the 1x1 map of the other kinds.
    same = make_adapter(student, torch.randn(2, 5, 9, 7), "fitnets").project
    assert isinstance(same, nn.Conv2d) and same.kernel_size == (1, 1)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "window"),
    [
        ((8, 6), (4, 3), nn.Conv2d, (3, 3)),
        ((7, 5), (4, 3), nn.Conv2d, (3, 3)),
        ((4, 3), (8, 6), nn.ConvTranspose2d, (4, 4)),
        ((8, 6), (6, 3), nn.Conv2d, (3, 4)),
    ],
)
def test_the_strided_regressor(
    student: tuple[int, int], teacher: tuple[int, int], kind: type, window: tuple[int, int]
):
    s, t = torch.randn(2, 3, *student), torch.randn(2, 5, *teacher)
    adapter = make_adapter(s, t, "fitnets_stride")
    assert isinstance(adapter.project, kind) and adapter.project.kernel_size == window
    s, t = adapter(s, t)
    assert s.shape == t.shape == (2, 5, *teacher)


def test_a_fitnets_regressor_takes_tokens_laid_out_as_a_grid():
    student, teacher = torch.randn(2, 65, 3), torch.randn(2, 5, 4, 4)
    s, _ = make_adapter(student, teacher, "fitnets")(student, teacher)
    assert s.shape == (2, 5, 4, 4)


@pytest.mark.parametrize("kind", ["fitnets", "fitnets_relu", "fitnets_stride"])
def test_a_regressor_cannot_enlarge(kind: str):
    student, teacher = torch.zeros(1, 3, 4, 9), torch.zeros(1, 3, 5, 9)
    with pytest.raises(ShapeError, match=r"\(4, 9\) to the teacher's \(5, 9\).*conv1x1"):
        make_adapter(student, teacher, kind)


def test_a_regressor_says_that_it_fits_one_size():
    adapter = make_adapter(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 5, 5), "fitnets")
    with pytest.raises(ShapeError, match="adapter='fitnets' fits one size of input only"):
        adapter(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 10, 10))


def test_a_regressor_needs_sizes():
    with pytest.raises(ConfigError, match="is made for sizes"):
        Adapter(3, 4, 4, "fitnets")


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


@pytest.mark.parametrize("kind", ["conv3x3", "fitnets"])
@pytest.mark.parametrize("shape", [(2, 4), (2, 5, 4)])
def test_a_window_needs_a_grid(shape: tuple[int, ...], kind: str):
    with pytest.raises(ShapeError, match=f"{kind}.*needs a grid.*conv1x1"):
        make_adapter(torch.zeros(shape), torch.zeros(shape), kind)


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


def test_does_not_speak_of_pooling_where_a_regressor_does_it():
    tensors = torch.zeros(1, 4, 6, 6), torch.zeros(1, 4, 3, 3)
    line = describe(make_adapter(*tensors, "fitnets"), *tensors)
    assert "projected by Conv2d(4, 4, kernel_size=(4, 4)" in line and "pooled" not in line
