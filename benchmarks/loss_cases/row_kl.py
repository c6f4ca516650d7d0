"""Losses that compare distributions row by row: classes, maps, vocabularies, box edges."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import TAPS, Case, Inputs, normal, torchdistill

CLASSES = (4096, 1000)
DENSE = (4, 150, 128, 128)
EDGES = (8, 4 * 17, 5000, 1)  # 40000 positions of all levels, as a head puts them out


def plain_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int = 1) -> Tensor:
    log_s = F.log_softmax(student / temperature, dim)
    p_t = F.softmax(teacher / temperature, dim)
    positions = student.numel() // student.shape[dim]
    return F.kl_div(log_s, p_t, reduction="sum") * temperature**2 / positions


def torchdistill_kd(alpha: float) -> Callable[..., Tensor]:
    """Its loss; `alpha` is the mass on the labels there."""
    return torchdistill("KDLoss", *TAPS, temperature=4.0, alpha=alpha)


def plain_sigmoid_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p_t = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, p_t, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, p_t, reduction="none")
    return (cross - entropy).sum(1).mean()


def plain_joint(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return 0.1 * F.cross_entropy(student, target) + 0.9 * plain_kl(student, teacher, 4.0)


def plain_soft(student: Tensor, teacher: Tensor) -> Tensor:
    return -(F.softmax(teacher, 1) * F.log_softmax(student, 1)).sum(1).mean()


def plain_weighted(student: Tensor, teacher: Tensor) -> Tensor:
    weights = torch.ones_like(student[:1])
    weights[:, 0] = 1.5
    return -(weights * F.softmax(teacher, 1) * F.log_softmax(student, 1)).sum(1).mean()


def plain_channels(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (z.reshape(-1, z.shape[2] * z.shape[3]) / 4.0 for z in (student, teacher))
    p_t = F.softmax(t, 1)
    terms = p_t * F.log_softmax(t, 1) - p_t * F.log_softmax(s, 1)
    return terms.sum() * 4.0**2 / len(s)


def plain_edges(student: Tensor, teacher: Tensor) -> Tensor:
    rows = [z.permute(0, 2, 3, 1).reshape(-1, 17) for z in (student, teacher)]
    log_s, p_t = F.log_softmax(rows[0] / 10.0, 1), F.softmax(rows[1] / 10.0, 1)
    per_edge = F.kl_div(log_s, p_t, reduction="none").mean(1) * 10.0**2
    return per_edge.mean() * 17


def plain_edge_rows(student: Tensor, teacher: Tensor) -> Tensor:
    return plain_kl(student.reshape(-1, 17), teacher.reshape(-1, 17), 10.0)


def plain_pixels(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in (student, teacher))
    log_s = F.log_softmax(s, 1)
    return (log_s.exp() * (log_s - F.log_softmax(t, 1))).sum(1).mean()


def plain_pixels_of_the_code(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in (student, teacher))
    return (-F.softmax(t, 1) * F.log_softmax(s, 1)).sum() / len(s)


def labelled(rows: int, classes: int) -> Callable[[Generator], Inputs]:
    def make(generator: Generator) -> Inputs:
        pair = normal((rows, classes), (rows, classes), scale=3.0)(generator)
        return (*pair, torch.randint(0, classes, (rows,), generator=generator))

    return make


def kl_case(name: str, shape: tuple[int, ...], **goals: float) -> Case:
    return Case(
        f"kl_div, {name}",
        normal(shape, shape, scale=3.0),
        lambda s, t: losses.kl_div(s, t, temperature=4.0),
        {"plain": lambda s, t: plain_kl(s, t, 4.0)}
        | ({"torchdistill": torchdistill_kd(0.0)} if len(shape) == 2 else {}),
        # Without labels it leaves out T^2.
        scale={"torchdistill": 16.0},
        **goals,  # type: ignore
    )


CASES = [
    kl_case("classes", CLASSES, goal=3, compiled_goal=8, peak_goal=1.1),
    kl_case("small", (256, 1000)),
    kl_case("dense", DENSE, goal=4, compiled_goal=6.5, peak_goal=1.1),
    kl_case("dense, 19 classes", (8, 19, 128, 128)),
    kl_case("vocabulary", (2048, 30522), goal=4.5, compiled_goal=9, peak_goal=1.1),
    Case(
        "kl_div, dense, consume",
        normal(DENSE, DENSE, scale=3.0),
        # From the second round on the teacher is the gradient of the round before.
        lambda s, t: losses.kl_div(s, t, temperature=4.0, consume_teacher=True),
        {"plain": lambda s, t: plain_kl(s, t, 4.0)},
        goal=5.5,
        compiled_goal=10,
        peak_goal=0.1,
    ),
    Case(
        "kl_div, sigmoid",
        normal((20000, 80), (20000, 80), scale=3.0),
        lambda s, t: losses.kl_div(s, t, activation="sigmoid"),
        {"plain": plain_sigmoid_kl},
        goal=1,
    ),
    Case(
        "cross_entropy_kl_div",
        labelled(*CLASSES),
        losses.cross_entropy_kl_div,
        {"plain": plain_joint, "torchdistill": torchdistill_kd(0.1)},
        goal=4.5,
        compiled_goal=9,
        peak_goal=1.1,
    ),
    Case(
        "cross_entropy_kl_div, vocabulary",
        labelled(512, 30522),
        losses.cross_entropy_kl_div,
        {"plain": plain_joint, "torchdistill": torchdistill_kd(0.1)},
        goal=4.5,
        compiled_goal=9,
        peak_goal=1.1,
    ),
    Case(
        "soft_cross_entropy",
        normal(CLASSES, CLASSES, scale=3.0),
        losses.soft_cross_entropy,
        {"plain": plain_soft},
        peak_goal=1.1,
    ),
    Case(
        "weighted_soft_cross_entropy",
        normal((20000, 81), (20000, 81), scale=3.0),
        losses.weighted_soft_cross_entropy,
        {"plain": plain_weighted},
    ),
    Case(
        "channel_wise_distillation",
        normal(DENSE, DENSE, scale=3.0),
        losses.channel_wise_distillation,
        {"plain": plain_channels},
        goal=6,
        compiled_goal=8,
        peak_goal=1.1,
    ),
    Case(
        "localization_distillation, maps",
        normal(EDGES, EDGES, scale=2.0),
        losses.localization_distillation,
        {"plain": plain_edges},
        goal=4,
        compiled_goal=7,
        peak_goal=1.1,
    ),
    Case(
        "localization_distillation, rows",
        normal((40000, 68), (40000, 68), scale=2.0),
        losses.localization_distillation,
        {"plain": plain_edge_rows},
    ),
    Case(
        "pixel_wise",
        normal((8, 19, 128, 128), (8, 19, 128, 128), scale=3.0),
        losses.pixel_wise,
        {"plain": plain_pixels},
    ),
    Case(
        "pixel_wise, cross-entropy",
        normal((8, 19, 128, 128), (8, 19, 128, 128), scale=3.0),
        lambda s, t: losses.pixel_wise(s, t, divergence="cross_entropy"),
        {"plain": plain_pixels_of_the_code},
    ),
]
