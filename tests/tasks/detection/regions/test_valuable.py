import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou, distance_box_iou

from taskdistill.tasks.detection.regions import box_distance_iou, valuable_region


def random_boxes(count, size=64.0):
    corners = torch.rand(count, 2) * size
    return torch.cat([corners, corners + 4 + torch.rand(count, 2) * size / 2], 1)


def test_a_value_by_hand():
    """4x4 boxes moved by (2, 0): overlap 8 of 24, centres 2 apart, around both 6x4."""
    iou, diou = box_distance_iou(
        torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[2.0, 0.0, 6.0, 4.0]])
    )
    assert iou.item() == pytest.approx(1 / 3)
    assert diou.item() == pytest.approx(1 / 3 - 4 / 52)


def test_against_torchvision():
    anchors, boxes = random_boxes(40).double(), random_boxes(7).double()
    iou, diou = box_distance_iou(anchors, boxes)
    torch.testing.assert_close(iou, box_iou(anchors, boxes))
    torch.testing.assert_close(diou, distance_box_iou(anchors, boxes), atol=1e-6, rtol=1e-6)


def test_boxes_without_area_give_no_nan():
    flat = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 4.0, 4.0]])
    for value in box_distance_iou(flat, flat):
        assert torch.isfinite(value).all()


def slow_iou(a, b):
    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return w * h / (area(a) + area(b) - w * h)


def slow_diou(a, b):
    d = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    c = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    return slow_iou(a, b) - d / c


def slow_region(anchors, sizes, boxes, topk, gamma):
    anchors, boxes = anchors.tolist(), boxes.tolist()
    values = [0.0] * len(anchors)
    for box in boxes:
        chosen, start = [], 0
        for size in sizes:
            level = range(start, start + size)
            start += size

            def distance(i, box=box):
                a = anchors[i]
                return math.hypot(
                    (a[0] + a[2] - box[0] - box[2]) / 2, (a[1] + a[3] - box[1] - box[3]) / 2
                )

            chosen += sorted(level, key=distance)[:topk]
        ious = [slow_iou(anchors[i], box) for i in chosen]
        threshold = statistics.mean(ious) + (statistics.stdev(ious) if len(ious) > 1 else 0.0)
        for i, anchor in enumerate(anchors):
            if gamma * threshold <= slow_diou(anchor, box) < threshold:
                values[i] = max(values[i], slow_iou(anchor, box))
    return torch.tensor(values, dtype=torch.float64)


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    count=st.integers(1, 5),
    topk=st.integers(1, 12),
    gamma=st.sampled_from([0.0, 0.25, 0.6]),
)
def test_against_slow_loops(seed, sizes, count, topk, gamma):
    torch.manual_seed(seed)
    anchors, boxes = random_boxes(sum(sizes)).double(), random_boxes(count).double()
    found = valuable_region(anchors, sizes, boxes, topk=topk, gamma=gamma)
    expected = slow_region(anchors, sizes, boxes, topk, gamma)
    torch.testing.assert_close(found, expected)


def test_the_region_surrounds_a_box_and_leaves_the_rest():
    xs = torch.arange(0.0, 64, 4)
    centres = torch.cartesian_prod(xs, xs)
    anchors = torch.cat([centres - 8, centres + 8], 1)
    box = torch.tensor([[24.0, 24.0, 40.0, 40.0]])
    value = valuable_region(anchors, [len(anchors)], box)
    near = (centres - 32).norm(dim=1)
    assert value[near == 0].item() == 0  # as good as a positive: main region, not this one
    assert (value > 0).any() and value[near > 16].max() == 0


def test_nothing_to_find():
    anchors = random_boxes(5)
    assert valuable_region(anchors, [5], torch.zeros(0, 4)).tolist() == [0.0] * 5
    assert valuable_region(torch.zeros(0, 4), [0], random_boxes(2)).shape == (0,)
