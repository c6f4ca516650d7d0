from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

from taskdistill.core.errors import DataError
from taskdistill.tasks.detection.data.checks import check_coco

CLASSES = ("cat", "dog")
GOOD = {
    "images": [
        {"id": i, "file_name": f"{name}.jpg", "width": 20, "height": 10}
        for i, name in enumerate(["a", "b", "c", "d", "sub/e"])
    ],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4.5], "area": 13.5},
        {"id": 2, "image_id": 4, "category_id": 9, "bbox": [0, 0, 5, 5], "area": 25},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for image in GOOD["images"]:
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def write(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(data))
    return path


def changed(**entries: object) -> dict:
    return {**copy.deepcopy(GOOD), **entries}


def annotation(**entries: object) -> dict:
    return changed(annotations=[{**GOOD["annotations"][0], **entries}])


def test_a_good_file_passes(tmp_path, images):
    assert check_coco(write(tmp_path, GOOD), images, CLASSES) is None


def test_a_selection_of_the_classes_passes(tmp_path, images):
    assert check_coco(write(tmp_path, GOOD), images, ("dog",)) is None


def test_images_without_objects_and_boxes_without_area_pass(tmp_path, images):
    assert check_coco(write(tmp_path, changed(annotations=[])), images, CLASSES) is None
    flat = annotation(bbox=[1, 1, 0, 0], area=0)
    assert check_coco(write(tmp_path, flat), images, CLASSES) is None


@pytest.mark.parametrize("present", [True, False])
def test_absent_file_names_what_is_beside_it(tmp_path, images, present):
    if present:
        write(tmp_path, GOOD)
    with pytest.raises(DataError) as caught:
        check_coco(tmp_path / "trian.json", images, CLASSES)
    assert "trian.json does not exist" in str(caught.value)
    assert ("Did you mean 'train.json'?" in str(caught.value)) is present


def test_a_folder_instead_of_a_file(tmp_path, images):
    with pytest.raises(DataError, match="cannot be read"):
        check_coco(tmp_path, images, CLASSES)


@pytest.mark.parametrize("text", ["", '{"images": [', "\x00\x01"])
def test_damaged_json_names_the_file(tmp_path, images, text):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path)) + " is not valid JSON"):
        check_coco(path, images, CLASSES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "expected a COCO file.*images, annotations, categories; got a list"),
        ({"boxes": []}, "images, annotations, categories is not there, it has boxes"),
        (changed(annotations=None), "annotations is not there"),
        (changed(images=[]), "list of images is empty"),
        (changed(images=[{"id": 1}]), "entry 0 of images lacks file_name, width, height"),
        (changed(annotations=[3]), "entry 0 of annotations lacks"),
        (annotation(bbox=[1, 2, 3]), "four finite numbers"),
        (annotation(bbox=[1, 2, 3, None]), "four finite numbers"),
        (annotation(bbox=[1, 2, float("nan"), 4]), "four finite numbers"),
        (annotation(category_id=3), r"1 annotations have a category_id .* categories: 3; .* 7, 9"),
        (annotation(image_id=99), "1 annotations have a image_id that is not in images: 99"),
        (changed(categories=[*GOOD["categories"], {"id": 7, "name": "x"}]), "repeated: 7"),
        (changed(images=GOOD["images"] * 2), "ids of images must be unique"),
    ],
)
def test_malformed_content(tmp_path, images, data, message):
    path = write(tmp_path, data)
    with pytest.raises(DataError, match=message) as caught:
        check_coco(path, images, CLASSES)
    assert str(path) in str(caught.value)


def test_classes_that_the_file_lacks(tmp_path, images):
    with pytest.raises(DataError, match=r"classes dogs .* categories cat, dog.*mean 'dog'"):
        check_coco(write(tmp_path, GOOD), images, ("cat", "dogs"))


def test_classes_in_another_order_would_be_misnamed(tmp_path, images):
    with pytest.raises(DataError, match="must come in the order"):
        check_coco(write(tmp_path, GOOD), images, ("dog", "cat"))


def test_missing_images_are_counted_and_the_first_three_named(tmp_path, images):
    for name in ("a.jpg", "b.jpg", "d.jpg", "sub/e.jpg"):
        (images / name).unlink()
    with pytest.raises(DataError, match=r"4 of the 5 images .*: a\.jpg, b\.jpg, d\.jpg, \.\.\."):
        check_coco(write(tmp_path, GOOD), images, CLASSES)


def test_a_missing_subfolder_is_missing_images(tmp_path, images):
    (images / "sub" / "e.jpg").unlink()
    (images / "sub").rmdir()
    with pytest.raises(DataError, match=r"1 of the 5 images .*: sub/e\.jpg\. "):
        check_coco(write(tmp_path, GOOD), images, CLASSES)


def test_missing_image_folder(tmp_path):
    with pytest.raises(DataError, match="image folder .* does not exist"):
        check_coco(write(tmp_path, GOOD), tmp_path / "nowhere", CLASSES)
