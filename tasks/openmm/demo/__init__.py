"""What the demos of all mmengine tasks share, on top of ``taskdistill.tasks.common.demo``.

``task.py`` trains by mmengine's configs (:class:`MmTask`); ``library.py`` takes data, models and
predictions from them as well, where they are an mm library's (:class:`MmDemoTask`).
"""

from __future__ import annotations

from .library import MmDemoTask
from .task import MmTask

__all__ = ["MmDemoTask", "MmTask"]
