from __future__ import annotations

import time

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.openmm.demo.cost import (
    available_cores,
    count_macs,
    count_parameters,
    median_latency,
)


def test_parameters_count_frozen_ones_and_shared_ones_once():
    shared = nn.Linear(3, 3, bias=False)
    frozen = nn.BatchNorm1d(3).requires_grad_(False)
    assert count_parameters(nn.Sequential(shared, frozen, shared)) == 9 + 6


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_macs_of_a_convolution(stride, groups):
    layer = nn.Conv2d(4, 8, 3, stride, padding=1, groups=groups)
    side = 6 // stride
    expected = side * side * 8 * (4 // groups) * 9
    assert count_macs(lambda: layer(torch.zeros(1, 4, 6, 6))) == expected


def test_macs_leave_no_gradient_behind():
    layer = nn.Linear(2, 2)
    out = []
    count_macs(lambda: out.append(layer(torch.zeros(1, 2))))
    assert not out[0].requires_grad


def test_latency_is_a_median_in_milliseconds_and_takes_turns():
    calls = []

    def slow() -> None:
        calls.append("slow")
        # One call that takes ten times as long must not show in the median.
        time.sleep(0.1 if len(calls) == 3 else 0.01)

    threads = torch.get_num_threads()
    found = median_latency({"slow": slow, "fast": lambda: calls.append("fast")}, 5, 1, threads=1)
    assert calls == ["slow", "fast"] * 6
    assert 9 < found["slow"] < 60
    assert found["fast"] < found["slow"]
    assert torch.get_num_threads() == threads


def test_latency_needs_a_round():
    with pytest.raises(ConfigError, match="rounds=0"):
        median_latency({}, rounds=0)


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        median_latency({"bad": lambda: 1 / 0}, threads=available_cores() + 1)
    assert torch.get_num_threads() == before
