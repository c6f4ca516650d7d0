"""Losses on outputs beside the plain divergence: logits whole, sparse, or still a head away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import TAPS, Case, Inputs, normal, torchdistill

TOKENS, VOCABULARY = 2048, 30522


def plain_l2(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * ((student - teacher) ** 2).sum(1).mean()


def plain_decoupled(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    hit = F.one_hot(target, student.shape[1]).to(student)
    parts = []
    for z in (student, teacher):
        p = F.softmax(z / 4, 1)
        yes = (p * hit).sum(1)
        parts.append(((yes, (p * (1 - hit)).sum(1)), z / 4 - 1000 * hit))
    ((yes_s, no_s), others_s), ((yes_t, no_t), others_t) = parts
    tckd = (yes_t * (yes_t / yes_s).log() + no_t * (no_t / no_s).log()).mean()
    nckd = F.kl_div(F.log_softmax(others_s, 1), F.softmax(others_t, 1), reduction="batchmean")
    return (tckd + 8 * nckd) * 16


def plain_dist(student: Tensor, teacher: Tensor) -> Tensor:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-30).mean()

    p_s, p_t = F.softmax(student, 1), F.softmax(teacher, 1)
    return distance(p_s, p_t) + distance(p_s.T, p_t.T)


def plain_standardised(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) / 2 for z in (student, teacher))
    return 4 * F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="batchmean")


def plain_renormalised(student: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    kept = F.log_softmax(student / 2, -1).gather(1, indices)
    log_s, log_t = kept - kept.logsumexp(1, keepdim=True), F.log_softmax(values, 1)
    return 4 * (log_t.exp() * (log_t - log_s)).sum(1).mean()


def plain_bucket(student: Tensor, values: Tensor, indices: Tensor, rest: Tensor) -> Tensor:
    log_p = F.log_softmax(student / 2, -1)
    rest_s = log_p.scatter(1, indices, float("-inf")).logsumexp(1)
    kept = (values.exp() * (values - log_p.gather(1, indices))).sum(1)
    return 4 * (kept + rest.exp() * (rest - rest_s)).mean()


def plain_sampled(student: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return 4 * (values - F.log_softmax(student / 2, -1).gather(1, indices)).mean()


def plain_head(hidden_s: Tensor, head_s: Tensor, hidden_t: Tensor, head_t: Tensor) -> Tensor:
    log_s = F.log_softmax(hidden_s @ head_s.T / 2, 1)
    return 4 * F.kl_div(log_s, F.softmax(hidden_t @ head_t.T / 2, 1), reduction="batchmean")


def with_labels(generator: Generator) -> Inputs:
    logits = normal((4096, 1000), (4096, 1000), scale=3.0)(generator)
    return (*logits, torch.randint(0, 1000, (4096,), generator=generator))


def sparse(
    k: int, tail: Literal["bucket", "renormalised", "sampled"]
) -> Callable[[Generator], Inputs]:
    """Inputs with a teacher of which K classes of a vocabulary are kept."""

    def inputs(generator: Generator) -> Inputs:
        student, teacher = normal((TOKENS, VOCABULARY), (TOKENS, VOCABULARY))(generator)
        kept = losses.sparse_logits(3 * teacher, k, tail=tail, temperature=2.0, generator=generator)
        return (student, *(tensor for tensor in kept if tensor is not None))

    return inputs


CASES = [
    Case(
        "l2_logits, classes",
        normal((4096, 1000), (4096, 1000)),
        losses.l2_logits,
        {"plain": plain_l2},
    ),
    Case(
        "decoupled_kd, classes",
        with_labels,
        losses.decoupled_kd,
        {"plain": plain_decoupled},
    ),
    Case(
        "dist, classes",
        normal((4096, 1000), (4096, 1000), scale=3.0),
        losses.dist,
        {"plain": plain_dist, "torchdistill": torchdistill("DISTLoss", *TAPS)},
    ),
    Case(
        "logit_standardisation, classes",
        normal((4096, 1000), (4096, 1000), scale=3.0),
        lambda s, t: losses.logit_standardisation(s, t, sample_std=True),
        {
            "plain": plain_standardised,
            "torchdistill": torchdistill("LogitStdKDLoss", *TAPS, temperature=2.0, alpha=0),
        },
        scale={"torchdistill": 4.0},  # without labels it leaves out T^2
    ),
    Case(
        "top_k_kl_div, vocabulary, renormalised",
        sparse(128, "renormalised"),
        lambda s, *kept: losses.top_k_kl_div(s, kept, tail="renormalised", temperature=2.0),
        {"plain": plain_renormalised},
        goal=20,
        peak_goal=1.1,
    ),
    Case(
        "top_k_kl_div, vocabulary, bucket",
        sparse(64, "bucket"),
        lambda s, *kept: losses.top_k_kl_div(s, kept, temperature=2.0),
        {"plain": plain_bucket},
        peak_goal=1.1,
    ),
    Case(
        "top_k_kl_div, vocabulary, sampled",
        sparse(64, "sampled"),
        lambda s, *kept: losses.top_k_kl_div(s, kept, tail="sampled", temperature=2.0),
        {"plain": plain_sampled},
        peak_goal=1.1,
    ),
    Case(
        "linear_kl_div, vocabulary",
        normal((1024, 256), (VOCABULARY, 256), (1024, 768), (VOCABULARY, 768), scale=0.25),
        lambda hs, ws, ht, wt: losses.linear_kl_div((hs, ws), (ht, wt), temperature=2.0),
        {"plain": plain_head},
        students=2,
        goal=2,
        peak_goal=3.1,  # both gradients and 64 MiB
    ),
]
