"""Training that stops at a loss which is not finite."""

from __future__ import annotations

import pytest
import torch

from taskdistill.core.errors import NonFiniteLossError
from taskdistill.tasks.openmm.checked import CheckedModel


class Model(CheckedModel):
    def forward(self, *args, **kwargs):
        raise NotImplementedError


def test_finite_losses_are_summed_as_mmengine_does():
    total, figures = Model().parse_losses(
        {"loss_a": torch.tensor(1.0), "loss_b": [torch.tensor(2.0)] * 2, "raw": torch.tensor(9.0)}
    )
    assert float(total) == 5.0 and float(figures["loss"]) == 5.0 and float(figures["raw"]) == 9.0


@pytest.mark.parametrize("name", ["loss_b", "raw"])
def test_one_that_is_not_finite_ends_training_by_its_name(name: str):
    with pytest.raises(NonFiniteLossError, match=rf"At step \d+ not finite: {name}=nan"):
        Model().parse_losses({"loss_a": torch.tensor(1.0), name: torch.tensor(float("nan"))})
