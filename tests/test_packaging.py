"""The wheel, the constraints, and what `taskdistill.core` may import."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(lines: list[str]) -> set[str]:
    names = {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}
    return names - {"taskdistill"}


def direct_requirements() -> set[str]:
    lines = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    return requirement_names(lines)


def constraints() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line:
            name, equal, version = line.partition("==")
            assert equal, f"constraints.txt pins no exact version in {line!r}"
            pins[normal(name)] = version
    return pins


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout: a build must leave nothing in the tree."""
    source = tmp_path_factory.mktemp("source")
    for file in tracked_files():
        if file.is_file():
            target = source / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    # What an earlier build and an editable install leave behind must not get in.
    stale = source / "build" / "lib" / "taskdistill" / "core" / "deleted.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (source / "taskdistill" / ".mim").mkdir()
    (source / "taskdistill" / ".mim" / "configs").symlink_to(source / "tests")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-q", "-w", str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("taskdistill-*.whl"))


def test_wheel_holds_the_packages_configs_and_tools(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    expected = {"taskdistill/__init__.py", "taskdistill/py.typed"}
    expected.add("taskdistill/.mim/model-index.yml")
    for file in tracked_files():
        path = file.relative_to(ROOT)
        if file.is_file():
            if path.parts[0] in ("core", "tasks"):
                expected.add(f"taskdistill/{path.as_posix()}")
            elif path.parts[0] in ("configs", "tools") and path.name != "install.py":
                expected.add(f"taskdistill/.mim/{path.as_posix()}")
    assert expected - inside == set()


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {name.split("/")[0] for name in inside} == {
        "taskdistill",
        f"taskdistill-{importlib.metadata.version('taskdistill')}.dist-info",
    }
    assert not [name for name in inside if "test_" in name or "conftest" in name]
    assert "taskdistill/core/deleted.py" not in inside
    assert not [name for name in inside if "__pycache__" in name]


def test_wheel_runs_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import taskdistill, taskdistill.core.losses as losses; print(losses.__file__)"
    # Isolated from the checkout's editable install: its finder comes after sys.path.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


BLOCKED_IMPORT = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked: core needs torch alone", name=name)

# torch uses some of these itself where they are installed, so it comes first.
import torch
blocked = set(sys.argv[1:])
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())
import taskdistill.core
for module in pkgutil.walk_packages(taskdistill.core.__path__, "taskdistill.core."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules} & blocked))
"""


def test_core_imports_with_torch_alone() -> None:
    blocked = "mmengine mmcv mmdet mmseg transformers datasets accelerate torchvision numpy scipy"
    blocked += " matplotlib PIL cv2 sklearn pandas rich yaml"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, *blocked.split()],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_requirement_has_a_tested_version() -> None:
    assert direct_requirements() - set(constraints()) == set()


def test_installed_versions_are_the_tested_ones() -> None:
    for name in sorted(direct_requirements()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        assert installed.partition("+")[0] == constraints()[name], name


def test_tested_versions_satisfy_the_lower_bounds() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    lines = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    for requirement in map(requirements.Requirement, lines):
        if requirement.name != "taskdistill":
            version = constraints()[normal(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_all_extra_covers_the_task_extras() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"all", "bench", "dev"}
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.search(r"\[(.+)\]", line)[1].split(",")) == extras


def test_no_file_names_a_machine_path() -> None:
    # Put together from pieces, so that this file does not contain what it looks for.
    machine = re.compile("|".join("/" + name + r"\b/" for name in ("work", "tmp", "home", "root")))
    found = []
    for file in tracked_files():
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if machine.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
