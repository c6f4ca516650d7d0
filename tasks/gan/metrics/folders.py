"""Features and statistics of the images of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ....core.errors import DataError
from .cache import cached_statistics
from .frechet import RunningStatistics, Statistics
from .images import image_batches
from .network import FeatureNetwork, features_of

__all__ = ["measure_files"]


def measure_files(
    files: Sequence[Path],
    network: FeatureNetwork,
    *,
    batch_size: int = 50,
    num_workers: int = 0,
    skip_unreadable: bool = False,
    keep_features: bool = False,
    cache: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[Statistics, Tensor | None]:
    """Run image files through a feature network.

    Args:
        files: Sorted paths, as :func:`list_images` gives them.
        network: On the device where it is to run.
        batch_size: Images a step; 50 in ``pytorch_fid``.
        num_workers: Processes that read images; 0 reads in this one.
        skip_unreadable: Leave out files that cannot be read instead of raising.
        keep_features: Return the features too, for a kernel distance. They are not in the cache.
        cache: Take statistics from the cache, and keep them there.
        progress: Called with the number of files that were done.

    Returns:
        Statistics of all vectors; and with ``keep_features`` a vector for each image (its P
        vectors one behind the other), float32, (N, P * D).

    Raises:
        DataError: If images cannot be read, or fewer than two can.
    """
    kept: list[Tensor] = []

    def compute() -> Statistics:
        running, images = RunningStatistics(network.dims), 0
        for batch in image_batches(
            files,
            batch_size=batch_size,
            num_workers=num_workers,
            skip_unreadable=skip_unreadable,
            progress=progress,
        ):
            features = torch.stack(features_of(network, batch))
            running.add(features.flatten(0, 1))
            images += len(batch)
            if keep_features:
                kept.append(features.flatten(1))
        if images < 2:
            raise DataError(
                f"At least 2 images are needed, got {images} from {len(files)} files"
                f"{f' such as {str(files[0])!r}' if files else ''}. Give more images."
            )
        return running.result(images)

    if keep_features or not cache:
        return compute(), torch.cat(kept) if keep_features else None
    return cached_statistics(files, network.identity, compute), None
