"""Weights against weights through linear maps: what the lecture's slide says."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DistillError, ShapeError
from ._reduction import compute_dtype, full_precision

Shape = tuple[int, ...]


def weight_matching(
    student: Tensor,
    teacher: Tensor,
    *,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    r"""Half the mean squared difference of two weights, the student's mapped linearly.

    .. math:: L = \frac{1}{2} \, \mathrm{mean} \, (W_t - A \, W_s \, B)^2

    A maps output channels, B input channels; of a convolution every place of the kernel is mapped
    alike. This is the lecture's "L2 loss between teacher weights and student weights (linear
    transformation)" taken at its word. It is not FitNets, whose :func:`hint` compares activations.

    Mind what it cannot do. With trained maps the loss asks only for the rank of a linear layer's
    weight: wherever W_s has full rank, some A and B bring the loss as low as any other W_s could,
    so next to nothing is left to teach; a convolution shares the maps among the places of its
    kernel, which leaves a little more. Fix A and B (a selection of channels, say) for a stronger
    pull.

    Args:
        student: W_s: (out_s, in_s) of a linear layer, (out_s, in_s, kh, kw) of a convolution.
        teacher: W_t: (out_t, in_t, ...), the kernel of the same size.
        left: A: (out_t, out_s). None: the identity, for equal numbers of outputs. Gets a
            gradient.
        right: B: (in_s, in_t). None: the identity, for equal numbers of inputs. Gets a gradient.

    Returns:
        A scalar >= 0, in squared units of the weights.

    Raises:
        ShapeError: If the weights have no two axes, the kernels differ in size, or a map does not
            go with the weights.

    Reference:
        MIT 6.S965 TinyML and Efficient Deep Learning, lecture 10 (knowledge distillation), under
        "matching intermediate weights". No paper is known to train with it in this form.

    Lecture:
        Intermediate weights

    When it helps:
        As a start for a student from the teacher's own weights, with fixed maps. As a loss with
        trained maps hardly ever: prefer :func:`hint`.

    Example:
        >>> import torch
        >>> student, teacher = torch.eye(2), torch.ones(3, 2)
        >>> weight_matching(student, teacher, left=torch.ones(3, 2)).item()
        0.0
        >>> weight_matching(student, torch.zeros(2, 2)).item()
        0.25
    """
    with full_precision(student):
        dtype = compute_dtype(student, teacher)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        _check(tuple(student.shape), tuple(teacher.shape))
        kernel = student.shape[2:]
        mapped = student.flatten(2) if kernel else student[:, :, None]
        if left is not None:
            _check_map("left", left, (len(teacher), len(student)))
            mapped = torch.einsum("to,oik->tik", left.to(mapped), mapped)
        if right is not None:
            _check_map("right", right, (student.shape[1], teacher.shape[1]))
            mapped = torch.einsum("tik,ij->tjk", mapped, right.to(mapped))
        mapped = mapped.reshape(*mapped.shape[:2], *kernel)
        if mapped.shape != teacher.shape:
            raise ShapeError(
                f"student {tuple(student.shape)} is mapped to {tuple(mapped.shape)}, but teacher "
                f"is {tuple(teacher.shape)}. Give left (for the outputs) or right (for the inputs)."
            )
        squares = (teacher - mapped).square()
        return squares.sum() / (2 * max(1, squares.numel()))


def _check(student: Shape, teacher: Shape) -> None:
    if min(len(student), len(teacher)) < 2 or student[2:] != teacher[2:]:
        raise ShapeError(
            "weights must be (out, in) or (out, in, kh, kw) with kernels of one size, got student "
            f"{student} and teacher {teacher}."
        )


def _check_map(name: str, given: Tensor, wanted: Shape) -> None:
    if given.shape != wanted:
        raise ShapeError(f"{name} must be {wanted}, got {tuple(given.shape)}.")


class WeightMatching(nn.Module):
    """:func:`weight_matching` with trained maps `left` and `right`.

    They start as the identity, or, where the numbers of channels differ, with the first ones
    passed on. In a recipe it goes with taps on weights, `student="layer1.0.conv1@weight"`.

    Args:
        student_shape: Shape of the student's weight. None: taken from an example by :meth:`fit`,
            as a recipe does.
        teacher_shape: Shape of the teacher's weight.

    Raises:
        ShapeError: If no linear maps relate the two.
        DistillError: When called before its shapes are known.

    Example:
        >>> import torch
        >>> loss = WeightMatching((4, 3, 3, 3), (8, 6, 3, 3))
        >>> student = torch.nn.Conv2d(3, 4, 3)
        >>> loss(student.weight, torch.zeros(8, 6, 3, 3)).backward()
        >>> loss.left.grad.shape, loss.right.grad.shape
        (torch.Size([8, 4]), torch.Size([3, 6]))
    """

    as_is: ClassVar[bool] = True  # no adapter before it: it has maps of its own
    per_tensor: ClassVar[bool] = True

    def __init__(
        self, student_shape: Shape | None = None, teacher_shape: Shape | None = None
    ) -> None:
        super().__init__()
        self.left: nn.Parameter | None = None
        self.right: nn.Parameter | None = None
        if (student_shape is None) != (teacher_shape is None):
            raise ConfigError("give the shapes of both weights, or of neither.")
        if student_shape is not None and teacher_shape is not None:
            self._make(tuple(student_shape), tuple(teacher_shape))

    def fit(self, student: Tensor, teacher: Tensor) -> None:
        """Take the shapes of the maps from one pair of weights."""
        self._make(tuple(student.shape), tuple(teacher.shape))

    def _make(self, student: Shape, teacher: Shape) -> None:
        _check(student, teacher)
        self.left = nn.Parameter(torch.eye(teacher[0], student[0]))
        self.right = nn.Parameter(torch.eye(student[1], teacher[1]))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.left is None:
            raise DistillError(
                "WeightMatching has no maps yet: give it the shapes, or call fit on two weights."
            )
        return weight_matching(student, teacher, left=self.left, right=self.right)
