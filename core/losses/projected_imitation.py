"""A 1x1 convolution of the student's map, held against the teacher's (GAN compression)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._autograd import BLOCK, by_hand, wants_gradient, with_gradient
from ._reduction import compute_dtype, full_precision, weighted_mean
from .feature_imitation import channel_axis, sum_of_squares


def projected_imitation(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Tensor,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Mean squared difference between a linear map of the student's channels and the teacher.

    .. math:: L = \frac{1}{\sum_i m_i} \sum_i m_i \frac{1}{C_t} \lVert A s_i + b - t_i \rVert^2

    over the positions i (:math:`m_i = 1` without a weight). A and b are a 1x1 convolution, trained
    with the student and dropped afterwards.

    The map sits on the student's side. The paper's text once had it on the teacher's: there a
    constant map together with a constant student makes the loss 0 and teaches nothing. The
    authors' code does as is done here.

    It is :func:`feature_imitation` behind a 1x1 adapter, in one piece: the projected map and its
    gradient, both as large as the teacher's map, never exist as a whole on the CPU. The gradients
    of student, kernel and bias are formed in the forward pass.

    Args:
        student: (B, C_s, H, W) map, or any (B, C_s, ...) of four axes or more; (B, T, C_s)
            tokens; (N, C_s) vectors.
        teacher: The same with C_t channels.
        kernel: A: (C_t, C_s), or the (C_t, C_s, 1, 1) of a convolution. Gets a gradient.
        bias: b: (C_t,), or None. Gets a gradient.
        weight: One number a position: (B, H, W), (B, T) or (N,).
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in squared units of the teacher's feature. No second derivatives: backward
        with `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If the maps differ in more than their channels, or kernel, bias or weight do
            not go with them.

    Reference:
        Li et al.: GAN Compression: Efficient Architectures for Interactive Conditional GANs,
        CVPR 2020, "intermediate feature distillation" (arXiv 2003.08936). The mean over every
        element, as in its code.

    Lecture:
        Generative adversarial networks

    When it helps:
        A generator with fewer channels than its teacher: intermediate maps say much more than the
        finished image, and a paired target is not needed for them.

    Example:
        >>> import torch
        >>> student, teacher = torch.ones(1, 2, 4, 4), torch.full((1, 3, 4, 4), 5.0)
        >>> projected_imitation(student, teacher, kernel=torch.ones(3, 2)).item()
        9.0
    """
    with full_precision(student):
        dtype = compute_dtype(student, teacher)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        axis = channel_axis(student)
        kernel, bias = _checked(student, teacher, axis, kernel, bias)
        shape = [size for dim, size in enumerate(student.shape) if dim != axis]
        if weight is not None:
            if list(weight.shape) != shape:
                raise ShapeError(
                    f"weight must hold one number a position, shape {tuple(shape)}, got "
                    f"{tuple(weight.shape)}."
                )
            weight = weight.detach().to(dtype)
        if total is None:
            total = student.numel() // student.shape[axis] if weight is None else weight.sum()
        # (B, C, P), whatever the layout; of vectors the positions are the rows.
        s, t = (x.flatten(2) if axis == 1 and x.ndim > 2 else x.mT for x in (student, teacher))
        s, t = (x if x.ndim == 3 else x[None] for x in (s, t))
        w = None if weight is None else weight.reshape(len(s), 1, s.shape[2])
        summed = _sum(s, t, kernel, bias, w) / teacher.shape[axis]
        return weighted_mean(summed, total=total)


