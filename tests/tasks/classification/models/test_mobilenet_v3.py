from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
pytest.importorskip("torchvision")

from torchvision.models import mobilenet_v3_large  # noqa: E402

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.classification.models import NarrowMobileNetV3  # noqa: E402


def test_the_network_of_the_paper(cost):
    assert cost(NarrowMobileNetV3, 160) == (2_109_840, 19_495_688)


def test_full_width_computes_what_torchvision_does():
    ours = NarrowMobileNetV3(1.0, num_classes=7)
    theirs = mobilenet_v3_large(num_classes=7)
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-5  # theirs is 1e-3
    values = list(theirs.state_dict().values())
    own = ours.state_dict()
    # Their layer between pooling and classifier is a linear one, ours the same as a convolution.
    ours.load_state_dict({n: v.reshape(own[n].shape) for n, v in zip(own, values, strict=True)})
    images = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_what_is_no_width():
    with pytest.raises(ConfigError, match="width must be a multiplier > 0"):
        NarrowMobileNetV3(0)
