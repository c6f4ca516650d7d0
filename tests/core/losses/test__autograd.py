from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taskdistill.core.errors import DistillError
from taskdistill.core.losses import backend, feature_imitation
from taskdistill.core.losses._autograd import with_gradient


@pytest.fixture
def student() -> Tensor:
    return torch.tensor([[1.0, 3.0]], requires_grad=True)


TEACHER = torch.zeros(1, 2)


def test_a_retained_graph_gives_the_same_gradient_again(student: Tensor):
    value = feature_imitation(student, TEACHER)
    grads = [torch.autograd.grad(value, student, retain_graph=keep)[0] for keep in (True, False)]
    assert torch.equal(grads[0], torch.tensor([[1.0, 3.0]])) and torch.equal(*grads)


def test_the_upstream_gradient_scales(student: Tensor):
    (7 * feature_imitation(student, TEACHER)).backward()
    assert student.grad is not None and torch.equal(student.grad, torch.tensor([[7.0, 21.0]]))


def test_two_losses_on_one_student_add_up(student: Tensor):
    (feature_imitation(student, TEACHER) + feature_imitation(student, TEACHER)).backward()
    assert student.grad is not None and torch.equal(student.grad, torch.tensor([[2.0, 6.0]]))


def test_a_second_backward_says_what_to_do(student: Tensor):
    value = with_gradient(torch.ones(()), (student,), (torch.ones(1, 2),))
    value.backward()
    with pytest.raises(DistillError, match="retain_graph=True"):
        value.backward()


def test_second_derivatives_are_refused_but_for_the_formula(student: Tensor):
    with pytest.raises(DistillError, match=r"create_graph=True.*backend\('reference'\)"):
        torch.autograd.grad(feature_imitation(student, TEACHER), student, create_graph=True)
    with backend("reference"):
        value = feature_imitation(student, TEACHER)
    (grad,) = torch.autograd.grad(value, student, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), student)
    assert torch.equal(second, torch.ones(1, 2))
