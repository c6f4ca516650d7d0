"""Digit scenes: detection and segmentation data composed of real digits and real photographs.

Nothing is downloaded. scikit-learn ships 1797 handwritten digits (8x8, from the UCI set of Alpaydin
and Kaynak) and two photographs ("china" and "flower", Creative Commons Attribution, by
danielbuechele and vultilion on Flickr); digits of several sizes, written in many colours, are put
over crops of the photographs with clutter and mutual occlusion. Ten classes, "0" to "9".

The rules of a scene:
    - Training and validation share no digit and no pixel of a photograph.
    - Image ``i`` of a split depends on the seed, the scene side and the options alone, not on how
      many images there are: a larger set begins with the smaller one.
    - A box is the tight bound of the *visible* ink of a digit, and ``area`` is width times height.
    - The semantic mask marks the same visible ink: the box of a digit is the tight bound of its
      pixels in the mask, unless another digit of its class is in the scene.
    - Whatever is drawn later may hide at most ``1 - min_visible`` of each digit under it. A place
      that would hide more is given up for another one, and after a few attempts the digit or the
      clutter is left out: no mostly hidden digit is ever there, annotated or not.
    - Clutter is made of what a network may take for a digit: pen strokes, digits with their
      quarters swapped, patches of the photographs. It has no annotation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFilter

from ....core.errors import DataError, did_you_mean
from .cache import cache_root

__all__ = [
    "CLASSES",
    "PALETTE",
    "SEGMENTATION_CLASSES",
    "SEGMENTATION_PALETTE",
    "SPLITS",
    "Digit",
    "Scene",
    "SceneOptions",
    "compose_scene",
    "prepare",
    "prepare_from_config",
]

CLASSES = tuple("0123456789")
PALETTE = (
    (230, 57, 70),
    (244, 140, 6),
    (255, 209, 20),
    (112, 193, 56),
    (10, 147, 90),
    (33, 187, 205),
    (44, 110, 235),
    (124, 77, 220),
    (222, 82, 194),
    (140, 98, 72),
)
SEGMENTATION_CLASSES = ("background", *CLASSES)
SEGMENTATION_PALETTE = ((0, 0, 0), *PALETTE)
SPLITS = ("train", "val")

Digit = tuple[int, tuple[int, int, int, int]]  # label (0 to 9), box (x, y, width, height)

_FORMAT = 2  # raise when the same options would give other files
_MARKER = ".taskdistill-digit-scenes"  # in every folder made here; no other folder is ever removed
_ATTEMPTS = 12
_TRAIN_DIGITS = 0.8  # share of the source digits that belongs to training
_TRAIN_PHOTO = 0.7  # share of each photograph's width that belongs to training

_log = logging.getLogger(__name__)
_Rng = np.random.Generator


@dataclass(frozen=True)
class SceneOptions:
    """How hard the scenes are. Lengths are shares of the scene's side.

    By default a GFL detector of 3M parameters reaches about 0.4 mAP on 1000 scenes in 10 epochs
    from scratch, and one of 0.2M parameters 0.16.

    Attributes:
        max_digits: Digits in a scene, 1 to this number, evenly distributed.
        empty: Share of scenes without any digit.
        digit_size: Smallest and largest height of a digit's 8x8 grid (log-uniform). The ink of a
            digit fills the grid's height and about two thirds of its width. 0.18 of a side of
            128 is 23 pixels.
        rotation: Largest rotation to either side, in degrees.
        shear: Largest horizontal shear to either side (offset per height).
        aspect: Largest stretch of the width, as a factor either way.
        contrast: Least and most distance between the ink's colour and the mean colour behind it,
            in RGB units of a full channel (0 to about 1.7).
        opacity: Least opacity of the ink; the most is 1.
        plate: Share of digits written on a plate: a translucent rectangle of another colour.
        min_visible: Least share of a digit's ink that stays in the picture and uncovered.
        clutter: Most pieces of clutter under the digits, 0 to this number.
        occluders: Most pieces of clutter over the digits, 0 to this number.
        noise: Largest standard deviation of the pixel noise, in units of a full channel.
        blur: Largest standard deviation of the final blur, in pixels per 128 pixels of side.
    """

    max_digits: int = 4
    empty: float = 0.04
    digit_size: tuple[float, float] = (0.18, 0.44)
    rotation: float = 8.0
    shear: float = 0.1
    aspect: float = 1.15
    contrast: tuple[float, float] = (0.6, 1.2)
    opacity: float = 0.9
    plate: float = 0.1
    min_visible: float = 0.75
    clutter: int = 3
    occluders: int = 1
    noise: float = 0.02
    blur: float = 0.6

    def __post_init__(self) -> None:
        low, high = self.digit_size
        rules = {
            "max_digits >= 1": self.max_digits >= 1,
            "0 <= empty <= 1": 0 <= self.empty <= 1,
            "0 < digit_size[0] <= digit_size[1] <= 1": 0 < low <= high <= 1,
            "0 <= rotation <= 90": 0 <= self.rotation <= 90,
            "0 <= shear <= 1": 0 <= self.shear <= 1,
            "aspect >= 1": self.aspect >= 1,
            "0 <= contrast[0] <= contrast[1]": 0 <= self.contrast[0] <= self.contrast[1],
            "0.1 <= opacity <= 1": 0.1 <= self.opacity <= 1,
            "0 <= plate <= 1": 0 <= self.plate <= 1,
            "0 < min_visible <= 1": 0 < self.min_visible <= 1,
            "clutter >= 0": self.clutter >= 0,
            "occluders >= 0": self.occluders >= 0,
            "noise >= 0": self.noise >= 0,
            "blur >= 0": self.blur >= 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise DataError(f"SceneOptions must satisfy {' and '.join(broken)}; got {self}.")


@dataclass(frozen=True)
class Scene:
    """One composed scene and its annotations.

    Attributes:
        image: The picture, RGB.
        digits: Label (0 to 9) and box (x, y, width, height) in whole pixels of each digit.
        mask: Class of each pixel, an index into :data:`SEGMENTATION_CLASSES`: 0 for the
            background, ``label + 1`` for the visible ink of a digit. Of mode "P", coloured by
            :data:`SEGMENTATION_PALETTE`.
    """

    image: Image.Image
    digits: tuple[Digit, ...]
    mask: Image.Image


# --- sources ------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _sources(split: str, seed: int) -> tuple[dict[int, list[Image.Image]], list[Image.Image]]:
    """The digits by class and the photographs that belong to one split."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise DataError(
            "The digit scenes are composed from the data in scikit-learn, which is not installed: "
            "pip install scikit-learn (or install taskdistill with its extra 'mm')."
        ) from error

    train = split == "train"
    digits: Any = load_digits(return_X_y=True)  # data frames only where asked for
    grids, labels = digits  # (1797, 64), 0 to 16
    order = np.random.default_rng(seed).permutation(len(grids))
    cut = int(_TRAIN_DIGITS * len(order))
    by_class: dict[int, list[Image.Image]] = {label: [] for label in range(10)}
    for i in order[:cut] if train else order[cut:]:
        # A margin of two empty cells lets rotated corners and the interpolation run out to zero.
        grid = np.pad(grids[i].reshape(8, 8) * (255 / 16), 2).astype(np.uint8)
        by_class[int(labels[i])].append(Image.fromarray(grid))

    photos = []
    for array in load_sample_images().images:
        photo = Image.fromarray(array)
        x = int(_TRAIN_PHOTO * photo.width)
        box = (0, 0, x, photo.height) if train else (x, 0, photo.width, photo.height)
        photos.append(photo.crop(box))
    return by_class, photos


