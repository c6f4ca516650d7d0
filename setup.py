"""What pyproject.toml cannot say: the folder mapping, found subpackages, and mm's `.mim`."""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent
PACKAGE_DIR = {
    "taskdistill": "taskdistill",
    "taskdistill.core": "core",
    "taskdistill.tasks": "tasks",
}
MIM_FOLDERS = ("configs", "tools")
# mmengine opens this file before it looks a `taskdistill::...` config up by path; without
# it the look-up fails. No model is registered in it: the configs are found by their path.
MODEL_INDEX = "Import: []\n"


def found_packages() -> list[str]:
    packages = []
    for name, folder in PACKAGE_DIR.items():
        packages += [name, *(f"{name}.{sub}" for sub in find_packages(str(ROOT / folder)))]
    return packages


class BuildWithMim(build_py):
    """Copies configs and tools into `taskdistill/.mim`, where mmengine looks for them."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "taskdistill"
        # A build folder left by an earlier build would put deleted modules into this wheel.
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        mim = package / ".mim"
        mim.mkdir()
        (mim / "model-index.yml").write_text(MODEL_INDEX)
        # install.py works on a checkout only.
        skip = shutil.ignore_patterns("__pycache__", "*.pyc", "install.py")
        for folder in MIM_FOLDERS:
            shutil.copytree(ROOT / folder, mim / folder, ignore=skip)


class EditableWithMim(editable_wheel):
    """Links configs and tools into `taskdistill/.mim`, so that edits are seen at once."""

    def run(self) -> None:
        mim = ROOT / "taskdistill" / ".mim"
        mim.mkdir(exist_ok=True)
        (mim / "model-index.yml").write_text(MODEL_INDEX)
        for folder in MIM_FOLDERS:
            link = mim / folder
            if link.is_symlink():
                link.unlink()
            os.symlink(Path("..", "..", folder), link, target_is_directory=True)
        super().run()


setup(
    package_dir=PACKAGE_DIR,
    packages=found_packages(),
    cmdclass={"build_py": BuildWithMim, "editable_wheel": EditableWithMim},
)
