"""Attention maps, queries and keys, hidden states and relations of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from taskdistill.core import losses

from .case import Case, Inputs, normal

Loss = Callable[..., Tensor]


def maps(count: int, *shape: int) -> list[tuple[int, ...]]:
    """Shapes of a number of layers of the student and as many of the teacher."""
    return [shape] * (2 * count)


def halves(tensors: Inputs) -> tuple[Inputs, Inputs]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


def pairs(tensors: Inputs) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def plain_maps(*tensors: Tensor) -> Tensor:
    student, teacher = halves(tensors)
    values = []
    for s, t in zip(student, teacher, strict=True):
        summed = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="sum")
        values.append(summed / s[..., 0].numel())
    return sum(values[1:], values[0]) / len(values)


def plain_probabilities(*tensors: Tensor) -> Tensor:
    student, teacher = halves(tensors)
    values = []
    for s, t in zip(student, teacher, strict=True):
        values.append((t * ((t + 1e-30).log() - (s + 1e-30).log())).sum(-1).mean())
    return sum(values[1:], values[0]) / len(values)


def plain_products(*tensors: Tensor) -> Tensor:
    def scores(side: Inputs) -> Inputs:
        return tuple(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 for q, k in pairs(side))

    student, teacher = halves(tensors)
    return plain_maps(*scores(student), *scores(teacher))


def plain_relations(*tensors: Tensor) -> Tensor:
    student, teacher = halves(tensors)

    def scores(vectors: Tensor) -> Tensor:
        x = vectors.unflatten(2, (12, -1)).transpose(1, 2)
        return x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5

    return plain_maps(*map(scores, student), *map(scores, teacher)) * len(student)


def plain_hidden(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.layer_norm(x, x.shape[-1:]) for x in (student, teacher))
    return F.mse_loss(s, t)


def softmax_first(loss: Loss) -> Loss:
    """Gradients of probabilities differ by what the softmax behind them takes out anyway."""
    return lambda *tensors: loss(*(x.softmax(-1) for x in tensors))


def of_layers(loss: Loss, prepare: Callable[[Inputs], Sequence[object]] = tuple) -> Loss:
    """A loss of (student layers, teacher layers) as one of all the tensors."""

    def ours(*tensors: Tensor) -> Tensor:
        student, teacher = halves(tensors)
        return loss(prepare(student), prepare(teacher))

    return ours


CASES = [
    Case(
        "attention_map, scores, 24 layers",
        normal(*maps(24, 32, 4, 128, 128)),
        of_layers(lambda s, t: losses.attention_map(s, t, form="scores")),
        {"plain": plain_maps},
        students=24,
        goal=2.4,
        compiled_goal=6.5,
        peak_goal=1.1,
    ),
    Case(
        "attention_map, softmax and 6 layers",
        normal(*maps(6, 32, 4, 128, 128)),
        softmax_first(of_layers(losses.attention_map)),
        {"plain": softmax_first(plain_probabilities)},
        students=6,
    ),
    Case(
        "attention_qk, short, 24 layers",
        normal(*maps(48, 32, 4, 128, 32)),
        of_layers(losses.attention_qk, pairs),
        {"plain": plain_products},
        students=48,
        goal=3.0,
        compiled_goal=6.0,
        peak_goal=1.1,
    ),
    Case(
        "attention_qk, long, 6 layers",
        normal(*maps(12, 4, 12, 512, 64)),
        of_layers(losses.attention_qk, pairs),
        {"plain": plain_products},
        students=12,
        goal=3.0,
        compiled_goal=6.0,
        peak_goal=1.3,
    ),
    Case(
        "self_attention_relations, 3 kinds",
        normal(*[(8, 128, 384)] * 3, *[(8, 128, 768)] * 3),
        of_layers(lambda s, t: losses.self_attention_relations(s, t, relation_heads=12)),
        {"plain": plain_relations},
        students=3,
    ),
    Case(
        "hidden_state_transfer, layer norm",
        normal((32, 128, 512), (32, 128, 512)),
        lambda s, t: losses.hidden_state_transfer(s, t, normalize="layer_norm"),
        {"plain": plain_hidden},
    ),
]
