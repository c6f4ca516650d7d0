from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    SelfAttentionRelations,
    _sequence,
    attention_qk,
    self_attention_relations,
)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(student: Tensor, teacher: Tensor, heads: int, lengths: tuple[int, ...]) -> float:
    """The definition for (B, T, H), one number at a time."""

    def relations(tokens: list[list[float]], head: int, i: int) -> list[float]:
        width = len(tokens[0]) // heads
        parts = [token[head * width : (head + 1) * width] for token in tokens]
        row = [math.fsum(a * b for a, b in zip(parts[i], part, strict=True)) for part in parts]
        exps = [math.exp(z / math.sqrt(width)) for z in row]
        return [e / math.fsum(exps) for e in exps]

    values = []
    for s, t, length in zip(student.tolist(), teacher.tolist(), lengths, strict=True):
        for i in range(length):
            for head in range(heads):
                r_s, r_t = relations(s[:length], head, i), relations(t[:length], head, i)
                values.append(
                    math.fsum(b * math.log(b / a) for a, b in zip(r_s, r_t, strict=True)) / heads
                )
    return math.fsum(values) / sum(lengths)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 3, 1)])
def test_equals_the_definition(heads: int, lengths: tuple[int, ...]):
    student, teacher = vectors(3, 5, 6), vectors(3, 5, 12, seed=1)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    value = self_attention_relations(student, teacher, relation_heads=heads, mask=mask)
    assert value.item() == pytest.approx(slow(student, teacher, heads, lengths), rel=1e-12)
    if lengths == (5, 5, 5):
        unmasked = self_attention_relations(student, teacher, relation_heads=heads)
        torch.testing.assert_close(unmasked, value)


@pytest.mark.parametrize("block", [1, 7, 16, 40, 2**18], ids=lambda n: f"block {n}")
def test_gradient_is_that_of_the_formula_however_it_is_cut(monkeypatch, block: int):
    monkeypatch.setattr(_sequence, "_CPU_BLOCK", block)
    student, teacher = vectors(3, 2, 4, 5).requires_grad_(), vectors(3, 2, 4, 5, seed=1)
    weight = torch.linspace(0.1, 2, 12, dtype=torch.float64).view(3, 4)
    value = self_attention_relations(student, teacher, mask=weight)
    s, t = ((x @ x.mT / math.sqrt(5)).log_softmax(-1) for x in (student, teacher))
    expected = ((t.exp() * (t - s)).sum(-1).mean(1) * weight).sum() / weight.sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(v, student)[0] for v in (value, expected)), rtol=1e-9, atol=1e-12
    )


def test_is_the_attention_of_vectors_to_themselves():
    student, teacher = vectors(2, 3, 4, 5), vectors(2, 3, 4, 7, seed=1)
    torch.testing.assert_close(
        self_attention_relations(student, teacher),
        attention_qk((student, student.clone()), (teacher, teacher.clone())),
    )


def test_kinds_are_summed():
    student = tuple(vectors(2, 4, 6, seed=seed) for seed in (0, 1, 2))
    teacher = tuple(vectors(2, 4, 12, seed=seed) for seed in (3, 4, 5))
    single = [
        self_attention_relations(s, t, relation_heads=3)
        for s, t in zip(student, teacher, strict=True)
    ]
    value = self_attention_relations(student, teacher, relation_heads=3)
    torch.testing.assert_close(value, sum(single[1:], single[0]))


def test_heads_of_the_model_are_joined_and_split_anew():
    student, teacher = vectors(2, 4, 12), vectors(2, 4, 24, seed=1)
    by_head = [x.unflatten(2, (-1, 6)).transpose(1, 2) for x in (student, teacher)]
    torch.testing.assert_close(
        self_attention_relations(*by_head, relation_heads=3),
        self_attention_relations(student, teacher, relation_heads=3),
    )
    same = student.unflatten(2, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(
        self_attention_relations(same, 2 * same),
        self_attention_relations(student, 2 * student, relation_heads=3),
    )


def test_turning_the_vectors_changes_nothing():
    student, teacher = vectors(2, 3, 4, 5), vectors(2, 3, 4, 5, seed=1)
    turn, _ = torch.linalg.qr(vectors(5, 5, seed=2))
    expected = self_attention_relations(student, teacher)
    torch.testing.assert_close(self_attention_relations(student @ turn, teacher), expected)
    assert self_attention_relations(teacher @ turn, teacher).item() == pytest.approx(0, abs=1e-14)


def test_heads_that_differ():
    student, teacher = torch.zeros(2, 4, 3, 6), torch.zeros(2, 12, 3, 6)
    with pytest.raises(ShapeError, match=r"\(2, 4, 3, 6\).*\(2, 12, 3, 6\).*relation_heads"):
        self_attention_relations(student, teacher)
    assert self_attention_relations(student, teacher, relation_heads=8).item() == 0.0
    with pytest.raises(ShapeError, match="relation_heads=5 does not divide the width 24"):
        self_attention_relations(student, teacher, relation_heads=5)
    with pytest.raises(ShapeError, match="do not show their heads"):
        self_attention_relations(torch.zeros(2, 3, 6), torch.zeros(2, 3, 6))


def test_shapes_that_do_not_fit():
    tokens = torch.zeros(2, 3, 6)
    for other in (torch.zeros(2, 4, 6), torch.zeros(1, 3, 6), torch.zeros(2, 3)):
        with pytest.raises(ShapeError, match=r"\(2, 3, 6\)"):
            self_attention_relations(tokens, other, relation_heads=2)
    with pytest.raises(ShapeError, match="not empty"):
        self_attention_relations(tokens[..., :0], tokens, relation_heads=2)
    with pytest.raises(ShapeError, match="same number of layers.* 3 and 2"):
        self_attention_relations((tokens,) * 3, (tokens,) * 2, relation_heads=2)
    with pytest.raises(ShapeError, match="one number a position"):
        self_attention_relations(tokens, tokens, relation_heads=2, mask=torch.ones(3, 2))


@pytest.mark.parametrize("heads", [0, -1, 1.5])
def test_bad_relation_heads(heads):
    with pytest.raises(ConfigError, match="relation_heads must be an integer >= 1"):
        self_attention_relations(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), relation_heads=heads)
    with pytest.raises(ConfigError, match="relation_heads must be an integer >= 1"):
        SelfAttentionRelations(relation_heads=heads)
