import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.core.errors import ShapeError
from taskdistill.core.losses.focal_global import focal_distillation, focal_global
from taskdistill.tasks.detection.regions import box_cells, box_fractions


def slow_cells(boxes, image, size):
    """Cell by cell: whether the overlap with some box is wider and higher than a thousandth."""
    cell = image[0] / size[0], image[1] / size[1]
    found = torch.zeros(len(boxes), *size)
    for index, each in enumerate(boxes):
        for x1, y1, x2, y2 in each.tolist():
            for row in range(size[0]):
                for column in range(size[1]):
                    high = min(y2 / cell[0], row + 1) - max(y1 / cell[0], row)
                    wide = min(x2 / cell[1], column + 1) - max(x1 / cell[1], column)
                    if min(high, wide) > 1e-3:
                        found[index, row, column] = 1
    return found


whole_boxes = st.lists(
    st.tuples(*[st.integers(-10, 70)] * 2, *[st.integers(1, 50)] * 2), max_size=4
).map(lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]).view(-1, 4).float())


@given(
    boxes=st.lists(whole_boxes, min_size=1, max_size=3),
    image=st.tuples(st.integers(33, 64), st.integers(33, 64)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_against_slow_loops(boxes, image, size):
    assert torch.equal(box_cells(boxes, image, size), slow_cells(boxes, image, size))


def test_boxes_that_end_between_two_cells_cover_no_third():
    # 0.7 * 10 is 6.999... in floating point, 0.3 * 10 is more than 3 in float32.
    cells = box_cells([torch.tensor([[3.0, 0.0, 7.0, 1.0]])], (1, 10), (1, 10))
    assert cells.flatten().nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_images_have_their_own_boxes_and_some_have_none():
    boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[8.0, 8, 16, 16]])]
    cells = box_cells(boxes, (16, 16), (2, 2))
    assert cells[0].sum() == 0
    assert cells[1].tolist() == [[1, 0], [0, 0]]
    assert cells[2].tolist() == [[0, 0], [0, 1]]
    assert box_cells(boxes[:1], (16, 16), (2, 2)).tolist() == [[[0, 0], [0, 0]]]


def test_fractions_are_of_height_and_width_each():
    found = box_fractions([torch.tensor([[10.0, 20, 30, 40]])], (40, 100))
    torch.testing.assert_close(found, torch.tensor([[[0.1, 0.5, 0.3, 1.0]]]))


def test_fractions_of_images_without_boxes():
    none = torch.zeros(0, 4)
    assert box_fractions([none, none], (8, 8)).shape == (2, 0, 4)
    mixed = box_fractions([none, torch.tensor([[1.0, 2, 3, 4], [0, 0, 8, 8]])], (8, 8))
    assert mixed.shape == (2, 2, 4)
    assert mixed[0].abs().sum() == 0


def test_fractions_are_what_focal_global_takes():
    """The filled-up rows count for nothing: a batch costs the mean of its images by themselves."""
    boxes = [torch.tensor([[2.0, 2, 20, 9]]), torch.tensor([[0.0, 0, 8, 8], [9, 9, 31, 30]])]
    student, teacher = torch.randn(2, 2, 3, 6, 5).unbind()
    both = focal_global(student, teacher, box_fractions(boxes, (32, 32)))
    alone = [
        focal_global(s[None], t[None], box_fractions([b], (32, 32)))
        for s, t, b in zip(student, teacher, boxes, strict=True)
    ]
    torch.testing.assert_close(both, torch.stack(alone).mean())
    # The cells are FGD's foreground: its background part leaves exactly these out.
    cells = box_cells(boxes, (32, 32), (6, 5))
    background = focal_distillation(student, teacher, cells, foreground=0.0)
    changed = student + cells[:, None]
    assert torch.equal(focal_distillation(changed, teacher, cells, foreground=0.0), background)


def test_no_gradient_reaches_the_boxes():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]], requires_grad=True)
    assert not box_fractions([boxes], (16, 16)).requires_grad
    assert not box_cells([boxes], (16, 16), (4, 4)).requires_grad


@pytest.mark.parametrize(
    ("boxes", "image", "says"),
    [
        ([], (8, 8), "one tensor"),
        ([torch.zeros(4)], (8, 8), r"\(0, 4\)"),
        ([torch.zeros(2, 5)], (8, 8), r"\(2, 5\)"),
        ([torch.zeros(2, 4)], (8, 0), r"\(8, 0\)"),
    ],
)
def test_what_is_refused(boxes, image, says):
    with pytest.raises(ShapeError, match=says):
        box_fractions(boxes, image)


def test_a_box_smaller_than_a_cell_covers_the_one_it_lies_in():
    cells = box_cells([torch.tensor([[17.0, 5.0, 18.0, 6.0]])], (32, 32), (4, 4))
    assert cells.nonzero().tolist() == [[0, 0, math.floor(17 / 8)]]
