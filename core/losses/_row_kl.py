"""Divergences and cross-entropies of softened distributions: what every soft loss is made of."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ._backend import compilable
from ._reduction import Activation, soften
from ._rows import RowLoss, Scale

# exp2 is one pass of cheap arithmetic, exp two to three times as much on some CPUs.
LOG2E = math.log2(math.e)

Slope = tuple[Tensor, Tensor | None]


def row_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    dim: int,
    temperature: float = 1.0,
    activation: Activation = "softmax",
    consume_teacher: bool = False,
) -> Tensor:
    """T^2 KL(teacher || student) of every position: the shape of the logits without `dim`.

    Expects what :func:`kl_div` has checked: a matched pair in the computing precision and a `dim`
    that is not negative. With `consume_teacher` the gradient may be written over the teacher's
    logits: only where nothing else reads them.
    """
    loss = divergence(dim, temperature, activation)
    return loss.values(student, teacher, consume_teacher=consume_teacher)


def divergence(dim: int, temperature: float, activation: Activation = "softmax") -> RowLoss:
    """T^2 KL(teacher || student)."""
    options = {"temperature": float(temperature)}
    if activation == "softmax":
        return RowLoss(partial(_softmax_kl, **options), partial(_plain_softmax_kl, **options), dim)
    return RowLoss(partial(_sigmoid_kl, **options), partial(_plain_sigmoid_kl, **options), dim)


@compilable
def _softmax_kl(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    temperature: float,
) -> Slope:
    # KL = sum p_t (z_t - z_s) - lse_t + lse_s, from logits shifted by their largest.
    rate = LOG2E / temperature
    t = teacher - teacher.amax(dim, True)
    s = student - student.amax(dim, True)
    apart = torch.sub(t, s, out=out)
    p_t = t.mul_(rate).exp2_()
    sum_t = p_t.sum(dim, True)
    cross = apart.mul_(p_t).sum(dim, True) / (sum_t * temperature)
    p_s = s.mul_(rate).exp2_()
    sum_s = p_s.sum(dim, True)
    # Below 0 only by rounding.
    values = (cross + (sum_s / sum_t).log()).clamp(min=0) * temperature**2
    if not wanted:
        return values.squeeze(dim), None
    scale = scale * temperature
    p_s = p_s.mul_(scale / sum_s)
    return values.squeeze(dim), torch.addcmul(p_s, p_t, scale / sum_t, value=-1, out=out)


def _plain_softmax_kl(
    student: Tensor, teacher: Tensor, extra: None, dim: int, *, temperature: float
) -> Tensor:
    log_s = soften(student, temperature).log_softmax(dim)
    log_t = soften(teacher, temperature).log_softmax(dim)
    return (log_t.exp() * (log_t - log_s)).sum(dim) * temperature**2


@compilable
def _sigmoid_kl(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    temperature: float,
) -> Slope:
    # "Yes" and "no" are alike, so ask the question to which the teacher's answer is no. With z the
    # evidence for no, z_t >= 0, and e = exp(-|z|), every term of
    #     KL = p_t (z_s - z_t) + max(-z_s, 0) + log1p((e_s - e_t) / (1 + e_t)),
    #     p_t = e_t / (1 + e_t)
    # keeps its digits (a softplus of a large logit would not).
    flip = torch.copysign(teacher.new_full((), 1 / temperature), teacher)
    s, t = student * flip, teacher * flip
    e_t = (t * -LOG2E).exp2_()
    inverse = (e_t + 1).reciprocal_()
    terms = s.abs().mul_(-LOG2E).exp2_().sub_(e_t).mul_(inverse).log1p_()
    p_t = e_t.mul_(inverse)
    terms = terms.sub_(s.clamp(max=0)).add_(t.sub_(s).neg_().mul_(p_t))
    values = terms.sum(dim).clamp_(min=0) * temperature**2
    if not wanted:
        return values, None
    slope = p_t.sub_(s.neg_().sigmoid_()).mul_(scale * temperature**2)
    return values, torch.mul(slope, flip, out=out)


def _plain_sigmoid_kl(
    student: Tensor, teacher: Tensor, extra: None, dim: int, *, temperature: float
) -> Tensor:
    s, t = soften(student, temperature), soften(teacher, temperature)
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(dim) * temperature**2


def cross_entropy(
    dim: int,
    temperature: float,
    activation: Activation = "softmax",
    class_weight: Tensor | None = None,
    background_weight: float = 1.0,
) -> RowLoss:
    """-T^2 sum w p_t log p_s, one weight a class; for sigmoid the other weighs every "no"."""
    options = {"temperature": float(temperature), "class_weight": class_weight}
    if activation == "softmax":
        body, plain = _softmax_cross_entropy, _plain_softmax_cross_entropy
    else:
        body, plain = _sigmoid_cross_entropy, _plain_sigmoid_cross_entropy
        options["background_weight"] = float(background_weight)
    return RowLoss(partial(body, **options), partial(plain, **options), dim)


@compilable
def _softmax_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    temperature: float,
    class_weight: Tensor | None,
) -> Slope:
    rate = LOG2E / temperature
    p_t = (teacher - teacher.amax(dim, True)).mul_(rate).exp2_()
    sum_t = p_t.sum(dim, True)
    mass: Scale = 1.0
    if class_weight is not None:
        p_t = p_t.mul_(_along(class_weight, student, dim))
        mass = p_t.sum(dim, True) / sum_t
    s = student - student.amax(dim, True)
    cross = torch.mul(s, p_t, out=out).sum(dim, True) / (sum_t * temperature)
    p_s = s.mul_(rate).exp2_()
    sum_s = p_s.sum(dim, True)
    values = (mass * sum_s.log() - cross) * temperature**2
    if not wanted:
        return values.squeeze(dim), None
    scale = scale * temperature
    p_s = p_s.mul_(mass * scale / sum_s)
    return values.squeeze(dim), torch.addcmul(p_s, p_t, scale / sum_t, value=-1, out=out)


def _plain_softmax_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    dim: int,
    *,
    temperature: float,
    class_weight: Tensor | None,
) -> Tensor:
    p_t = soften(teacher, temperature).softmax(dim)
    if class_weight is not None:
        p_t = p_t * _along(class_weight, teacher, dim)
    return -(p_t * soften(student, temperature).log_softmax(dim)).sum(dim) * temperature**2


@compilable
def _sigmoid_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    scale: Scale,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    temperature: float,
    class_weight: Tensor | None,
    background_weight: float,
) -> Slope:
    # -log p = max(-z, 0) + log1p(exp(-|z|)), and -log(1 - p) = max(z, 0) + the same.
    t = teacher / temperature
    s = student / temperature
    no = (-t).sigmoid_().mul_(background_weight)
    yes = t.sigmoid_()
    if class_weight is not None:
        yes = yes.mul_(_along(class_weight, student, dim))
    both = yes + no
    values = s.abs().mul_(-LOG2E).exp2_().log1p_().mul_(both)
    values = values.add_(s.clamp(min=0).mul_(no)).sub_(s.clamp(max=0).mul_(yes))
    values = values.sum(dim) * temperature**2
    if not wanted:
        return values, None
    slope = s.sigmoid_().mul_(both).sub_(yes)
    return values, torch.mul(slope, scale * temperature, out=out)


def _plain_sigmoid_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    extra: None,
    dim: int,
    *,
    temperature: float,
    class_weight: Tensor | None,
    background_weight: float,
) -> Tensor:
    s, t = soften(student, temperature), soften(teacher, temperature)
    yes = t.sigmoid() * F.logsigmoid(s)
    if class_weight is not None:
        yes = yes * _along(class_weight, student, dim)
    no = background_weight * (-t).sigmoid() * F.logsigmoid(-s)
    return -(yes + no).sum(dim) * temperature**2


def _along(weights: Tensor, logits: Tensor, dim: int) -> Tensor:
    """Shape one number a class so that it multiplies the logits."""
    shape = [1] * logits.ndim
    shape[dim] = len(weights)
    return weights.reshape(shape)
