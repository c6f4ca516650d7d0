from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")
pytest.importorskip("torchmetrics")

from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from taskdistill.core.errors import ConfigError, DataError, ShapeError
from taskdistill.tasks.gan.metrics import frechet
from taskdistill.tasks.gan.metrics.frechet import (
    RunningStatistics,
    Statistics,
    frechet_distance,
    kernel_distance,
)


def statistics(rows: np.ndarray, batch: int = 7) -> Statistics:
    running = RunningStatistics(rows.shape[1])
    for start in range(0, len(rows), batch):
        running.add(rows[start : start + batch])
    return running.result()


# -- statistics ------------------------------------------------------------------------------------


def test_few_vectors_give_numpys_numbers_bit_by_bit():
    rows = np.random.default_rng(0).normal(5, 2, (100, 9)).astype(np.float32)
    result = statistics(rows)
    assert (result.vectors, result.images, result.dims) == (100, 100, 9)
    # As pytorch_fid has them: float32 features in a float64 array.
    assert np.array_equal(result.mean, np.mean(rows.astype(np.float64), axis=0))
    assert np.array_equal(result.covariance, np.cov(rows.astype(np.float64), rowvar=False))


@given(
    count=st.integers(2, 40),
    dims=st.integers(1, 5),
    block=st.integers(1, 15),
    batch=st.integers(1, 9),
)
def test_blocks_change_nothing(count: int, dims: int, block: int, batch: int):
    rows = np.random.default_rng(count).normal(1000, 1, (count, dims))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "_BLOCK", block)
        result = statistics(rows, batch)
        assert np.array_equal(result.covariance, statistics(rows, batch + 1).covariance)
    assert result.vectors == count
    np.testing.assert_allclose(result.mean, rows.mean(0), rtol=1e-12)
    expected = np.atleast_2d(np.cov(rows, rowvar=False))
    np.testing.assert_allclose(result.covariance, expected, rtol=1e-8, atol=1e-10)


def test_no_more_than_a_block_is_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frechet, "_BLOCK", 16)
    running = RunningStatistics(3)
    rows = np.random.default_rng(0).normal(size=(1000, 3))
    for start in range(0, 1000, 50):
        running.add(rows[start : start + 50])
        assert sum(map(len, running._pending)) <= 16
    np.testing.assert_allclose(running.result().covariance, np.cov(rows, rowvar=False), rtol=1e-10)


def test_a_result_is_no_end():
    rows = np.random.default_rng(0).normal(size=(30, 3))
    running = RunningStatistics(3)
    running.add(rows[:20])
    assert running.result().vectors == 20
    running.add(torch.from_numpy(rows[20:]))
    np.testing.assert_allclose(running.result().mean, rows.mean(0))


def test_large_means_do_not_cancel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frechet, "_BLOCK", 10)
    rows = 1e8 + np.arange(40.0)[:, None]
    assert statistics(rows).covariance.item() == pytest.approx(np.var(np.arange(40), ddof=1))


@pytest.mark.parametrize("count", [0, 1])
def test_one_image_has_no_covariance(count: int):
    running = RunningStatistics(2)
    running.add(np.zeros((count, 2)))
    with pytest.raises(DataError, match=f"at least 2 images, got {count}"):
        running.result()


def test_one_image_of_many_vectors_is_still_one():
    running = RunningStatistics(2)
    running.add(np.zeros((16, 2)))
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        running.result(images=1)


def test_features_that_are_no_numbers():
    running = RunningStatistics(1)
    running.add([[0.0], [math.nan]])
    with pytest.raises(DataError, match="NaN or infinite"):
        running.result()


@pytest.mark.parametrize("shape", [(3,), (3, 5), (1, 3, 4)])
def test_vectors_of_another_length(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match=r"expected feature vectors \(N, 4\), got"):
        RunningStatistics(4).add(np.zeros(shape))


# -- Frechet distance ------------------------------------------------------------------------------


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Statistics:
    return Statistics(mean, covariance)


def test_frechet_distance_of_diagonal_gaussians():
    random = np.random.default_rng(0)
    m, n, s, t = random.uniform(0.5, 2, (4, 6))
    expected = ((m - n) ** 2 + (s - t) ** 2).sum()
    real, fake = gaussian(m, np.diag(s**2)), gaussian(n, np.diag(t**2))
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_equal_sets_is_zero_and_else_symmetric():
    random = np.random.default_rng(0)
    a, b = (statistics(random.normal(size=(60, 8)) * scale) for scale in (1.0, 3.0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, b) > 10


def test_a_rotation_changes_nothing():
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(5, 5)))[0]
    rows, others = random.normal(size=(50, 5)), random.normal(1, 2, (50, 5))
    turned = frechet_distance(statistics(rows @ rotation), statistics(others @ rotation))
    assert turned == pytest.approx(frechet_distance(statistics(rows), statistics(others)))


