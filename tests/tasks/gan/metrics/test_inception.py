from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")
pytest.importorskip("torchmetrics")

from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.gan.metrics.frechet import (
    RunningStatistics,
    frechet_distance,
    kernel_distance,
)
from taskdistill.tasks.gan.metrics.inception import (
    DIMS,
    SHA256_PREFIX,
    WEIGHTS_NAME,
    InceptionNetwork,
    load_inception,
)
from taskdistill.tasks.gan.metrics.network import features_of

# Read at import: the tests themselves do not see the environment of whoever runs them.
PUBLISHED = os.environ.get("TASKDISTILL_INCEPTION")


@pytest.fixture(scope="module")
def network(inception_weights: Path) -> InceptionNetwork:
    with pytest.warns(UserWarning, match="does not hold the published weights"):
        return load_inception(inception_weights, dims=64)


def photos_as_tensors(crops: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(crop).permute(2, 0, 1).contiguous() for crop in crops]


# -- features --------------------------------------------------------------------------------------


def test_names_are_those_of_pytorch_fid():
    assert FID_WEIGHTS_URL.endswith("/" + WEIGHTS_NAME) and SHA256_PREFIX in WEIGHTS_NAME
    assert tuple(InceptionV3.BLOCK_INDEX_BY_DIM) == DIMS


def test_features_are_pooled_maps_of_images_from_0_to_1(network: InceptionNetwork):
    images = torch.randint(256, (2, 3, 20, 26), dtype=torch.uint8)
    features = network(images)
    assert features.shape == (2, 1, 64) and features.dtype == torch.float32
    maps = network.network(images / 255)[0]
    torch.testing.assert_close(features[:, 0], maps.mean((2, 3)), rtol=1e-5, atol=1e-5)
    assert features.std() > 0.01
    grey = images[:, :1]
    assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))


def test_it_is_frozen_and_in_eval_mode(network: InceptionNetwork):
    assert not any(parameter.requires_grad for parameter in network.parameters())
    features_of(network, [torch.zeros(3, 9, 9).byte()])
    assert not network.network.training


def test_building_it_draws_no_random_numbers_of_others(inception_weights: Path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.warns(UserWarning):
        load_inception(inception_weights, dims=64)
    assert torch.equal(torch.rand(3), expected)


def test_torchmetrics_computes_the_same(
    network: InceptionNetwork, crops: Callable[..., list[np.ndarray]]
):
    """A second implementation of everything behind the features."""
    fakes = [255 - image for image in photos_as_tensors(crops(36, (16, 16), seed=1))]
    sets = [photos_as_tensors(crops(36, (16, 16))), fakes]

    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(torch.cat(features_of(network, list(images))))
            return self.seen[-1]

    vectors = Vectors()
    fid = FrechetInceptionDistance(vectors)
    kid = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=36)
    statistics, features = [], []
    for images, real in zip(sets, (True, False), strict=True):
        fid.update(torch.stack(images), real=real)
        features.append(vectors.seen[-1])
        kid.update(features[-1].double(), real=real)
        running = RunningStatistics(64)
        running.add(features[-1])
        statistics.append(running.result())
    with pytest.warns(UserWarning, match="singular"):
        ours = frechet_distance(*statistics)
    assert ours > 0.1
    assert ours == pytest.approx(fid.compute().item(), rel=1e-3)
    mean, deviation = kernel_distance(*features)
    assert mean == pytest.approx(kid.compute()[0].item(), rel=1e-6)
    assert mean > 1e-3 and deviation == 0


# -- the file --------------------------------------------------------------------------------------


def test_where_the_file_is_looked_for(inception_weights: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.warns(UserWarning, match="not hold the published"):
        expected = load_inception(inception_weights.parent, 64).sha256  # a folder
        monkeypatch.setenv("TASKDISTILL_INCEPTION", str(inception_weights))
        assert load_inception(dims=64).sha256 == expected
        monkeypatch.setenv("TASKDISTILL_INCEPTION", "")
        monkeypatch.setenv("TORCH_HOME", str(inception_weights.parents[2]))
        assert load_inception(dims=64).sha256 == expected


def test_identity_tells_dims_and_weights_apart(network: InceptionNetwork):
    others = [
        InceptionNetwork(network.network, 192, network.sha256).identity,
        InceptionNetwork(network.network, 64, "0" * 64).identity,
    ]
    assert len({network.identity, *others}) == 3
    assert not network.published
    assert InceptionNetwork(network.network, 64, SHA256_PREFIX + "0" * 56).published


def test_without_a_file_one_message_says_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def complete(error: pytest.ExceptionInfo) -> bool:
        text = str(error.value)
        return all(
            part in text
            for part in (WEIGHTS_NAME, SHA256_PREFIX, FID_WEIGHTS_URL, "--weights FILE",
                         "TASKDISTILL_INCEPTION", "checkpoints", "no FID")
        )  # fmt: skip

    with pytest.raises(CheckpointError, match="TASKDISTILL_INCEPTION is not set") as error:
        load_inception()
    assert complete(error)
    with pytest.raises(CheckpointError, match="absent.pth', which was given") as error:
        load_inception(tmp_path / "absent.pth")
    assert complete(error)
    with pytest.raises(CheckpointError, match="which was given"):
        load_inception(tmp_path)  # a folder without it
    monkeypatch.setenv("TASKDISTILL_INCEPTION", str(tmp_path / "gone.pth"))
    with pytest.raises(CheckpointError, match="gone.pth', which TASKDISTILL_INCEPTION names"):
        load_inception()


class Dangerous:
    def __reduce__(self):
        return (os.mkdir, ("made-by-a-checkpoint",))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Dangerous()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        load_inception(tmp_path / "w.pth", 64)
    assert not (tmp_path / "made-by-a-checkpoint").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": torch.ones(1)}}])
def test_what_is_no_state_dict(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dict of the FID's Inception network"):
        load_inception(tmp_path / "w.pth", 64)


def test_weights_of_another_network(tmp_path: Path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="does not fit the FID's Inception network.*Missing"):
        load_inception(tmp_path / "w.pth", 64)


def test_a_damaged_file(tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
        load_inception(tmp_path / "w.pth")


def test_features_that_are_not_there():
    with pytest.raises(ConfigError, match="dims must be one of 64, 192, 768, 2048, got 128"):
        load_inception(dims=128)


@pytest.mark.data
@pytest.mark.skipif(not PUBLISHED, reason="needs TASKDISTILL_INCEPTION, the published weights")
def test_the_published_weights(crops: Callable[..., list[np.ndarray]]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_inception(PUBLISHED)
    assert network.published
    images = photos_as_tensors(crops(8, (64, 64)))
    features = torch.cat(features_of(network, images))
    assert features.shape == (8, 2048)
    assert features.min() >= 0  # after a ReLU and an average
    assert 0.1 < features.mean() < 1.0
