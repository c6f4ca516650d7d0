from __future__ import annotations

import pytest

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.classification.models import ProxylessNASMobile  # noqa: E402


def test_the_network_of_the_paper(cost):
    assert cost(ProxylessNASMobile, 160) == (1_781_344, 35_716_800)


def test_its_kernels_are_those_that_were_found():
    kernels = [
        [block.get_submodule("depthwise.conv").kernel_size[0] for block in stage.children()]
        for stage in ProxylessNASMobile().stages.children()
    ]
    last = [[5, 5, 5, 5], [7, 7, 7, 7], [7]]
    assert kernels == [[3], [5, 3], [7, 3, 5, 5], [7, 5, 5, 5], *last]


def test_full_width_has_the_channels_of_the_paper():
    net = ProxylessNASMobile(width=1.0)
    channels = [
        stage.get_submodule("0.project.conv").out_channels for stage in net.stages.children()
    ]
    assert channels == [16, 32, 40, 80, 96, 192, 320]
    assert net.stem.conv.out_channels == 32 and net.head.get_submodule("conv").out_channels == 1280


def test_what_is_no_width():
    with pytest.raises(ConfigError, match="width must be a multiplier > 0"):
        ProxylessNASMobile(-1)