def test_too_few_images_are_told():
    random = np.random.default_rng(0)
    few, enough = (statistics(random.normal(size=(n, 8))) for n in (8, 9))
    with pytest.warns(UserWarning, match=r"\(8 of the fake set\).* singular .* more than 8 images"):
        frechet_distance(enough, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(enough, enough)


def test_different_dimensions():
    a, b = (gaussian(np.zeros(d), np.eye(d)) for d in (2, 3))
    with pytest.raises(ShapeError, match="2 dimensions, the other set of 3"):
        frechet_distance(a, b)


def test_a_root_that_rounding_made_complex_is_taken_symmetrically(monkeypatch):
    """Whether it does depends on the processor, so the refusal is played."""
    random = np.random.default_rng(0)
    real, fake = (statistics(random.normal(size=(9, 8)) * scale) for scale in (1.0, 3.0))
    expected = frechet_distance(real, fake)
    # Singular, as where it happens. Three times the vectors have three times mean and deviation.
    few = random.normal(size=(5, 8))
    one, three = statistics(few), statistics(3 * few)
    apart = 4 * (one.mean @ one.mean + np.trace(one.covariance))

    def refuse(*args: object) -> float:
        raise ValueError("Imaginary component 0.01")

    monkeypatch.setattr("pytorch_fid.fid_score.calculate_frechet_distance", refuse)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    with pytest.warns(UserWarning, match="5 of the real set"):
        assert frechet_distance(one, three) == pytest.approx(apart, rel=1e-6)


def test_what_pytorch_fid_cannot_compute_is_told():
    negative = np.diag([1.0, -1.0])  # no covariance
    with pytest.raises(DataError, match="Imaginary component"):
        frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(2), negative))


# -- kernel distance -------------------------------------------------------------------------------


def test_kernel_distance_by_its_definition():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)), random.normal(1, 1, (6, 3))

    def mean_of(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(6) for j in range(6) if not (same and i == j)]
        return float(np.mean([(a[i] @ b[j] / 3 + 1) ** 3 for i, j in pairs]))

    expected = mean_of(x, x, True) + mean_of(y, y, True) - 2 * mean_of(x, y, False)
    value, deviation = kernel_distance(x, y)
    assert value == pytest.approx(expected, rel=1e-10)
    assert deviation == 0


def test_kernel_distance_equals_torchmetrics():
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64) + 0.5
    metric = KernelInceptionDistance(torch.nn.Identity(), subsets=7, subset_size=20)
    metric.set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    torch.manual_seed(3)
    mean, deviation = (value.item() for value in metric.compute())
    ours = kernel_distance(x, y, subsets=7, subset_size=20, seed=3)
    assert ours == pytest.approx((mean, deviation), rel=1e-9)
    assert deviation > 0


def test_kernel_distance_depends_on_the_seed_alone():
    x, y = torch.randn(40, 5), torch.randn(30, 5)
    options = {"subsets": 3, "subset_size": 10}
    first = kernel_distance(x, y, **options)
    torch.rand(5)  # moves the global generator
    assert kernel_distance(x, y, **options) == first
    assert kernel_distance(x, y, **options, seed=1) != first


def test_subsets_are_no_larger_than_the_smaller_set():
    x, y = torch.randn(40, 5).double(), torch.randn(10, 5).double()
    value, deviation = kernel_distance(x, y, subsets=50)
    assert deviation > 0  # 10 of 40 are drawn
    assert abs(value - kernel_distance(x, y, subsets=50, subset_size=10)[0]) == 0
    z = torch.randn(10, 5).double()
    assert kernel_distance(z, y)[0] == pytest.approx(poly_mmd(z, y).item())


def test_kernel_distance_is_unbiased():
    """Of equal distributions it is 0 on average, whatever the size."""
    values = [kernel_distance(torch.randn(8, 4), torch.randn(8, 4))[0] for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)
    assert min(values) < 0 < max(values)


def test_kernel_distance_errors():
    x = torch.randn(4, 3)
    with pytest.raises(DataError, match="at least 2 images a set, got 1 and 4"):
        kernel_distance(x[:1], x)
    with pytest.raises(ShapeError, match=r"got \(4, 3\) and \(4, 2\)"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ShapeError, match="expected features"):
        kernel_distance(x[0], x)
    for wrong in ({"subsets": 0}, {"subset_size": 1}, {"degree": 0}, {"gamma": 0.0}):
        with pytest.raises(ConfigError, match="subset_size at least 2"):
            kernel_distance(x, x, **wrong)
