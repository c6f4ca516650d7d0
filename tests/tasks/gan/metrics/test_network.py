from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")

from taskdistill.core.errors import CheckpointError, ConfigError, ShapeError
from taskdistill.tasks.gan.metrics.network import (
    FeatureNetwork,
    build_network,
    features_of,
    pick_device,
)
from taskdistill.tasks.gan.metrics.small import SmallNetwork


class Noting(FeatureNetwork):
    """Gives the mean of each image, and keeps the shapes of its batches."""

    figure, kernel_figure, dims, identity = "D", "K", 1, "noting"

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.shapes.append(tuple(images.shape))
        return self.weight * images.float().mean((1, 2, 3))[:, None, None]


def test_images_of_one_size_go_together_and_the_order_is_kept():
    sizes = [(8, 8), (9, 8), (8, 8), (8, 8), (9, 8)]
    images = [torch.full((3, *size), value).byte() for value, size in enumerate(sizes)]
    network = Noting()
    features = features_of(network, images)
    assert [f.item() for f in features] == [0, 1, 2, 3, 4]
    assert network.shapes == [(3, 3, 8, 8), (2, 3, 9, 8)]
    assert all(f.shape == (1, 1) and not f.requires_grad for f in features)


def test_no_images_no_features():
    assert features_of(SmallNetwork(), []) == []


def test_the_other_images_do_not_matter():
    images = [torch.randint(256, (3, 16, 16 + i % 2), dtype=torch.uint8) for i in range(6)]
    together = features_of(SmallNetwork(), images)
    alone = [features_of(SmallNetwork(), [image])[0] for image in images]
    torch.testing.assert_close(together, alone)


def test_autocast_around_changes_nothing():
    images = [torch.randint(256, (3, 16, 16), dtype=torch.uint8)]
    expected = features_of(SmallNetwork(), images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features_of(SmallNetwork(), images)[0], expected[0])


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 8, 8), torch.zeros(2, 8, 8).byte(), torch.zeros(8, 8).byte(),
     torch.zeros(1, 3, 8, 8).byte()],
)  # fmt: skip
def test_what_is_no_image(image: Tensor):
    with pytest.raises(ShapeError, match="uint8 images .* with 1 or 3 channels, got"):
        features_of(SmallNetwork(), [image])


def test_networks_by_name():
    assert isinstance(build_network("small"), SmallNetwork)
    with pytest.raises(ConfigError, match="no feature network 'incepton'.*mean 'inception'"):
        build_network("incepton")
    with pytest.raises(ConfigError, match="takes no weights, got 'w.pth'"):
        build_network("small", "w.pth")
    with pytest.raises(CheckpointError, match="pt_inception-2015-12-05-6726825d.pth"):
        build_network("inception")


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ConfigError, match=f"Device '{name}' cannot be used here"):
            pick_device(name)


@pytest.mark.gpu
def test_on_the_gpu():
    images = [torch.randint(256, (3, 40, 50), dtype=torch.uint8) for _ in range(4)]
    moved = features_of(SmallNetwork().cuda(), images)
    assert all(f.device.type == "cpu" for f in moved)
    torch.testing.assert_close(moved, features_of(SmallNetwork(), images), rtol=1e-2, atol=0.05)
