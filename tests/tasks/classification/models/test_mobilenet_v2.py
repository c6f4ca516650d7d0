from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("torchvision")

from torchvision.models import mobilenet_v2  # noqa: E402

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.classification.models import NarrowMobileNetV2  # noqa: E402


def test_the_network_of_the_paper(cost):
    assert cost(NarrowMobileNetV2, 160) == (1_677_128, 30_874_800)


def test_full_width_is_the_original(cost):
    assert cost(NarrowMobileNetV2, 224, width=1.0) == (3_504_872, 300_774_272)


@pytest.mark.parametrize("width", [1.0, 0.35, 0.5])
def test_it_computes_what_torchvision_does(width: float):
    ours = NarrowMobileNetV2(width, num_classes=7)
    theirs = mobilenet_v2(num_classes=7, width_mult=width)
    # Both list their layers in the order of the forward.
    values = list(theirs.state_dict().values())
    names = list(ours.state_dict())
    assert len(names) == len(values)
    ours.load_state_dict(dict(zip(names, values, strict=True)))
    images = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("width", [0, -1, float("nan"), "0.35", True])
def test_what_is_no_width(width):
    with pytest.raises(ConfigError, match="width must be a multiplier > 0"):
        NarrowMobileNetV2(width)
