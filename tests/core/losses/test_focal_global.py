from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.core.errors import ConfigError, ShapeError
from taskdistill.core.losses import FocalGlobal, box_weights, focal_global
from taskdistill.core.losses.focal_global import GlobalContext, response_attention

ONLY = {"foreground": 0.0, "background": 0.0, "attention": 0.0, "relation": 0.0}


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 6, 6, 8, generator=generator, dtype=torch.float64)
    return student, teacher


BOXES = torch.tensor(
    [
        [[0.1, 0.1, 0.6, 0.9], [0.3, 0.3, 0.5, 0.5]],
        [[0.0, 0.0, 1.0, 0.4], [0.0, 0.0, 0.0, 0.0]],
    ],
    dtype=torch.float64,
)


def slow_box_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cell by cell: the least number of cells of any box that overlaps it."""
    found = torch.zeros(len(boxes), height, width, dtype=torch.float64)
    for image, image_boxes in enumerate(boxes.tolist()):
        for x1, y1, x2, y2 in image_boxes:
            if x2 <= x1 or y2 <= y1:
                continue
            cells = [
                (y, x)
                for y in range(height)
                for x in range(width)
                if x1 * width < x + 1 and x2 * width > x and y1 * height < y + 1 and y2 * height > y
            ]
            for y, x in cells:
                found[image, y, x] = max(found[image, y, x].item(), 1 / len(cells))
    return found


def slow_focal(
    student: Tensor, teacher: Tensor, boxes: Tensor, temperature: float, alpha: float, beta: float
) -> float:
    """The paper's double sum, number by number."""
    b, c, h, w = student.shape
    inside, total = slow_box_weights(boxes, h, w), 0.0
    for n in range(b):
        at = [[teacher[n, :, y, x].abs().sum().item() / c for x in range(w)] for y in range(h)]
        of = [teacher[n, k].abs().sum().item() / (h * w) for k in range(c)]
        places = [[math.exp(a / temperature) for a in row] for row in at]
        channels = [math.exp(a / temperature) for a in of]
        sum_places, sum_channels = sum(map(sum, places)), sum(channels)
        outside = (inside[n] == 0).sum().item()
        for k in range(c):
            for y in range(h):
                for x in range(w):
                    s = inside[n, y, x].item()
                    scale = alpha * s if s else beta / outside
                    a = h * w * places[y][x] / sum_places * c * channels[k] / sum_channels
                    total += scale * a * (teacher[n, k, y, x] - student[n, k, y, x]).item() ** 2
    return total / b


def test_the_focal_part_is_the_paper_s_sum(maps: tuple[Tensor, Tensor]):
    options = ONLY | {"foreground": 0.7, "background": 0.2, "temperature": 0.4}
    value = focal_global(*maps, BOXES, **options)
    assert value.item() == pytest.approx(slow_focal(*maps, BOXES, 0.4, 0.7, 0.2), rel=1e-10)


def test_the_attention_part(maps: tuple[Tensor, Tensor]):
    value = focal_global(*maps, BOXES, **(ONLY | {"attention": 2.0}))
    expected = 0.0
    for s, t in zip(*(x.abs() for x in maps), strict=True):
        places = [48 * F.softmax(x.mean(0).flatten() / 0.5, 0) for x in (s, t)]
        channels = [6 * F.softmax(x.mean((1, 2)) / 0.5, 0) for x in (s, t)]
        expected += F.l1_loss(*places).item() + F.l1_loss(*channels).item()
    assert value.item() == pytest.approx(2.0 * expected / 2, rel=1e-10)


def test_the_global_part(maps: tuple[Tensor, Tensor]):
    torch.manual_seed(0)
    loss = FocalGlobal(6, **(ONLY | {"relation": 0.5})).double()
    start = loss(*maps, BOXES).item()
    # Before training the blocks add nothing: the mean over the cells of the plain difference.
    assert start == pytest.approx(0.5 * 6 * F.mse_loss(*maps).item(), rel=1e-12)
    for block in (loss.student_context, loss.teacher_context):
        assert block is not None
        nn.init.normal_(block.transform[-1].weight)  # type: ignore[arg-type]
    related = []
    for feature, block in zip(maps, (loss.student_context, loss.teacher_context), strict=True):
        assert block is not None
        key = torch.einsum("bchw,c->bhw", feature, block.attend.weight[0, :, 0, 0])
        attention = F.softmax(key.flatten(1), 1).view_as(key)
        gathered = torch.einsum("bchw,bhw->bc", feature, attention)
        hidden = F.linear(gathered, block.transform[0].weight, block.transform[0].bias)  # type: ignore
        added = F.relu(F.layer_norm(hidden, hidden.shape[1:])) @ block.transform[-1].weight.T  # type: ignore
        related.append(feature + added[:, :, None, None])
    expected = 0.5 * (related[0] - related[1]).square().sum() / (2 * 48)
    torch.testing.assert_close(loss(*maps, BOXES), expected)


