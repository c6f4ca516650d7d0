"""Distances between two sets of feature vectors."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ....core.errors import ConfigError, DataError, ShapeError

__all__ = ["RunningStatistics", "Statistics", "frechet_distance", "kernel_distance"]

_BLOCK = 8192  # rows that are held at once: 128 MB of 2048 float64


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of feature vectors.

    Attributes:
        mean: float64, (D,).
        covariance: float64, (D, D), divided by the number of vectors less one.
        vectors: How many vectors there were; ``None`` where a file does not say.
        images: How many images they come from; ``None`` where a file does not say.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    vectors: int | None = None
    images: int | None = None

    @property
    def dims(self) -> int:
        """D, the length of a vector."""
        return len(self.mean)


class RunningStatistics:
    """Mean and covariance of vectors that arrive bit by bit, in float64.

    At most 8192 vectors are held; before there are more, the result is numpy's own, bit by bit.
    Beyond that, blocks of 8192 are merged by their means and scatters, whose sums do not cancel
    as plain sums of squares would. How the vectors arrive (batch size) does not change a bit.

    Args:
        dims: D, the length of a vector.

    Example:
        >>> running = RunningStatistics(2)
        >>> running.add([[0.0, 1.0], [2.0, 1.0]])
        >>> running.add([[4.0, 4.0]])
        >>> result = running.result()
        >>> result.mean.tolist(), result.covariance.tolist(), result.vectors
        ([2.0, 2.0], [[4.0, 3.0], [3.0, 3.0]], 3)
    """

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self._pending: list[NDArray[np.float64]] = []
        self._waiting = 0
        self._count = 0
        self._mean = np.zeros(dims)
        self._scatter = np.zeros((dims, dims))

    def add(self, vectors: ArrayLike | Tensor) -> None:
        """Add vectors, (N, D).

        Raises:
            ShapeError: If they are not (N, D).
        """
        if isinstance(vectors, Tensor):
            vectors = vectors.detach().cpu().numpy()
        rows = np.asarray(vectors, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dims:
            raise ShapeError(f"expected feature vectors (N, {self.dims}), got {rows.shape}.")
        while len(rows):
            taken = rows[: _BLOCK - self._waiting]
            rows = rows[len(taken) :]
            self._pending.append(taken)
            self._waiting += len(taken)
            if self._waiting == _BLOCK and len(rows):
                self._merge()

    def result(self, images: int | None = None) -> Statistics:
        """Return the statistics of all vectors so far.

        Args:
            images: How many images they come from; as many as vectors by default.

        Raises:
            DataError: If there are fewer than two vectors, or a number is not finite.
        """
        vectors = self._count + self._waiting
        images = vectors if images is None else images
        if vectors < 2 or images < 2:
            raise DataError(
                f"A covariance needs at least 2 images, got {images}. Give more images."
            )
        if self._count == 0:
            rows = np.concatenate(self._pending)
            mean = np.mean(rows, axis=0)
            covariance = np.atleast_2d(np.cov(rows, rowvar=False)).astype(np.float64)
        else:
            self._merge()
            mean, covariance = self._mean.copy(), self._scatter / (vectors - 1)
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise DataError(
                "Some features are NaN or infinite: the weights of the feature network are "
                "damaged, or it overflowed."
            )
        return Statistics(mean, covariance, vectors, images)

    def _merge(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._waiting = [], 0
        mean = rows.mean(axis=0)
        centred = rows - mean
        total = self._count + len(rows)
        apart = mean - self._mean
        self._scatter += centred.T @ centred
        self._scatter += np.outer(apart, apart) * (self._count * len(rows) / total)
        self._mean = self._mean + apart * (len(rows) / total)
        self._count = total


def frechet_distance(real: Statistics, fake: Statistics) -> float:
    r"""Frechet distance between the normal distributions with these statistics.

    .. math:: |\mu_r - \mu_f|^2 + \operatorname{tr}(C_r + C_f - 2 (C_r C_f)^{1/2})

    Computed by ``pytorch_fid``. Rounding may leave a value slightly below 0 for equal sets.

    Args:
        real: Of the reference.
        fake: Of what is judged.

    Warns:
        UserWarning: If there are not more vectors than D: a covariance is singular then, and
            the figure too high. It falls with the number of images, so that only figures of
            equally large sets can be compared.

    Raises:
        ShapeError: If the dimensions differ.
        DataError: If a covariance has negative eigenvalues.

    Example:
        >>> import numpy as np
        >>> unit = Statistics(np.zeros(2), np.eye(2))
        >>> round(frechet_distance(unit, Statistics(np.array([3.0, 0.0]), 4 * np.eye(2))), 6)
        11.0
    """
    if real.dims != fake.dims:
        raise ShapeError(
            f"the reference has features of {real.dims} dimensions, the other set of {fake.dims}. "
            "Make both with the same network and dims."
        )
    few = [
        f"{statistics.vectors} of the {name} set"
        for name, statistics in (("real", real), ("fake", fake))
        if statistics.vectors is not None and statistics.vectors <= statistics.dims
    ]
    if few:
        warnings.warn(
            f"There are fewer feature vectors ({', '.join(few)}) than it takes for {real.dims} "
            "dimensions: a covariance is singular and the figure biased upwards. Use more than "
            f"{real.dims} images, fewer dims, or compare only figures of equally large sets.",
            stacklevel=2,
        )
    from pytorch_fid.fid_score import calculate_frechet_distance

    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        # pytorch_fid uses an argument of scipy's sqrtm that is on its way out.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            value = calculate_frechet_distance(
                real.mean, real.covariance, fake.mean, fake.covariance
            )
        except ValueError as error:
            # Of singular covariances (few images) rounding alone may give the root of the product
            # an imaginary part. By a symmetric form it has none.
            value = _by_symmetric_root(real, fake, str(error))
    if message := said.getvalue().strip():
        warnings.warn(message, stacklevel=2)
    return float(value)


def _by_symmetric_root(real: Statistics, fake: Statistics, reason: str) -> float:
    """The distance with ``tr (C_r C_f)^(1/2)`` as the trace of ``(C_r^(1/2) C_f C_r^(1/2))^(1/2)``.

    The two products have the same eigenvalues; the second one is symmetric, so that they are real.
    """
    values, vectors = np.linalg.eigh(real.covariance)
    for eigenvalues in (values, np.linalg.eigvalsh(fake.covariance)):
        if eigenvalues.min() < -1e-6 * abs(eigenvalues).max():
            raise DataError(
                f"The Frechet distance of these statistics cannot be computed ({reason}): a "
                f"covariance has the eigenvalue {eigenvalues.min():.3g} and so is none. Make the "
                "statistics again from the images."
            )
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ fake.covariance @ root)
    apart = real.mean - fake.mean
    traces = np.trace(real.covariance) + np.trace(fake.covariance)
    return float(apart @ apart + traces - 2 * np.sqrt(inner.clip(min=0)).sum())


def kernel_distance(
    real: ArrayLike | Tensor,
    fake: ArrayLike | Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Unbiased squared maximum mean discrepancy with a polynomial kernel, as in the KID.

    .. math:: k(x, y) = (\gamma\, x^\top y + c)^{degree}

    The mean over random subsets, in float64. It has no bias from the number of images (and so may
    come out below 0 for equal sets), unlike the Frechet distance.

    Args:
        real: Features of the reference, one vector an image, (N, D).
        fake: Features of what is judged, (M, D).
        subsets: How many subsets are drawn; 100 in the paper.
        subset_size: Images a subset; 1000 in the paper. At most as many as the smaller set has.
        degree: Of the kernel; 3 in the paper.
        gamma: Of the kernel; 1 / D in the paper and by default.
        coef: c of the kernel; 1 in the paper.
        seed: Of the subsets: the same images in the same order give the same figure.

    Returns:
        Mean and standard deviation over the subsets. Where every subset holds all images of
        both sets, one is enough, and the deviation is 0.

    Raises:
        ShapeError: If the features are not (N, D) and (M, D).
        DataError: If a set has fewer than two images.
        ConfigError: If a number is out of range.

    Reference:
        Binkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, ICLR 2018 (arXiv 1801.01401).

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> kernel_distance(x, x + 1)
        (9.5, 0.0)
    """
    from torchmetrics.image.kid import poly_mmd

    first, second = (torch.as_tensor(x).detach().cpu().double() for x in (real, fake))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ShapeError(
            "expected features (N, D) and (M, D), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    if min(len(first), len(second)) < 2:
        raise DataError(
            f"A kernel distance needs at least 2 images a set, got {len(first)} and {len(second)}."
        )
    if subsets < 1 or subset_size < 2 or degree < 1 or (gamma is not None and gamma <= 0):
        raise ConfigError(
            "subsets and degree must be at least 1, subset_size at least 2 and gamma positive, got "
            f"subsets={subsets}, degree={degree}, subset_size={subset_size}, gamma={gamma}."
        )
    size = min(subset_size, len(first), len(second))
    if size == len(first) == len(second):
        subsets = 1
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        chosen = [x[torch.randperm(len(x), generator=generator)[:size]] for x in (first, second)]
        values.append(poly_mmd(chosen[0], chosen[1], degree, gamma, coef))
    stacked = torch.stack(values)
    return stacked.mean().item(), stacked.std(unbiased=False).item()