def _pick(rng: _Rng, items: list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


# --- drawing ------------------------------------------------------------------------------------


class _Canvas:
    """A scene being painted, and how much of each digit can still be seen."""

    def __init__(self, pixels: np.ndarray, min_visible: float) -> None:
        self.pixels = pixels  # (side, side, 3), 0 to 1
        self.side = len(pixels)
        self.min_visible = min_visible
        self.labels: list[int] = []
        self.visible: list[np.ndarray] = []  # (side, side) bool, ink not covered
        self.ink: list[float] = []  # ink pixels of the whole digit, also outside the picture

    def covers_too_much(self, solid: np.ndarray) -> bool:
        return any(
            np.count_nonzero(seen & ~solid) < self.min_visible * ink
            for seen, ink in zip(self.visible, self.ink, strict=True)
        )

    def paint(self, alpha: np.ndarray, colour: np.ndarray, solid: np.ndarray) -> None:
        """Blend ``colour`` in; ``solid`` is what counts as hidden."""
        self.pixels += alpha[..., None] * (colour - self.pixels)
        for seen in self.visible:
            seen &= ~solid

    def boxes(self) -> Iterator[Digit]:
        """Label and (x, y, width, height) of the visible ink of each digit."""
        for label, seen in zip(self.labels, self.visible, strict=True):
            xs, ys = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
            x, y = int(xs[0]), int(ys[0])
            yield label, (x, y, int(xs[-1]) + 1 - x, int(ys[-1]) + 1 - y)

    def mask(self) -> Image.Image:
        """The visible ink of all digits as an index map; no two of them share a pixel."""
        indices = np.zeros((self.side, self.side), np.uint8)
        for label, seen in zip(self.labels, self.visible, strict=True):
            indices[seen] = label + 1
        mask = Image.fromarray(indices)
        mask.putpalette([channel for colour in SEGMENTATION_PALETTE for channel in colour])
        return mask


def _photo_crop(rng: _Rng, photos: list[Image.Image], side: int) -> np.ndarray:
    """A square piece of a photograph, flipped and recoloured at random."""
    photo = _pick(rng, photos)
    crop = int(rng.uniform(0.25, 1.0) * min(photo.size))
    x = int(rng.integers(photo.width - crop + 1))
    y = int(rng.integers(photo.height - crop + 1))
    image = photo.resize((side, side), Image.Resampling.BICUBIC, (x, y, x + crop, y + crop))
    pixels = np.asarray(image, dtype=np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = pixels[..., rng.permutation(3)]
    gain = rng.uniform(0.6, 1.2, size=3).astype(np.float32)
    return np.clip(pixels * gain + np.float32(rng.uniform(-0.1, 0.15)), 0, 1)


def _warp(rng: _Rng, grid: Image.Image, height: float, side: int, o: SceneOptions) -> np.ndarray:
    """Ink coverage (0 to 1) of a digit grid laid somewhere over a canvas three sides wide.

    The scene is the middle of the canvas, so that what runs over the edge is still counted.
    """
    angle = math.radians(rng.uniform(-o.rotation, o.rotation))
    shear = rng.uniform(-o.shear, o.shear)
    stretch = o.aspect ** rng.uniform(-1, 1)
    centre = side + rng.uniform(0.0, side, size=2)
    cell = height / 8  # pixels of the scene per cell of the grid
    forward = (
        np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        @ np.array([[1.0, shear], [0.0, 1.0]])
        @ np.diag([cell * stretch, cell])
    )
    # Only the digit's surroundings are computed: the canvas is mostly empty.
    reach = int(height * max(stretch, 1)) + 2
    x, y = (int(c) - reach for c in centre)
    back = np.linalg.inv(forward)
    origin = np.array(grid.size) / 2 + back @ (np.array([x, y]) - centre)
    matrix = (*back[0], origin[0], *back[1], origin[1])
    patch = grid.transform(
        (2 * reach, 2 * reach), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    ink = np.zeros((3 * side, 3 * side), dtype=np.float32)
    values = np.asarray(patch, dtype=np.float32) / 255
    # Steeper than the interpolation, so that strokes have edges as a pen's.
    values = np.clip((values - 0.5) * 2.2 + 0.5, 0, 1)
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + 2 * reach, 3 * side), min(x + 2 * reach, 3 * side)
    ink[top:bottom, left:right] = values[top - y : bottom - y, left - x : right - x]
    return ink


def _ink_colour(rng: _Rng, behind: np.ndarray, contrast: tuple[float, float]) -> np.ndarray:
    """A colour whose distance from ``behind`` is drawn from ``contrast`` (clipped to the cube)."""
    wanted = rng.uniform(*contrast)
    directions = rng.normal(size=(8, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    colours = np.clip(behind + wanted * directions, 0, 1)
    distance = np.linalg.norm(colours - behind, axis=1)
    good = np.flatnonzero(distance > 0.9 * wanted)
    return colours[good[0] if len(good) else int(distance.argmax())].astype(np.float32)


def _log_uniform(rng: _Rng, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _add_digit(
    rng: _Rng, canvas: _Canvas, grids: dict[int, list[Image.Image]], o: SceneOptions
) -> None:
    side = canvas.side
    label = int(rng.integers(10))
    grid = _pick(rng, grids[label])
    height = _log_uniform(rng, *o.digit_size) * side
    for _ in range(_ATTEMPTS):
        whole = _warp(rng, grid, height, side, o)
        ink = whole[side : 2 * side, side : 2 * side]
        solid = ink > 0.5
        total = np.count_nonzero(whole > 0.5)
        inside = np.count_nonzero(solid)
        if inside < max(o.min_visible * total, 1) or canvas.covers_too_much(solid):
            continue
        plate_alpha, plate_colour = np.zeros_like(ink), np.zeros(3, np.float32)
        if rng.random() < o.plate:
            ys, xs = np.nonzero(solid)
            margin = int(0.1 * height) + 1
            rows = slice(max(ys.min() - margin, 0), ys.max() + margin + 1)
            columns = slice(max(xs.min() - margin, 0), xs.max() + margin + 1)
            plate_alpha[rows, columns] = rng.uniform(0.4, 0.9)
            plate_colour = rng.random(3).astype(np.float32)
            if canvas.covers_too_much(plate_alpha > 0):
                plate_alpha[:] = 0
        canvas.paint(plate_alpha, plate_colour, plate_alpha > 0)
        behind = canvas.pixels[solid].mean(0)
        colour = _ink_colour(rng, behind, o.contrast)
        canvas.paint(ink * np.float32(rng.uniform(o.opacity, 1)), colour, solid)
        canvas.labels.append(label)
        canvas.visible.append(solid)
        canvas.ink.append(total)
        return


def _stroke(rng: _Rng, side: int, size: float) -> np.ndarray:
    """An open, bent pen stroke: neither straight as a 1 nor closed as a 0."""
    start, turn = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.3) * math.pi
    t = np.linspace(0, 1, 24)
    bend = start + turn * (t if rng.random() < 0.5 else np.abs(2 * t - 1))
    steps = np.stack([np.cos(bend), np.sin(bend)], 1).cumsum(0)
    steps *= size / np.ptp(steps, axis=0).max()
    points = steps - steps.mean(0) + rng.uniform(0, side, size=2)
    mask = Image.new("L", (2 * side, 2 * side))  # twice as large, then halved: smooth edges
    width = max(2, int(2 * size * rng.uniform(0.06, 0.16)))
    ImageDraw.Draw(mask).line([tuple(p) for p in 2 * points], 255, width, joint="curve")
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255


def _scrambled(rng: _Rng, grids: dict[int, list[Image.Image]]) -> Image.Image:
    """A digit with its quarters swapped crosswise: real ink that spells nothing."""
    grid = np.asarray(_pick(rng, grids[int(_pick(rng, [0, 2, 3, 5, 6, 8, 9]))]))
    return Image.fromarray(np.pad(np.roll(grid[2:-2, 2:-2], (4, 4), axis=(0, 1)), 2))


def _add_clutter(
    rng: _Rng,
    canvas: _Canvas,
    grids: dict[int, list[Image.Image]],
    photos: list[Image.Image],
    o: SceneOptions,
) -> None:
    side = canvas.side
    size = _log_uniform(rng, *o.digit_size) * side
    kind = _pick(rng, ["stroke", "scrambled", "patch"])
    y = x = height = width = 0  # of a patch
    for _ in range(_ATTEMPTS):
        if kind == "stroke":
            ink = _stroke(rng, side, size)
        elif kind == "scrambled":
            whole = _warp(rng, _scrambled(rng, grids), size, side, o)
            ink = whole[side : 2 * side, side : 2 * side]
        else:
            ink = np.zeros((side, side), np.float32)
            height, width = (int(size * rng.uniform(0.4, 1.0)) + 1 for _ in range(2))
            y, x = (int(v) for v in rng.integers(0, side, size=2))
            ink[y : y + height, x : x + width] = 1
        solid = ink > 0.5
        if not solid.any() or canvas.covers_too_much(solid):
            continue
        if kind == "patch":
            piece = _photo_crop(rng, photos, max(height, width))
            colour = np.zeros_like(canvas.pixels)
            colour[y : y + height, x : x + width] = piece[
                : min(height, side - y), : min(width, side - x)
            ]
        else:
            colour = _ink_colour(rng, canvas.pixels[solid].mean(0), o.contrast)
        canvas.paint(ink * np.float32(rng.uniform(o.opacity, 1)), colour, solid)
        return


def compose_scene(
    split: str, index: int, size: int = 128, seed: int = 0, options: SceneOptions | None = None
) -> Scene:
    """Compose one scene.

    Args:
        split: "train" or "val": which digits and which part of the photographs are used.
        index: Number of the scene in its split.
        size: Side of the square scene, in pixels.
        seed: Seed of the whole set.
        options: Difficulty; the defaults of :class:`SceneOptions` if None.

    Returns:
        The image, its digits with their boxes, and its semantic mask.

    Example:
        >>> scene = compose_scene("train", 3, size=64)
        >>> scene.image.size, all(x + w <= 64 and y + h <= 64 for _, (x, y, w, h) in scene.digits)
        ((64, 64), True)
        >>> present = set(scene.mask.tobytes())
        >>> present == {0} | {label + 1 for label, _ in scene.digits}
        True
    """
    o = options or SceneOptions()
    grids, photos = _sources(split, seed)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _Canvas(_photo_crop(rng, photos, size), o.min_visible)
    for _ in range(int(rng.integers(o.clutter + 1))):
        _add_clutter(rng, canvas, grids, photos, o)
    if rng.random() >= o.empty:
        for _ in range(int(rng.integers(1, o.max_digits + 1))):
            _add_digit(rng, canvas, grids, o)
    for _ in range(int(rng.integers(o.occluders + 1))):
        _add_clutter(rng, canvas, grids, photos, o)

    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    pixels = np.clip(canvas.pixels + noise * np.float32(rng.uniform(0, o.noise)), 0, 1)
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, o.blur) * size / 128))
    return Scene(image, tuple(canvas.boxes()), canvas.mask())


# --- cache --------------------------------------------------------------------------------------


def _coco(split: str, size: int, scenes: list[tuple[Digit, ...]]) -> dict:
    annotations: list[dict[str, Any]] = []
    for image_id, digits in enumerate(scenes, start=1):
        for label, (x, y, w, h) in digits:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": f"taskdistill digit scenes, {split}", "version": str(_FORMAT)},
        "licenses": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        "images": [
            {"id": i, "file_name": f"{i - 1:06d}.jpg", "width": size, "height": size}
            for i in range(1, len(scenes) + 1)
        ],
        "annotations": annotations,
    }


