from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper

from taskdistill.tasks.openmm.steps import (
    TurnOptimWrapper,
    average_gradients,
    gradient_norm,
    training_progress,
)


def wrapper(lr: float, **options) -> OptimWrapper:
    return OptimWrapper(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr), **options)


def test_the_main_players_rate_is_called_as_in_plain_training():
    both = TurnOptimWrapper("mine", {"mine": wrapper(0.1), "theirs": wrapper(0.2)})
    assert both.get_lr() == {"lr": [0.1], "theirs.lr": [0.2]}
    assert both.main == "mine" and list(both.keys()) == ["mine", "theirs"]


def test_each_counts_its_own_steps():
    made = {
        "mine": wrapper(0.1, accumulative_counts=2),
        "theirs": wrapper(0.2, accumulative_counts=2),
    }
    both = TurnOptimWrapper("mine", made, {"theirs": 3})
    both.initialize_count_status(nn.Linear(1, 1), cur_iter=4, max_iters=9)
    counts = {name: (w._inner_count, w._max_counts) for name, w in made.items()}
    assert counts == {"mine": (4, 9), "theirs": (12, 27)}


def test_the_norm_is_that_of_all_gradients_together():
    first, second, none = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 3))
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    assert gradient_norm([first, second, none]).item() == pytest.approx(13.0)


def test_in_one_process_there_is_nothing_to_average():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    average_gradients([parameter, nn.Parameter(torch.zeros(1))])
    assert torch.equal(parameter.grad, torch.ones(2))


def test_progress_counts_parts_of_an_epoch_where_its_length_is_known():
    hub = MessageHub.get_instance("test_progress_counts")
    hub.update_info("iter", 7)
    hub.update_info("epoch", 1)
    assert (training_progress().step, training_progress().epoch) == (7, 1.0)
    hub.update_info("distill_epoch_length", 4)
    assert training_progress().epoch == 1.75
