"""Statistics of image sets in files: pytorch_fid's format, and a cache by content."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ....core.errors import ConfigError, DataError
from ...openmm.data.cache import cache_root
from .frechet import Statistics

__all__ = ["cached_statistics", "content_key", "load_statistics", "save_statistics"]

_VERSION = 1  # of how pixels become statistics; a change of that makes old files unfound


def load_statistics(path: str | Path) -> Statistics:
    """Read an ``.npz`` of ``pytorch_fid --save-stats`` or of :func:`save_statistics`.

    Args:
        path: File with the arrays ``mu`` (D,) and ``sigma`` (D, D).

    Raises:
        DataError: If it is missing, damaged, or holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"Statistics file {str(path)!r} does not exist.")
    try:
        # Opened here: of a damaged file numpy leaves its own handle open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if missing := [key for key in ("mu", "sigma") if key not in file]:
                raise DataError(
                    f"{str(path)!r} holds no {' and no '.join(missing)}, but {list(file)}; "
                    "expected what --save-stats writes."
                )
            mean, covariance = (np.asarray(file[key]) for key in ("mu", "sigma"))
            counts = [int(file[key]) if key in file else None for key in ("vectors", "images")]
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(
            f"Statistics file {str(path)!r} is damaged or no .npz ({e}). Make it again."
        ) from e
    right = mean.ndim == 1 and covariance.shape == (len(mean), len(mean)) and len(mean) > 0
    if not right or not all(np.issubdtype(x.dtype, np.floating) for x in (mean, covariance)):
        raise DataError(
            f"{str(path)!r} holds mu {mean.dtype} {mean.shape} and sigma {covariance.dtype} "
            f"{covariance.shape}; expected floating-point numbers (D,) and (D, D)."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{str(path)!r} holds NaN or infinite numbers. Make it again.")
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64), *counts)


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write the arrays ``mu`` and ``sigma``, as ``pytorch_fid --save-stats`` does.

    The file is written whole or not at all, and never over another.

    Args:
        path: Name that ends in ``.npz``; its folder is made if absent.
        statistics: What to write.

    Raises:
        ConfigError: If the name ends otherwise.
        DataError: If the file is there already, or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ConfigError(f"Statistics file {str(path)!r} must end in .npz.")
    if path.exists():
        raise DataError(f"{str(path)!r} exists already. Remove it, or choose another name.")
    try:
        _write(path, mu=statistics.mean, sigma=statistics.covariance)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written: {error}.") from error


def content_key(files: Sequence[Path], identity: str) -> str:
    """Return a hash of the bytes of files, in their order, and of what looks at them.

    Args:
        files: Sorted paths. Their names are not in the hash: a copied folder is the same set.
        identity: Of the feature network.

    Raises:
        DataError: If a file cannot be read at all.

    Example:
        >>> content_key([], "small") == content_key([], "small")
        True
        >>> content_key([], "small") == content_key([], "inception")
        False
    """
    digest = hashlib.sha256(f"statistics {_VERSION}\n{identity}\n".encode())
    for path in files:
        try:
            with open(path, "rb") as file:
                # Hashed one by one, so that the borders between files are in it.
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be read: {error}.") from error
    return digest.hexdigest()


def cached_statistics(
    files: Sequence[Path], identity: str, compute: Callable[[], Statistics]
) -> Statistics:
    """Return the statistics of files, computed only where they are not in the cache.

    They lie in ``$TASKDISTILL_CACHE`` (or ``~/.cache/taskdistill``) under ``image-statistics``, by
    content: changed images, weights or dims are another entry. A damaged file is made again. What
    was computed from fewer images than there are files (unreadable ones were skipped) is not kept.

    Args:
        files: Sorted paths.
        identity: Of the feature network.
        compute: Computes them.

    Warns:
        UserWarning: If the cache cannot be written.
    """
    path = cache_root() / "image-statistics" / f"{content_key(files, identity)}.npz"
    if path.is_file():
        try:
            statistics = load_statistics(path)
        except DataError:
            pass  # computed again and replaced
        else:
            if statistics.vectors is not None and statistics.images == len(files):
                return statistics
    statistics = compute()
    if statistics.images == len(files):
        try:
            _write(
                path,
                mu=statistics.mean,
                sigma=statistics.covariance,
                vectors=np.asarray(statistics.vectors),
                images=np.asarray(statistics.images),
            )
        except OSError as error:
            warnings.warn(
                f"The statistics are not kept: {str(path)!r} cannot be written ({error}). Choose "
                "another folder by TASKDISTILL_CACHE.",
                stacklevel=2,
            )
    return statistics


def _write(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
