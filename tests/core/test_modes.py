from __future__ import annotations

import pytest
from torch import nn

from taskdistill.core.modes import evaluating


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


def test_after_an_error_too():
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training and model[0].training
