"""Leaving a process group, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LEAVE = """
import gc, sys
from pathlib import Path
import torch
import torch.distributed as dist
# What it imports holds the group there is then, for as long as Python runs.
from torch.nn.parallel import DistributedDataParallel
import torch.distributed.nn.functional
from taskdistill.tasks.common.processes import leave_process_group

def threads():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return names.count("pt_gloo_runloop")

class Runner:
    def __init__(self):
        self.itself = self
        self.model = DistributedDataParallel(torch.nn.Linear(4, 4))
        self.model(torch.ones(2, 4)).sum().backward()

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
Runner()
seen, collect = [threads()], gc.collect
gc.collect = lambda: (collect(), seen.append(threads()))
leave_process_group()
print(seen, threads(), dist.is_initialized())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see threads")
def test_threads_end_though_circles_held_the_group_but_not_inside_the_collection(tmp_path):
    """A group that ends inside it keeps the lock its own thread may wait for, and both wait on."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, str(tmp_path / "store")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[-2] == "[2, 2] 0 False"
