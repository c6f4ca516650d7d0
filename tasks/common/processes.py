"""What runs of several processes share."""

from __future__ import annotations

import gc

import torch.distributed as dist

__all__ = ["leave_process_group"]


def leave_process_group() -> None:
    """Leave the process group that a run joined, if it did, and see its threads end.

    To be called when the caller holds nothing of the run any more. A thread of gloo's that still
    lets go of the last tensors when the interpreter ends aborts the process, though its work is
    done. The group joins its threads when nothing refers to it any more, and a runner and a
    data-parallel model do, in circles.

    Example:
        >>> leave_process_group()  # there is none to leave
    """
    if not dist.is_initialized():
        return
    group = dist.group.WORLD
    dist.destroy_process_group()
    gc.collect()
    # Not before: a data-parallel model that is the last to hold the group ends it without giving up
    # the interpreter's lock, for which the thread to be joined may wait. This name gives it up.
    del group