def _checked(
    student: Tensor, teacher: Tensor, axis: int, kernel: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    def places(feature: Tensor) -> tuple[int, ...]:
        return (*feature.shape[:axis], *feature.shape[axis + 1 :])

    if student.ndim != teacher.ndim or places(student) != places(teacher):
        raise ShapeError(
            "student and teacher may differ in their channels only, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}. Pool the larger one."
        )
    wanted = (teacher.shape[axis], student.shape[axis])
    if kernel.shape[:2] != wanted or kernel.numel() != wanted[0] * wanted[1]:
        raise ShapeError(
            f"kernel must be (C_t, C_s) = {wanted} or that of a 1x1 convolution, got "
            f"{tuple(kernel.shape)} for student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}."
        )
    if bias is not None and bias.shape != wanted[:1]:
        raise ShapeError(f"bias must be (C_t,) = {wanted[:1]}, got {tuple(bias.shape)}.")
    # To the device as well: shapes alone can then be found on "meta" whatever the kernel is on.
    return kernel.to(student).reshape(wanted), None if bias is None else bias.to(student)


def _sum(s: Tensor, t: Tensor, kernel: Tensor, bias: Tensor | None, w: Tensor | None) -> Tensor:
    """Weighted sum of the squared residuals of (B, C, P) maps."""
    if by_hand():
        return _sum_with_gradient(s, t, kernel, bias, w)
    projected = kernel @ s if bias is None else kernel @ s + bias[:, None]
    squares = (projected - t).square()
    return squares.sum() if w is None else (squares * w).sum()


def _sum_with_gradient(
    student: Tensor, teacher: Tensor, kernel: Tensor, bias: Tensor | None, w: Tensor | None
) -> Tensor:
    inputs = (student, kernel) if bias is None else (student, kernel, bias)
    # Half the derivatives, that is: the 2 goes with the value, and spares a pass.
    of_student = torch.empty_like(student) if wants_gradient(student) else None
    of_kernel = torch.zeros_like(kernel) if wants_gradient(kernel) else None
    of_bias = torch.zeros_like(bias) if bias is not None and wants_gradient(bias) else None
    with torch.no_grad():
        value = student.new_zeros(())
        for part in _parts(teacher):
            s, t = student[part], teacher[part]
            residual = torch.baddbmm(t, kernel.expand(len(s), -1, -1), s, beta=-1)
            if bias is not None:
                residual.add_(bias[:, None])
            if w is None:
                value += sum_of_squares(residual)
            else:
                weighted = residual * w[part[0], :, part[2]]
                value += residual.mul_(weighted).sum()
                residual = weighted
            if of_student is not None:
                torch.bmm(kernel.mT.expand(len(s), -1, -1), residual, out=of_student[part])
            if of_kernel is not None:
                of_kernel.addbmm_(residual, s.mT)
            if of_bias is not None:
                of_bias += residual.sum((0, 2))
    if not wants_gradient(*inputs):
        return value
    return 2 * with_gradient(value / 2, inputs, (of_student, of_kernel, of_bias)[: len(inputs)])


def _parts(teacher: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Everything at once; on the CPU so many places of one image that they stay in its cache."""
    everything = slice(None)
    if teacher.device.type != "cpu":
        yield everything, everything, everything
        return
    batch, channels, places = teacher.shape
    step = max(64, 4 * BLOCK // channels)
    for image in range(batch):
        for start in range(0, places, step):
            yield slice(image, image + 1), everything, slice(start, start + step)


class ProjectedImitation(nn.Module):
    """:func:`projected_imitation` with its 1x1 convolution, `project`.

    Args:
        student_channels: C_s.
        teacher_channels: C_t.
        bias: Whether the convolution has a bias.

    Raises:
        ConfigError: If there are no channels.

    Example:
        >>> import torch
        >>> loss = ProjectedImitation(4, 8)
        >>> loss(torch.zeros(2, 4, 5, 5), torch.ones(2, 8, 5, 5)).backward()
        >>> loss.project.weight.shape, loss.project.bias.grad is None
        (torch.Size([8, 4, 1, 1]), False)
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        if min(student_channels, teacher_channels) < 1:
            raise ConfigError(
                f"both sides need channels, got {student_channels} of the student and "
                f"{teacher_channels} of the teacher."
            )
        self.project = nn.Conv2d(student_channels, teacher_channels, 1, bias=bias)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return projected_imitation(
            student,
            teacher,
            kernel=self.project.weight,
            bias=self.project.bias,
            weight=weight,
            total=total,
        )
