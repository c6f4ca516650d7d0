from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.tasks.detection.regions import box_cells, general_instances, gi_cells


def random_boxes(count, size=64.0):
    corners = torch.rand(count, 2) * size
    return torch.cat([corners, corners + 4 + torch.rand(count, 2) * size / 3], 1)


def slow_choice(student, teacher, ours, theirs, sizes, iou, topk):
    """Position by position, then box after box by hand."""
    chosen, start = [], 0
    for size in sizes:
        ranking = []
        for p in range(start, start + size):
            gaps = [float(t) - float(s) for s, t in zip(student[p], teacher[p], strict=True)]
            widest = max(gaps, key=abs)
            ranking.append((abs(widest), theirs[p] if widest >= 0 else ours[p]))
        start += size
        kept = []
        for _, box in sorted(ranking, key=lambda each: -each[0]):
            if len(kept) < topk and all(box_iou(box[None], k[None]) <= iou for k in kept):
                kept.append(box)
        chosen.append(torch.stack(kept) if kept else torch.zeros(0, 4))
    return chosen


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    classes=st.integers(1, 4),
    topk=st.integers(1, 12),
    iou=st.sampled_from([0.0, 0.3, 0.7]),
)
def test_against_slow_loops(seed, sizes, classes, topk, iou):
    torch.manual_seed(seed)
    count = sum(sizes)
    student, teacher = torch.rand(2, count, classes).unbind()
    ours, theirs = random_boxes(count), random_boxes(count)
    found = general_instances(student, teacher, ours, theirs, sizes, iou=iou, topk=topk)
    slow = slow_choice(student, teacher, ours, theirs, sizes, iou, topk)
    for boxes, expected in zip(found, slow, strict=True):
        assert torch.equal(boxes, expected)


def test_the_search_goes_on_where_the_front_of_the_ranking_is_one_heap():
    """A thousand boxes at one spot come first, and the few others after them all the same."""
    heap = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(1000, 1)
    others = torch.tensor([[20.0, 0, 30, 10], [40, 0, 50, 10]])
    boxes = torch.cat([heap, others])
    teacher = torch.linspace(1.0, 0.1, len(boxes))[:, None]
    found = general_instances(0 * teacher, teacher, boxes, boxes, [len(boxes)], topk=3)
    assert torch.equal(found[0], boxes[[0, 1000, 1001]])
    many = general_instances(0 * teacher, teacher, boxes, boxes, [len(boxes)], topk=10)
    assert torch.equal(many[0], found[0])


def test_whose_box_it_is():
    """The side that scores higher in the class in which they differ most, not the one with the
    higher top score: in the last row the student has that, and the teacher the class."""
    student = torch.tensor([[0.9, 0.0], [0.2, 0.1], [0.5, 0.5], [0.6, 0.0]])
    teacher = torch.tensor([[0.1, 0.0], [0.2, 0.7], [0.5, 0.5], [0.5, 0.55]])
    ours = torch.arange(4.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    theirs = ours + 1
    found = general_instances(student, teacher, ours, theirs, [4])[0]
    assert torch.equal(found, torch.stack([ours[0], theirs[1], theirs[3], theirs[2]]))


def test_swapping_the_sides_chooses_the_same():
    torch.manual_seed(1)
    student, teacher = torch.rand(2, 50, 3).unbind()
    ours, theirs = random_boxes(50), random_boxes(50)
    one = general_instances(student, teacher, ours, theirs, [30, 20])
    other = general_instances(teacher, student, theirs, ours, [30, 20])
    for boxes, swapped in zip(one, other, strict=True):
        assert torch.equal(boxes, swapped)


def test_levels_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    teacher = torch.tensor([[0.9], [0.8]])
    apart = general_instances(0 * teacher, teacher, boxes, boxes, [1, 1])
    assert [len(level) for level in apart] == [1, 1]
    assert len(general_instances(0 * teacher, teacher, boxes, boxes, [2])[0]) == 1


def test_no_gradient_and_full_precision():
    student = torch.rand(6, 2, dtype=torch.float16, requires_grad=True)
    boxes = random_boxes(6).half().requires_grad_()
    found = general_instances(student, student.detach(), boxes, boxes, [6])[0]
    assert not found.requires_grad
    assert found.dtype == torch.float32


def test_levels_without_positions():
    none = torch.zeros(0, 4)
    found = general_instances(torch.zeros(0, 3), torch.zeros(0, 3), none, none, [0, 0])
    assert [tuple(level.shape) for level in found] == [(0, 4), (0, 4)]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (dict(teacher_scores=torch.zeros(5, 3)), ShapeError),
        (dict(student_boxes=torch.zeros(5, 2)), ShapeError),
        (dict(teacher_boxes=torch.zeros(6, 4)), ShapeError),
        (dict(level_sizes=[3, 3]), ShapeError),
        (dict(student_scores=torch.zeros(5), teacher_scores=torch.zeros(5)), ShapeError),
        (dict(topk=0), ConfigError),
        (dict(iou=1.5), ConfigError),
    ],
)
def test_what_is_refused(changes, error):
    right: dict[str, Any] = dict(
        student_scores=torch.zeros(5, 2),
        teacher_scores=torch.zeros(5, 2),
        student_boxes=torch.zeros(5, 4),
        teacher_boxes=torch.zeros(5, 4),
        level_sizes=[3, 2],
    )
    general_instances(**right)
    with pytest.raises(error, match="level" if error is ShapeError else "topk"):
        general_instances(**{**right, **changes})


def test_cells_of_each_level_and_image():
    torch.manual_seed(2)
    image, sizes = (48, 64), [(6, 8), (3, 4)]
    chosen = [[random_boxes(3), random_boxes(2)], [random_boxes(0), random_boxes(1)]]
    found = gi_cells(chosen, image, sizes)
    assert [tuple(m.shape) for m in found] == [(2, 6, 8), (2, 3, 4)]
    for level, size in enumerate(sizes):
        for index in range(2):
            alone = box_cells([chosen[index][level]], image, size)
            assert torch.equal(found[level][index], alone[0])
    assert found[0][0].sum() > 0
    assert found[0][1].sum() == 0


def test_boxes_beyond_the_image_are_cut():
    """Decoded boxes may lie anywhere, and may be turned inside out."""
    boxes = torch.tensor([[-30.0, -30, 8, 8], [100, 100, 120, 120], [20, 20, 10, 10]])
    (found,) = gi_cells([[boxes]], (32, 32), [(4, 4)])
    assert found[0].nonzero().tolist() == [[0, 0]]


def test_cells_of_missing_levels_are_refused():
    with pytest.raises(ShapeError, match="2 levels"):
        gi_cells([[torch.zeros(0, 4)]], (32, 32), [(4, 4), (2, 2)])
