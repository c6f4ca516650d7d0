"""The cells of a feature map that boxes cover."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ....core.errors import ShapeError
from ....core.losses.focal_global import box_weights

__all__ = ["box_cells", "box_fractions"]


@torch.no_grad()
def box_fractions(boxes: Sequence[Tensor], image: tuple[int, int]) -> Tensor:
    """Bring the boxes of a batch into one tensor that serves every level of a pyramid.

    Args:
        boxes: The boxes of each image ``(N_i, 4)``: corners x1, y1, x2, y2 in pixels of the
            padded image. Their number may be another in each image, and 0.
        image: Height and width of the padded image in pixels.

    Returns:
        ``(B, N, 4)``, N the largest ``N_i``: corners in fractions of the padded image, filled up
        with zeros. That is the ``target`` of
        :class:`~taskdistill.core.losses.focal_global.FocalGlobal`.

    Raises:
        ShapeError: If there is no image, if boxes are not ``(N_i, 4)``, or if a side of the image
            is not above 0.

    Example:
        >>> box_fractions([torch.tensor([[0.0, 8.0, 16.0, 16.0]]), torch.zeros(0, 4)], (16, 32))
        tensor([[[0.0000, 0.5000, 0.5000, 1.0000]],
        <BLANKLINE>
                [[0.0000, 0.0000, 0.0000, 0.0000]]])
    """
    shapes = [tuple(each.shape) for each in boxes]
    if not shapes or any(len(shape) != 2 or shape[1] != 4 for shape in shapes):
        raise ShapeError(
            f"boxes must be one tensor (N, 4) an image, got shapes {shapes}. An image without "
            "objects has boxes of shape (0, 4)."
        )
    height, width = image
    if min(height, width) <= 0:
        raise ShapeError(f"image must be height and width in pixels, both above 0, got {image}.")
    padded = pad_sequence(list(boxes), batch_first=True)
    return padded / padded.new_tensor([width, height, width, height])


@torch.no_grad()
def box_cells(boxes: Sequence[Tensor], image: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return 1 at the cells of a feature map that some box touches, 0 elsewhere.

    The map is laid over the padded image, so that a cell is ``image / size`` pixels large. The
    rule is that of :func:`~taskdistill.core.losses.focal_global.box_weights`: a box covers every
    cell that it touches by more than a thousandth, and one without area covers none.

    Args:
        boxes: The boxes of each image ``(N_i, 4)``, corners in pixels of the padded image; what
            lies outside the image covers nothing.
        image: Height and width of the padded image in pixels.
        size: Height and width of the feature map in cells.

    Returns:
        ``(B, height, width)``, float32.

    Raises:
        ShapeError: See :func:`box_fractions`.

    Example:
        >>> box_cells([torch.tensor([[0.0, 0.0, 9.0, 8.0]])], (16, 24), (2, 3))
        tensor([[[1., 1., 0.],
                 [0., 0., 0.]]])
    """
    return (box_weights(box_fractions(boxes, image), *size) > 0).float()
