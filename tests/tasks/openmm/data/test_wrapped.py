from __future__ import annotations

import pytest

pytest.importorskip("mmengine")

from mmengine.config import ConfigDict

from taskdistill.tasks.openmm.data.wrapped import inner_datasets


def test_looks_through_wrappers_in_order():
    first, second, third = (ConfigDict(type=name) for name in "ABC")
    config = ConfigDict(
        type="Seeded",
        dataset=dict(type="Concat", datasets=[first, dict(type="Repeat", dataset=second), third]),
    )
    assert [each.type for each in inner_datasets(config)] == ["A", "B", "C"]


@pytest.mark.parametrize("nothing", [None, [], {}, dict(split="val"), "path", 3])
def test_what_is_no_data_set_gives_nothing(nothing):
    assert list(inner_datasets(nothing)) == []
