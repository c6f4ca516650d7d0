"""Folders of pictures, paired side by side in one file or unpaired in two folders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import Dataset

from ....core.errors import DataError, did_you_mean
from .pipeline import PairTransform, pack_pair

__all__ = ["AlignedImages", "UnalignedImages", "check_limit", "check_split_name", "list_images"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
_DIRECTIONS = ("AtoB", "BtoA")
_SMALLEST = 8  # pixels of a half picture's width


class _Images(Dataset):
    """What both layouts share. ``sides[0]`` and ``sides[1]`` are the files of A and B."""

    def __init__(
        self,
        sides: tuple[list[Path], list[Path]],
        joined: bool,
        direction: str,
        limit: int | None,
        transform: PairTransform,
        paired: bool,
    ) -> None:
        if direction not in _DIRECTIONS:
            raise DataError(
                f"direction must be 'AtoB' or 'BtoA', got {direction!r}."
                f"{did_you_mean(str(direction), _DIRECTIONS)}"
            )
        check_limit(limit)
        self.input_half, self.target_half = (0, 1) if direction == "AtoB" else (1, 0)
        self.input_paths = sides[self.input_half][:limit]
        self.target_paths = sides[self.target_half][:limit]
        self.joined = joined  # A and B are the halves of one file
        self.transform = transform
        self.in_channels, self.out_channels = transform.channels
        self.paired = paired

    @property
    def metainfo(self) -> dict[str, Any]:
        """Nothing; mmengine asks every dataset."""
        return {}

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides, in pixels, that every picture will have; empty if its own decide."""
        return self.transform.sides

    def __len__(self) -> int:
        return max(len(self.input_paths), len(self.target_paths))

    def check_files(self, count: int = 3) -> None:
        """Open some files of each side, evenly spaced, and see whether they can be used.

        Args:
            count: How many files of each side: 3 are the first, the middle and the last.

        Raises:
            DataError: If one cannot be read or is too small; the message names the file.
        """
        for half, paths in (
            (self.input_half, self.input_paths),
            (self.target_half, self.target_paths),
        ):
            last = len(paths) - 1
            for i in sorted({round(last * k / max(count - 1, 1)) for k in range(count)}):
                image = self._read(paths[i], half)
                try:
                    self.transform.check_size(*image.size)
                except DataError as error:
                    raise DataError(f"{paths[i]}: {error}") from error

    def _read(self, path: Path, half: int) -> Image.Image:
        image = _read_image(path)
        return _halves(image, path)[half] if self.joined else image

    def _check_index(self, index: int) -> None:
        # Iteration over a dataset ends by this error; a modulo would never let it end.
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)}")


