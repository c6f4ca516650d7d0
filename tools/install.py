"""Install taskdistill and its tested dependencies into a virtual environment.

Every step looks first at what is already installed, so that a second run costs a second and
an interrupted one continues at the step it stopped in. `make install` calls this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEARTBEAT_SECONDS = 30

# Printed by the environment's own interpreter: what is installed, and what an installed
# taskdistill requires.
PROBE = """
import importlib.metadata as metadata, json, platform, sysconfig
dists = list(metadata.distributions())
print(json.dumps({
    "python": platform.python_version(),
    "site": sysconfig.get_path("purelib"),
    "versions": {dist.metadata["Name"]: dist.version for dist in dists if dist.metadata["Name"]},
    "requires": next((d.requires for d in dists if d.metadata["Name"] == "taskdistill"), None),
}))
"""

# nms is the operator every detector needs. On a machine that can compile CUDA it must run
# there too; without nvcc the CPU operators are all there can be.
MMCV_PROBE = """
import torch, mmcv.ops
from torch.utils.cpp_extension import CUDA_HOME
device = "cuda" if torch.cuda.is_available() and CUDA_HOME else "cpu"
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 3.9], [6., 6., 9., 9.]], device=device)
kept = mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)[1]
assert kept.tolist() == [0, 2], f"nms kept {kept.tolist()}, expected [0, 2]"
"""

_TASKS = ("mm", "nlp", "gan", "classification")
MODULES = {
    "": ("torch", "taskdistill.core"),
    "mm": ("cv2", "torchvision", "mmengine", "mmcv.ops", "mmdet.apis", "mmseg.apis", "sklearn"),
    "nlp": ("transformers", "datasets", "accelerate", "torchmetrics"),
    "gan": (
        "cv2",
        "torchvision",
        "mmengine",
        "pytorch_fid",
        "scipy",
        "torchmetrics",
        "onnx",
        "sklearn",
    ),
    "classification": ("cv2", "torchvision", "mmengine", "timm", "sklearn"),
    "bench": ("torchdistill",),
    "dev": ("pytest", "hypothesis", "onnxruntime"),
}


class InstallError(Exception):
    """A step failed; the message says what to do."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> dict[str, str]:
    """Read `name==version` lines: the tested version of each distribution."""
    pins = {}
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line:
            name, _, version = line.partition("==")
            pins[normal(name)] = version
    return pins


