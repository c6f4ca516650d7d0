"""The GAN task needs mmengine alone of the mm libraries."""

from __future__ import annotations

import subprocess
import sys


def test_imports_without_mmcv_mmdet_mmseg_and_transformers():
    code = """
import importlib.util, sys

ABSENT = ("mmcv", "mmdet", "mmseg", "transformers", "datasets")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ABSENT else find(name, *rest)


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not here", name=name)


sys.meta_path.insert(0, Refuse())
import taskdistill.tasks.gan, taskdistill.tasks.gan.demo, taskdistill.tasks.gan.export
import taskdistill.tasks.gan.page.server, taskdistill.tasks.gan.search.cli
import taskdistill.tasks.gan.metrics.cli, taskdistill.tasks.openmm.profile
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
