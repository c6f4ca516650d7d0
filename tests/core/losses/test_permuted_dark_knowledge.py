from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import (
    PermutedDarkKnowledge,
    permuted_dark_knowledge,
    soft_cross_entropy,
)
from taskdistill.core.losses.permuted_dark_knowledge import permute_others

Cls = dict[str, Tensor]


@given(
    rows=st.integers(0, 4),
    classes=st.integers(2, 7),
    height=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_a_permutation_that_leaves_the_largest(rows: int, classes: int, height: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, height, generator=g, dtype=torch.float64)
    mixed = permute_others(logits, 1, g)
    assert torch.equal(mixed.sort(1)[0], logits.sort(1)[0])
    top = logits.argmax(1, keepdim=True)
    assert torch.equal(mixed.gather(1, top), logits.gather(1, top))


def test_every_order_of_the_others_comes_equally_often():
    count = 6000
    logits = torch.tensor([[1.0, 9.0, 2.0, 3.0]]).expand(count, 4)
    mixed = permute_others(logits, 1, torch.Generator().manual_seed(0))
    seen = [tuple(row) for row in mixed[:, [0, 2, 3]].tolist()]
    for order in permutations([1.0, 2.0, 3.0]):
        assert seen.count(order) / count == pytest.approx(1 / 6, abs=0.02)
    assert len(set(seen)) == 6  # rows of one batch are drawn one by one


def test_equal_logits_keep_one_of_them_in_place():
    mixed = permute_others(torch.zeros(3, 5), 1)
    assert torch.equal(mixed, torch.zeros(3, 5))


def test_the_mean_over_orders_spreads_the_rest_evenly(golden_cls: Cls):
    """In the mean over permutations, each wrong class gets the mean of the wrong ones."""
    student, teacher = golden_cls["ls"][:2].double(), golden_cls["lt"][:2].double()
    p = teacher.softmax(1)
    top = p.argmax(1, keepdim=True)
    even = ((1 - p.gather(1, top)) / 9).expand(2, 10).scatter(1, top, p.gather(1, top))
    expected = -(even * student.log_softmax(1)).sum(1).mean()
    g = torch.Generator().manual_seed(0)
    many = student.repeat(4000, 1), teacher.repeat(4000, 1)
    value = permuted_dark_knowledge(*many, generator=g)
    assert value.item() == pytest.approx(expected.item(), rel=0.01)


def test_against_the_formula_with_the_same_draw(golden_cls: Cls):
    student, teacher = golden_cls["ls"], golden_cls["lt"]
    value = permuted_dark_knowledge(
        student, teacher, temperature=3.0, generator=torch.Generator().manual_seed(5)
    )
    mixed = permute_others(teacher, 1, torch.Generator().manual_seed(5))
    p = (mixed / 3).softmax(1)
    expected = -9 * (p * (student / 3).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(value, expected)
    assert abs(value - soft_cross_entropy(student, teacher, temperature=3.0)) > 1e-3


def test_two_classes_have_one_order():
    student, teacher = 3 * torch.randn(2, 6, 2)
    assert torch.equal(
        permuted_dark_knowledge(student, teacher), soft_cross_entropy(student, teacher)
    )


def test_the_generator_and_the_seed_decide(golden_cls: Cls):
    student, teacher = golden_cls["ls"], golden_cls["lt"]

    def value(seed: int) -> float:
        g = torch.Generator().manual_seed(seed)
        return permuted_dark_knowledge(student, teacher, generator=g).item()

    assert value(1) == value(1) != value(2)
    loss = PermutedDarkKnowledge()
    torch.manual_seed(1)
    first, second = loss(student, teacher), loss(student, teacher)
    torch.manual_seed(1)
    assert loss(student, teacher) == first != second  # anew in every step, repeatable


def test_gradient_of_one_draw_is_exact(golden_cls: Cls):
    student, teacher = golden_cls["ls"][:3].double(), golden_cls["lt"][:3].double()

    def loss(own: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return permuted_dark_knowledge(own, teacher, temperature=2.0, generator=g)

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


def test_finite_at_extreme_logits(golden_cls: Cls):
    student = (1e4 * golden_cls["ls"].sign()).requires_grad_()
    value = permuted_dark_knowledge(student, -student.detach(), temperature=0.5)
    value.backward()
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_what_does_not_fit():
    with pytest.raises(ShapeError, match="at least 2"):
        permuted_dark_knowledge(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ConfigError, match="temperature"):
        PermutedDarkKnowledge(temperature=-1.0)
