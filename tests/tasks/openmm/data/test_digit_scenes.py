from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("sklearn")

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from taskdistill.core.errors import DataError
from taskdistill.tasks.detection.data.checks import check_coco
from taskdistill.tasks.openmm.data import digit_scenes
from taskdistill.tasks.openmm.data.digit_scenes import (
    CLASSES,
    SceneOptions,
    compose_scene,
    prepare,
    prepare_from_config,
)

SMALL = {"train": 6, "val": 3, "size": 48}


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible_digits(root: Path) -> list[str]:
    """Names in the root that are not hidden files."""
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


# --- scenes -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    split=st.sampled_from(["train", "val"]),
    index=st.integers(0, 10**6),
    size=st.integers(32, 200),
    seed=st.integers(0, 3),
)
def test_boxes_lie_in_the_scene_and_have_area(split, index, size, seed):
    image, digits = compose_scene(split, index, size, seed)
    assert image.size == (size, size) and image.mode == "RGB"
    assert len(digits) <= SceneOptions().max_digits
    for label, (x, y, w, h) in digits:
        assert 0 <= label < 10
        assert x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= size and y + h <= size


def test_a_box_is_the_tight_bound_of_what_can_be_seen():
    plain = SceneOptions(
        max_digits=1, empty=0, clutter=0, occluders=0, plate=0, noise=0, blur=0, contrast=(0.9, 0.9)
    )
    for i in range(20):
        with_digit, [(_, (x, y, w, h))] = compose_scene("train", i, 96, options=plain)
        # The same scene up to the point where a digit would come.
        background, none = compose_scene(
            "train", i, 96, options=dataclasses.replace(plain, empty=1.0)
        )
        assert none == []
        a, b = (np.asarray(im, dtype=np.float32) / 255 for im in (with_digit, background))
        changed = np.linalg.norm(a - b, axis=2) > 0.02
        outside = changed.copy()
        outside[max(y - 3, 0) : y + h + 3, max(x - 3, 0) : x + w + 3] = False
        assert not outside.any()
        strong = np.linalg.norm(a - b, axis=2) > 0.2
        inside = strong[y : y + h, x : x + w]
        assert inside.any(0).mean() > 0.9 and inside.any(1).mean() > 0.9


def test_an_image_does_not_depend_on_the_ones_before():
    alone = compose_scene("train", 5, 48)
    for i in range(5):
        compose_scene("train", i, 48)
    again = compose_scene("train", 5, 48)
    assert np.array_equal(np.asarray(alone[0]), np.asarray(again[0])) and alone[1] == again[1]


def test_seed_and_split_change_the_scene():
    base = np.asarray(compose_scene("train", 0, 48)[0])
    for other in (compose_scene("val", 0, 48), compose_scene("train", 0, 48, seed=1)):
        assert not np.array_equal(base, np.asarray(other[0]))


def test_splits_share_no_digit_and_no_photograph():
    from sklearn.datasets import load_digits, load_sample_images

    grids, photos = {}, {}
    for split in digit_scenes.SPLITS:
        by_class, photos[split] = digit_scenes._sources(split, 0)
        grids[split] = {g.tobytes() for same in by_class.values() for g in same}
        assert all(len(same) > 20 for same in by_class.values())
    assert not grids["train"] & grids["val"]
    assert len(grids["train"] | grids["val"]) == len(
        {image.tobytes() for image in load_digits().images}
    )
    for whole, left, right in zip(
        load_sample_images().images, photos["train"], photos["val"], strict=True
    ):
        assert np.array_equal(np.hstack([np.asarray(left), np.asarray(right)]), whole)


def test_occlusion_never_exceeds_the_rule(monkeypatch):
    """Every canvas that was finished shows at least `min_visible` of each digit."""
    finished = []
    original = digit_scenes._Canvas.boxes

    def boxes(canvas):
        finished.append(canvas)
        return original(canvas)

    monkeypatch.setattr(digit_scenes._Canvas, "boxes", boxes)
    crowded = SceneOptions(max_digits=12, empty=0, digit_size=(0.3, 0.5), min_visible=0.7)
    hidden = 0
    for i in range(25):
        compose_scene("train", i, 64, options=crowded)
    for canvas in finished:
        for seen, ink in zip(canvas.visible, canvas.ink, strict=True):
            share = np.count_nonzero(seen) / ink
            assert share >= 0.7
            hidden += share < 1
    assert hidden > 10  # there is occlusion at all


def test_empty_scenes_follow_their_option():
    assert not any(compose_scene("val", i, 32, options=SceneOptions(empty=1))[1] for i in range(10))
    assert all(compose_scene("val", i, 32, options=SceneOptions(empty=0))[1] for i in range(10))


def test_more_contrast_is_more_contrast():
    """The option does what it says: ink stands out more where it is asked to."""

    def spread(contrast):
        o = SceneOptions(
            max_digits=1, empty=0, clutter=0, occluders=0, plate=0, noise=0, contrast=contrast
        )
        values = []
        for i in range(15):
            a, _ = compose_scene("train", i, 48, options=o)
            b, _ = compose_scene("train", i, 48, options=dataclasses.replace(o, empty=1.0))
            values.append(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max())
        return np.mean(values)

    assert spread((0.8, 0.9)) > 1.5 * spread((0.2, 0.3))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"max_digits": 0}, "max_digits >= 1"),
        ({"digit_size": (0.5, 0.2)}, "digit_size"),
        ({"opacity": 2.0}, "opacity"),
        ({"min_visible": 0.0}, "min_visible"),
    ],
)
def test_options_out_of_range(wrong, rule):
    with pytest.raises(DataError, match=rule):
        SceneOptions(**wrong)


