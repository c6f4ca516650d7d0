"""Similarity-preserving distillation: which samples of a batch are alike (Tung & Mori 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ._reduction import compute_dtype, full_precision


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared difference of the similarities between the samples of a batch.

    .. math:: L = \frac{1}{B} \sum_{i,j} (G^s_{ij} - G^t_{ij})^2, \qquad
        G_{i \cdot} = \frac{A_i A^\top}{\lVert A_i A^\top \rVert_2}

    where row :math:`A_i` is the flattened feature of sample i: summed over the samples that i is
    compared with, averaged over i. A sample of zeros has a row of zeros and gets no gradient from
    it.

    The paper and common codes divide by B squared: this value over B. But the rows have length 1
    each, however many entries they have, so that their value falls as the batch grows; this one
    stays where a batch is repeated, and a weight of theirs is to be divided by the batch size it
    was found at.

    Args:
        student: (B, ...), a feature a sample.
        teacher: (B, ...); everything but the batch may differ.

    Returns:
        A scalar >= 0, without a unit; 0 for a batch of one. It relates samples, so it takes no
        weight.

    Raises:
        ShapeError: If the batches differ in size or a side has no axis besides the batch.

    Reference:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019
        (arXiv 1907.09682).

    Lecture:
        Relational information

    When it helps:
        The batch is large and the teacher's features differ from the student's in width and
        resolution: no adapter is needed, because only samples are compared.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # both samples alike
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # at right angles
        >>> round(similarity_preserving(student, teacher).item(), 4)
        0.5858
        >>> similarity_preserving(5 * teacher, teacher).item()
        0.0
    """
    if min(student.ndim, teacher.ndim) < 2 or len(student) != len(teacher):
        raise ShapeError(
            "student and teacher must be (B, ...) with one feature for each sample of the same "
            f"batch, got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}. Feed "
            "both networks the same batch."
        )
    dtype = compute_dtype(student, teacher)
    with full_precision(student):
        difference = _similarities(student.to(dtype)) - _similarities(teacher.detach().to(dtype))
        return difference.square().sum() / max(len(student), 1)


def _similarities(feature: Tensor) -> Tensor:
    flat = feature.flatten(1)
    gram = flat @ flat.mT
    # Squares of products are fourth powers: bring every row near 1 before, which cancels.
    size = gram.detach().abs().sum(1, keepdim=True)
    live = size > 0
    gram = gram * torch.where(live, 1 / size, 0.0)
    squares = gram.square().sum(1, keepdim=True)
    return gram * torch.where(live, squares, 1.0).rsqrt()


class SimilarityPreserving(nn.Module):
    """Module form of :func:`similarity_preserving`.

    Example:
        >>> import torch
        >>> SimilarityPreserving()(torch.eye(3), torch.eye(3)).item()
        0.0
    """

    any_channels: ClassVar[bool] = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return similarity_preserving(student, teacher)