def test_both_blocks_are_trained(maps: tuple[Tensor, Tensor]):
    loss = FocalGlobal(6).double()
    loss(*maps, BOXES).backward()
    for block in (loss.student_context, loss.teacher_context):
        assert block is not None and block.transform[-1].weight.grad.abs().sum() > 0  # type: ignore
    assert not list(FocalGlobal(6, relation=0.0).parameters())


def test_the_module_is_the_function(maps: tuple[Tensor, Tensor]):
    options = {"temperature": 0.8, "foreground": 0.1, "background": 0.3, "attention": 0.2}
    loss = FocalGlobal(6, relation=0.7, **options).double()
    assert loss.student_context is not None and loss.teacher_context is not None
    blocks = loss.student_context, loss.teacher_context
    weight = torch.tensor([1.0, 3.0])
    expected = focal_global(
        *maps, BOXES, relation=0.7, blocks=blocks, weight=weight, total=2.0, **options
    )
    torch.testing.assert_close(loss(*maps, BOXES, weight, 2.0), expected)


def test_parts_add_up(maps: tuple[Tensor, Tensor]):
    factors = {"foreground": 0.3, "background": 0.2, "attention": 0.5}
    parts = [focal_global(*maps, BOXES, **(ONLY | {k: v})) for k, v in factors.items()]
    torch.testing.assert_close(focal_global(*maps, BOXES, **factors), torch.stack(parts).sum())


def test_without_any_part_it_is_zero_with_a_graph(maps: tuple[Tensor, Tensor]):
    student = maps[0].clone().requires_grad_()
    value = focal_global(student, maps[1], BOXES, **ONLY)
    value.backward()
    assert value.item() == 0 and student.grad is not None and student.grad.abs().max() == 0


@pytest.mark.parametrize("part", ["foreground", "background", "attention"])
def test_a_finer_map_of_the_same_image_has_the_same_value(maps: tuple[Tensor, Tensor], part: str):
    finer = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in maps]
    boxes = torch.tensor([[[0.25, 0.5, 0.75, 1.0]]]).expand(2, 1, 4)
    options = ONLY | {part: 1.0}
    torch.testing.assert_close(
        focal_global(*finer, boxes, **options), focal_global(*maps, boxes, **options)
    )


def test_a_small_object_counts_as_much_as_a_large_one():
    student, teacher = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    values = [
        focal_global(
            student, teacher, torch.tensor([[[0.0, 0.0, end, end]]]), **(ONLY | {"foreground": 1.0})
        )
        for end in (0.125, 0.5, 1.0)
    ]
    assert [value.item() for value in values] == pytest.approx([1.0, 1.0, 1.0])


def test_no_boxes_is_all_background(maps: tuple[Tensor, Tensor]):
    expected = focal_global(*maps)
    for boxes in (torch.zeros(2, 0, 4), torch.zeros(2, 3, 4)):
        torch.testing.assert_close(focal_global(*maps, boxes), expected)
    everywhere = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 1, 4)
    assert focal_global(*maps, everywhere, **(ONLY | {"background": 1.0})).item() == 0.0


@settings(deadline=None)
@given(
    corners=st.lists(
        st.tuples(*[st.integers(-3, 30)] * 4).map(lambda x: [(v + 0.3) / 24 for v in x]),
        min_size=1,
        max_size=4,
    ),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_box_weights_cell_by_cell(corners: list[list[float]], height: int, width: int):
    boxes = torch.tensor([corners], dtype=torch.float64)
    found = box_weights(boxes, height, width)
    torch.testing.assert_close(found, slow_box_weights(boxes, height, width))


def test_a_box_between_cells_takes_no_further_row():
    third = torch.tensor([[[1 / 3, 0.0, 2 / 3, 1.0]]])
    assert box_weights(third, 3, 3)[0].count_nonzero(0).tolist() == [0, 3, 0]


def test_attention_is_one_on_average(maps: tuple[Tensor, Tensor]):
    places, channels = response_attention(maps[0], 0.1)
    torch.testing.assert_close(places.mean((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(channels.mean(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("student", "boxes", "message"),
    [
        ((2, 3, 4), None, r"maps \(B, C, H, W\).*\(2, 3, 4\)"),
        ((2, 3, 0, 4), None, "with a channel and a cell"),
        ((2, 3, 4, 4), (1, 5, 4), r"\(2, 3, 4, 4\), got \(1, 5, 4\)"),
        ((2, 3, 4, 4), (5, 4), "Fill the list"),
    ],
)
def test_what_does_not_fit(student: tuple[int, ...], boxes: tuple[int, ...] | None, message: str):
    feature = torch.zeros(student)
    with pytest.raises(ShapeError, match=message):
        focal_global(feature, feature, None if boxes is None else torch.zeros(boxes))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": 0.0}, "temperature"), ({"attention": -1.0}, "negative")],
)
def test_wrong_options(options: dict[str, float], message: str):
    feature = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ConfigError, match=message):
        focal_global(feature, feature, **options)
    with pytest.raises(ConfigError, match=message):
        FocalGlobal(2, **options)


def test_a_block_needs_room():
    with pytest.raises(ConfigError, match="at least 1, got 1 channels"):
        GlobalContext(1)
