from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

from taskdistill.core.errors import DataError
from taskdistill.tasks.detection.data import bccd
from taskdistill.tasks.detection.data.bccd import CLASSES, prepare, voc_to_coco
from taskdistill.tasks.detection.data.checks import check_coco

OBJECT = (
    "<object><name>{0}</name><difficult>{5}</difficult><bndbox><xmin>{1}</xmin><ymin>{2}</ymin>"
    "<xmax>{3}</xmax><ymax>{4}</ymax></bndbox></object>"
)


def xml(*objects: tuple, size: str = "<size><width>64</width><height>48</height></size>") -> str:
    return f"<annotation>{size}{''.join(OBJECT.format(*o) for o in objects)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photos: two cells (one difficult), none, and two boxes without area."""
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    files = {
        "one": xml(("RBC", 1, 1, 11, 21, 0), ("WBC", 30, 20, 64, 48, 1)),
        "two": xml(),
        "three": xml(("RBC", 5, 5, 5, 5, 0), ("RBC", 9, 4, 7, 8, 0), ("Platelets", 2, 3, 6, 6, 0)),
    }
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        (root / "JPEGImages" / f"{name}.jpg").touch()
    (root / "ImageSets/Main/train.txt").write_text("one\ntwo\nthree\n")
    (root / "ImageSets/Main/val.txt").write_text("two\n")
    return root


def test_conversion(voc, caplog):
    data = voc_to_coco(voc, "train", CLASSES)
    assert data["categories"] == [
        {"id": 1, "name": "RBC"},
        {"id": 2, "name": "WBC"},
        {"id": 3, "name": "Platelets"},
    ]
    assert [image["file_name"] for image in data["images"]] == ["one.jpg", "two.jpg", "three.jpg"]
    assert {(image["width"], image["height"]) for image in data["images"]} == {(64, 48)}
    boxes = [(a["image_id"], a["category_id"], a["bbox"]) for a in data["annotations"]]
    assert boxes == [(1, 1, [0, 0, 10, 20]), (1, 2, [29, 19, 34, 28]), (3, 3, [1, 2, 4, 3])]
    assert [a["area"] for a in data["annotations"]] == [200, 952, 12]
    assert [a["iscrowd"] for a in data["annotations"]] == [0, 1, 0]


def test_degenerate_boxes_are_counted_in_one_line(voc, caplog):
    with caplog.at_level(logging.WARNING):
        voc_to_coco(voc, "train", CLASSES)
    assert len(caplog.records) == 1
    assert "Left out 2 of 5 boxes" in caplog.text


def test_agrees_with_mmdets_own_reader(voc):
    from mmdet.datasets import XMLDataset

    theirs = XMLDataset(
        data_root=str(voc),
        ann_file="ImageSets/Main/train.txt",
        data_prefix={"sub_data_root": str(voc)},
        metainfo={"classes": CLASSES},
        test_mode=True,
        pipeline=[],
    )
    data = voc_to_coco(voc, "train", CLASSES)
    for image_id, info in enumerate(theirs, start=1):
        expected = [
            (i["bbox_label"] + 1, i["bbox"])
            for i in info["instances"]
            if i["bbox"][2] > i["bbox"][0] and i["bbox"][3] > i["bbox"][1]
        ]
        ours = [
            (a["category_id"], [x, y, x + w, y + h])
            for a in data["annotations"]
            for x, y, w, h in [a["bbox"]]
            if a["image_id"] == image_id
        ]
        assert ours == expected


def test_prepare_writes_a_file_that_passes_the_checks_once(voc):
    path = prepare(voc, "train")
    assert path.parent == voc.parent / "cache" / "bccd"
    check_coco(path, bccd.image_folder(voc), CLASSES)
    before = path.stat().st_mtime_ns
    assert prepare(voc, "train") == path and path.stat().st_mtime_ns == before
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_a_changed_annotation_gives_another_file(voc):
    first = prepare(voc, "train")
    (voc / "Annotations/two.xml").write_text(xml(("RBC", 1, 1, 5, 5, 0)))
    assert prepare(voc, "train") != first


def test_a_damaged_conversion_is_replaced(voc):
    path = prepare(voc, "train")
    text = path.read_text()
    path.write_text(text[:30])
    assert prepare(voc, "train") == path and path.read_text() == text


def test_a_folder_that_is_not_voc(tmp_path):
    with pytest.raises(DataError, match=r"not a Pascal VOC dataset.*TASKDISTILL_DATA"):
        prepare(tmp_path, "train")


def test_an_unknown_split(voc):
    with pytest.raises(DataError, match=r"no split 'vall', only train, val\. Did you mean 'val'"):
        prepare(voc, "vall")


def test_an_empty_split(voc):
    (voc / "ImageSets/Main/val.txt").write_text("\n")
    with pytest.raises(DataError, match="val.txt is empty"):
        prepare(voc, "val")


def test_missing_annotations_are_counted_and_named(voc):
    (voc / "ImageSets/Main/train.txt").write_text("one p q r s")
    with pytest.raises(DataError, match=r"4 of the 5 .*p\.xml, .*q\.xml, .*r\.xml, \.\.\."):
        prepare(voc, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><size>", "cannot be read as XML"),
        ("", "cannot be read as XML"),
        (xml(size=""), "expected <size>"),
        (xml(size="<size><width>64</width></size>"), "expected a number in <size><height>"),
        (xml(("RBC", 1, "", 5, 5, 0)), "expected a number in <bndbox><ymin>, got ''"),
        (xml(("RBC", 1, "nan", 5, 5, 0)), "expected a number in <bndbox><ymin>, got 'nan'"),
        (xml(("Platelet", 1, 1, 5, 5, 0)), "unknown object name 'Platelet'.*mean 'Platelets'"),
        (xml().replace("</a", "<object><name>RBC</name></object></a"), "no <bndbox>"),
    ],
)
def test_malformed_annotation_names_the_file(voc, text, message):
    (voc / "Annotations/two.xml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        prepare(voc, "train")
    assert str(voc / "Annotations/two.xml") in str(caught.value)


def test_a_cache_that_cannot_be_written(voc, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="TASKDISTILL_CACHE"):
        prepare(voc, "train")


@pytest.mark.data
def test_the_real_set(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path))
    root = Path(os.environ["TASKDISTILL_DATA"]) / "bccd"
    total: Counter[str] = Counter()
    for split, count in (("train", 205), ("val", 87), ("test", 72)):
        data = voc_to_coco(root, split, CLASSES)
        assert len(data["images"]) == count
        total.update(CLASSES[a["category_id"] - 1] for a in data["annotations"])
        check_coco(prepare(root, split), bccd.image_folder(root), CLASSES)
    assert total == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    assert "Left out" in caplog.text
