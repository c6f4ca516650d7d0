from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.config import Config, ConfigDict  # noqa: E402

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.gan.generate import build_model  # noqa: E402
from taskdistill.tasks.gan.search.evaluate import load_supernet  # noqa: E402
from taskdistill.tasks.gan.search.evolution import Criterion, SearchResult  # noqa: E402
from taskdistill.tasks.gan.search.outcome import (  # noqa: E402
    OUTCOME_FILES,
    finetune_config,
    subnet_config,
    write_outcome,
)
from taskdistill.tasks.gan.search.records import Evaluated  # noqa: E402

BEST = (8, 4, 4, 4, 4, 4, 8, 4)
PLAIN = dict(type="MobileResnetGenerator", channels="8_4_4_4_4_4_8_4", blocks=3)


def write(supernet: Any, folder: Path, best: tuple[int, ...] = BEST, **options: Any) -> Any:
    _, model, _ = load_supernet(supernet.config, supernet.checkpoint)
    entries = (
        Evaluated((4,) * 8, 90, dict(SmallFD=5.0)),
        Evaluated(best, 100, dict(SmallFD=3.0, L1=0.5)),
        Evaluated((8,) * 8, 110, dict(SmallFD=4.0)),
    )
    result = SearchResult(entries, entries[1], "exhaustive", 0)
    return write_outcome(
        folder,
        Config.fromfile(supernet.config),
        model,
        result,
        Criterion("SmallFD"),
        budget=120,
        checkpoint=supernet.checkpoint,
        summary=dict(command="this"),
        **options,
    )


def test_the_plain_config(supernet: Any):
    cfg = Config.fromfile(supernet.config)
    before = cfg.pretty_text
    plain = subnet_config(cfg, BEST)
    assert plain.model.generator == PLAIN
    for key in ("distill", "search", "work_dir"):
        assert key not in plain
    assert plain.custom_imports == cfg.custom_imports and plain.task == "gan"
    assert cfg.pretty_text == before


def test_the_weights_are_those_of_the_slice(supernet: Any, tmp_path: Path):
    assert write(supernet, tmp_path) is None
    saved = torch.load(tmp_path / "best.pth", weights_only=True)
    assert saved["meta"]["channels"] == "8_4_4_4_4_4_8_4" and saved["meta"]["value"] == 3.0
    model = build_model(Config.fromfile(tmp_path / "best.py"))
    model.load_state_dict(saved["state_dict"], strict=True)
    _, whole, _ = load_supernet(supernet.config, supernet.checkpoint)
    whole.generator.active = BEST
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.generator(images), whole.generator(images))
    assert sum(p.numel() for p in model.generator.parameters()) == saved["meta"]["params"]


def test_the_summary(supernet: Any, tmp_path: Path):
    write(supernet, tmp_path)
    found = json.loads((tmp_path / "search.json").read_text())
    assert found["best"]["channels"] == "8_4_4_4_4_4_8_4" and found["command"] == "this"
    assert [e["macs"] for e in found["front"]] == [90, 100]
    assert len(found["evaluated"]) == 3 and found["budget"] == 120
    assert "output elements" in found["mac_convention"]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_config_to_fine_tune_with(supernet: Any, tmp_path: Path):
    write(supernet, tmp_path, finetune_epochs=10)
    cfg = Config.fromfile(tmp_path / "finetune.py")
    assert cfg.model.generator == PLAIN
    assert cfg.load_from == str(tmp_path / "best.pth")
    assert cfg.work_dir == str(tmp_path / "finetune")
    assert cfg.distill.teacher.config == supernet.teacher
    # The generator begins from the search, the discriminator from the super-network's.
    assert cfg.distill.init == dict(discriminator=str(tmp_path / "best.pth"))
    assert cfg.train_cfg.max_epochs == 10
    assert (cfg.param_scheduler[0].begin, cfg.param_scheduler[0].end) == (5, 10)
    side = torch.load(tmp_path / "best.pth", weights_only=True)["gan"]["discriminators"]
    ours = build_model(cfg).discriminator
    ours.load_state_dict(side["discriminator"], strict=True)


def test_without_a_discriminator_there_is_no_init(supernet: Any, tmp_path: Path):
    cfg = Config.fromfile(supernet.config)
    tuned = finetune_config(cfg, BEST, tmp_path / "best.pth")
    assert "init" not in tuned.distill and tuned.train_cfg.max_epochs == 100
    assert cfg.distill.init == dict(generator="teacher")
    cfg.pop("distill")
    assert "distill" not in finetune_config(cfg, BEST, tmp_path / "best.pth", discriminator=True)


def test_schedules_of_several_optimizers_shrink(supernet: Any, tmp_path: Path):
    cfg = Config.fromfile(supernet.config)
    one = dict(type="LinearLR", begin=50, end=100)
    cfg.param_scheduler = ConfigDict(generator=[one], discriminator=[dict(one, begin=20)])
    tuned = finetune_config(cfg, BEST, tmp_path / "best.pth", epochs=50)
    found = tuned.param_scheduler
    assert (found.generator[0].begin, found.generator[0].end) == (25, 50)
    assert (found.discriminator[0].begin, found.discriminator[0].end) == (10, 50)
    shortest = finetune_config(cfg, BEST, tmp_path / "best.pth", epochs=1).param_scheduler
    assert (shortest.generator[0].begin, shortest.generator[0].end) == (0, 1)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=100)
    with pytest.raises(ConfigError, match="--finetune-epochs 50 does not apply"):
        finetune_config(cfg, BEST, tmp_path / "best.pth", epochs=50)


def test_another_outcome_moves_the_first_aside(supernet: Any, tmp_path: Path):
    assert write(supernet, tmp_path) is None
    before = {name: (tmp_path / name).read_bytes() for name in OUTCOME_FILES}
    assert write(supernet, tmp_path) is None  # the same: nothing to keep
    moved = write(supernet, tmp_path, best=(8, 4, 4, 4, 4, 4, 4, 4))
    assert moved == tmp_path / "previous-1"
    kept = {name: (moved / name).read_bytes() for name in OUTCOME_FILES}
    assert kept["best.py"] == before["best.py"] and set(kept) == set(before)
    (tmp_path / "finetune.py").write_text("# mine")
    again = write(supernet, tmp_path, best=(8, 4, 4, 4, 4, 4, 4, 4))
    assert again is not None and (again / "finetune.py").read_text() == "# mine"
