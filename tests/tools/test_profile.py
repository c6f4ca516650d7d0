"""tools/profile.py is named like a module of the standard library, and must not be in its way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_scripts_beside_it_import_the_standard_library():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import cProfile, profile\n"
        "assert profile.Profile and sys.argv[1] not in profile.__file__, profile.__file__\n"
        "seen = cProfile.Profile(); seen.enable(); sum(range(9)); seen.disable()\n"
        "assert profile.run.__doc__ == cProfile.run.__doc__"
    )
    done = subprocess.run([sys.executable, "-c", code, str(TOOLS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_as_a_script_it_is_the_command():
    command = [sys.executable, str(TOOLS / "profile.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout
