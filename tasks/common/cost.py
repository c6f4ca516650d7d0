"""What a model costs: parameters, multiply-accumulates, time and memory."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ...core.errors import ConfigError

__all__ = [
    "MAC_CONVENTION",
    "available_cores",
    "count_macs",
    "count_parameters",
    "macs_by_module",
    "median_latency",
    "peak_memory",
]

MAC_CONVENTION = (
    "convolutions and matrix products; transposed convolutions on output elements; without bias, "
    "normalisation, activations and custom operators"
)


def available_cores() -> int:
    """Return the number of CPU cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Return the number of parameters, shared ones once.

    Args:
        model: The network, on any device (``"meta"`` too).
        trainable_only: Leave out frozen ones.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
        >>> count_parameters(nn.Linear(3, 2).requires_grad_(False), trainable_only=True)
        0
    """
    parameters = model.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable_only)


def count_macs(forward: Callable[[], object]) -> int:
    """Return the multiply-accumulates of one forward pass.

    Half of what ``torch.utils.flop_counter`` counts: convolutions and matrix products, where one
    multiply-accumulate is two operations. Additions, activations, normalisation and custom
    operators are not in it, as is usual for this figure.

    A transposed convolution counts output elements x input channels a group x kernel elements, as
    in the GAN compression paper (Li et al., CVPR 2020), and not input elements x output channels a
    group x kernel elements, which is what ``flop_counter`` itself takes and what is really
    multiplied. The two differ by the square of the stride: CycleGAN's generator (9 blocks, width
    64) on a 256 x 256 image has 56.80 G this way, the paper's 56.8 G, and 49.55 G the other.

    Args:
        forward: Runs the model once; called without gradients. Model and inputs may be on the
            ``"meta"`` device, where nothing is computed.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> count_macs(lambda: layer(torch.zeros(1, 3)))
        6
        >>> up = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, device="meta")
        >>> count_macs(lambda: up(torch.zeros(1, 4, 5, 5, device="meta"))) == (2 * 10 * 10) * 4 * 9
        True
    """
    return macs_by_module(forward)[""]


def macs_by_module(forward: Callable[[], object]) -> dict[str, int]:
    """Return the multiply-accumulates of one forward pass, module by module.

    Args:
        forward: Runs a model once by calling it; see :func:`count_macs`.

    Returns:
        Figures by dotted module name within the model, those of its children included; the whole
        pass under ``""``. A module whose ``forward`` is called directly, past torch's hooks (as
        mmseg does with its heads), has no entry, but its children have.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> macs_by_module(lambda: model(torch.zeros(1, 3)))
        {'': 8, '0': 6, '2': 2}
    """
    mapping = {torch.ops.aten.convolution: _convolution, torch.ops.aten._convolution: _convolution}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        forward()
    found = {"": counter.get_total_flops() // 2}
    for name, operations in counter.get_flop_counts().items():
        # The first part is the class of the model, which no state dict names.
        within = name.partition(".")[2]
        if within:
            found[within] = sum(operations.values()) // 2
    return found


def _convolution(
    x: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    *rest: Any,
    out_shape: Sequence[int],
    **options: Any,
) -> int:
    """Operations of ``aten.convolution``; ``flop_counter`` gives shapes in place of tensors."""
    outputs, kernel = math.prod(out_shape), math.prod(weight[2:])
    if not transposed:  # (out, in / groups, *kernel)
        return 2 * outputs * weight[1] * kernel
    groups = out_shape[1] // weight[1]  # (in, out / groups, *kernel)
    return 2 * outputs * (weight[0] // groups) * kernel


def median_latency(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    warmup: int = 3,
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Time several models against one another.

    The models take turns, so that a busy moment of the machine or a change of its clock meets all
    of them, and the median leaves out what met only one.

    Args:
        calls: For each name, a function that processes one sample on ``device``.
        rounds: Timed calls of each.
        warmup: Untimed calls of each beforehand.
        threads: CPU threads; all cores by default.
        device: Where the calls compute. On CUDA, which works through its queue by itself, a call
            is over when the device has finished it.

    Returns:
        Milliseconds per call, by name.

    Raises:
        ConfigError: ``rounds`` is not positive, or nothing runs on ``device``.

    Example:
        >>> list(median_latency({"nothing": lambda: None}, rounds=1))
        ['nothing']
    """
    if rounds < 1:
        raise ConfigError(f"Expected at least one timed round, got rounds={rounds}.")
    on_cuda = _real_device(device).type == "cuda"
    before = torch.get_num_threads()
    torch.set_num_threads(threads or available_cores())
    times: dict[str, list[float]] = {name: [] for name in calls}
    try:
        with torch.no_grad():
            for turn in range(warmup + rounds):
                for name, call in calls.items():
                    if on_cuda:
                        torch.cuda.synchronize(device)
                    start = time.perf_counter()
                    call()
                    if on_cuda:
                        torch.cuda.synchronize(device)
                    if turn >= warmup:
                        times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: 1000.0 * statistics.median(values) for name, values in times.items()}


def peak_memory(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Return the most bytes that one call holds at a time, beyond what was held before it.

    Weights and inputs are there before and do not count; feature maps and the scratch buffers of
    operators do, as far as torch's own allocator hands them out. On a CPU this is the highest sum
    of that allocator's open requests, as ``torch.profiler`` records them, and not the growth of the
    process, which keeps freed memory. On CUDA it is the rise of
    ``torch.cuda.max_memory_allocated`` (whose statistics are reset).

    Args:
        call: Runs the model once; called without gradients.
        device: Where it computes.

    Raises:
        ConfigError: ``device`` holds no memory (``"meta"``).

    Example:
        >>> image = torch.zeros(1000)
        >>> peak_memory(lambda: image.exp())
        4000
    """
    if _real_device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.no_grad():
            call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Without a driver, a torch built for CUDA says so on standard error at its first profile.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with (
        torch.no_grad(),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of later cycles
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    level = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak


def _real_device(device: str | torch.device) -> torch.device:
    found = torch.device(device)
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"Nothing can be measured on device {str(found)!r}; give cpu or cuda.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"Device {str(found)!r} was asked for, but torch finds no CUDA device.")
    return found
