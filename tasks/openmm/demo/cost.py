"""What a model costs: parameters, multiply-accumulates, time on the CPU."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ....core.errors import ConfigError


def available_cores() -> int:
    """Return the number of CPU cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trained or frozen, shared ones once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(forward: Callable[[], object]) -> int:
    """Return the multiply-accumulates of one forward pass.

    Half of what ``torch.utils.flop_counter`` counts: convolutions and matrix products, where one
    multiply-accumulate is two operations. Additions, activations, normalisation and custom
    operators are not in it, as is usual for this figure.

    Args:
        forward: Runs the model once; called without gradients.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> count_macs(lambda: layer(torch.zeros(1, 3)))
        6
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2


def median_latency(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    warmup: int = 3,
    threads: int | None = None,
) -> dict[str, float]:
    """Time several models against one another on the CPU.

    The models take turns, so that a busy moment of the machine or a change of its clock meets all
    of them, and the median leaves out what met only one.

    Args:
        calls: For each name, a function that processes one image on the CPU.
        rounds: Timed calls of each.
        warmup: Untimed calls of each beforehand.
        threads: CPU threads; all cores by default.

    Returns:
        Milliseconds per call, by name.

    Raises:
        ConfigError: ``rounds`` is not positive.
    """
    if rounds < 1:
        raise ConfigError(f"Expected at least one timed round, got rounds={rounds}.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or available_cores())
    times: dict[str, list[float]] = {name: [] for name in calls}
    try:
        with torch.no_grad():
            for turn in range(warmup + rounds):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    if turn >= warmup:
                        times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: 1000.0 * statistics.median(values) for name, values in times.items()}
