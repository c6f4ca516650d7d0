"""Random weights with the names of the published Inception file, and small sets of photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from pytorch_fid import inception  # noqa: E402

from taskdistill.tasks.gan.metrics.inception import WEIGHTS_NAME  # noqa: E402


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch hub keeps it, with random weights that keep activations at one scale."""
    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(nn.Module, "load_state_dict", lambda *_: None),
    ):
        network = inception.fid_inception_v3()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.1, 0.1, generator=generator)
    path = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / WEIGHTS_NAME
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """The two photographs of scikit-learn."""
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


@pytest.fixture(scope="session")
def crops(photos: list[np.ndarray]) -> Callable[..., list[np.ndarray]]:
    def cut(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        height, width = size
        found = []
        for index in range(count):
            photo = photos[index % len(photos)]
            top = random.integers(photo.shape[0] - height)
            left = random.integers(photo.shape[1] - width)
            found.append(photo[top : top + height, left : left + width].copy())
        return found

    return cut


@pytest.fixture
def folders(tmp_path: Path, crops: Callable[..., list[np.ndarray]]) -> tuple[Path, Path]:
    """Two folders of 20 and 24 images of one size, in several modes and formats."""
    made = []
    for name, count, seed in (("real", 20, 0), ("fake", 24, 1)):
        folder = tmp_path / name
        folder.mkdir()
        for index, pixels in enumerate(crops(count, (20, 26), seed)):
            image = Image.fromarray(pixels)
            if index % 5 == 0:
                image = image.convert(("L", "P", "RGBA", "1")[index // 5 % 4])
            suffix = "jpg" if index % 5 == 1 else "png"
            image.save(folder / f"{index:03d}.{suffix}")
        (folder / "notes.txt").write_text("no image")
        made.append(folder)
    return made[0], made[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the cache, or finds the weights, of whoever runs it."""
    monkeypatch.setenv("TASKDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch-home"))
    monkeypatch.delenv("TASKDISTILL_INCEPTION", raising=False)
    return tmp_path / "cache"