@DATASETS.register_module()
class AlignedImages(_Images):
    """Pairs as pix2pix's data sets hold them: one file, A in its left half and B in its right.

    Args:
        data_root: Folder of the splits: ``data_root/SPLIT/*.jpg`` (or png, bmp, ppm, tif, webp),
            subfolders included, in the order of their paths.
        split: Which folder of it.
        direction: "AtoB": input A, target B. "BtoA": the other way.
        test_mode: Whether to leave out everything random, as :class:`.PairTransform` says.
        load_size: As for :class:`.PairTransform`.
        crop_size: As for :class:`.PairTransform`.
        preprocess: As for :class:`.PairTransform`.
        flip: As for :class:`.PairTransform`.
        in_channels: 1 or 3 of the input.
        out_channels: 1 or 3 of the target.
        limit: How many pictures to use, the first ones; all if None.

    Raises:
        DataError: If the folder is absent or holds no picture, or an argument is out of range.
            In use, if a file cannot be read, or its width is odd or below 16 pixels.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     (Path(root) / "train").mkdir()
        ...     Image.new("RGB", (64, 32)).save(f"{root}/train/1.png")
        ...     sample = AlignedImages(root, load_size=36, crop_size=32)[0]
        >>> sample["inputs"].shape, sample["data_samples"].target.shape
        (torch.Size([3, 32, 32]), torch.Size([3, 32, 32]))
        >>> sample["data_samples"].paired
        True
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        direction: str = "AtoB",
        test_mode: bool = False,
        load_size: int = 286,
        crop_size: int = 256,
        preprocess: str = "resize_and_crop",
        flip: bool = True,
        in_channels: int = 3,
        out_channels: int = 3,
        limit: int | None = None,
    ) -> None:
        transform = PairTransform(
            load_size, crop_size, preprocess, flip, test_mode, (in_channels, out_channels)
        )
        files = list_images(data_root, split)
        super().__init__((files, files), True, direction, limit, transform, paired=True)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._check_index(index)
        path = self.input_paths[index]
        halves = _halves(_read_image(path), path)
        try:
            inputs, target = self.transform(halves[self.input_half], halves[self.target_half])
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        return pack_pair(inputs, target, str(path), str(path), True)


@DATASETS.register_module()
class UnalignedImages(_Images):
    """Pictures of two domains without pairs, as CycleGAN's data sets hold them.

    There are as many samples as pictures in the larger domain; the smaller one begins again. In
    training the target is any picture of its domain, drawn from Python's ``random``, and each
    picture is cropped and flipped by itself.

    Args:
        data_root: Folder with ``{split}A`` and ``{split}B``; with `aligned`, as for
            :class:`AlignedImages`.
        split: Beginning of the folders' names.
        direction: "AtoB": input A, target B. "BtoA": the other way.
        test_mode: Whether to leave out everything random: input and target have the same index,
            and nothing else is random either, as :class:`.PairTransform` says.
        serial: Whether to give the targets in order in training, too.
        aligned: Whether to take the unpaired domains from the halves of paired pictures
            (``data_root/SPLIT``): in training A of one and B of another. In test mode the two are
            the pair that they are.
        paired: Whether files of the same index belong together, so that test mode can compare
            them.
        load_size: As for :class:`.PairTransform`.
        crop_size: As for :class:`.PairTransform`.
        preprocess: As for :class:`.PairTransform`.
        flip: As for :class:`.PairTransform`.
        in_channels: 1 or 3 of the input.
        out_channels: 1 or 3 of the target.
        limit: How many pictures of each domain to use, the first ones; all if None.

    Raises:
        DataError: If a folder is absent or holds no picture, an argument is out of range, or
            `paired` is given in training or for domains of two sizes. In use, if a file cannot be
            read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name, count in (("trainA", 2), ("trainB", 3)):
        ...         (Path(root) / name).mkdir()
        ...         for i in range(count):
        ...             Image.new("RGB", (32, 32)).save(f"{root}/{name}/{i}.png")
        ...     horses = UnalignedImages(root, load_size=36, crop_size=32)
        ...     sample = horses[2]
        >>> len(horses), Path(sample["data_samples"].img_path).name
        (3, '0.png')
        >>> sample["data_samples"].paired
        False
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        direction: str = "AtoB",
        test_mode: bool = False,
        serial: bool = False,
        aligned: bool = False,
        paired: bool = False,
        load_size: int = 286,
        crop_size: int = 256,
        preprocess: str = "resize_and_crop",
        flip: bool = True,
        in_channels: int = 3,
        out_channels: int = 3,
        limit: int | None = None,
    ) -> None:
        transform = PairTransform(
            load_size, crop_size, preprocess, flip, test_mode, (in_channels, out_channels)
        )
        if aligned:
            a = b = list_images(data_root, split)
        else:
            a, b = list_images(data_root, f"{split}A"), list_images(data_root, f"{split}B")
        if paired and not test_mode:
            raise DataError(
                "paired=True of UnalignedImages is for test mode: training takes pictures that do "
                "not belong together. Set test_mode=True, or use AlignedImages to train on pairs."
            )
        if paired and len(a) != len(b):
            raise DataError(
                f"paired=True says that files of the same index belong together, but "
                f"{split}A has {len(a)} pictures and {split}B {len(b)} in {data_root}. "
                "Complete the pairs, or set paired=False."
            )
        super().__init__(
            (a, b), aligned, direction, limit, transform, paired=test_mode and (aligned or paired)
        )
        self.in_order = serial or test_mode

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._check_index(index)
        i, j = index % len(self.input_paths), index % len(self.target_paths)
        if not self.in_order:
            j = self._draw(i)
        source, goal = self.input_paths[i], self.target_paths[j]
        inputs = self._transformed(source, self.input_half, 0)
        target = self._transformed(goal, self.target_half, 1)
        return pack_pair(inputs, target, str(source), str(goal), self.paired)

    def _draw(self, i: int) -> int:
        count = len(self.target_paths)
        if self.joined and count > 1:  # any but the input's own other half
            j = random.randrange(count - 1)
            return j + (j >= i)
        return random.randrange(count)

    def _transformed(self, path: Path, half: int, side: int) -> Any:
        image = self._read(path, half)
        try:
            return self.transform.single(image, side)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def list_images(data_root: str | Path, folder: str) -> list[Path]:
    """The pictures of ``data_root/folder`` and below, in the order of their paths.

    Raises:
        DataError: If the folder is absent or holds no picture; with the folders that there are.
    """
    if not data_root or not isinstance(data_root, str | Path):
        raise DataError(
            f"data_root must be the folder of the pictures, got {data_root!r}. Set it, or "
            "$TASKDISTILL_DATA where the config takes it from there."
        )
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise DataError(
            f"The folder {root} does not exist. Give the folder of the pictures as data_root of "
            "the dataset, or set $TASKDISTILL_DATA where the config takes it from there."
        )
    if not folder or not (root / folder).is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise DataError(
            f"{root} has no folder {folder!r}, only {', '.join(there) or 'files'}."
            f"{did_you_mean(folder, there)} Set data_root and split of the dataset: AlignedImages "
            "reads SPLIT, UnalignedImages SPLIT + 'A' and SPLIT + 'B' (SPLIT with aligned=True)."
        )
    files = [path for path in (root / folder).rglob("*") if not path.name.startswith(".")]
    found = sorted(p for p in files if p.suffix.lower() in _SUFFIXES)
    if not found:
        others = sorted({path.suffix or path.name for path in files if path.is_file()})
        raise DataError(
            f"{root / folder} holds no picture ({', '.join(_SUFFIXES)}), "
            f"only {', '.join(others[:5]) or 'nothing'}. Copy the pictures there, or correct "
            "data_root and split of the dataset."
        )
    return found


