"""What the demos of all mmengine tasks share: train teacher and students, compare, report.

``run.py`` has the course of a demo, ``jobs.py`` the queue of training processes, ``progress.py``
its display, ``results.py`` the figures, ``comparison.py`` the models side by side, ``cost.py``
parameters, multiply-accumulates and latency, ``report.py`` the page. A task adds one subclass of
:class:`DemoTask`, or of :class:`MmDemoTask` (``library.py``) where its configs are an mm library's.
"""

from __future__ import annotations

from .comparison import Metric
from .library import MmDemoTask
from .run import DemoOptions, DemoTask, run_demo

__all__ = ["DemoOptions", "DemoTask", "Metric", "MmDemoTask", "run_demo"]