# --- the cache ----------------------------------------------------------------------------------


def test_prepare_writes_a_coco_set_that_passes_the_checks(tmp_path):
    folder = prepare(tmp_path, **SMALL)
    for split, count in (("train", 6), ("val", 3)):
        check_coco(folder / f"{split}.json", folder / split, CLASSES)
        data = json.loads((folder / f"{split}.json").read_text())
        assert [c["id"] for c in data["categories"]] == list(range(1, 11))
        assert len(data["images"]) == count
        for entry in data["images"]:
            with Image.open(folder / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"]) == (48, 48)
        composed = [digits for i in range(count) for digits in compose_scene(split, i, 48)[1]]
        read = [(a["category_id"] - 1, tuple(a["bbox"])) for a in data["annotations"]]
        assert read == composed
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in data["annotations"])


def test_same_arguments_same_bytes_in_another_process(tmp_path):
    here = prepare(tmp_path / "a", **SMALL)
    code = (
        "import sys; from taskdistill.tasks.openmm.data.digit_scenes import prepare;"
        f"print(prepare(sys.argv[1], **{SMALL!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )
    there = Path(result.stdout.strip().splitlines()[-1])
    assert there.name == here.name
    assert checksums(there) == checksums(here)


def test_a_larger_set_begins_with_the_smaller_one(tmp_path):
    small, large = prepare(tmp_path, **SMALL), prepare(tmp_path, train=9, val=3, size=48)
    assert small != large
    a, b = checksums(small), checksums(large)
    images = [name for name in a if name.endswith(".jpg")]
    assert len(images) == 9 and all(a[name] == b[name] for name in images)


def test_a_second_call_composes_nothing(tmp_path):
    calls = []
    prepare(tmp_path, **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 9) for i in range(1, 10)]
    calls.clear()
    prepare(tmp_path, **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == []


def _truncate_json(folder: Path) -> None:
    path = folder / "train.json"
    path.write_bytes(path.read_bytes()[:-20])


def _lose_image(folder: Path) -> None:
    (folder / "train" / "000002.jpg").unlink()


def _empty_image(folder: Path) -> None:
    (folder / "val" / "000001.jpg").write_bytes(b"")


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage", [_truncate_json, _lose_image, _empty_image, _lose_manifest, _spoil_manifest]
)
def test_a_damaged_set_is_made_anew_with_a_notice(tmp_path, caplog, damage):
    folder = prepare(tmp_path, **SMALL)
    whole = checksums(folder)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert prepare(tmp_path, **SMALL) == folder
    assert "damaged" in caplog.text
    assert checksums(folder) == whole


def test_a_foreign_folder_is_never_touched(tmp_path):
    folder = prepare(tmp_path / "probe", **SMALL)
    foreign = tmp_path / "root" / folder.name
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("ten years of work")
    with pytest.raises(DataError, match="Move it away"):
        prepare(tmp_path / "root", **SMALL)
    assert (foreign / "thesis.txt").read_text() == "ten years of work"
    assert visible_digits(tmp_path / "root") == [folder.name]


def test_an_interrupted_run_leaves_no_set(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, **SMALL, progress=interrupt)
    assert visible_digits(tmp_path) == []
    assert not list(tmp_path.glob(".*.partial"))
    check_coco(prepare(tmp_path, **SMALL) / "train.json", prepare(tmp_path, **SMALL) / "train")


def _prepare_and_die(root: str) -> None:
    prepare(root, **SMALL, progress=lambda done, total: os._exit(9) if done == 7 else None)


def test_what_a_killed_run_left_is_no_obstacle(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=_prepare_and_die, args=(str(tmp_path),)
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 9
    assert visible_digits(tmp_path) == [] and list(tmp_path.glob(".*.partial"))
    folder = prepare(tmp_path, **SMALL)
    assert checksums(folder) == checksums(prepare(tmp_path / "fresh", **SMALL))
    assert not list(tmp_path.glob(".*.partial"))


def _prepare_and_count(root: str, queue) -> None:
    composed = []
    prepare(root, **SMALL, progress=lambda done, total: composed.append(done))
    queue.put(len(composed))


def test_processes_at_once_compose_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_prepare_and_count, args=(str(tmp_path), queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    counts = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert counts == [0, 0, 9]


def test_the_default_root_is_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "cache"))
    assert prepare(**SMALL).parent == tmp_path / "cache"


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": -1}, {"size": 8}, {"size": 64.0}, {"seed": -1}, {"train": True}]
)
def test_arguments_out_of_range(tmp_path, wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong))} must be a whole number"):
        prepare(tmp_path, **{**SMALL, **wrong})
    assert visible_digits(tmp_path) == []


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="TASKDISTILL_CACHE"):
        prepare(tmp_path / "file", **SMALL)


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"No space left.*MB"):
        prepare(tmp_path, **SMALL)
    assert visible_digits(tmp_path) == [] and not list(tmp_path.glob(".*.partial"))


# --- from a config ------------------------------------------------------------------------------


def test_options_come_from_a_plain_dict(tmp_path):
    options = {"max_digits": 2, "digit_size": [0.3, 0.5]}
    folder = prepare_from_config({"root": str(tmp_path), **SMALL, "options": options})
    assert folder == prepare(
        tmp_path, **SMALL, options=SceneOptions(max_digits=2, digit_size=(0.3, 0.5))
    )
    assert folder != prepare(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("scenes", "hint"),
    [({"trian": 5}, "'train'"), ({"options": {"max_digit": 3}}, "'max_digits'")],
)
def test_misspelt_names_are_answered(scenes, hint):
    with pytest.raises(DataError, match=f"Did you mean {hint}"):
        prepare_from_config(scenes)
