"""Flow of solution procedure: Gram matrices between two layers (Yim et al. 2017)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ShapeError
from ._autograd import forbid_second_derivatives
from ._backend import plain
from ._reduction import check_choice, compute_dtype, full_precision, weighted_mean

Maps = tuple[Tensor, Tensor]
Pooling = Literal["max", "avg"]
Reduction = Literal["sum", "mean"]


def fsp(
    student: Maps,
    teacher: Maps,
    *,
    pooling: Pooling = "max",
    reduction: Reduction = "sum",
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Squared difference of the matrices that describe how one layer turns into another.

    .. math:: L = \sum_{i,j} (G^s_{ij} - G^t_{ij})^2, \qquad
        G_{ij} = \frac{1}{HW} \sum_{h,w} F^1_{ihw} F^2_{jhw}

    summed over the channels i of the first and j of the second map, averaged over the samples.
    Usually the two maps are what goes into and comes out of a stage. For several stages add
    several terms; the paper weights them equally.

    Where the two maps of a side differ in size, the larger one is pooled to the smaller: by the
    maximum in the paper, by the average in common codes (`pooling="avg"`). Those also take the mean
    over the C1 x C2 entries (`reduction="mean"`), which is 1 / (C1 * C2) times the paper's sum.

    The gradient is computed by hand, without second derivatives. It grows with the third power of
    the features: in float16 that of large ones is beyond what the type can hold, and infinite, as
    a gradient scaler expects to see it.

    Args:
        student: Two maps (B, C1, H, W) and (B, C2, H', W').
        teacher: Two maps with the channels of the student's; the sizes are free, since the
            matrices have no axis of space.
        pooling: `"max"` or `"avg"`, used only where the sizes of a side's two maps differ.
        reduction: `"sum"` (paper) or `"mean"` (codes) over the entries of the matrix.
        weight: One number a sample, (B,).
        total: Normaliser in place of `sum(weight)`, or of the number of samples.

    Returns:
        A scalar >= 0, in the fourth power of the unit of the features.

    Raises:
        ShapeError: If a side is not two maps of one batch, or batch or channels of the sides
            differ.
        ConfigError: If `pooling` or `reduction` is unknown.

    Reference:
        Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning, CVPR 2017, sections 3.2 and 3.3,
        equations 1 and 2.

    Lecture:
        Relational information

    When it helps:
        Student and teacher have the same widths but not the same depth. The paper initialises the
        student with this term alone and then trains it on the task.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 2, 4, 4)
        >>> fsp((one, one), (one, 3 * one)).item()  # (1 - 3)^2 at each of 2 x 2 entries
        16.0
        >>> fsp((one, one), (one, 3 * one), reduction="mean").item()
        4.0
        >>> pooled = one[:, :, ::2, ::2]
        >>> fsp((one, pooled), (one, one)).item()
        0.0
    """
    _check_options(pooling, reduction)
    _check_shapes(student, teacher)
    dtype = compute_dtype(*student, *teacher)
    with full_precision(student[0]):
        s1, s2 = _aligned(student[0].to(dtype), student[1].to(dtype), pooling)
        t1, t2 = _aligned(teacher[0].detach().to(dtype), teacher[1].detach().to(dtype), pooling)
        flow = _flow(s1, s2) if plain() else _Flow.apply(s1, s2)
        squares = (flow - _flow(t1, t2)).square()
        values = squares.sum((1, 2)) if reduction == "sum" else squares.mean((1, 2))
        return weighted_mean(values, weight, total)


def _check_options(pooling: str, reduction: str) -> None:
    check_choice("pooling", pooling, get_args(Pooling))
    check_choice("reduction", reduction, get_args(Reduction))


def _check_shapes(student: Maps, teacher: Maps) -> None:
    for name, maps in (("student", student), ("teacher", teacher)):
        if isinstance(maps, Tensor):
            raise ShapeError(
                f"{name} must be two maps, from the beginning and the end of a stage, got one "
                f"tensor of shape {tuple(maps.shape)}."
            )
        if len(maps) != 2 or any(m.ndim != 4 or m.shape[1] == 0 for m in maps):
            raise ShapeError(
                f"{name} must be two maps (B, C1, H, W) and (B, C2, H, W), got {_shapes(maps)}."
            )
    # The student's second map too, or one of another batch would only fail in the product.
    fits = len(student[1]) == len(student[0]) and all(
        s.shape[:2] == t.shape[:2] for s, t in zip(student, teacher, strict=True)
    )
    if not fits:
        raise ShapeError(
            "both maps of student and teacher must agree in batch and channels, got student "
            f"{_shapes(student)} and teacher {_shapes(teacher)}. Choose layers of equal widths, or "
            "bring the student's to the teacher's with a 1x1 convolution (an adapter)."
        )


def _shapes(maps: Maps) -> str:
    return " and ".join(str(tuple(m.shape)) for m in maps)


def _aligned(first: Tensor, second: Tensor, pooling: Pooling) -> Maps:
    """Pool the larger map to the size of the smaller, axis by axis; both as (B, C, positions)."""
    pool = F.adaptive_max_pool2d if pooling == "max" else F.adaptive_avg_pool2d
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    maps = [m if tuple(m.shape[2:]) == size else pool(m, size) for m in (first, second)]
    return maps[0].flatten(2), maps[1].flatten(2)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    return torch.bmm(first, second.mT) / max(first.shape[2], 1)


class _Flow(torch.autograd.Function):
    """The matrices; autograd would hand back the second gradient transposed, to be copied."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return _flow(first, second)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        forbid_second_derivatives()
        first, second = ctx.saved_tensors
        with full_precision(first):
            grad = grad / max(first.shape[2], 1)
            return torch.bmm(grad, second), torch.bmm(grad.mT, first)


class FSP(nn.Module):
    """Module form of :func:`fsp`, same arguments and defaults.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 2, 4, 4)
        >>> FSP()((one, one), (one, one)).item()
        0.0
    """

    per_position: ClassVar[bool] = False  # a weight is one a sample

    def __init__(self, *, pooling: Pooling = "max", reduction: Reduction = "sum") -> None:
        super().__init__()
        _check_options(pooling, reduction)
        self.pooling: Pooling = pooling
        self.reduction: Reduction = reduction

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return fsp(
            student,
            teacher,
            pooling=self.pooling,
            reduction=self.reduction,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}, reduction={self.reduction!r}"
