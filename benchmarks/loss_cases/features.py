"""Losses on features and weights: imitation, Pearson, focal and global, projected, weights."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import Case, Inputs, normal

NECK = (8, 256, 32, 32)
LEVEL = (2, 256, 100, 100)
STUDENT, TEACHER = (4, 192, 64, 64), (4, 256, 64, 64)
LAYERS = 4
BOXES = 20


def with_mask(generator: Generator) -> Inputs:
    student, teacher = normal(NECK, NECK)(generator)
    return student, teacher, torch.rand(NECK[0], *NECK[2:], generator=generator)


def with_boxes(generator: Generator) -> Inputs:
    student, teacher = normal(LEVEL, LEVEL)(generator)
    # From the middle of a cell to the middle of another, so that no peer rounds otherwise.
    first = torch.randint(0, 80, (LEVEL[0], BOXES, 2), generator=generator)
    last = first + torch.randint(1, 20, first.shape, generator=generator)
    return student, teacher, (torch.cat([first, last], 2) + 0.5) / 100


def generator_layers(generator: Generator) -> Inputs:
    """Students, kernels, biases, teachers of the four layers that GAN compression compares."""
    shapes = [*[STUDENT] * LAYERS, *[(256, 192)] * LAYERS, *[(256,)] * LAYERS, *[TEACHER] * LAYERS]
    made = normal(*shapes)(generator)
    return tuple(t / 14 if t.shape == (256, 192) else t for t in made)


def by_layer(*inputs: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(inputs[i : i + LAYERS] for i in range(0, 4 * LAYERS, LAYERS)), strict=True))


def ours_projected(*inputs: Tensor) -> Tensor:
    values = [
        losses.projected_imitation(s, t, kernel=k, bias=b) for s, k, b, t in by_layer(*inputs)
    ]
    return torch.stack(values).sum()


def plain_projected(*inputs: Tensor) -> Tensor:
    return torch.stack(
        [F.mse_loss(F.conv2d(s, k[:, :, None, None], b), t) for s, k, b, t in by_layer(*inputs)]
    ).sum()


def plain_masked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    squares = (student - teacher) ** 2 * mask[:, None]
    return squares.sum() / (mask.sum() * student.shape[1])


def plain_pearson(student: Tensor, teacher: Tensor) -> Tensor:
    def standardised(x: Tensor) -> Tensor:
        rows = x.transpose(0, 1).flatten(1)
        return (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)

    return F.mse_loss(standardised(student), standardised(teacher)) / 2


def plain_focal(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
    b, c, h, w = student.shape
    inside = student.new_zeros(b, h, w)
    for image, image_boxes in enumerate(boxes * h):
        for x1, y1, x2, y2 in image_boxes.tolist():
            part = inside[image, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1]
            part.clamp_(min=1 / max(part.numel(), 1))
    outside = (inside == 0).float()
    outside = outside / outside.sum((1, 2), keepdim=True)

    def attention(x: Tensor) -> tuple[Tensor, Tensor]:
        places = h * w * (x.abs().mean(1).flatten(1) / 0.5).softmax(1).view(b, h, w)
        return places, c * (x.abs().mean((2, 3)) / 0.5).softmax(1)

    (space_s, channel_s), (space_t, channel_t) = attention(student), attention(teacher)
    focus = space_t.sqrt()[:, None] * channel_t.sqrt()[:, :, None, None]
    parts = [
        F.mse_loss(student * focus * m.sqrt()[:, None], teacher * focus * m.sqrt()[:, None])
        * (student.numel() / b)
        for m in (inside, outside)
    ]
    noticed = F.l1_loss(space_s, space_t) + F.l1_loss(channel_s, channel_t)
    return 1e-3 * parts[0] + 5e-4 * parts[1] + 0.256 * noticed


def plain_weights(student: Tensor, left: Tensor, right: Tensor, teacher: Tensor) -> Tensor:
    mapped = torch.einsum("ac,cdhw,db->abhw", left, student, right)
    return F.mse_loss(mapped, teacher) / 2


CASES = [
    Case(
        "feature_imitation",
        normal(NECK, NECK),
        losses.feature_imitation,
        {"plain": F.mse_loss},
        goal=1.0,
        peak_goal=1.1,
    ),
    Case(
        "feature_imitation, large map",
        normal(LEVEL, LEVEL),
        losses.feature_imitation,
        {"plain": F.mse_loss},
        goal=1.0,
        peak_goal=1.1,
    ),
    Case(
        "feature_imitation, mask",
        with_mask,
        lambda s, t, mask: losses.feature_imitation(s, t, mask=mask),
        {"plain": plain_masked},
        goal=1.0,
        peak_goal=1.2,
    ),
    Case(
        "hint",
        normal(NECK, NECK),
        losses.hint,
        {"plain": lambda s, t: F.mse_loss(s, t) / 2},
        goal=1.0,
        peak_goal=1.1,
    ),
    Case(
        "pearson_distance",
        normal(NECK, NECK),
        losses.pearson_distance,
        {"plain": plain_pearson},
        goal=2.0,
        peak_goal=1.5,
    ),
    Case(
        "focal_global, without the global part",
        with_boxes,
        losses.focal_global,
        {"plain": plain_focal},
        goal=1.5,
    ),
    Case(
        "projected_imitation, 4 layers",
        generator_layers,
        ours_projected,
        {"plain": plain_projected},
        students=3 * LAYERS,
        goal=1.25,
        compiled_goal=1.4,
        peak_goal=1.1,
    ),
    Case(
        "weight_matching",
        normal((128, 64, 3, 3), (256, 128), (64, 128), (256, 128, 3, 3), scale=0.1),
        lambda s, left, right, t: losses.weight_matching(s, t, left=left, right=right),
        {"plain": plain_weights},
        students=3,
    ),
]
