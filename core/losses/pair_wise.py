"""Pair-wise distillation: how alike the positions of a map are (Liu et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ._gram import gram_distance, same_positions
from ._reduction import check_choice, full_precision, weighted_mean

Pooling = Literal["avg", "max"]
Norm = Literal["exact", "detached"]


def pair_wise(
    student: Tensor,
    teacher: Tensor,
    *,
    patch: int | float | None = None,
    pooling: Pooling = "avg",
    norm: Norm = "exact",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Squared difference of the cosine similarities of all pairs of positions.

    .. math:: L = \frac{1}{N^2} \sum_{i,j} (a^s_{ij} - a^t_{ij})^2, \qquad
        a_{ij} = \frac{f_i^\top f_j}{\lVert f_i \rVert \lVert f_j \rVert}

    over the N nodes of a map, averaged over the samples. A node is a position, or with `patch` the
    pooled patch of positions. A node of zeros is similar to nothing, itself included, and gets no
    gradient.

    The paper's formula goes over positions. Its published code takes the maximum over patches of
    half the map and treats the norms as constants in the gradient: `patch=0.5, pooling="max",
    norm="detached"` gives its values and gradients, with no factor between. Detached norms leave a
    part of the gradient that only stretches the features, more than twice as large as the exact
    gradient itself on random maps; hence they are an option.

    The N x N similarities of large maps are never held. The gradient is computed by hand, without
    second derivatives. With float32, more positions than channels and different widths, the value
    has an absolute error of some 1e-8 where student and teacher nearly agree; its gradient
    keeps its digits. Where TF32 is switched on for matrix products it applies here too.

    Args:
        student: (B, C_s, H, W).
        teacher: (B, C_t, H, W); the channels may differ.
        patch: Side of the square patches, in positions (an int) or as a fraction of either side
            of the map (a float up to 1.0, which makes the value independent of the size of a map
            that is scaled). Patches at the edge may be smaller. None: every position is a node.
        pooling: `"avg"`, or `"max"` as in the published code.
        norm: `"exact"`, or `"detached"` for the gradient of the code.
        weight: One number a sample, (B,).
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar from 0 to 4, without a unit.

    Raises:
        ShapeError: If batch, height or width differ, or there are no channels.
        ConfigError: If the patch is no whole number >= 1 and no fraction of (0, 1], or `pooling`
            or `norm` is unknown.

    Reference:
        Liu et al.: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019,
        "pair-wise distillation" (arXiv 1903.04197).

    Lecture:
        Semantic segmentation

    When it helps:
        Which pixels belong together carries over to a small network even where its features
        cannot follow the teacher's one by one; usually beside a pixel-wise term.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # both positions alike
        >>> teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # at right angles
        >>> round(pair_wise(student, teacher).item(), 4)
        0.5
        >>> pair_wise(student, teacher, patch=1.0).item() < 1e-6
        True
    """
    _check_options(patch, pooling, norm)
    with full_precision(student):
        student, teacher = same_positions(student, teacher)
        s, t = (_nodes(feature, patch, pooling).flatten(2) for feature in (student, teacher))
        scale = 1 / max(s.shape[2], 1)
        values = gram_distance(s, t, scales=(scale, scale), axis=1, detach_norm=norm == "detached")
        return weighted_mean(values, weight, total)


def _check_options(patch: int | float | None, pooling: str, norm: str) -> None:
    check_choice("pooling", pooling, get_args(Pooling))
    check_choice("norm", norm, get_args(Norm))
    if patch is not None:
        fits = 0 < patch <= 1 if isinstance(patch, float) else patch >= 1
        if not fits:
            raise ConfigError(
                "patch must be a number of positions (an int >= 1), a fraction of the map (a float "
                f"above 0 and up to 1.0) or None, got {patch!r}."
            )


def _nodes(feature: Tensor, patch: int | float | None, pooling: Pooling) -> Tensor:
    if patch is None or patch == 1 and isinstance(patch, int):
        return feature
    sides = feature.shape[2:]
    if isinstance(patch, float):
        kernel = [max(1, int(side * patch)) for side in sides]
    else:
        kernel = [max(1, min(side, patch)) for side in sides]
    pool = F.avg_pool2d if pooling == "avg" else F.max_pool2d
    return pool(feature, kernel, kernel, ceil_mode=True)


class PairWise(nn.Module):
    """Module form of :func:`pair_wise`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = PairWise(patch=0.5)
        >>> round(loss(torch.ones(1, 3, 4, 4), -torch.ones(1, 5, 4, 4)).item(), 6)
        0.0
    """

    any_channels: ClassVar[bool] = True
    per_position: ClassVar[bool] = False  # a weight is one a sample

    def __init__(
        self,
        *,
        patch: int | float | None = None,
        pooling: Pooling = "avg",
        norm: Norm = "exact",
    ) -> None:
        super().__init__()
        _check_options(patch, pooling, norm)
        self.patch = patch
        self.pooling: Pooling = pooling
        self.norm: Norm = norm

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return pair_wise(
            student,
            teacher,
            patch=self.patch,
            pooling=self.pooling,
            norm=self.norm,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"patch={self.patch}, pooling={self.pooling!r}, norm={self.norm!r}"
