from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
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
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
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
    scene = compose_scene(split, index, size, seed)
    assert scene.image.size == (size, size) and scene.image.mode == "RGB"
    assert len(scene.digits) <= SceneOptions().max_digits
    for label, (x, y, w, h) in scene.digits:
        assert 0 <= label < 10
        assert x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= size and y + h <= size


@settings(max_examples=40, deadline=None)
@given(
    split=st.sampled_from(["train", "val"]),
    index=st.integers(0, 10**6),
    size=st.integers(32, 128),
    crowded=st.booleans(),
)
def test_the_mask_says_what_the_boxes_say(split, index, size, crowded):
    """Each class's pixels are bounded by the boxes of its digits, exactly."""
    options = SceneOptions(max_digits=10, digit_size=(0.15, 0.4)) if crowded else None
    scene = compose_scene(split, index, size, options=options)
    assert scene.mask.size == scene.image.size and scene.mask.mode == "P"
    mask = np.asarray(scene.mask)
    boxes: dict[int, list[tuple[int, int, int, int]]] = {}
    for label, box in scene.digits:
        boxes.setdefault(label, []).append(box)
    assert set(np.unique(mask)) - {0} == {label + 1 for label in boxes}
    for label, same in boxes.items():
        ink = mask == label + 1
        outside = ink.copy()
        for x, y, w, h in same:
            inside = ink[y : y + h, x : x + w]
            # A digit of the same class nearby can only add ink to the box.
            assert inside[[0, -1]].any(1).all() and inside[:, [0, -1]].any(0).all()
            outside[y : y + h, x : x + w] = False
        assert not outside.any()


def test_the_mask_marks_the_ink():
    """Marked is what the digit covers by half or more: the rest is the strokes' soft edge."""
    plain = SceneOptions(
        max_digits=1, empty=0, clutter=0, occluders=0, plate=0, noise=0, blur=0, contrast=(0.9, 0.9)
    )
    for i in range(10):
        scene = compose_scene("train", i, 96, options=plain)
        without = compose_scene("train", i, 96, options=dataclasses.replace(plain, empty=1.0))
        a, b = (np.asarray(s.image, dtype=np.float32) / 255 for s in (scene, without))
        change = np.linalg.norm(a - b, axis=2)
        ink = np.asarray(scene.mask) > 0
        assert not np.asarray(without.mask).any()
        # Full ink changes a pixel by 0.9 times an opacity of 0.9 to 1, at most.
        assert change[ink].min() > 0.3 and change[~ink].max() < 0.5 < change[ink].mean()


def test_what_lies_over_a_digit_is_not_its_ink():
    covered = SceneOptions(max_digits=6, empty=0, digit_size=(0.3, 0.5), min_visible=0.6)
    bare = dataclasses.replace(covered, occluders=0)
    fewer = 0
    for i in range(20):
        before = np.asarray(compose_scene("train", i, 64, options=bare).mask)
        after = np.asarray(compose_scene("train", i, 64, options=covered).mask)
        assert ((after == before) | (after == 0)).all()
        fewer += (after != before).any()
    assert fewer > 3


def test_the_mask_has_the_palette_of_its_classes():
    mask = compose_scene("train", 0, 32).mask
    colours = np.reshape(mask.getpalette(), (-1, 3))[: len(SEGMENTATION_CLASSES)]
    assert np.array_equal(colours, SEGMENTATION_PALETTE)
    assert SEGMENTATION_CLASSES == ("background", *CLASSES)


# Sixteen pixels of two scenes, on a grid of a quarter of the side, from when scenes were first
# composed: results on them are published, so that they must not change.
KNOWN = {
    ("val", 11, 96): (
        ((4, (48, 54, 17, 26)), (4, (75, 3, 21, 33))),
        "bffff2 bcffec c0fff7 93adf6 b8fff2 347865 bbfff0 bdffe8 "
        "588979 6cad91 b3fff1 b4fff1 24353d 337054 69a884 a7fcc7",
    ),
    ("train", 17, 64): (
        ((5, (24, 22, 15, 25)), (6, (56, 52, 7, 12))),
        "4e1e40 551c56 461e53 9cc679 561d56 571a54 451b49 6ebf41 "
        "521c52 441950 07bf14 8dc866 35252c 2b1f2b 2c2029 6b974a",
    ),
}


