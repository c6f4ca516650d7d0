"""Images of a folder, as a feature network takes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....core.errors import ConfigError, DataError

__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageFiles",
    "Unreadable",
    "image_batches",
    "list_images",
    "read_image",
]

IMAGE_EXTENSIONS = frozenset(
    {"bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"}
)  # pytorch_fid's
_LISTED = 8


def list_images(folder: str | Path, *, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in the order of their paths.

    They are the files that ``pytorch_fid`` takes (bmp, jpg, jpeg, pgm, png, ppm, tif, tiff, webp),
    and those of the same kinds whose extensions are in capital letters.

    Args:
        folder: Where they lie.
        recursive: Also in its subfolders, which pytorch_fid leaves out.

    Warns:
        UserWarning: If an extension is in capital letters, for pytorch_fid leaves such files out.

    Raises:
        DataError: If there is no such folder or no image in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.jpg", "notes.txt"):
        ...         _ = Path(folder, name).write_bytes(b"")
        ...     [path.name for path in list_images(folder)]
        ['a.jpg', 'b.png']
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise DataError(
            f"{str(folder)!r} {what}; expected a folder of images or an .npz of statistics."
        )
    images = _images(folder.rglob("*") if recursive else folder.iterdir())
    if not images:
        deeper = 0 if recursive else len(_images(folder.rglob("*")))
        hint = f" Its subfolders hold {deeper}: name one, or use --recursive." if deeper else ""
        raise DataError(
            f"{str(folder)!r} holds no image ({', '.join(sorted(IMAGE_EXTENSIONS))}).{hint}"
        )
    capitals = [path for path in images if path.suffix[1:] not in IMAGE_EXTENSIONS]
    if capitals:
        warnings.warn(
            f"{str(folder)!r} holds {len(capitals)} images such as {capitals[0].name!r} whose "
            "extensions are in capital letters. They count here, but pytorch_fid leaves them out.",
            stacklevel=2,
        )
    return images


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path for path in paths if path.suffix[1:].lower() in IMAGE_EXTENSIONS and path.is_file()
    )


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image, and why."""

    path: Path
    reason: str


def read_image(path: str | Path) -> Tensor:
    """Read an image as RGB.

    Grey, palette and CMYK images are converted, transparency is dropped (as Pillow's
    ``convert("RGB")`` does, and so ``pytorch_fid``); of 16 bits a pixel the upper 8 are kept,
    rounded, where Pillow would clip everything above 255.

    Args:
        path: File.

    Returns:
        uint8, (3, H, W).

    Raises:
        DataError: If the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point pixels have no fixed range; store 8 or 16 bits")
            if image.mode.startswith("I"):
                pixels = np.asarray(image).astype(np.int64)
                if pixels.min() < 0 or pixels.max() > 65535:
                    raise ValueError("pixels of more than 16 bits; store 8 or 16 bits")
                grey = ((pixels + 128) // 257).astype(np.uint8)
                pixels = np.repeat(grey[..., None], 3, axis=2)
            else:
                pixels = np.array(image.convert("RGB"))
    # Decoders fail in any way there is on damaged bytes; OSError, SyntaxError, struct.error, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{str(path)!r} cannot be read as an image: {reason}.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class ImageFiles(Dataset):
    """The images of files, one by one; a file that cannot be read gives an :class:`Unreadable`.

    Args:
        files: Paths.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | Unreadable:
        path = self.files[index]
        try:
            return read_image(path)
        except DataError as error:
            return Unreadable(path, str(error.__cause__) or type(error.__cause__).__name__)


def image_batches(
    files: Sequence[Path],
    *,
    batch_size: int = 50,
    num_workers: int = 0,
    skip_unreadable: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[list[Tensor]]:
    """Read files in batches, in their order.

    Args:
        files: Paths.
        batch_size: Files a batch; 50 in ``pytorch_fid``.
        num_workers: Processes that read; 0 reads in this one.
        skip_unreadable: Leave out files that cannot be read instead of raising.
        progress: Called with the number of files that were done.

    Yields:
        Images of the files that can be read, uint8, (3, H, W) each; never an empty list.

    Raises:
        ConfigError: If ``batch_size`` or ``num_workers`` is out of range.
        DataError: If files cannot be read: after the first one nothing more is yielded, but the
            rest is looked through, so that one message names all (up to eight).
    """
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            "batch_size must be at least 1 and num_workers at least 0, got "
            f"batch_size={batch_size}, num_workers={num_workers}."
        )
    loader = DataLoader(
        ImageFiles(files), batch_size=batch_size, num_workers=num_workers, collate_fn=list
    )
    bad: list[Unreadable] = []
    for batch in loader:
        bad += [item for item in batch if isinstance(item, Unreadable)]
        images = [item for item in batch if not isinstance(item, Unreadable)]
        if images and (skip_unreadable or not bad):
            yield images
        if progress is not None:
            progress(len(batch))
    if bad and not skip_unreadable:
        listed = "".join(f"\n  {item.path}: {item.reason}" for item in bad[:_LISTED])
        more = f"\n  and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
        raise DataError(
            f"{len(bad)} of {len(files)} images cannot be read:{listed}{more}\nReplace or remove "
            "them, or measure the others by --skip-unreadable."
        )
