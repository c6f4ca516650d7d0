"""What the mmengine tasks share: the wrapped model, hooks, the runner and its command lines.

Importing it registers everything by name with mmengine.
"""

from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from .adapter import TASK_ADAPTERS, TaskAdapter
from .config import load_config, prepare_config
from .hooks import DistillHook, RepeatableHook, SafeCheckpointHook
from .model import DistilledModel
from .optim import DistillOptimWrapperConstructor
from .parallel import AlternatingDataParallel, DistilledDataParallel
from .runner import DistillRunner
from .seeded import NumberedSampler, SeededDataset
from .steps import TurnOptimWrapper

__all__ = [
    "TASK_ADAPTERS",
    "AlternatingDataParallel",
    "DistillHook",
    "DistillOptimWrapperConstructor",
    "DistillRunner",
    "DistilledDataParallel",
    "DistilledModel",
    "NumberedSampler",
    "RepeatableHook",
    "SafeCheckpointHook",
    "SeededDataset",
    "TaskAdapter",
    "TurnOptimWrapper",
    "load_config",
    "prepare_config",
]

# mmengine finds configs by `package::path` for the packages it knows. It knows mmseg by the name of
# OpenMMLab's own release, and would install that beside the maintained fork.
MODULE2PACKAGE.setdefault("taskdistill", "taskdistill")
if find_spec("mmseg") and not is_installed(MODULE2PACKAGE["mmseg"]):
    MODULE2PACKAGE["mmseg"] = "mmseg"