def _fingerprint(folder: Path) -> dict[str, list[Any]]:
    """What is checked of a cached set: checksum of each json file, number and bytes of pictures."""
    found: dict[str, list[Any]] = {}
    for split in SPLITS:
        digest = hashlib.sha256((folder / f"{split}.json").read_bytes()).hexdigest()
        found[split] = [digest]
        for pictures in (split, f"{split}_masks"):
            sizes = [entry.stat().st_size for entry in os.scandir(folder / pictures)]
            found[split] += [len(sizes), sum(sizes)]
    return found


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest["files"] == _fingerprint(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(
    folder: Path,
    counts: dict[str, int],
    size: int,
    seed: int,
    options: SceneOptions,
    progress: Callable[[int, int], None] | None,
) -> None:
    folder.mkdir()
    (folder / _MARKER).touch()
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        (folder / split).mkdir()
        (folder / f"{split}_masks").mkdir()
        scenes = []
        for i in range(count):
            scene = compose_scene(split, i, size, seed, options)
            scene.image.save(folder / split / f"{i:06d}.jpg", quality=95, subsampling=0)
            scene.mask.save(folder / f"{split}_masks" / f"{i:06d}.png")
            scenes.append(scene.digits)
            done += 1
            if progress is not None:
                progress(done, total)
        text = json.dumps(_coco(split, size, scenes))
        (folder / f"{split}.json").write_text(text, encoding="utf-8")
    manifest = {
        "format": _FORMAT,
        "size": size,
        "seed": seed,
        "options": asdict(options),
        "files": _fingerprint(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def prepare(
    root: str | os.PathLike[str] | None = None,
    train: int = 1000,
    val: int = 200,
    size: int = 128,
    seed: int = 0,
    options: SceneOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Return the folder of a set of digit scenes, composing it where it is not there yet.

    The folder holds ``train/`` and ``val/`` (JPEG), ``train_masks/`` and ``val_masks/`` (PNG index
    maps of :data:`SEGMENTATION_CLASSES`), ``train.json`` and ``val.json`` (COCO) and a manifest.
    Its name is a hash of all the arguments and of the format's version, and the same arguments
    give the same bytes (with the same versions of numpy, Pillow and scikit-learn). It appears at
    once and whole: several processes may ask at the same time, and one that was interrupted leaves
    nothing that is taken for a set. A damaged set is made anew.

    Args:
        root: Where sets are kept; ``$TASKDISTILL_CACHE`` or else ``~/.cache/taskdistill`` if None.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Side of the square scenes, in pixels (32 to 4096).
        seed: Seed of everything random, the division of the digits into the splits included.
        options: Difficulty; the defaults of :class:`SceneOptions` if None.
        progress: Called with (scenes done, scenes in all) after each scene that is composed.

    Raises:
        DataError: If an argument is out of range, scikit-learn is missing, the folder cannot be
            written, or its name is taken by a folder that was not made here.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folder = prepare(root, train=2, val=1, size=32)
        ...     sorted(path.name for path in folder.iterdir() if path.suffix)
        ['manifest.json', 'train.json', 'val.json']
    """
    options = options or SceneOptions()
    counts = {"train": train, "val": val}
    for name, value, low, high in (
        ("train", train, 1, 999_999),
        ("val", val, 1, 999_999),
        ("size", size, 32, 4096),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"{name} must be a whole number from {low} to {high}, got {value!r}.")

    key = {"format": _FORMAT, **counts, "size": size, "seed": seed, "options": asdict(options)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = (
        Path(cache_root() if root is None else root).expanduser().absolute()
        / f"digit_scenes-{digest}"
    )
    if _is_complete(folder):
        return folder

    partial, stale = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "stale"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if _is_complete(folder):  # another process made it while this one waited
                return folder
            if folder.exists():
                if not (folder / _MARKER).exists():
                    raise DataError(
                        f"{folder} is to hold a set of digit scenes, but something else is there. "
                        "Move it away, or give another root (or $TASKDISTILL_CACHE)."
                    )
                _log.warning("The digit scenes in %s are damaged: composing them anew.", folder)
            else:
                _log.info("Composing %d digit scenes in %s.", train + val, folder)
            # Left by a process that was killed: nobody else is at work while the lock is held.
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(stale, ignore_errors=True)
            start = time.monotonic()
            try:
                _build(partial, counts, size, seed, options, progress)
                if folder.exists():
                    folder.rename(stale)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(stale, ignore_errors=True)
            _log.info("Composed the digit scenes in %.1f s.", time.monotonic() - start)
    except OSError as error:
        raise DataError(
            f"The digit scenes could not be written to {folder}: {error}. "
            "Give a root (or $TASKDISTILL_CACHE) that is writable and has room for about "
            f"{(train + val) * size * size / 1e6:.0f} MB."
        ) from error
    return folder


def prepare_from_config(scenes: dict[str, Any]) -> Path:
    """Call :func:`prepare` with the arguments of a config, where ``options`` is a plain dict.

    Raises:
        DataError: If a name is unknown, or as :func:`prepare` does.

    Example:
        >>> prepare_from_config({"sizes": 64})
        Traceback (most recent call last):
        ...
        taskdistill.core.errors.DataError: The digit scenes have no 'sizes'. Did you mean 'size'?
    """
    known = {"root", "train", "val", "size", "seed", "options"}
    options = dict(scenes.get("options") or {})
    names = {field.name for field in fields(SceneOptions)}
    for name, allowed in [(n, known) for n in scenes] + [(n, names) for n in options]:
        if name not in allowed:
            hint = did_you_mean(name, allowed) or f" They have {', '.join(sorted(allowed))}."
            raise DataError(f"The digit scenes have no {name!r}.{hint}")
    for name, value in options.items():
        if isinstance(value, list):
            options[name] = tuple(value)
    return prepare(**{**scenes, "options": SceneOptions(**options)})
