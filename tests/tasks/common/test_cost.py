from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.common.cost import (
    available_cores,
    count_macs,
    count_parameters,
    macs_by_module,
    median_latency,
    peak_memory,
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


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 4), (3, 2)])
def test_macs_of_a_transposed_convolution_are_on_output_elements(stride, groups, device):
    layer = nn.ConvTranspose2d(8, 4, 3, stride, padding=1, groups=groups, device=device)
    image = torch.zeros(2, 8, 6, 5, device=device)
    outputs = layer(image).numel()
    assert count_macs(lambda: layer(image)) == outputs * (8 // groups) * 9


def test_macs_of_cyclegans_generator_are_the_papers():
    """56.80 G on output elements; on input elements they would be 49.55 G."""
    width, norm = 64, nn.InstanceNorm2d

    def block() -> list[nn.Module]:
        return [nn.Conv2d(4 * width, 4 * width, 3, padding=1) for _ in range(2)]

    with torch.device("meta"):
        up = dict(stride=2, padding=1, output_padding=1)
        generator = nn.Sequential(
            *(nn.Conv2d(3, width, 7, padding=3), norm(width)),
            nn.Conv2d(width, 2 * width, 3, 2, padding=1),
            nn.Conv2d(2 * width, 4 * width, 3, 2, padding=1),
            *(layer for _ in range(9) for layer in block()),
            nn.ConvTranspose2d(4 * width, 2 * width, 3, **up),
            nn.ConvTranspose2d(2 * width, width, 3, **up),
            nn.Conv2d(width, 3, 7, padding=3),
        )
        image = torch.zeros(1, 3, 256, 256)
    assert count_parameters(generator) == 11_378_179
    assert count_macs(lambda: generator(image)) == 56_799_264_768


def test_macs_by_module_sum_up():
    branch = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU())
    model = nn.Sequential(branch, nn.Conv2d(3, 1, 1))
    found = macs_by_module(lambda: model(torch.zeros(1, 2, 4, 4)))
    assert found == {"": 144, "0": 96, "0.0": 96, "1": 48}


def test_parameters_that_train():
    frozen = nn.Linear(3, 3).requires_grad_(False)
    model = nn.Sequential(frozen, nn.Linear(3, 1))
    assert count_parameters(model) == 16
    assert count_parameters(model, trainable_only=True) == 4


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


def test_peak_memory_counts_what_is_alive_at_a_time():
    image = torch.zeros(1000)

    def one_after_another() -> None:
        for _ in range(3):
            image.exp()

    def together() -> list[torch.Tensor]:
        return [image.exp() for _ in range(3)]

    assert peak_memory(one_after_another) == 4000
    assert peak_memory(together) == 12000


def test_peak_memory_holds_no_graph():
    """A chain without gradients needs two maps at a time, not all of them."""
    model = nn.Sequential(*(nn.Softplus() for _ in range(6)))
    image = torch.zeros(1000, requires_grad=True)
    assert peak_memory(lambda: model(image)) == 8000


@pytest.mark.parametrize(
    "measure", [peak_memory, lambda call, device: median_latency({"x": call}, device=device)]
)
def test_nothing_is_measured_where_nothing_runs(measure):
    with pytest.raises(ConfigError, match="meta"):
        measure(lambda: None, device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match="no CUDA device"):
        median_latency({}, device="cuda")


@pytest.mark.gpu
def test_cuda_is_measured_when_it_has_finished():
    image = torch.zeros(2048, 2048, device="cuda")

    def work() -> None:
        for _ in range(50):
            image @ image

    assert peak_memory(lambda: image + 1, "cuda") == image.numel() * 4
    found = median_latency({"one": lambda: image @ image, "fifty": work}, 5, device="cuda")
    assert found["fifty"] > 10 * found["one"]
