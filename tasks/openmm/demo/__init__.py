"""What the demos of all mmengine tasks share: train teacher and students, compare, report.

``run.py`` has the course of a demo, ``jobs.py`` the queue of training processes, ``progress.py``
its display, ``results.py`` the figures, ``comparison.py`` the models side by side, ``cost.py``
parameters, multiply-accumulates and latency, ``report.py`` the page. A task adds one subclass of
:class:`DemoTask`.
"""

from __future__ import annotations

from .comparison import Metric
from .run import DemoOptions, DemoTask, run_demo

__all__ = ["DemoOptions", "DemoTask", "Metric", "run_demo"]
