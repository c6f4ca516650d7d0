"""The command line as a user meets it, against pytorch_fid's own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from pytorch_fid import fid_score

from taskdistill.tasks.gan.metrics import cli
from taskdistill.tasks.gan.metrics.cache import load_statistics
from taskdistill.tasks.gan.metrics.evaluator import ImageSetDistance
from taskdistill.tasks.gan.metrics.images import list_images, read_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; give exit status, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([*map(str, arguments), "--num-workers", "0", "--device", "cpu"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def pytorch_fid(
    inception_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """pytorch_fid's command, in a process of its own or (sparing its start) in this one."""
    monkeypatch.setenv("TORCH_HOME", str(inception_weights.parents[2]))

    def command(*arguments: object, process: bool = False) -> str:
        options = [*map(str, arguments), "--device", "cpu", "--num-workers", "0"]
        if process:
            called = [sys.executable, "-m", "pytorch_fid", *options]
            done = subprocess.run(called, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout
        monkeypatch.setattr(sys, "argv", ["pytorch_fid", *options])
        capsys.readouterr()
        fid_score.main()
        return capsys.readouterr().out

    return command


def figure(output: str, name: str = "FID") -> float:
    match = re.search(rf"^{name}:\s+(\S+)", output, re.MULTILINE)
    assert match, output
    return float(match[1])


# -- the same numbers as pytorch_fid ---------------------------------------------------------------


@pytest.mark.parametrize("dims", [64, 192, pytest.param(2048, marks=pytest.mark.slow)])
def test_fid_is_that_of_pytorch_fid(
    run: Run, pytorch_fid: Callable[..., str], folders: tuple[Path, Path], dims: int
):
    code, out, err = run(*folders, "--dims", dims)
    assert code == 0, err
    theirs = figure(pytorch_fid(*folders, "--dims", dims, process=dims == 64))
    assert theirs > 0.01
    assert figure(out) == pytest.approx(theirs, abs=1e-6)  # and no relative error
    assert "Images:  20 real, 24 fake" in out
    assert "does not hold the published weights" in err and "singular" in err


def test_statistics_files_cross(
    run: Run, pytorch_fid: Callable[..., str], folders: tuple[Path, Path], tmp_path: Path
):
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    code, out, _ = run(folders[0], "--save-stats", ours, "--dims", 64)
    assert code == 0 and "Images:  20 real" in out and "FID" not in out
    pytorch_fid(folders[1], theirs, "--dims", 64, "--save-stats")
    code, expected, _ = run(*folders, "--dims", 64)
    assert code == 0

    code, mixed, _ = run(ours, theirs)
    assert figure(mixed) == pytest.approx(figure(expected), abs=1e-6)
    assert "an unknown number real, an unknown number fake" in mixed
    read = pytorch_fid(ours, theirs, "--dims", 64)
    assert figure(read) == pytest.approx(figure(expected), abs=1e-6)


# -- what it does ----------------------------------------------------------------------------------


def test_the_small_network_is_called_so(run: Run, folders: tuple[Path, Path], tmp_path: Path):
    report = tmp_path / "new" / "figures.json"
    code, out, err = run(*folders, "--network", "small", "--kid", "--json", report)
    assert (code, err) == (0, "")
    assert "FID" not in out and "KID" not in out
    written = json.loads(report.read_text())
    assert written["SmallFD"] == figure(out, "SmallFD") > 0
    assert written["SmallKD"] == figure(out, "SmallKD")
    assert written["images"] == {"real": 20, "fake": 24}
    assert (written["network"], written["dims"]) == ("small", 72)
    assert run(*folders, "--network", "small")[1].splitlines()[0] == out.splitlines()[0]


def test_inception_says_which_weights(
    run: Run, folders: tuple[Path, Path], inception_weights: Path, tmp_path: Path
):
    for folder in folders:
        for file in sorted(folder.glob("*.*"))[6:]:
            file.unlink()
    weights = ("--weights", inception_weights, "--dims", 64)
    code, out, _ = run(*folders, *weights, "--kid", "--json", tmp_path / "a.json")
    assert code == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert set(written) == {
        "FID", "KID", "KID_std", "images", "dims", "network", "weights_sha256", "published_weights",
    }  # fmt: skip
    assert written["published_weights"] is False and len(written["weights_sha256"]) == 64
    assert written["KID"] == figure(out, "KID")


def test_the_cache_is_used_unless_told_otherwise(
    run: Run, folders: tuple[Path, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    small = (*folders, "--network", "small")
    uncached = run(*small, "--no-cache")[1]
    assert not own_cache.exists()
    assert run(*small)[1] == uncached
    assert len(list(own_cache.rglob("*.npz"))) == 2
    monkeypatch.setattr("taskdistill.tasks.gan.metrics.folders.image_batches", None)
    assert run(*small)[1] == uncached


def test_subfolders_on_request(run: Run, folders: tuple[Path, Path]):
    (folders[0] / "more").mkdir()
    shutil.copy(folders[1] / "002.png", folders[0] / "more" / "a.png")
    small = (*folders, "--network", "small")
    assert "20 real" in run(*small)[1]
    assert "21 real" in run(*small, "--recursive")[1]


def test_unreadable_files(run: Run, folders: tuple[Path, Path]):
    (folders[0] / "003.png").write_bytes(b"broken")
    small = (*folders, "--network", "small")
    code, _, err = run(*small)
    assert code == 2
    assert "DataError: 1 of 20 images cannot be read" in err and "003.png" in err
    code, out, err = run(*small, "--skip-unreadable")
    assert code == 0 and "19 real, 24 fake" in out
    assert "1 of 20 files of real are left out" in err


def test_images_of_different_sizes(run: Run, folders: tuple[Path, Path], inception_weights: Path):
    for folder in folders:
        for file in sorted(folder.glob("*.*"))[3:]:
            file.unlink()
    Image.new("RGB", (50, 9), (5, 100, 200)).save(folders[0] / "wide.png")
    Image.new("L", (1, 1)).save(folders[0] / "pixel.png")
    code, out, _ = run(*folders, "--weights", inception_weights, "--dims", 64)
    assert code == 0 and np.isfinite(figure(out))


def test_interrupted(run: Run, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "measure_files", interrupt)
    code, _, err = run(*folders, "--network", "small")
    assert code == 130 and "Interrupted" in err


# -- images of a model -----------------------------------------------------------------------------


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]) -> list[tuple]:
    """Stands in for the model: copies a folder, as if it had been generated."""
    calls: list[tuple] = []

    def generate_images(
        config: str, checkpoint: str, out: Path, device: str, targets: Path | None = None
    ) -> int:
        calls.append((config, checkpoint, out, device, targets))
        shutil.copytree(folders[1], out, dirs_exist_ok=True)
        if targets is not None:
            shutil.copytree(folders[0], targets, dirs_exist_ok=True)
        return 24

    module = types.ModuleType("taskdistill.tasks.gan.generate")
    module.generate_images = generate_images  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize("with_real", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_images_of_a_model(
    run: Run,
    generator: list,
    folders: tuple[Path, Path],
    tmp_path: Path,
    with_real: bool,
    keep: bool,
):
    expected = figure(run(*folders, "--network", "small")[1], "SmallFD")
    model = ("--config", "c.py", "--checkpoint", "w.pth", "--network", "small")
    real = folders[:1] if with_real else ()
    out_folder = ("--out", tmp_path / "made") if keep else ()
    code, out, err = run(*real, *model, *out_folder)
    assert (code, err) == (0, "")
    assert figure(out, "SmallFD") == expected
    assert "20 real, 24 fake" in out
    ((config, checkpoint, made, device, targets),) = generator
    assert (config, checkpoint, device) == ("c.py", "w.pth", "cpu")
    assert (targets is None) == with_real
    assert made.exists() == keep
    if keep:
        assert len(list((tmp_path / "made" / "fake").glob("*.*"))) == 25


def test_a_model_against_statistics(
    run: Run, generator: list, folders: tuple[Path, Path], tmp_path: Path
):
    small = ("--network", "small")
    run(folders[0], "--save-stats", tmp_path / "real.npz", *small)
    code, out, _ = run(tmp_path / "real.npz", "--config", "c.py", "--checkpoint", "w.pth", *small)
    assert code == 0 and "an unknown number real, 24 fake" in out


# -- errors ----------------------------------------------------------------------------------------


def test_errors_end_in_one_message_before_anything_is_computed(
    run: Run, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli, "measure_files", None)
    real, fake = folders
    taken = tmp_path / "taken.npz"
    np.savez(taken, mu=np.zeros(64), sigma=np.eye(64))
    (tmp_path / "empty").mkdir()
    model = ("--config", "c.py", "--checkpoint", "w.pth")
    small = ("--network", "small")
    for arguments, message in [
        ((), "ConfigError: Give two sets of images, REAL and FAKE (got 0)"),
        ((real,), "ConfigError: Give two sets of images, REAL and FAKE (got 1)"),
        ((real, fake, real), "(got 3)"),
        ((real, "--checkpoint", "w.pth"), "go with --config"),
        ((real, fake, "--out", "x"), "go with --config"),
        ((real, "--config", "c.py"), "--config needs --checkpoint"),
        ((real, fake, *model), "--config generates FAKE"),
        ((real, *model, "--out", tmp_path), "exists already; its images would be mixed"),
        ((real, tmp_path / "absent"), "absent' does not exist; give a folder of images or an .npz"),
        ((real, tmp_path / "empty", *small), "holds no image"),
        ((real, fake), "CheckpointError: The FID needs the weights file"),
        ((real, fake, "--weights", "no.pth"), "There is no file 'no.pth', which was given"),
        ((real, fake, *small, "--weights", "no.pth"), "takes no weights"),
        ((real, fake, "--save-stats", "x.npy"), "must end in .npz"),
        ((real, fake, "--save-stats", taken), "taken.npz' exists already"),
        ((real, fake, "--json", taken), "taken.npz' exists already"),
        ((taken, fake, "--kid"), "--kid needs images"),
        ((taken, fake, *small), "holds statistics of 64 dimensions, but the features here have 72"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err and "Traceback" not in err, (arguments, err)
    assert cli.main([str(real), str(fake), "--device", "tpu9"]) == 2


def test_statistics_of_different_networks(run: Run, tmp_path: Path):
    for dims in (2, 3):
        np.savez(tmp_path / f"{dims}.npz", mu=np.zeros(dims), sigma=np.eye(dims))
    code, _, err = run(tmp_path / "2.npz", tmp_path / "3.npz")
    assert code == 2 and "ShapeError: the reference has features of 2 dimensions" in err
    code, out, _ = run(tmp_path / "2.npz", tmp_path / "2.npz")  # and no weights are needed
    assert code == 0 and figure(out) == pytest.approx(0, abs=1e-9)


def test_options_out_of_range(run: Run, folders: tuple[Path, Path]):
    code, _, err = run(*folders, "--network", "small", "--batch-size", 0)
    assert code == 2 and "batch_size must be at least 1" in err
    with pytest.raises(SystemExit) as error:
        run(*folders, "--dims", 100)
    assert error.value.code == 2


def test_saved_statistics_are_those_of_real(run: Run, folders: tuple[Path, Path], tmp_path: Path):
    small = ("--network", "small")
    run(*folders, "--save-stats", tmp_path / "a.npz", *small)
    run(folders[0], "--save-stats", tmp_path / "b.npz", *small)
    a, b = (load_statistics(tmp_path / f"{name}.npz") for name in "ab")
    assert np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance)


def test_the_metric_of_a_validation_has_the_same_figure(run: Run, folders: tuple[Path, Path]):
    (folders[1] / "023.png").unlink()
    for name in ("020.png", "021.jpg", "022.png"):
        (folders[1] / name).unlink()
    metric = ImageSetDistance()
    pairs = zip(*(list_images(folder) for folder in folders), strict=True)
    metric.process({}, [{"target": read_image(r), "fake": read_image(f)} for r, f in pairs])
    expected = figure(run(*folders, "--network", "small")[1], "SmallFD")
    assert metric.evaluate(20)["SmallFD"] == pytest.approx(expected, rel=1e-5)