def spoken(seconds: float) -> str:
    """Render a duration: 4 s, 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass
class Environment:
    """The virtual environment: what it holds, and how commands run in it."""

    folder: Path
    versions: dict[str, str] = field(default_factory=dict)
    requires: list[str] = field(default_factory=list)

    @property
    def python(self) -> Path:
        windows = os.name == "nt"
        return (
            self.folder
            / ("Scripts" if windows else "bin")
            / ("python.exe" if windows else "python")
        )

    @property
    def stamps(self) -> Path:
        return self.folder / ".stamps"

    def usable(self) -> bool:
        """Whether the interpreter runs and has pip."""
        try:
            command = [str(self.python), "-c", "import pip"]
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False

    def look(self) -> None:
        """Read what is installed now, and drop records that an interruption left behind."""
        found = self.probe()
        # pip writes INSTALLER last: without it a distribution is cut off, yet looks installed.
        cut_off = [
            record
            for record in Path(found["site"]).glob("*.dist-info")
            if not (record / "INSTALLER").exists()
        ]
        for record in cut_off:
            say(f"    {record.stem} was left half-installed and will be installed again")
            shutil.rmtree(record)
        if cut_off:
            found = self.probe()
        self.versions = {normal(name): version for name, version in found["versions"].items()}
        self.versions["python"] = found["python"]
        self.requires = found["requires"] or []

    def probe(self) -> dict[str, Any]:
        return json.loads(subprocess.check_output([str(self.python), "-c", PROBE], text=True))

    def holds(self, name: str, version: str) -> bool:
        # 2.11.0+cpu and the like are builds of the same version, chosen by the user's index.
        return self.versions.get(normal(name), "").partition("+")[0] == version

    def stamp(self, step: str, *inputs: str) -> Path:
        digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
        return self.stamps / f"{step}-{digest}"

    def set_stamp(self, stamp: Path) -> None:
        self.stamps.mkdir(exist_ok=True)
        for old in self.stamps.glob(f"{stamp.name.rpartition('-')[0]}-*"):
            old.unlink()
        stamp.touch()

    def check(self, code: str) -> str:
        """Run Python code in the environment, away from the checkout; return what it complained."""
        command = [str(self.python), "-c", code]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        return done.stderr.strip() if done.returncode else ""

    def pip(self, step: str, *arguments: str, variables: dict[str, str] | None = None) -> None:
        """Run pip, its output in a log, with a sign of life while it works.

        Raises:
            InstallError: With the end of the log where pip failed.
        """
        self.stamps.mkdir(exist_ok=True)
        log = self.stamps / f"{re.sub(r'[^a-z]+', '-', step)}.log"
        settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **os.environ, **(variables or {})}
        start = time.monotonic()
        with log.open("a") as output:
            process = subprocess.Popen(
                [str(self.python), "-m", "pip", *arguments],
                cwd=ROOT,
                env=settings,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while True:
                    try:
                        code = process.wait(HEARTBEAT_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        say(f"    still working on {step}: {spoken(time.monotonic() - start)}")
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if code:
            tail = "\n".join(f"    {line}" for line in log.read_text().splitlines()[-25:])
            raise InstallError(f"pip failed in the step '{step}' (whole log: {log}):\n{tail}")


def say(text: str) -> None:
    print(text, flush=True)


class Installer:
    """The steps, in order. Each is a method that returns at once where nothing is to be done."""

    def __init__(self, folder: Path, extras: list[str]) -> None:
        self.env = Environment(folder)
        self.extras = extras
        self.pins = read_pins(ROOT / "constraints.txt")
        self.mm = bool({"mm", "all"} & set(extras))
        self.step = "environment"
        self.worked = False

    def run(self) -> None:
        start = time.monotonic()
        self.environment()
        self.pinned("build tools", ["setuptools", "wheel", "ninja", "numpy"], "seconds")
        self.pinned("torch and torchvision", ["torch", "torchvision"], "about 1 minute")
        if self.mm:
            # Both write cv2/. The headless one comes last: it needs no display libraries.
            self.pinned("opencv", ["opencv-python"], "seconds")
            self.pinned("opencv, headless", ["opencv-python-headless"], "seconds")
            self.pinned("mmengine", ["onedl-mmengine"], "seconds")
            self.mmcv()
        self.package()
        self.import_check()
        if self.worked:
            self.table()
        say(
            f"taskdistill [{','.join(self.extras)}] is in place in {self.env.folder}, imports "
            f"checked ({spoken(time.monotonic() - start)})."
        )

    def announce(self, step: str, usual: str) -> float:
        self.step, self.worked = step, True
        say(f"==> {step} (usually {usual})")
        return time.monotonic()

    def finish(self, start: float) -> None:
        say(f"    done in {spoken(time.monotonic() - start)}")
        self.env.look()

    def environment(self) -> None:
        if not self.env.usable():
            start = self.announce(f"virtual environment {self.env.folder}", "seconds")
            command = [sys.executable, "-m", "venv", str(self.env.folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise InstallError(
                    f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}\n"
                    "On Debian and Ubuntu the venv module is a package: apt install python3-venv"
                )
            say(f"    done in {spoken(time.monotonic() - start)}")
        self.env.look()
        minor = tuple(map(int, self.env.versions["python"].split(".")[:2]))
        if minor < (3, 11):
            raise InstallError(
                f"{self.env.folder} holds Python {self.env.versions['python']}; 3.11 or newer is "
                "needed. Delete that folder and run `make install PYTHON=python3.11`."
            )

    def pinned(self, step: str, names: list[str], usual: str) -> None:
        """Install distributions at their tested versions, in one command."""
        if all(self.env.holds(name, self.pins[name]) for name in names):
            return
        start = self.announce(step, usual)
        wanted = [f"{name}=={self.pins[name]}" for name in names]
        self.env.pip(step, "install", "--no-build-isolation", "-c", "constraints.txt", *wanted)
        self.finish(start)

    def mmcv(self) -> None:
        """Build mmcv with its compiled operators against the installed torch."""
        name, version = "onedl-mmcv", self.pins["onedl-mmcv"]
        versions = self.env.versions
        stamp = self.env.stamp("mmcv", version, versions["torch"], versions["python"])
        if stamp.exists() and self.env.holds(name, version):
            return
        start = self.announce(
            "mmcv with compiled operators",
            "about 12 minutes on two cores the first time, seconds from pip's cache later",
        )
        cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        variables = {"MMCV_WITH_OPS": "1", "MAX_JOBS": os.environ.get("MAX_JOBS", cores)}
        # Without isolation: the build has to see the torch it is going to run with.
        install = ["install", "--no-build-isolation", "--no-deps", f"{name}=={version}"]
        again = [*install, "--force-reinstall"]
        attempts = [again, [*again, "--no-binary", name]]
        if not self.env.holds(name, version):
            self.build_mmcv(install, variables)
            del attempts[0]  # it would only put the same files there
        while complaint := self.env.check(MMCV_PROBE):
            if not attempts:
                raise InstallError(f"mmcv was built, but its operators do not run:\n{complaint}")
            say(f"    the operators of this mmcv do not run: {complaint.splitlines()[-1]}")
            arguments = attempts.pop(0)
            if not attempts:
                # The cached wheel was built without operators or for another torch.
                say("    building it anew")
                self.env.pip("mmcv", "cache", "remove", "onedl_mmcv*")
            self.build_mmcv(arguments, variables)
        self.env.set_stamp(stamp)
        self.finish(start)

    def build_mmcv(self, arguments: list[str], variables: dict[str, str]) -> None:
        try:
            self.env.pip("mmcv", *arguments, variables=variables)
        except InstallError as error:
            if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++", "cl"))):
                raise InstallError(
                    f"{error}\nNo C++ compiler was found, and mmcv's operators are compiled. On "
                    "Debian and Ubuntu: apt install g++ python3-dev"
                ) from None
            raise InstallError(
                f"{error}\nIf the compiler was killed, memory ran out: try MAX_JOBS=1 make install"
            ) from None

    def package(self) -> None:
        """Install taskdistill itself, editable, with what its extras ask for."""
        inputs = [
            (ROOT / file).read_text() for file in ("pyproject.toml", "setup.py", "constraints.txt")
        ]
        stamp = self.env.stamp("package", str(ROOT), *self.extras, *inputs)
        links = ROOT / "taskdistill" / ".mim" / "configs"
        complete = all(self.env.holds(name, self.pins[name]) for name in self.required())
        if stamp.exists() and complete and links.exists():
            return
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        start = self.announce(
            f"taskdistill{extras} and what it needs", "1 to 2 minutes the first time"
        )
        self.env.pip(
            "taskdistill",
            *("install", "--no-build-isolation", "-c", "constraints.txt", "-e", f".{extras}"),
        )
        self.link_for_type_checkers()
        self.env.set_stamp(stamp)
        self.finish(start)

    def link_for_type_checkers(self) -> None:
        """Lay the package out as installed: pyright cannot follow an editable install's mapping."""
        package = self.env.folder / "typing" / "taskdistill"
        package.mkdir(parents=True, exist_ok=True)
        sources = {"__init__.py": "taskdistill/__init__.py", "core": "core", "tasks": "tasks"}
        for name, source in sources.items():
            link = package / name
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / source, target_is_directory=(ROOT / source).is_dir())

    def required(self) -> list[str]:
        """Direct requirements of the installed taskdistill under the chosen extras."""
        wanted = {""} | set(self.extras)
        if "all" in wanted:
            wanted |= {"mm", "nlp", "gan"}
        names = []
        for line in self.env.requires:
            name = re.match(r"[\w.-]+", line)
            extra = re.search(r"extra == ['\"](\w+)['\"]", line)
            if name and normal(name[0]) != "taskdistill" and (extra[1] if extra else "") in wanted:
                names.append(normal(name[0]))
        return sorted(set(names))

    def import_check(self) -> None:
        installed = [f"{name} {version}" for name, version in sorted(self.env.versions.items())]
        stamp = self.env.stamp("imports", *self.extras, *installed)
        if stamp.exists() and not self.worked:
            return
        stamp.unlink(missing_ok=True)
        start = self.announce("import check", "10 seconds")
        wanted = {"", *self.extras, *(_TASKS if "all" in self.extras else ())}
        modules = dict.fromkeys(m for extra in MODULES if extra in wanted for m in MODULES[extra])
        complaint = self.env.check(f"import {', '.join(modules)}")
        if complaint:
            hint = f"If files are damaged, delete {self.env.folder} and run `make install` again."
            if "cv2" in complaint:
                name = "opencv-python-headless"
                hint = (
                    "The two opencv packages overwrite each other. Put the one that needs no "
                    f"display libraries on top:\n{self.env.python} -m pip install "
                    f"--force-reinstall --no-deps {name}=={self.pins[name]}"
                )
            raise InstallError(f"The import check fails:\n{complaint}\n{hint}")
        self.env.set_stamp(stamp)
        self.finish(start)

    def table(self) -> None:
        say(f"    {'tested':<26}installed")
        for name in ["python", *dict.fromkeys(["torch", "torchvision", *self.required()])]:
            tested = "3.11" if name == "python" else self.pins[name]
            found = self.env.versions[name]
            say(f"    {name + ' ' + tested:<38}{found}")
        if not self.env.versions["python"].startswith("3.11."):
            say("    note: the tests were run with Python 3.11")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="environment to fill")
    parser.add_argument(
        "--extras",
        default="mm,gan,nlp,classification,dev",
        help="comma-separated: mm nlp gan classification all bench dev",
    )
    arguments = parser.parse_args()
    extras = sorted({extra.strip() for extra in arguments.extras.split(",")} - {""})
    unknown = set(extras) - {*_TASKS, "all", "bench", "dev"}
    if unknown:
        parser.error(
            f"no such extra: {', '.join(sorted(unknown))}; there are "
            f"{' '.join((*_TASKS, 'all', 'bench', 'dev'))}"
        )
    installer = Installer(arguments.venv.absolute(), extras)
    try:
        installer.run()
    except InstallError as error:
        say(f"\n{error}\n\nAfter mending it, `make install` continues at this step.")
        return 1
    except KeyboardInterrupt:
        say(f"\nInterrupted in the step '{installer.step}'; `make install` continues there.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
