"""How the benchmarks measure: time of one process, and the allocator's peak."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["elapsed", "peak_bytes"]


def elapsed(run: Callable[[], object], on_gpu: bool = False) -> float:
    """Return the seconds that one call takes: on a CPU the process's own, on a GPU by the clock."""
    if on_gpu:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_bytes(run: Callable[[], object], on_gpu: bool = False) -> int:
    """Return the highest number of bytes allocated at one time during a call, beyond before."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    level = peak = 0
    for event in memory:
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak
