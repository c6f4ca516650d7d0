from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError, ShapeError  # noqa: E402
from taskdistill.tasks.gan.models import PatchDiscriminator, PixelDiscriminator  # noqa: E402


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def seen(net: nn.Module, side: int) -> tuple[int, int]:
    """Height and width of what the score in the middle depends on."""
    images = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    scores = net.double().eval()(images)  # a batch norm in eval mode mixes no pixels
    middle = scores.shape[2] // 2
    scores[0, 0, middle, middle].backward()
    assert images.grad is not None
    touched = images.grad[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


@pytest.mark.parametrize(
    ("options", "field"), [(dict(), 70), (dict(layers=1), 16), (dict(layers=2), 34)]
)
def test_a_score_sees_a_patch(options: dict, field: int):
    assert seen(PatchDiscriminator(width=4, **options), 160) == (field, field)


def test_a_pixel_is_a_patch_of_one():
    assert seen(PixelDiscriminator(width=4), 9) == (1, 1)


def test_parameters_of_the_release():
    assert count(PatchDiscriminator()) == 2_765_633
    assert count(PatchDiscriminator(6)) == 2_768_705
    assert count(PatchDiscriminator(norm="instance")) == 2_764_737
    assert count(PixelDiscriminator()) == 256 + 8192 + 256 + 128


def test_names_are_those_of_the_release():
    net = PatchDiscriminator()
    weights = {n: tuple(v.shape) for n, v in net.state_dict().items() if v.ndim == 4}
    assert weights == {
        "model.0.weight": (64, 3, 4, 4),
        "model.2.weight": (128, 64, 4, 4),
        "model.5.weight": (256, 128, 4, 4),
        "model.8.weight": (512, 256, 4, 4),
        "model.11.weight": (1, 512, 4, 4),
    }
    names = set(net.state_dict())
    assert {"model.0.bias", "model.3.running_mean", "model.9.weight", "model.11.bias"} <= names
    assert not {"model.2.bias", "model.1.weight"} & names
    for norm in ("batch", "instance"):
        pixel = PixelDiscriminator(norm=norm)
        weights = {n for n, v in pixel.state_dict().items() if v.ndim == 4}
        assert weights == {"net.0.weight", "net.2.weight", "net.5.weight"}
        assert ("net.5.bias" in pixel.state_dict()) == (norm == "instance")


def test_layers_are_never_wider_than_eight_times():
    with torch.device("meta"):
        net = PatchDiscriminator(width=2, layers=5)
    widths = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [2, 4, 8, 16, 16, 16, 1]


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from(["batch", "instance"]),
)
def test_any_size_from_the_smallest_on(layers: int, height: int, width: int, norm: str):
    net, least = PatchDiscriminator(width=2, layers=layers, norm=norm), 3 * 2**layers
    size = (least + height, least + width)
    assert net(torch.rand(2, 3, *size)).shape == (2, 1, *((side >> layers) - 2 for side in size))


@pytest.mark.parametrize("layers", [1, 3])
def test_sizes_that_are_too_small(layers: int):
    least = 3 * 2**layers
    net = PatchDiscriminator(width=2, layers=layers)
    with pytest.raises(ShapeError, match=f"sides of {least} at least, got {least - 1}x64"):
        net(torch.rand(1, 3, least - 1, 64))


def test_scores_have_no_bounds():
    net = PatchDiscriminator(width=4).eval()
    nn.init.constant_(net.model[-1].bias, 100.0)
    assert net(torch.rand(1, 3, 32, 32)).min() > 10


@pytest.mark.parametrize("kind", [PatchDiscriminator, PixelDiscriminator])
def test_what_cannot_be_built(kind):
    with pytest.raises(ConfigError, match="width must be a whole number >= 1, got 0"):
        kind(width=0)
    with pytest.raises(ConfigError, match="norm must be one of"):
        kind(norm="spectral")


def test_a_patch_needs_a_layer():
    with pytest.raises(ConfigError, match="layers must be a whole number >= 1, got 0"):
        PatchDiscriminator(layers=0)