@pytest.mark.parametrize("scene", KNOWN)
def test_scenes_are_those_of_the_published_results(scene):
    split, index, size = scene
    digits, pixels = KNOWN[scene]
    composed = compose_scene(split, index, size)
    assert composed.digits == digits
    known = np.array([list(bytes.fromhex(pixel)) for pixel in pixels.split()], dtype=int)
    grid = np.asarray(composed.image)[:: size // 4, :: size // 4].reshape(-1, 3)
    # One step off is rounding, which may differ with versions and processors.
    assert np.abs(grid - known).max() <= 1


def test_a_box_is_the_tight_bound_of_what_can_be_seen():
    plain = SceneOptions(
        max_digits=1, empty=0, clutter=0, occluders=0, plate=0, noise=0, blur=0, contrast=(0.9, 0.9)
    )
    for i in range(20):
        scene = compose_scene("train", i, 96, options=plain)
        [(_, (x, y, w, h))] = scene.digits
        # The same scene up to the point where a digit would come.
        background = compose_scene("train", i, 96, options=dataclasses.replace(plain, empty=1.0))
        assert not background.digits
        a, b = (np.asarray(s.image, dtype=np.float32) / 255 for s in (scene, background))
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
    assert compose_scene("train", 5, 48) == alone


def test_seed_and_split_change_the_scene():
    base = np.asarray(compose_scene("train", 0, 48).image)
    for other in (compose_scene("val", 0, 48), compose_scene("train", 0, 48, seed=1)):
        assert not np.array_equal(base, np.asarray(other.image))


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
    for share in (0, 1):
        options = SceneOptions(empty=share)
        scenes = [compose_scene("val", i, 32, options=options) for i in range(10)]
        assert all(bool(scene.digits) is (share == 0) for scene in scenes)
        assert all(np.asarray(scene.mask).any() == (share == 0) for scene in scenes)


def test_more_contrast_is_more_contrast():
    """The option does what it says: ink stands out more where it is asked to."""

    def spread(contrast):
        o = SceneOptions(
            max_digits=1, empty=0, clutter=0, occluders=0, plate=0, noise=0, contrast=contrast
        )
        values = []
        for i in range(15):
            bare = dataclasses.replace(o, empty=1.0)
            a, b = (compose_scene("train", i, 48, options=used).image for used in (o, bare))
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
        composed = [digits for i in range(count) for digits in compose_scene(split, i, 48).digits]
        read = [(a["category_id"] - 1, tuple(a["bbox"])) for a in data["annotations"]]
        assert read == composed
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in data["annotations"])


def test_prepare_writes_a_mask_for_each_scene(tmp_path):
    folder = prepare(tmp_path, **SMALL)
    for split, count in (("train", 6), ("val", 3)):
        masks = sorted((folder / f"{split}_masks").iterdir())
        assert [path.stem for path in masks] == [
            path.stem for path in sorted((folder / split).iterdir())
        ]
        assert len(masks) == count
        for i, path in enumerate(masks):
            with Image.open(path) as mask:
                assert mask.format == "PNG" and mask.mode == "P"
                assert np.array_equal(mask, compose_scene(split, i, 48).mask)


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
    pictures = [name for name in a if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 18 and all(a[name] == b[name] for name in pictures)


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


def _lose_mask(folder: Path) -> None:
    (folder / "train_masks" / "000003.png").unlink()


def _lose_masks(folder: Path) -> None:
    shutil.rmtree(folder / "val_masks")


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate_json,
        _lose_image,
        _empty_image,
        _lose_mask,
        _lose_masks,
        _lose_manifest,
        _spoil_manifest,
    ],
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