def check_limit(limit: int | None) -> None:
    """Raise :class:`.DataError` unless this is None or a count of samples."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit must be None or a whole number from 1, got {limit!r}.")


def check_split_name(split: str, splits: Sequence[str]) -> None:
    """Raise :class:`.DataError` unless ``split`` is among ``splits``."""
    if split not in splits:
        raise DataError(
            f"split must be {' or '.join(map(repr, splits))}, got {split!r}."
            f"{did_you_mean(str(split), splits)}"
        )


def _read_image(path: Path) -> Image.Image:
    """A picture as RGB or grey of 8 bits."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            if not mode.startswith(("I", "F")):  # both of more than 8 bits
                return image.convert("L" if mode in ("1", "L", "LA") else "RGB")
    except Exception as error:  # whatever a decoder raises for a damaged file
        raise DataError(
            f"The picture {path} cannot be read: {error}. Restore the file, or remove it."
        ) from error
    raise DataError(
        f"The picture {path} has more than 8 bits a channel (mode {mode!r}), expected 8 bits grey "
        "or RGB. Convert it: which values are to be black and white is not known here."
    )


def _halves(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image]:
    width, height = image.size
    half = width // 2
    if width % 2 or half < _SMALLEST:
        raise DataError(
            f"The picture {path} is {width}x{height} pixels: expected A and B side by side, so an "
            f"even width of at least {2 * _SMALLEST}. Remove or repair it, or use UnalignedImages "
            "with folders of single pictures."
        )
    return image.crop((0, 0, half, height)), image.crop((half, 0, width, height))
