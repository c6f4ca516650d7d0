"""Boxes on which student and teacher disagree: general instances (Dai et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from ....core.errors import ConfigError, ShapeError
from .boxes import box_cells

__all__ = ["general_instances", "gi_cells"]


@torch.no_grad()
def general_instances(
    student_scores: Tensor,
    teacher_scores: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    level_sizes: Sequence[int],
    *,
    iou: float = 0.3,
    topk: int = 10,
) -> list[Tensor]:
    r"""Choose the boxes of one image about which student and teacher disagree most.

    .. math:: G_p = \max_c |s_{pc} - t_{pc}|

    is the score of position p as a general instance; no ground truth is asked. Its box is the
    teacher's if the teacher's probability of that class is at least the student's, else the
    student's. In each level, non-maximum suppression by G keeps the first ``topk`` boxes.

    This is how the code of Zheng et al. (LD, CVPR 2022) has it as one of its baselines, except for
    one thing: there the boxes of a whole batch suppress each other and share one ``topk``, although
    they lie in different images; here each image is by itself.

    Args:
        student_scores: ``(A, K)`` probabilities of the classes, levels one after another. Put a
            position last by giving it the same scores on both sides.
        teacher_scores: ``(A, K)``.
        student_boxes: ``(A, 4)`` decoded corners in pixels.
        teacher_boxes: ``(A, 4)``.
        level_sizes: Number of positions of each level.
        iou: Overlap above which the lower of two boxes is dropped; 0.3 in the paper and in LD.
        topk: Boxes a level; 10 in LD.

    Returns:
        The chosen boxes of each level ``(n, 4)``, n at most ``topk``, the greatest disagreement
        first. Without gradient.

    Raises:
        ShapeError: If scores and boxes do not go together or the levels do not make up A.
        ConfigError: If ``topk`` is below 1, or ``iou`` outside of [0, 1].

    Reference:
        Dai et al.: General Instance Distillation for Object Detection, CVPR 2021
        (arXiv 2103.02340), section 3.1.

    Example:
        >>> student = torch.tensor([[0.9], [0.1], [0.2]])
        >>> teacher = torch.tensor([[0.1], [0.6], [0.3]])
        >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 12, 12]])
        >>> general_instances(student, teacher, boxes, boxes + 1.0, [3])
        [tensor([[ 0.,  0.,  4.,  4.],
                [ 9.,  9., 13., 13.]])]
    """
    positions = sum(level_sizes)
    if (
        student_scores.ndim != 2
        or len(student_scores) != positions
        or teacher_scores.shape != student_scores.shape
        or not student_boxes.shape == teacher_boxes.shape == (positions, 4)
    ):
        raise ShapeError(
            "scores must be (A, K) and boxes (A, 4) on both sides, with A the sum of level_sizes: "
            f"got {tuple(student_scores.shape)} and {tuple(teacher_scores.shape)}, "
            f"{tuple(student_boxes.shape)} and {tuple(teacher_boxes.shape)}, "
            f"levels {list(level_sizes)}."
        )
    if topk < 1 or not 0 <= iou <= 1:
        raise ConfigError(f"topk must be at least 1 and iou in [0, 1], got {topk} and {iou}.")
    # float32: boxes in half precision are off by whole pixels, and the CPU's nms refuses them.
    gap = teacher_scores.float() - student_scores.float()
    disagreement, where = gap.abs().max(1)
    theirs = gap.gather(1, where[:, None]) >= 0
    boxes = torch.where(theirs, teacher_boxes.float(), student_boxes.float())
    levels = zip(boxes.split(list(level_sizes)), disagreement.split(list(level_sizes)), strict=True)
    return [_first_kept(level, scores, iou, topk) for level, scores in levels]


def _first_kept(boxes: Tensor, scores: Tensor, iou: float, topk: int) -> Tensor:
    """The first boxes that non-maximum suppression keeps.

    Whether a box is kept depends only on those before it. So the front of the ranking is tried
    first, and more of it as long as too few are kept. The boxes are the same; at ten thousands of
    positions the whole ranking would take ten times as long.
    """
    ranking = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[ranking], scores[ranking]
    front = 16 * topk
    while True:
        kept = nms(boxes[:front], scores[:front], iou)[:topk]
        if len(kept) == topk or front >= len(boxes):
            return boxes[kept]
        front *= 4


def gi_cells(
    chosen: Sequence[Sequence[Tensor]],
    image: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Return 1 at the cells of each level that its general instances cover, 0 elsewhere.

    The paper pools the features of each box to one size (RoIAlign) and compares those; as a
    region, every cell in a box counts the same, so that larger boxes count more. LD's code takes
    the one cell of each chosen position.

    Args:
        chosen: For each image the result of :func:`general_instances`, one tensor a level.
        image: Height and width of the padded image in pixels.
        sizes: Height and width of each level in cells.

    Returns:
        A map ``(B, height, width)`` for each level, float32.

    Raises:
        ShapeError: If an image has not as many levels as there are sizes.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> gi_cells([[boxes, boxes[:0]]], (16, 16), [(2, 2), (1, 1)])
        [tensor([[[1., 0.],
                 [0., 0.]]]), tensor([[[0.]]])]
    """
    levels = [len(each) for each in chosen]
    if any(count != len(sizes) for count in levels):
        raise ShapeError(
            f"every image must have boxes for each of {len(sizes)} levels, got {levels}."
        )
    return [
        box_cells([each[level] for each in chosen], image, size) for level, size in enumerate(sizes)
    ]
