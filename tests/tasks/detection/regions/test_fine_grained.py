import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models.task_modules import AnchorGenerator

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.tasks.detection.regions import fine_grained


def slow_iou(a, b):
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / (areas - wide * high)


def slow_maps(anchors, sizes, boxes, factor):
    """Image by image, box by box, place by place, as the paper tells it."""
    maps = [torch.zeros(len(boxes), *size) for size in sizes]
    levels = [level.tolist() for level in anchors]
    for image, truths in enumerate(boxes):
        for truth in truths.tolist():
            best = max(slow_iou(a, truth) for level in levels for a in level)
            for level, (height, width), found in zip(levels, sizes, maps, strict=True):
                each = len(level) // (height * width)
                for index, anchor in enumerate(level):
                    if slow_iou(anchor, truth) > factor * best:
                        place = index // each
                        found[image, place // width, place % width] = 1
    return maps


def grid(sizes, ratios=(0.5, 1.0, 2.0)):
    """Anchors as mmdet lays them."""
    strides = [8 * 2**level for level in range(len(sizes))]
    generator = AnchorGenerator(strides, list(ratios), scales=[2])
    return generator.grid_priors(sizes, dtype=torch.float64, device="cpu")


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    ratios=st.sampled_from([(1.0,), (0.5, 2.0), (0.5, 1.0, 2.0)]),
    factor=st.sampled_from([0.0, 0.5, 0.83]),
)
def test_against_slow_loops(seed, sizes, counts, ratios, factor):
    torch.manual_seed(seed)
    anchors, boxes = grid(sizes, ratios), []
    for count in counts:
        corners = torch.rand(count, 2, dtype=torch.float64) * 60 - 10
        boxes.append(torch.cat([corners, corners + 1 + torch.rand(count, 2) * 40], 1))
    found = fine_grained(anchors, sizes, boxes, factor=factor)
    for ours, expected in zip(found, slow_maps(anchors, sizes, boxes, factor), strict=True):
        assert torch.equal(ours, expected)


SIZES = [(8, 8), (4, 4), (2, 2)]


def box(centre, side):
    x, y = centre
    return torch.tensor([[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])


def test_objects_lie_in_the_level_of_their_size():
    """Anchors of 16, 32 and 64 pixels: one level a box, the others far below half of the best."""
    anchors = grid(SIZES, [1.0])
    for level, side in enumerate((16.0, 32.0, 64.0)):
        centre = anchors[level][0].view(2, 2).mean(0).tolist()
        found = [m.sum().item() for m in fine_grained(anchors, SIZES, [box(centre, side)])]
        assert max(found) == found[level]
        assert found[level] > 0
    assert fine_grained(anchors, SIZES, [box((32.0, 32.0), 16.0)])[2].sum() == 0


def test_a_place_counts_if_one_of_its_anchors_does():
    tall = torch.tensor([[26.0, 16.0, 38.0, 48.0]])
    several, square = (
        fine_grained(grid(SIZES, ratios), SIZES, [tall], factor=0.9)[0].sum()
        for ratios in ([0.5, 1.0, 2.0], [1.0])
    )
    assert several > 0
    assert square != several


def test_boxes_join_and_images_do_not():
    anchors = grid(SIZES)
    first, second = box((16.0, 16.0), 20.0), box((50.0, 40.0), 30.0)
    both = fine_grained(anchors, SIZES, [torch.cat([first, second]), first, second])
    for found in both:
        assert torch.equal(found[0], torch.maximum(found[1], found[2]))
    assert any(not torch.equal(found[1], found[2]) for found in both)


def test_a_larger_factor_leaves_fewer_places():
    anchors, truth = grid(SIZES), [box((30.0, 30.0), 24.0)]
    kept = [
        sum(int(m.sum()) for m in fine_grained(anchors, SIZES, truth, factor=f))
        for f in (0.0, 0.25, 0.5, 0.75, 0.99)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1] > 0  # the best anchor is always left


@pytest.mark.parametrize(
    "truth",
    [
        torch.zeros(0, 4),
        torch.tensor([[500.0, 500.0, 520.0, 520.0]]),  # where there are no anchors
        torch.tensor([[20.0, 20.0, 20.0, 20.0]]),  # without area
    ],
)
def test_nothing_to_find(truth):
    for found, size in zip(fine_grained(grid(SIZES), SIZES, [truth]), SIZES, strict=True):
        assert torch.equal(found, torch.zeros(1, *size))


def test_what_is_refused():
    anchors = grid(SIZES)
    with pytest.raises(ConfigError, match="factor"):
        fine_grained(anchors, SIZES, [torch.zeros(0, 4)], factor=1.0)
    for sizes in (SIZES[:2], [(8, 8), (4, 4), (0, 2)], [(8, 8), (4, 4), (3, 3)]):
        with pytest.raises(ShapeError, match="anchors must be"):
            fine_grained(anchors, sizes, [torch.zeros(0, 4)])
