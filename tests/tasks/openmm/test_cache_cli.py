"""The command line that keeps what teachers say without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.tasks.openmm import cache_cli

NECK = dict(student="neck", loss="FeatureImitation", name="neck")


@pytest.fixture
def command(tiny: Any, tmp_path: Path) -> list[str]:
    """A config without cache, and the options that give it one."""
    path = tiny.write(tiny.config(distill=tiny.distill(NECK)))
    options = [f"distill.cache.path={tmp_path / 'cache'}", "distill.cache.views=1"]
    name = f"experiment_name={tmp_path.name}"
    return [path, "--work-dir", str(tmp_path / "run"), "--cfg-options", name, *options]


@pytest.mark.slow
def test_it_forecasts_builds_and_verifies(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache" / "teacher"
    (forecast,) = cache_cli.main([*command, "--dry-run"])
    assert forecast.missing == 12 and not folder.exists()
    printed = capsys.readouterr().out
    assert "is missing" in printed and f"{forecast.record_bytes:,}" in printed
    with pytest.raises(CacheError, match="lacks 1 of 1 shards"):
        cache_cli.main([*command, "--verify"])
    assert not folder.exists()
    (done,) = cache_cli.main(command)
    assert done.missing == 12 and (folder / "shard-00000.bin").is_file()
    (verified,) = cache_cli.main([*command, "--verify"])
    assert verified.missing == 0
    assert not list((tmp_path / "run").glob("*.pth"))
    shard = folder / "shard-00000.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match="absent or damaged"):
        cache_cli.main([*command, "--verify"])


def test_a_config_without_a_cache_is_told(tiny: Any, tmp_path: Path) -> None:
    for config in (tiny.config(), tiny.config(distill=tiny.distill(NECK))):
        with pytest.raises(ConfigError, match="has no distill.cache. Add cache=dict"):
            cache_cli.main([tiny.write(config), "--work-dir", str(tmp_path)])
