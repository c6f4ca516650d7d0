from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from taskdistill.core.errors import DataError
from taskdistill.tasks.gan.metrics.folders import measure_files
from taskdistill.tasks.gan.metrics.images import list_images, read_image
from taskdistill.tasks.gan.metrics.small import SmallNetwork

NETWORK = SmallNetwork()


def test_statistics_are_those_of_all_vectors(folders: tuple[Path, Path]):
    files, done = list_images(folders[0]), []
    statistics, features = measure_files(
        files, NETWORK, batch_size=7, keep_features=True, progress=done.append
    )
    vectors = torch.cat([NETWORK(read_image(file)[None])[0] for file in files]).double().numpy()
    np.testing.assert_allclose(statistics.mean, vectors.mean(0), atol=1e-5)
    np.testing.assert_allclose(statistics.covariance, np.cov(vectors.T), atol=1e-3)
    assert (statistics.images, statistics.vectors) == (20, 320)
    assert done == [7, 7, 6]
    assert features is not None and features.shape == (20, 16 * 72)
    expected = torch.from_numpy(vectors).view(20, -1).float()
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_images_of_several_sizes(folders: tuple[Path, Path]):
    Image.new("RGB", (90, 70), (9, 99, 200)).save(folders[0] / "050.png")
    Image.new("RGB", (8, 8)).save(folders[0] / "0005.png")
    statistics, _ = measure_files(list_images(folders[0]), NETWORK)
    assert statistics.images == 22
    one_by_one, _ = measure_files(list_images(folders[0]), NETWORK, batch_size=1, cache=False)
    np.testing.assert_allclose(statistics.covariance, one_by_one.covariance, atol=1e-3)


def test_the_cache_spares_the_network(folders: tuple[Path, Path], own_cache: Path):
    files, done = list_images(folders[0]), []
    first, features = measure_files(files, NETWORK)
    second, _ = measure_files(files, NETWORK, progress=done.append)
    assert features is None and not done
    assert np.array_equal(first.covariance, second.covariance)
    measure_files(files, NETWORK, cache=False, progress=done.append)
    assert done == [20]


def test_without_cache_nothing_is_kept(folders: tuple[Path, Path], own_cache: Path):
    measure_files(list_images(folders[0]), NETWORK, cache=False)
    assert not own_cache.exists()


def test_too_few_images(folders: tuple[Path, Path]):
    files = list_images(folders[0])
    with pytest.raises(DataError, match=r"At least 2 images are needed, got 1 from 1 files .*000"):
        measure_files(files[:1], NETWORK)
    files[0].write_bytes(b"")
    files[1].write_bytes(b"")
    with pytest.raises(DataError, match="2 of 3 images cannot be read"):
        measure_files(files[:3], NETWORK)
    with pytest.raises(DataError, match="got 1 from 3 files"):
        measure_files(files[:3], NETWORK, skip_unreadable=True)
    statistics, _ = measure_files(files, NETWORK, skip_unreadable=True)
    assert statistics.images == 18
