"""Losses on feature maps: attention transfer, factor transfer, activation boundaries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core import losses

from .case import Case, normal

AT = (32, 256, 56, 56)
FT = (64, 128, 28, 28)
AB = (32, 256, 28, 28)
PATHS = ("student", "teacher")


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


def through_paths(make: Callable[[], nn.Module]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of torchdistill, which looks its tensors up by the name of a module."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return make()({PATHS[0]: {"output": student}}, {PATHS[1]: {"output": teacher}})

    return loss


def pair() -> dict[str, Any]:
    return {"one": {name: {"io": "output", "path": name} for name in PATHS}}


def td_attention(form: str) -> nn.Module:
    from torchdistill.losses.mid_level import ATLoss  # type: ignore

    return ATLoss(pair(), mode=form)


def td_factor() -> nn.Module:
    from torchdistill.losses.mid_level import FTLoss  # type: ignore

    return FTLoss(translator_path=PATHS[0], paraphraser_path=PATHS[1])


def td_boundaries() -> nn.Module:
    from torchdistill.losses.mid_level import AltActTransferLoss  # type: ignore

    return AltActTransferLoss(pair(), margin=1.0, reduction="mean")


CASES = [
    *(
        Case(
            f"attention_transfer, {form}",
            normal(AT, AT),
            partial(losses.attention_transfer, form=form),
            {
                "plain": partial(plain_attention, form=form),
                "torchdistill": through_paths(partial(td_attention, form)),
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
        {"plain": plain_factor, "torchdistill": through_paths(td_factor)},
        goal=4.5,
        compiled_goal=8.0,
        peak_goal=1.1,
    ),
    Case(
        "activation_boundaries",
        normal(AB, AB),
        losses.activation_boundaries,
        {"plain": plain_boundaries, "torchdistill": through_paths(td_boundaries)},
        goal=7.0,
        compiled_goal=25.0,
        peak_goal=1.1,
        scale={"plain": 1 / 28**2, "torchdistill": 1 / 28**2},
    ),
]
