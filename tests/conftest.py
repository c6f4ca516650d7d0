"""What all tests share: few threads, fixed seeds, and reasons to skip."""

import os

# Before torch is imported: the tensors are small, and more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a machine is fastest at must not decide what is tested; tests of the choice undo it.
os.environ.setdefault("TASKDISTILL_TEACHER", "fp32 contiguous")
# And before anything of transformers is: tests never reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import random  # noqa: E402
import signal  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# A shell starts its background jobs with Ctrl-C ignored, and their children inherit that; the tests
# of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run and machine; a slow machine is no failure.
hypothesis.settings.register_profile("taskdistill", deadline=None, derandomize=True)
hypothesis.settings.load_profile("taskdistill")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = {}
    if not torch.cuda.is_available():
        lacking["gpu"] = "needs a CUDA device"
    if not os.environ.get("TASKDISTILL_DATA"):
        lacking["data"] = "needs TASKDISTILL_DATA, the folder of the external data sets"
    for item in items:
        for marker, reason in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)
    try:
        import numpy
    except ModuleNotFoundError:
        return
    numpy.random.seed(0)
