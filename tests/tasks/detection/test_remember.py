"""Detectors whose teacher is remembered: whole runs, compared with runs that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved_runs import assert_equal, curves

from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint


def config(tiny: Any, cache: dict[str, Any] | None, *pairs: Any, **options: Any) -> dict[str, Any]:
    if cache is not None:
        options["cache"] = cache
    distill = tiny.distill(*pairs, **options)
    distill["teacher"]["precision"] = "fp32"
    return tiny.config(distill=distill)


def saved(work_dir: Path) -> dict[str, Any]:
    return read_mm_checkpoint(str(work_dir / "epoch_2.pth"))


@pytest.mark.parametrize("labels", [None, pytest.param(dict(scheme="own"), marks=pytest.mark.slow)])
def test_kept_answers_train_bit_for_bit_as_the_teacher_asked(
    tiny: Any, tmp_path: Path, labels: Any
) -> None:
    """Flips and colours as in a run without cache; features, outputs, regions, and its labels."""
    options = {} if labels is None else {"assignment": labels}
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    tiny.train(config(tiny, None, **options), tmp_path / "asked")
    runner = tiny.train(config(tiny, cache, **options), tmp_path / "kept")
    a, b = saved(tmp_path / "asked"), saved(tmp_path / "kept")
    assert curves(a) == curves(b)
    assert_equal(a["state_dict"], b["state_dict"])
    assert_equal(a["optimizer"], b["optimizer"])
    assert runner.model.remembered.stores["teacher"].cache.spec.samples == 2 * 12


@pytest.mark.slow
def test_a_teacher_with_images_of_its_own_is_asked_with_them(tiny: Any, tmp_path: Path) -> None:
    """Normalised in its own way, and twice as large."""
    grey = dict(mean=[100.0] * 3, std=[50.0] * 3, bgr_to_rgb=False)
    files = tiny.save_teacher(tiny.model(width=16, preprocessor=grey))
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    pair = dict(student="neck", loss="FeatureImitation", name="neck")
    for name, options in (("asked", {}), ("kept", {"cache": cache})):
        teacher = dict(files, precision="fp32", scale=2)
        given = tiny.config(distill=dict(teacher=teacher, pairs=[pair], **options))
        tiny.train(given, tmp_path / name)
    a, b = saved(tmp_path / "asked"), saved(tmp_path / "kept")
    assert curves(a) == curves(b)
    assert_equal(a["state_dict"], b["state_dict"])
    given["distill"]["teacher"]["scale"] = 1.5
    with pytest.raises(CacheError, match=r"teacher\.images\.scale: then 2\.0, now 1\.5"):
        tiny.train(given, tmp_path / "other")


def test_images_of_several_sizes_are_refused(tiny: Any, tmp_path: Path) -> None:
    given = config(tiny, dict(path=str(tmp_path / "cache"), views=1))
    resize = dict(type="RandomResize", scale=(64, 64), ratio_range=(0.4, 1.6), keep_ratio=True)
    given["train_dataloader"]["dataset"]["pipeline"].insert(2, resize)
    with pytest.raises(CacheError, match="have several sizes .*Resize with keep_ratio=False"):
        tiny.train(given, tmp_path / "run")


def test_a_pipeline_that_is_exchanged_in_training_is_refused(tiny: Any, tmp_path: Path) -> None:
    given = config(tiny, dict(path=str(tmp_path / "cache"), views=1))
    pipeline = given["train_dataloader"]["dataset"]["pipeline"]
    given["custom_hooks"] = [
        dict(type="PipelineSwitchHook", switch_epoch=1, switch_pipeline=pipeline)
    ]
    with pytest.raises(ConfigError, match="PipelineSwitchHook changes the pictures"):
        tiny.train(given, tmp_path / "run")


def test_augmentation_of_whole_batches_is_refused(tiny: Any, tmp_path: Path) -> None:
    given = config(tiny, dict(path=str(tmp_path / "cache"), views=1))
    given["model"]["data_preprocessor"]["batch_augments"] = [
        dict(type="BatchSyncRandomResize", random_size_range=(64, 96), size_divisor=32)
    ]
    with pytest.raises(ConfigError, match="batch_augments .BatchSyncRandomResize. makes pictures"):
        tiny.train(given, tmp_path / "run")


def test_a_transform_that_keeps_earlier_pictures_is_refused(tiny: Any, tmp_path: Path) -> None:
    given = config(tiny, dict(path=str(tmp_path / "cache")))
    given["train_dataloader"]["dataset"]["pipeline"].insert(
        2, dict(type="CachedMixUp", img_scale=(64, 64), max_cached_images=8, random_pop=False)
    )
    with pytest.raises(CacheError, match="looks another way each time it is loaded.*CachedMixUp"):
        tiny.train(given, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_second_stage_on_the_students_proposals_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny.model("FasterRCNN")
    teacher = tiny.teacher("FasterRCNN", neck=None)

    def given(*pairs: dict[str, Any]) -> dict[str, Any]:
        cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
        distill = dict(teacher={**teacher, "precision": "fp32"}, pairs=list(pairs), cache=cache)
        return tiny.config(model, distill=distill)

    roi = dict(student="outputs.roi_cls", loss="KLDivergence", name="roi")
    with pytest.raises(ConfigError, match="second stage is run on the regions"):
        tiny.runner(given(roi), tmp_path / "run")
    rpn = dict(student="outputs.rpn_cls", loss="KLDivergence", activation="sigmoid", name="rpn")
    boxes = dict(student="neck", loss="FeatureImitation", region="boxes", name="neck")
    tiny.train(given(rpn, boxes), tmp_path / "kept")
    asked = given(rpn, boxes)
    del asked["distill"]["cache"]
    tiny.train(asked, tmp_path / "asked")
    a, b = saved(tmp_path / "asked"), saved(tmp_path / "kept")
    assert curves(a) == curves(b)
    assert_equal(a["state_dict"], b["state_dict"])
