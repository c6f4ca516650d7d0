"""tools/install.py: what it skips, repairs and says; pip is replaced by a recorder."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["install"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installer(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installer whose environment holds the tested versions, with pip calls recorded."""
    made = install.Installer(tmp_path / "env", ["dev", "mm"])
    env = made.env
    env.versions = {**made.pins, "python": "3.11.2"}
    made.calls = []
    monkeypatch.setattr(install.Environment, "look", lambda self: None)
    monkeypatch.setattr(
        install.Environment,
        "pip",
        lambda self, step, *arguments, variables=None: made.calls.append((arguments, variables)),
    )
    env.stamps.mkdir(parents=True)
    return made


def test_a_step_whose_versions_are_installed_is_skipped(installer: Any) -> None:
    installer.pinned("torch and torchvision", ["torch", "torchvision"], "a minute")
    assert installer.calls == []
    assert not installer.worked


def test_another_build_of_the_same_version_is_kept(installer: Any) -> None:
    installer.env.versions["torch"] += "+cpu"
    installer.pinned("torch and torchvision", ["torch", "torchvision"], "a minute")
    assert installer.calls == []


def test_the_pair_is_installed_in_one_command(installer: Any) -> None:
    installer.env.versions["torch"] = "2.4.0"
    installer.pinned("torch and torchvision", ["torch", "torchvision"], "a minute")
    ((arguments, _),) = installer.calls
    wanted = [f"{name}=={installer.pins[name]}" for name in ("torch", "torchvision")]
    assert list(arguments[-2:]) == wanted


def test_mmcv_is_built_with_operators_against_the_installed_torch(
    install: ModuleType, installer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del installer.env.versions["onedl-mmcv"]
    monkeypatch.setattr(install.Environment, "check", lambda self, code: "")
    installer.mmcv()
    ((arguments, variables),) = installer.calls
    assert "--no-build-isolation" in arguments
    assert variables["MMCV_WITH_OPS"] == "1"

    installer.env.versions["onedl-mmcv"] = installer.pins["onedl-mmcv"]
    installer.mmcv()  # stamped: neither built nor probed again
    assert len(installer.calls) == 1

    probes = []
    monkeypatch.setattr(install.Environment, "check", lambda self, code: probes.append(code) or "")
    installer.env.versions["torch"] = "2.12.0"
    installer.mmcv()
    assert len(probes) == 1


def test_mmcv_without_operators_is_built_anew(
    install: ModuleType, installer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del installer.env.versions["onedl-mmcv"]
    answers = ["No module named 'mmcv._ext'", ""]
    monkeypatch.setattr(install.Environment, "check", lambda self, code: answers.pop(0))
    installer.mmcv()
    first, cache, second = [arguments for arguments, _ in installer.calls]
    assert "--force-reinstall" not in first
    assert cache == ("cache", "remove", "onedl_mmcv*")
    assert "--no-binary" in second


def test_mmcv_that_never_works_is_an_error_and_not_stamped(
    install: ModuleType, installer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.Environment, "check", lambda self, code: "undefined symbol")
    with pytest.raises(install.InstallError, match="undefined symbol"):
        installer.mmcv()
    assert list(installer.env.stamps.glob("mmcv-*")) == []


def test_a_failed_import_check_is_repeated(
    install: ModuleType, installer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.Environment, "check", lambda self, code: "")
    installer.import_check()
    assert list(installer.env.stamps.glob("imports-*"))

    installer.worked = True
    monkeypatch.setattr(install.Environment, "check", lambda self, code: "No module named 'cv2'")
    with pytest.raises(install.InstallError, match="opencv-python-headless=="):
        installer.import_check()
    installer.worked = False
    with pytest.raises(install.InstallError):
        installer.import_check()


def test_a_half_installed_distribution_is_forgotten(install: ModuleType, tmp_path: Path) -> None:
    whole, cut_off = tmp_path / "whole-1.0.dist-info", tmp_path / "cut-1.0.dist-info"
    for record in (whole, cut_off):
        record.mkdir()
        (record / "METADATA").touch()
    (whole / "INSTALLER").write_text("pip\n")
    env = install.Environment(tmp_path)

    def probe() -> dict[str, Any]:
        names = [path.name.split("-")[0] for path in tmp_path.glob("*.dist-info")]
        versions = dict.fromkeys(names, "1.0")
        return {"python": "3.11.2", "site": str(tmp_path), "versions": versions, "requires": None}

    env.probe = probe
    env.look()
    assert env.holds("whole", "1.0")
    assert not env.holds("cut", "1.0")
    assert not cut_off.exists()


def test_a_failing_pip_shows_the_end_of_its_log(install: ModuleType, tmp_path: Path) -> None:
    env = install.Environment(tmp_path)
    env.python.parent.mkdir(parents=True)
    env.python.symlink_to(sys.executable)
    with pytest.raises(install.InstallError, match="no-such-command"):
        env.pip("a step", "no-such-command")


def test_the_probe_reads_the_running_environment(install: ModuleType) -> None:
    found = json.loads(subprocess.check_output([sys.executable, "-c", install.PROBE], text=True))
    assert found["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert "torch" in found["versions"]
    assert any(line.startswith("torch") for line in found["requires"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s")]
)
def test_spoken(install: ModuleType, seconds: float, text: str) -> None:
    assert install.spoken(seconds) == text


def test_an_unknown_extra_is_refused() -> None:
    command = [sys.executable, "tools/install.py", "--extras", "mm,gam"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such extra: gam" in done.stderr
