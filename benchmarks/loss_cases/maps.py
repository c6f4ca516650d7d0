"""Losses on feature maps: attention transfer, factor transfer, activation boundaries."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import Case, normal, torchdistill

AT = (32, 256, 56, 56)
FT = (64, 128, 28, 28)
AB = (32, 256, 28, 28)
TAP = {"io": "output", "path": "m"}
PAIR = {"one": {"student": TAP, "teacher": TAP}}


def plain_attention(student: Tensor, teacher: Tensor, form: str) -> Tensor:
    q_s, q_t = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher))
    return (q_s - q_t).pow(2).mean() if form == "code" else (q_s - q_t).norm(dim=1).mean()


def plain_factor(student: Tensor, teacher: Tensor) -> Tensor:
    return F.l1_loss(F.normalize(student.flatten(1)), F.normalize(teacher.flatten(1)))


def plain_boundaries(student: Tensor, teacher: Tensor) -> Tensor:
    wrongly_on = ((student > -1) & (teacher <= 0)).float()
    wrongly_off = ((student <= 1) & (teacher > 0)).float()
    values = (student + 1) ** 2 * wrongly_on + (student - 1) ** 2 * wrongly_off
    return values.abs().sum() / len(student)


CASES = [
    *(
        Case(
            f"attention_transfer, {form}",
            normal(AT, AT),
            partial(losses.attention_transfer, form=form),
            {
                "plain": partial(plain_attention, form=form),
                "torchdistill": torchdistill("ATLoss", PAIR, mode=form),
            },
            goal=2.0,
            compiled_goal=5.0,
            peak_goal=1.05,
        )
        for form in ("paper", "code")
    ),
    Case(
        "factor_transfer, code",
        normal(FT, FT),
        partial(losses.factor_transfer, form="code"),
        {
            "plain": plain_factor,
            "torchdistill": torchdistill("FTLoss", translator_path="m", paraphraser_path="m"),
        },
        goal=4.5,
        compiled_goal=8.0,
        peak_goal=1.1,
    ),
    Case(
        "activation_boundaries",
        normal(AB, AB),
        losses.activation_boundaries,
        {
            "plain": plain_boundaries,
            "torchdistill": torchdistill("AltActTransferLoss", PAIR, margin=1.0, reduction="mean"),
        },
        goal=7.0,
        compiled_goal=25.0,
        peak_goal=1.1,
        scale={"plain": 1 / 28**2, "torchdistill": 1 / 28**2},
    ),
]
