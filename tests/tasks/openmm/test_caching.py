"""Building a cache: what a run finds, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from saved_runs import RANK_HOOK, assert_equal

from taskdistill.core.cache import TeacherCache
from taskdistill.core.errors import CacheError
from taskdistill.tasks.openmm.caching import ensure
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

ROOT = Path(__file__).parents[3]
NECK = dict(student="neck", loss="FeatureImitation", name="neck")
CLS = dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", name="cls")
# Of 12 samples in two views with some 5 KiB each: twelve shards, of half a batch each.
SMALL = dict(views=2, shard_mb=0.015, dtype="fp16")


def config(tiny: Any, path: Path, *pairs: Any, **options: Any) -> dict[str, Any]:
    cache = dict(SMALL, path=str(path), **options)
    distill = tiny.distill(*pairs or (NECK,), cache=cache)
    distill["teacher"]["precision"] = "fp32"
    return tiny.config(distill=distill)


def ready(tiny: Any, given: Mapping[str, Any], work_dir: Path) -> Any:
    """A runner with everything that a run has before its first step."""
    runner = tiny.runner(given, work_dir)
    assert runner.train_loop is not None
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "teacher").iterdir())}


@pytest.fixture(scope="module")
def built(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache."""
    path = tmp_path_factory.mktemp("built")
    ensure(ready(tiny, config(tiny, path), path / "run"))
    return path


def test_a_trial_says_what_it_takes_and_writes_nothing(
    tiny: Any, built: Path, tmp_path: Path
) -> None:
    runner = ready(tiny, config(tiny, tmp_path / "cache"), tmp_path / "run")
    (forecast,) = ensure(runner, dry_run=True)
    assert not (tmp_path / "cache").exists() and runner.model.remembered is None
    assert (forecast.samples, forecast.views, forecast.missing) == (12, 2, 24)
    assert forecast.seconds > 0
    assert "12 samples x 2 views" in str(forecast)
    on_disk = sum(len(content) for name, content in files(built).items() if ".bin" in name)
    assert on_disk == pytest.approx(forecast.total_bytes, rel=1e-2)
    (complete,) = ensure(ready(tiny, config(tiny, built), tmp_path / "run"), dry_run=True)
    assert (complete.missing, complete.seconds) == (0, 0)


def test_damaged_and_lost_shards_are_built_anew_and_come_out_the_same(
    tiny: Any, built: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    shutil.copytree(built / "teacher", path / "teacher")
    whole = files(path)
    assert len(whole) > 3
    shards = [path / "teacher" / name for name in whole if name.endswith(".bin")]
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 1
    shards[0].write_bytes(content)
    shards[1].unlink()
    untouched = shards[2].stat().st_mtime_ns
    with pytest.raises(CacheError, match=r"lacks 2 of 12 shards.*tools/cache_teacher.py"):
        ensure(ready(tiny, config(tiny, path, build=False), tmp_path / "run"))
    ensure(ready(tiny, config(tiny, path), tmp_path / "run"))
    assert files(path) == whole
    assert shards[2].stat().st_mtime_ns == untouched
    ensure(ready(tiny, config(tiny, path, build=False), tmp_path / "run"))


def test_an_interrupted_build_goes_on_where_it_was(
    tiny: Any, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = TeacherCache.write

    def counted(self: TeacherCache, shard: int, *args: Any, **kwargs: Any) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, *args, **kwargs)

    path = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "write", counted)
        runner = ready(tiny, config(tiny, path), tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            ensure(runner)
        # A loader that is used after all gives samples as without a cache.
        assert runner.train_dataloader.dataset.views is None
    (forecast,) = ensure(ready(tiny, config(tiny, path), tmp_path / "run"))
    assert 0 < forecast.missing < 24
    assert files(path) == files(built)


def test_a_full_disk_is_told_before_anything_is_asked(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ready(tiny, config(tiny, tmp_path / "cache"), tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(CacheError, match=r"needs .* KiB more, but 97.7 KiB are free"):
        ensure(runner)
    assert [name for name in files(tmp_path / "cache")] == ["index.json"]


@pytest.mark.slow
def test_what_a_teacher_is_compared_in_is_part_of_a_caches_identity(
    tiny: Any, built: Path, tmp_path: Path
) -> None:
    before = files(built)
    for given, message in (
        (config(tiny, built, NECK, CLS), "field.answer"),
        (config(tiny, built, seed=4), "views.seed: then 0, now 4"),
        (config(tiny, built, dtype="bf16"), "now bfloat16"),
    ):
        with pytest.raises(CacheError, match=message):
            ensure(ready(tiny, given, tmp_path / "run"))
    flip = config(tiny, built)
    flip["train_dataloader"]["dataset"]["pipeline"][2]["prob"] = 0.25
    with pytest.raises(CacheError, match=r"data\.config\.pipeline\.2\.prob: then 0\.5, now 0\.25"):
        ensure(ready(tiny, flip, tmp_path / "run"))
    assert files(built) == before


def test_numbers_too_large_for_half_precision_are_told(tiny: Any, tmp_path: Path) -> None:
    runner = ready(tiny, config(tiny, tmp_path / "cache"), tmp_path / "run")
    with torch.no_grad():
        for network in {runner.model.distiller.teachers["teacher"].network}:
            for name, weight in network.neck.named_parameters():
                if name.endswith("weight"):
                    weight.mul_(1e6)
    with pytest.raises(CacheError, match="fp16 cannot hold"):
        ensure(runner)


@pytest.mark.slow
def test_two_processes_build_one_cache_and_train_on_it(
    tiny: Any, built: Path, tmp_path: Path
) -> None:
    (tmp_path / "rank_hook.py").write_text(RANK_HOOK)
    given = config(tiny, tmp_path / "cache")
    given["custom_imports"] = dict(imports=["tiny_parts", "rank_hook"])
    given["custom_hooks"] = [dict(type="RankHook")]
    path = tiny.write(given, tmp_path / "two.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    paths = [str(tmp_path), tiny.env["PYTHONPATH"]]
    env = {**tiny.env, "PYTHONPATH": os.pathsep.join(paths)}

    def run(tool: str, work_dir: str) -> None:
        done = subprocess.run(
            [*command, str(ROOT / "tools" / tool), path, "--launcher", "pytorch"]
            + ["--work-dir", str(tmp_path / work_dir)],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]

    run("cache_teacher.py", "tool")
    assert files(tmp_path / "cache") == files(built)
    run("train.py", "run")
    for rank in (0, 1):
        found = json.loads((tmp_path / "run" / f"rank{rank}.json").read_text())
        assert found == dict(backend="gloo", world=2, equal=True, finite=True)
    shutil.rmtree(tmp_path / "cache")
    run("train.py", "again")
    a, b = (read_mm_checkpoint(str(tmp_path / n / "epoch_2.pth")) for n in ("run", "again"))
    assert_equal(a["state_dict"], b["state_dict"])
