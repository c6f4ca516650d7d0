"""Squared error on logits (Ba & Caruana 2014), or on class probabilities."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ._backend import compilable
from ._reduction import check_choice, class_axis, full_precision, matched_pair
from ._rows import RowLoss, Scale

Space = Literal["logits", "probs"]
Center = Literal["mean"]


def l2_logits(
    student: Tensor,
    teacher: Tensor,
    *,
    space: Space = "logits",
    center: Center | None = None,
    dim: int = 1,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Half the squared distance of the logits, before any softmax.

    .. math:: L = \tfrac{1}{2} \sum_c (z^s_c - z^t_c)^2

    summed over the classes, averaged over the positions. Common code averages over the classes
    too (`F.mse_loss`): that is 2 / K times this value.

    Logits mean the same after a shift, this loss does not: a student whose logits are all 1 higher
    pays K / 2. `center="mean"` takes the mean over the classes off both sides first.

    `space="probs"` compares probabilities instead, :math:`\sum_c (p^s_c - p^t_c)^2` without the
    half. That is another method: its gradient vanishes where the student is sure of itself, right
    or wrong.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        space: `"logits"` (the paper), or `"probs"` for the probabilities at temperature 1.
        center: `"mean"` to remove the mean over the classes, None (the paper) to leave it.
        dim: Axis of the classes; -1 for (B, T, K).
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in squared logits (at most 2 for probabilities). There are no second
        derivatives, unless under the reference backend.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or there is a single class where its
            probability would be 1 or its centred logit 0.
        ConfigError: If `space` or `center` is unknown, or the probabilities are to be centred.

    Reference:
        Ba, Caruana: Do Deep Nets Really Need to be Deep?, NeurIPS 2014, section 2.2
        (arXiv 1312.6184).

    Lecture:
        Output logits

    When it helps:
        As the simplest way to match a teacher: no temperature to choose, and classes that the
        teacher finds unlikely count as much as the others.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 2.0]]), torch.tensor([[5.0, 1.0]])
        >>> l2_logits(student, teacher).item()
        2.5
        >>> l2_logits(student, teacher, center="mean").item()
        2.25
    """
    _check_options(space, center)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        # Only a softmax and a mean over the classes need two of them.
        needs_two = space == "probs" or center is not None
        axis = class_axis(student, dim, "softmax" if needs_two else "sigmoid")
        options = {"space": space, "center": center}
        loss = RowLoss(partial(_body, **options), partial(_plain, **options), axis)
        return loss.mean(student, teacher, weight=weight, total=total)


@compilable
def _body(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    space: Space,
    center: Center | None,
) -> tuple[Tensor, Tensor | None]:
    if space == "probs":
        p_s = student.softmax(dim)
        slope = p_s - teacher.softmax(dim)
        values = slope.square().sum(dim)
        slope = (slope - (slope * p_s).sum(dim, True)).mul_(p_s).mul_(2)
    else:
        slope = student - teacher
        if center == "mean":
            slope = slope.sub_(slope.mean(dim, True))
        values = slope.square().sum(dim) * 0.5
    return values, torch.mul(slope, scale, out=out) if wanted else None


def _plain(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    dim: int,
    *,
    space: Space,
    center: Center | None,
) -> Tensor:
    if space == "probs":
        return (student.softmax(dim) - teacher.softmax(dim)).square().sum(dim)
    difference = student - teacher
    if center == "mean":
        difference = difference - difference.mean(dim, keepdim=True)
    return 0.5 * difference.square().sum(dim)


def _check_options(space: str, center: str | None) -> None:
    check_choice("space", space, get_args(Space))
    if center is not None:
        check_choice("center", center, get_args(Center))
        if space == "probs":
            raise ConfigError(
                "center='mean' is for space='logits': probabilities sum to 1 and do not change "
                "with the mean of the logits. Leave center at None."
            )


class L2Logits(nn.Module):
    """Module form of :func:`l2_logits`, same arguments and defaults.

    Example:
        >>> import torch
        >>> L2Logits()(torch.zeros(3, 4), torch.ones(3, 4)).item()
        2.0
    """

    def __init__(
        self, *, space: Space = "logits", center: Center | None = None, dim: int = 1
    ) -> None:
        super().__init__()
        _check_options(space, center)
        self.space: Space = space
        self.center: Center | None = center
        self.dim = dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return l2_logits(
            student,
            teacher,
            space=self.space,
            center=self.center,
            dim=self.dim,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"space={self.space!r}, center={self.center!r}, dim={self.dim}"
