from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.config import Config  # noqa: E402

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.gan.search.cli import main, parse_args, settings_of  # noqa: E402
from taskdistill.tasks.gan.search.evaluate import SubnetEvaluator  # noqa: E402
from taskdistill.tasks.gan.search.macs import macs_of  # noqa: E402
from taskdistill.tasks.openmm.cli import test as run_test  # noqa: E402
from taskdistill.tasks.openmm.cli import train as run_train  # noqa: E402
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint  # noqa: E402

ROOT = Path(__file__).resolve().parents[4]
FILES = {
    "best.pth", "best.py", "evaluations.jsonl", "finetune.py", "front.png", "search.json",
    "state.json",
}  # fmt: skip


def in_process(which: str) -> list[str]:
    """Options that load the data in this process."""
    loader = f"{which}_dataloader"
    return [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]


def found_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name[0] != "."}


def test_from_a_super_network_to_a_plain_one(
    supernet: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "search"
    arguments = [supernet.config, supernet.checkpoint, "--work-dir", str(folder), "--jobs", "1"]
    arguments += ["--device", "cpu", "--finetune-epochs", "10"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert set(found_in(folder)) == FILES
    summary = json.loads((folder / "search.json").read_text())
    teacher = macs_of(Config.fromfile(supernet.teacher).model.generator, (16, 16))
    assert summary["budget"] == round(0.5 * teacher)
    assert summary["method"] == "exhaustive" and 1 < len(summary["evaluated"]) < 16
    assert all(e["macs"] <= summary["budget"] for e in summary["evaluated"])
    best = min(summary["evaluated"], key=lambda e: e["metrics"]["SmallFD"])
    assert summary["best"]["channels"] == best["channels"] and best["channels"] in printed
    assert "tools/search.py" in summary["command"] and "finetune.py" in printed
    # A search that is over has the same outcome without evaluating anything.
    monkeypatch.setattr(SubnetEvaluator, "__call__", None)
    before = found_in(folder)
    assert main(arguments) == 0
    after = found_in(folder)
    assert {k: before[k] for k in FILES - {"best.pth"}} == {
        k: after[k] for k in FILES - {"best.pth"}
    }
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    # The plain network's figures on all images are those of the super-network.
    channels = tuple(map(int, best["channels"].split("_")))
    expected = SubnetEvaluator(supernet.config, supernet.checkpoint)(channels)["SmallFD"]
    plain = ["--work-dir", str(tmp_path / "tested"), "--cfg-options", *in_process("test")]
    run_test([str(folder / "best.py"), str(folder / "best.pth"), *plain])
    log = next((tmp_path / "tested").glob("*/*.json"))
    assert json.loads(log.read_text())["SmallFD"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_another_search_is_refused_until_fresh(
    supernet: Any, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "search"
    arguments = [supernet.config, supernet.checkpoint, "--work-dir", str(folder), "--jobs", "1"]
    assert main(arguments) == 0
    before = found_in(folder)
    other = [*arguments, "--budget", "0.6x"]
    capsys.readouterr()
    assert main(other) == 2
    refused = capsys.readouterr().err
    assert "CheckpointError" in refused and "budget was" in refused and "--fresh" in refused
    assert found_in(folder) == before
    assert main([*other, "--fresh"]) == 0
    assert found_in(folder / "previous-1") == before
    assert set(found_in(folder)) == FILES


def test_evolution_from_the_command_line(supernet: Any, tmp_path: Path):
    arguments = [supernet.config, supernet.checkpoint, "--work-dir", str(tmp_path / "s")]
    arguments += ["--jobs", "1", "--method", "evolutionary", "--population", "4"]
    arguments += ["--generations", "2", "--metric", "last", "--higher-is-better"]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "s" / "search.json").read_text())
    assert (summary["method"], summary["generations"]) == ("evolutionary", 2)
    assert summary["higher_is_better"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1"], "smallest, 4_4_4_4_4_4_4_4, needs"),
        (["--budget", "lots"], "cannot be read"),
        (["--metric", "SmalFD", "--no-higher-is-better"], "Did you mean 'SmallFD'"),
        (["--metric", "beauty"], "--higher-is-better"),
        (["--teacher", "none.py"], "does not exist"),
        (["--references", "none.json"], "does not exist"),
        (["--shape", "2", "2"], "--shape"),
    ],
)
def test_mistakes_end_in_one_message(
    supernet: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
):
    base = [supernet.config, supernet.checkpoint, "--work-dir", str(tmp_path / "s"), "--jobs", "1"]
    assert main([*base, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(
    supernet: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    arguments = [supernet.config, supernet.checkpoint, "--work-dir", str(tmp_path / "s")]
    arguments += ["--jobs", "1"]
    evaluate, calls = SubnetEvaluator.__call__, []

    def interrupted(self: SubnetEvaluator, channels: Any) -> dict[str, float]:
        calls.append(channels)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, channels)

    monkeypatch.setattr(SubnetEvaluator, "__call__", interrupted)
    assert main(arguments) == 130
    assert "same command continues" in capsys.readouterr().err
    path = tmp_path / "s" / "evaluations.jsonl"
    before = path.read_bytes()
    assert before.count(b"\n") == 2
    assert main(arguments) == 0
    assert path.read_bytes().startswith(before) and calls[2] not in calls[:2]
    assert len(calls) == path.read_bytes().count(b"\n") + 1  # what was stopped came again


# -- options ---------------------------------------------------------------------------------------


def settings(entry: dict, *arguments: str) -> dict[str, Any]:
    return settings_of(parse_args(["c.py", "c.pth", *arguments]), dict(search=entry))


def test_the_command_line_comes_before_the_config():
    entry = dict(budget="5G", population=7, shape=[64, 128], higher_is_better=True)
    found = settings(entry, "--population", "9", "--no-higher-is-better")
    assert found["population"] == 9 and found["higher_is_better"] is False
    assert found["budget"] == "5G" and found["shape"] == [64, 128] and found["seed"] == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(), "--budget"),
        (dict(budgt="5G"), "Did you mean 'budget'"),
        (dict(budget="5G", population=0), "population"),
        (dict(budget="5G", jobs="two"), "jobs"),
        (dict(budget="5G", shape=[0, 1]), "shape"),
        (dict(budget="5G", shape=[1]), "shape"),
    ],
)
def test_a_wrong_entry_in_the_config(entry: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        settings(entry)


def test_numbers_on_the_command_line_are_checked(capsys: pytest.CaptureFixture):
    for wrong in (["--population", "0"], ["--seed", "-1"], ["--method", "guess"]):
        with pytest.raises(SystemExit):
            parse_args(["c.py", "c.pth", *wrong])
        capsys.readouterr()


@pytest.mark.slow
def test_the_best_is_fine_tuned_from_where_it_is(
    supernet: Any, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "search"
    arguments = [supernet.config, supernet.checkpoint, "--work-dir", str(folder), "--jobs", "1"]
    assert main([*arguments, "--finetune-epochs", "1"]) == 0
    run_train(
        [str(folder / "finetune.py"), "--cfg-options", *in_process("train"), *in_process("val")]
    )
    begun = torch.load(folder / "best.pth", weights_only=True)
    tuned = read_mm_checkpoint(str(folder / "finetune" / "epoch_1.pth"))
    moved = {
        key: (tuned["state_dict"][key] - value).abs().max().item()
        for key, value in begun["state_dict"].items()
    }
    assert 0 < max(moved.values()) < 0.01  # three steps of Adam at 1e-3
    theirs = begun["gan"]["discriminators"]["discriminator"]
    for key, value in tuned["gan"]["discriminators"]["discriminator"].items():
        if key.endswith(("weight", "bias")):
            assert (value - theirs[key]).abs().max() < 0.01, key


def tool(supernet: Any, folder: Path, jobs: int) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tools" / "search.py"), supernet.config]
    command += [supernet.checkpoint, "--work-dir", str(folder), "--jobs", str(jobs)]
    return subprocess.Popen(
        [*command, "--device", "cpu"],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(Path(supernet.config).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_the_tool_with_two_processes_ended_and_continued(supernet: Any, tmp_path: Path):
    first = tool(supernet, tmp_path / "1", jobs=1)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 0, said
    expected = (tmp_path / "1" / "evaluations.jsonl").read_bytes()
    folder = tmp_path / "2"
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        again = tool(supernet, folder, jobs=2)
        deadline = time.monotonic() + 200
        lock = folder / ".lock"
        while time.monotonic() < deadline:
            if lock.exists() and lock.read_text() == str(again.pid):
                break
            time.sleep(0.05)
        time.sleep(1.0)  # the processes are being started
        if number == signal.SIGINT:
            os.killpg(again.pid, number)  # as a terminal does, to all of them
        else:
            again.kill()
        _, said = again.communicate(timeout=60)
        assert again.returncode in (status, 0), said
        assert "Traceback" not in said
        deadline = time.monotonic() + 60
        while alive(again.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(again.pid)
    last = tool(supernet, folder, jobs=2)
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert (folder / "evaluations.jsonl").read_bytes() == expected
