"""What all demos share: train teacher and students, compare, report.

``task.py`` says what a task has to bring, ``run.py`` has the course of a demo, ``jobs.py`` the
queue of training processes, ``progress.py`` its display, ``results.py`` the figures,
``comparison.py`` the models side by side, ``report.py`` the page, ``files.py`` files that are whole
or absent. A task adds one subclass of :class:`DemoTask`; those of mmengine tasks begin with
``taskdistill.tasks.openmm.demo``.
"""

from __future__ import annotations

from .comparison import Metric
from .run import run_demo
from .task import DemoOptions, DemoTask

__all__ = ["DemoOptions", "DemoTask", "Metric", "run_demo"]
