"""Losses on Gram matrices: neuron selectivity, FSP, pair-wise and similarity-preserving."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import Case, normal


def nst_broadcast(student: Tensor, teacher: Tensor) -> Tensor:
    """Every pair of channels spread out, B x C x C x HW numbers."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] * b[:, None]).sum(-1).square().mean()

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def nst(student: Tensor, teacher: Tensor, degree: int) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).pow(degree).mean()

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def fsp_broadcast(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """Every pair of channels spread out, B x C1 x C2 x HW numbers."""

    def matrix(a: Tensor, b: Tensor) -> Tensor:
        return (a.flatten(2)[:, :, None] * b.flatten(2)[:, None]).mean(-1)

    return (matrix(s1, s2) - matrix(t1, t2)).square().sum((1, 2)).mean()


def fsp_product(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """torchdistill's way to the matrix; its norm of the difference is another number."""

    def matrix(a: Tensor, b: Tensor) -> Tensor:
        return a.flatten(2) @ b.flatten(2).mT / a[0, 0].numel()

    return (matrix(s1, s2) - matrix(t1, t2)).square().sum((1, 2)).mean()


def pair_wise(student: Tensor, teacher: Tensor) -> Tensor:
    def similarities(feature: Tensor) -> Tensor:
        flat = feature.flatten(2)
        flat = flat / (flat.square().sum(1, keepdim=True).sqrt() + 1e-8)
        return flat.mT @ flat

    return (similarities(student) - similarities(teacher)).square().mean()


def pair_wise_pooled(student: Tensor, teacher: Tensor) -> Tensor:
    sides = [int(side * 0.5) for side in student.shape[2:]]
    return pair_wise(*(F.avg_pool2d(x, sides, ceil_mode=True) for x in (student, teacher)))


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(1) @ x.flatten(1).mT) for x in (student, teacher))
    return (s - t).square().sum() / len(s)


def ours_fsp(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    return losses.fsp((s1, s2), (t1, t2))


FLOW = [(16, 64, 28, 28), (16, 128, 28, 28)]

CASES = [
    Case(
        "neuron_selectivity",
        normal((64, 128, 16, 16), (64, 128, 16, 16)),
        losses.neuron_selectivity,
        {"plain": nst_broadcast, "products": lambda s, t: nst(s, t, 2)},
        goal=100,
        peak_goal=4.5,
    ),
    Case(
        "neuron_selectivity, few positions",
        normal((32, 512, 7, 7), (32, 2048, 7, 7)),
        losses.neuron_selectivity,
        {"plain": lambda s, t: nst(s, t, 2)},
    ),
    Case(
        "neuron_selectivity, linear",
        normal((64, 128, 16, 16), (64, 128, 16, 16)),
        lambda s, t: losses.neuron_selectivity(s, t, kernel="linear"),
        {"plain": lambda s, t: nst(s, t, 1)},
        goal=8,
        compiled_goal=12,
        peak_goal=1.1,
    ),
    Case(
        "fsp",
        normal(*FLOW, *FLOW),
        ours_fsp,
        {"plain": fsp_broadcast, "products": fsp_product},
        students=2,
        goal=100,
        peak_goal=1.15,
    ),
    Case(
        "pair_wise, 65 x 65",
        normal((2, 128, 65, 65), (2, 512, 65, 65)),
        losses.pair_wise,
        {"plain": pair_wise},
        goal=15,
        peak_goal=7,
    ),
    Case(
        "pair_wise, 33 x 33",
        normal((8, 128, 33, 33), (8, 512, 33, 33)),
        losses.pair_wise,
        {"plain": pair_wise},
        goal=4.5,
        peak_goal=7,
    ),
    Case(
        "pair_wise, half-map patches",
        normal((8, 128, 65, 65), (8, 512, 65, 65)),
        lambda s, t: losses.pair_wise(s, t, patch=0.5),
        {"plain": pair_wise_pooled},
    ),
    Case(
        "similarity_preserving",
        normal((64, 256, 14, 14), (64, 1024, 14, 14)),
        losses.similarity_preserving,
        # torchdistill scales the rows to a 1-norm of 1: another number.
        {"plain": similarity_preserving},
    ),
]
