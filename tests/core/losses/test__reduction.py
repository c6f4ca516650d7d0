from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses._reduction import (
    check_choice,
    class_axis,
    compute_dtype,
    full_precision,
    matched_pair,
    resolve_axis,
    weighted_mean,
)


@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
)
def test_weighted_mean_is_the_quotient_of_two_sums(values: list[float], seed: int):
    weight = torch.rand(
        len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    weights = weight.tolist()
    expected = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    result = weighted_mean(torch.tensor(values, dtype=torch.float64), weight)
    assert result.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_rank_averages_add_up_to_the_average_of_the_whole():
    """Two ranks with different numbers of positions, and the total the docstring asks for."""
    values, weight = torch.rand(10), torch.rand(10)
    total = weight.sum() / 2
    ranks = [weighted_mean(values[p], weight[p], total) for p in (slice(0, 3), slice(3, 10))]
    torch.testing.assert_close(torch.stack(ranks).mean(), weighted_mean(values, weight))


def test_a_tensor_total_of_any_dtype_and_one_element_is_fine():
    values = torch.ones(4)
    assert weighted_mean(values, total=torch.tensor([8])).item() == 0.5


def test_a_nan_total_is_not_hidden():
    assert weighted_mean(torch.ones(4), total=torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize("total", [-1, float("inf"), float("nan")])
def test_total_out_of_range(total: float):
    with pytest.raises(ConfigError, match="total must be a finite number >= 0"):
        weighted_mean(torch.ones(2), total=total)


def test_matched_pair_names_both_shapes():
    with pytest.raises(ShapeError, match=r"student \(2, 3\) and teacher \(2, 1\).*adapter"):
        matched_pair(torch.ones(2, 3), torch.ones(2, 1))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float32, torch.float16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
    ],
)
def test_compute_dtype(dtypes: tuple[torch.dtype, torch.dtype], expected: torch.dtype):
    assert compute_dtype(*(torch.ones(1, dtype=dtype) for dtype in dtypes)) == expected


def test_full_precision_covers_matrix_products():
    """Elementwise losses would survive autocast; the next one with a product would not."""
    a = torch.rand(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(("dim", "axis"), [(1, 1), (-1, 3), (-4, 0)])
def test_resolve_axis(dim: int, axis: int):
    assert resolve_axis(torch.ones(2, 3, 4, 5), dim) == axis


@pytest.mark.parametrize("dim", [2, -3])
def test_resolve_axis_out_of_range(dim: int):
    with pytest.raises(ShapeError, match=rf"dim={dim} is no axis of a tensor of shape \(2, 3\)"):
        resolve_axis(torch.ones(2, 3), dim)


def test_softmax_over_one_class_is_an_error():
    with pytest.raises(ShapeError, match="use activation='sigmoid'"):
        class_axis(torch.ones(5, 1), 1, "softmax")
    assert class_axis(torch.ones(5, 1), 1, "sigmoid") == 1


def test_check_choice_offers_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'softmax'"):
        check_choice("activation", "sofmax", ("softmax", "sigmoid"))
