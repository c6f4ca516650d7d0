from __future__ import annotations

import pytest

pytest.importorskip("mmengine")

from taskdistill.tasks.classification.models import MobileNetV2Tiny, NarrowMobileNetV2  # noqa: E402


def test_the_network_of_the_paper(cost):
    assert cost(MobileNetV2Tiny, 144) == (750_280, 23_499_152)


def test_its_stages_are_those_of_width_0_35():
    tiny = {n: tuple(v.shape) for n, v in MobileNetV2Tiny().state_dict().items()}
    narrow = {n: tuple(v.shape) for n, v in NarrowMobileNetV2(0.35).state_dict().items()}
    assert tiny.keys() == narrow.keys()
    differing = {n.rpartition(".")[0] for n in tiny if tiny[n] != narrow[n]}
    assert differing == {"head.conv", "head.norm", "classifier"}
    assert tiny["head.conv.weight"] == (448, 112, 1, 1)
