"""Places whose anchors come near an object: fine-grained feature imitation (Wang et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ....core.errors import ConfigError, ShapeError

__all__ = ["fine_grained"]


@torch.no_grad()
def fine_grained(
    anchors: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Tensor],
    *,
    factor: float = 0.5,
) -> list[Tensor]:
    r"""Return 1 at the places of each level whose anchors come near an object, 0 elsewhere.

    .. math:: I_{ij} = \bigvee_{g, k} \; \mathrm{IoU}(a_{ijk}, g) > \psi \max_a \mathrm{IoU}(a, g)

    with g the ground truths, k the anchors of a place, and the maximum over all anchors, so that an
    object of an unusual size or shape has its places too.

    The paper has one feature map. With a pyramid the maximum is taken over all levels, as in the
    code of Zheng et al. (LD, CVPR 2022), so that an object's places lie in the levels that
    anchors find it in. A box that no anchor overlaps has no place.

    Args:
        anchors: The anchors of each level, ``(height * width * K, 4)`` corners in pixels, in
            mmdet's order: by rows, by columns, then those of a place. All images share them.
        sizes: Height and width of each level in cells.
        boxes: The ground truth of each image ``(N_i, 4)``, corners in pixels; may be empty.
        factor: psi; 0.5 in all of the paper's experiments. At 0 every place counts that has an
            anchor with some overlap.

    Returns:
        A map ``(B, height, width)`` for each level, float32.

    Raises:
        ConfigError: If the factor is not in [0, 1): at 1 nothing would be left.
        ShapeError: If a level's anchors are not a multiple of its cells.

    Reference:
        Wang et al.: Distilling Object Detectors with Fine-grained Feature Imitation, CVPR 2019
        (arXiv 1906.03609), section 3, imitation region estimation.

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
        >>> fine_grained([anchors], [(1, 3)], [torch.tensor([[2.0, 0.0, 12.0, 8.0]])])
        [tensor([[[1., 1., 0.]]])]
    """
    if not 0 <= factor < 1:
        raise ConfigError(f"factor must be at least 0 and below 1, got {factor}.")
    counts = [height * width for height, width in sizes]
    lengths = [len(level) for level in anchors]
    if len(counts) != len(lengths) or any(
        n == 0 or a == 0 or a % n for a, n in zip(lengths, counts, strict=True)
    ):
        raise ShapeError(
            f"anchors must be (height * width * K, 4) for each level, got {lengths} anchors for "
            f"levels of size {list(sizes)}."
        )
    every = torch.cat(list(anchors))
    near = torch.stack([_near(every, truth, factor) for truth in boxes])
    return [
        level.unflatten(1, (*size, -1)).any(-1).float()
        for level, size in zip(near.split(lengths, 1), sizes, strict=True)
    ]


def _near(anchors: Tensor, boxes: Tensor, factor: float) -> Tensor:
    """Which anchors ``(A,)`` come near some box of one image."""
    if len(boxes) == 0:
        return torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    iou = box_iou(anchors, boxes.to(anchors))
    return (iou > factor * iou.amax(0)).any(1)
