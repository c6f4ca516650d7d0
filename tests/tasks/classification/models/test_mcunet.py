from __future__ import annotations

import pytest
from torch import nn

pytest.importorskip("mmengine")

from taskdistill.tasks.classification.models import MCUNet  # noqa: E402


def test_the_network_of_the_paper(cost):
    assert cost(MCUNet, 176) == (737_408, 81_785_520)


def test_its_kernels_are_those_that_were_found():
    net = MCUNet()
    kernels = [
        [block.get_submodule("depthwise.conv").kernel_size[0] for block in stage.children()]
        for stage in net.stages.children()
    ]
    assert kernels == [[3], [7, 3, 7, 5], [5, 5, 5], [3, 7, 5], [5, 7, 3], [3, 7, 3], [7]]


def test_the_classifier_reads_the_last_stage():
    net = MCUNet()
    assert isinstance(net.head, nn.Identity) and isinstance(net.features, nn.Identity)
    assert net.classifier.in_features == 160
