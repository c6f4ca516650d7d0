"""Losses on relations between samples: distances and angles."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import Case, normal

SHAPE = (256, 512)
SMALL = (64, 512)
# N x N numbers in multiples of the student's tensor, for the memory.
SQUARE = SHAPE[0] / SHAPE[1]

distance = partial(losses.rkd_distance, pairs="all")
angle = partial(losses.rkd_angle, triplets="all")


def plain_distances(x: Tensor) -> Tensor:
    products = x @ x.t()
    norms = products.diagonal()
    squares = (norms[:, None] + norms[None] - 2 * products).clamp(min=1e-12)
    return squares.sqrt() * (1 - torch.eye(len(x), device=x.device))


def plain_distance(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = plain_distances(teacher)
        wanted = wanted / wanted[wanted > 0].mean()
    found = plain_distances(student)
    return F.smooth_l1_loss(found / found[found > 0].mean(), wanted)


def plain_cosines(x: Tensor) -> Tensor:
    arms = F.normalize(x[None] - x[:, None], dim=2)
    return torch.bmm(arms, arms.mT)


def plain_angle(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = plain_cosines(teacher)
    return F.smooth_l1_loss(plain_cosines(student), wanted)


def td(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    from torchdistill.losses.mid_level import RKDLoss  # type: ignore

    loss = RKDLoss("student", "teacher", 1.0, 1.0, "mean")
    return getattr(loss, f"compute_rkd_{name}_loss")(teacher, student)


CASES = [
    Case(
        "rkd_distance",
        normal(SHAPE, SHAPE),
        distance,
        {"plain": plain_distance, "torchdistill": partial(td, "distance")},
        goal=2,
        peak_goal=6 * SQUARE,
    ),
    Case(
        "rkd_distance, small",
        normal(SMALL, SMALL),
        distance,
        {"plain": plain_distance, "torchdistill": partial(td, "distance")},
    ),
    Case(
        "rkd_angle",
        normal(SHAPE, SHAPE),
        angle,
        {"plain": plain_angle, "torchdistill": partial(td, "angle")},
        goal=24,
        compiled_goal=190,
        peak_goal=14,  # 7 MiB
    ),
    Case(
        "rkd_angle, small",
        normal(SMALL, SMALL),
        angle,
        {"plain": plain_angle, "torchdistill": partial(td, "angle")},
        goal=13,
    ),
]
