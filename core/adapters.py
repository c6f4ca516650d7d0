"""Projectors that make a student's tensor comparable with a teacher's.

An adapter is made from the shapes of one student and one teacher tensor: a 1x1 convolution (or a
linear map) where the number of channels differs, average pooling of the larger map where the
stride differs, a reshape where one side is a token sequence ``(B, N, C)`` and the other a grid
``(B, C, H, W)``. It is trained with the student and dropped at export.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, ShapeError, did_you_mean

__all__ = ["ADAPTERS", "Adapter", "make_adapter"]

ADAPTERS = ("auto", "conv1x1", "conv3x3", "none")


class Adapter(nn.Module):
    """Bring a student tensor to the teacher's channels and layout, and both to one size.

    The projection always sits on the *student's* side: on the teacher's, a constant map would
    make the loss zero (see Li et al. 2020, GAN Compression, whose code does the same).

    Args:
        student_channels: Channels of the student's tensor.
        teacher_channels: Channels of the teacher's tensor.
        dims: Dimensions of the tensor after the layouts agree: 2 ``(B, C)``, 3 ``(B, N, C)`` or
            4 ``(B, C, H, W)``.
        kind: ``"auto"`` projects only where channels differ, ``"conv1x1"`` and ``"conv3x3"``
            always (Chen et al. 2017, section 3.4, found the 1x1 map to help even at equal
            width), ``"none"`` never.

    Shapes:
        student and teacher in; ``(student, teacher)`` of one common shape out.

    Raises:
        ConfigError: If the kind is unknown.
        ShapeError: If the kind does not go with the channels or the layout; when called, if the
            two tensors do not end in one shape.

    Example:
        >>> import torch
        >>> adapter = Adapter(8, 16, dims=4)
        >>> s, t = adapter(torch.zeros(2, 8, 6, 6), torch.zeros(2, 16, 3, 3))
        >>> tuple(s.shape) == tuple(t.shape) == (2, 16, 3, 3)
        True
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, dims: int, kind: str = "auto"
    ) -> None:
        super().__init__()
        if kind not in ADAPTERS:
            raise ConfigError(
                f"adapter={kind!r} is not one of {ADAPTERS}.{did_you_mean(kind, ADAPTERS)}"
            )
        if kind == "none" and student_channels != teacher_channels:
            raise ShapeError(
                f"Student has {student_channels} channels, teacher {teacher_channels}, and "
                "adapter='none' forbids a projection; use adapter='auto'."
            )
        if kind == "conv3x3" and dims != 4:
            raise ShapeError(
                "adapter='conv3x3' needs a grid (B, C, H, W) on one side, but both are "
                f"{'(B, C)' if dims == 2 else '(B, N, C)'}; use adapter='conv1x1', which is a "
                "linear map there."
            )
        self.kind = kind
        self.project: nn.Module = nn.Identity()
        if kind in ("conv1x1", "conv3x3") or student_channels != teacher_channels:
            if dims == 4:
                size = 3 if kind == "conv3x3" else 1
                self.project = nn.Conv2d(
                    student_channels, teacher_channels, size, padding=size // 2
                )
            else:
                self.project = nn.Linear(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = _same_layout(student, teacher)
        if student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
            # Pool the larger to the smaller: pooling invents nothing, interpolation would.
            (h, w), (th, tw) = student.shape[-2:], teacher.shape[-2:]
            size = (min(h, th), min(w, tw))
            student = F.adaptive_avg_pool2d(student, size)
            teacher = F.adaptive_avg_pool2d(teacher, size)
        student = self.project(student)
        if student.shape != teacher.shape:
            raise ShapeError(
                f"After the adapter the student is {tuple(student.shape)} and the teacher "
                f"{tuple(teacher.shape)}; tap layers of the same kind and batch."
            )
        return student, teacher


def make_adapter(student: Tensor, teacher: Tensor, kind: str = "auto") -> Adapter:
    """Make the adapter between one student and one teacher tensor.

    Args:
        student: ``(B, C)``, ``(B, N, C)`` or ``(B, C, H, W)``.
        teacher: Likewise; a token sequence is taken for a grid where the other side is one.
        kind: See :class:`Adapter`.

    Raises:
        ShapeError: If no projection relates the two.

    Example:
        >>> import torch
        >>> make_adapter(torch.zeros(1, 9, 4), torch.zeros(1, 8, 3, 3)).project
        Conv2d(4, 8, kernel_size=(1, 1), stride=(1, 1))
    """
    student, teacher = _same_layout(student, teacher)
    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise ShapeError(
            f"No adapter relates a student tensor {tuple(student.shape)} to a teacher tensor "
            f"{tuple(teacher.shape)}; expected (B, C), (B, N, C) or (B, C, H, W) on both sides."
        )
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"Student has {student.shape[1]} tokens, teacher {teacher.shape[1]}: tokens cannot be "
            "matched one to one. Use the same tokenizer and sequence length for both."
        )
    channel = -1 if student.ndim == 3 else 1
    return Adapter(student.shape[channel], teacher.shape[channel], student.ndim, kind)


def describe(adapter: Adapter, student: Tensor, teacher: Tensor) -> str:
    """Say in a line what the adapter does, for the log."""
    parts = []
    if not isinstance(adapter.project, nn.Identity):
        parts.append(f"projected by {adapter.project}")
    if student.ndim != teacher.ndim:
        parts.append("tokens laid out as a grid")
    elif student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
        parts.append("the larger map pooled to the smaller")
    how = "; ".join(parts) or "compared as they are"
    return f"student {tuple(student.shape)} - teacher {tuple(teacher.shape)}: {how}"


def _same_layout(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim == 3 and teacher.ndim == 4:
        return _to_grid(student, teacher), teacher
    if student.ndim == 4 and teacher.ndim == 3:
        return student, _to_grid(teacher, student)
    return student, teacher


def _to_grid(tokens: Tensor, grid: Tensor) -> Tensor:
    """Lay tokens ``(B, N, C)`` out as ``(B, C, h, w)`` with the aspect ratio of ``grid``."""
    count = tokens.shape[1]
    height, width = grid.shape[-2:]
    for extra in (0, 1):  # a class token, if any, comes first
        cells = count - extra
        h = round(math.sqrt(cells * height / width)) if cells > 0 else 0
        if h and cells % h == 0 and (cells // h) * height == h * width:
            return tokens[:, extra:].transpose(1, 2).reshape(tokens.shape[0], -1, h, cells // h)
    raise ShapeError(
        f"{count} tokens of {tuple(tokens.shape)} cannot be laid out as a grid of the aspect "
        f"{height}x{width} of {tuple(grid.shape)}; tap a layer whose tokens cover the image evenly."
    )
