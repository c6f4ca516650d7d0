"""Projectors that make a student's tensor comparable with a teacher's.

An adapter is made from the shapes of one student and one teacher tensor: a 1x1 convolution (or a
linear map) where the number of channels differs, average pooling of the larger map where the
stride differs (or, on request, the regressor of FitNets), a reshape where one side is a token
sequence ``(B, N, C)`` and the other a grid ``(B, C, H, W)``. It is trained with the student and
dropped at export.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, ShapeError, did_you_mean

__all__ = ["ADAPTERS", "Adapter", "make_adapter"]

ADAPTERS = (
    "auto",
    "conv1x1",
    "conv3x3",
    "fitnets",
    "fitnets_relu",
    "fitnets_stride",
    "sliced",
    "resize",
    "none",
)

Size = tuple[int, int]


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
            width), ``"none"`` never. ``"resize"`` brings both to one size and layout and leaves
            their channels as they are; for losses that compare what does not depend on the width
            (a loss with ``any_channels = True``) that is what ``"auto"`` means. ``"fitnets"`` is
            the regressor of Romero et al. 2015: one convolution without padding whose window, per
            axis, is just what takes the student's size to the teacher's, N_s - k + 1 = N_t;
            nothing is pooled. ``"fitnets_relu"`` adds the non-linearity that the paper takes over
            from the hint layer, where that is a ReLU. ``"fitnets_stride"`` does as common code: at
            half or double size a 3x3 convolution of stride 2 or a 4x4 transposed one, which are
            far smaller; elsewhere the paper's. ``"sliced"`` is a 1x1 projection made for the widest
            student: one with fewer channels uses the part of its weights that belongs to the first
            channels, as the sub-networks of a once-for-all network need it (Li et al. 2020).
        sizes: Height and width of the student's and of the teacher's map; the kinds of FitNets
            are made for these sizes alone.

    Shapes:
        student and teacher in; ``(student, teacher)`` of one common shape out, but for the
        channels with ``"resize"``.

    Raises:
        ConfigError: If the kind is unknown.
        ShapeError: If the kind does not go with the channels, the layout or the sizes; when
            called, if the two tensors do not end in one shape.

    Example:
        >>> import torch
        >>> adapter = Adapter(8, 16, dims=4)
        >>> s, t = adapter(torch.zeros(2, 8, 6, 6), torch.zeros(2, 16, 3, 3))
        >>> tuple(s.shape) == tuple(t.shape) == (2, 16, 3, 3)
        True
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        dims: int,
        kind: str = "auto",
        sizes: tuple[Size, Size] | None = None,
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
        self.regresses = kind.startswith("fitnets")
        if (kind == "conv3x3" or self.regresses) and dims != 4:
            raise ShapeError(
                f"adapter={kind!r} needs a grid (B, C, H, W) on one side, but both are "
                f"{'(B, C)' if dims == 2 else '(B, N, C)'}; use adapter='conv1x1', which is a "
                "linear map there."
            )
        self.kind = kind
        self.project: nn.Module = nn.Identity()
        if self.regresses:
            if sizes is None:
                raise ConfigError(f"adapter={kind!r} is made for sizes=((h, w), (th, tw)).")
            self.project = _regressor(student_channels, teacher_channels, kind, *sizes)
        elif kind != "resize" and (
            kind in ("conv1x1", "conv3x3", "sliced") or student_channels != teacher_channels
        ):
            if dims == 4:
                size = 3 if kind == "conv3x3" else 1
                self.project = nn.Conv2d(
                    student_channels, teacher_channels, size, padding=size // 2
                )
            else:
                self.project = nn.Linear(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = _same_layout(student, teacher)
        if not self.regresses and student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
            # Pool the larger to the smaller: pooling invents nothing, interpolation would.
            (h, w), (th, tw) = student.shape[-2:], teacher.shape[-2:]
            size = (min(h, th), min(w, tw))
            student = F.adaptive_avg_pool2d(student, size)
            teacher = F.adaptive_avg_pool2d(teacher, size)
        student = self._projected(student)
        if self._compared(student) != self._compared(teacher):
            raise ShapeError(
                f"After the adapter the student is {tuple(student.shape)} and the teacher "
                f"{tuple(teacher.shape)}; tap layers of the same kind and batch."
                + (f" adapter={self.kind!r} fits one size of input only." if self.regresses else "")
            )
        return student, teacher

    def _projected(self, student: Tensor) -> Tensor:
        project = self.project
        if self.kind != "sliced" or not isinstance(project, (nn.Conv2d, nn.Linear)):
            return project(student)
        width = student.shape[1 if isinstance(project, nn.Conv2d) else -1]
        if width > project.weight.shape[1]:
            raise ShapeError(
                f"adapter='sliced' was made for {project.weight.shape[1]} channels, got {width}. "
                "Run Distiller.setup with the widest configuration of the student."
            )
        weight = project.weight[:, :width]
        if isinstance(project, nn.Conv2d):
            return F.conv2d(student, weight, project.bias)
        return F.linear(student, weight, project.bias)

    def _compared(self, tensor: Tensor) -> list[int]:
        """The sizes that have to agree."""
        shape = list(tensor.shape)
        if self.kind == "resize":
            del shape[-1 if tensor.ndim == 3 else 1]
        return shape


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
    sizes = None
    if student.ndim == 4:
        (h, w), (th, tw) = student.shape[-2:], teacher.shape[-2:]
        sizes = ((h, w), (th, tw))
    return Adapter(student.shape[channel], teacher.shape[channel], student.ndim, kind, sizes)


def _regressor(ours: int, theirs: int, kind: str, student: Size, teacher: Size) -> nn.Module:
    """Take a map of one size exactly onto another, as FitNets do."""
    pairs = list(zip(student, teacher, strict=True))
    if kind == "fitnets_stride" and all(s > 1 and t == (s + 1) // 2 for s, t in pairs):
        return nn.Conv2d(ours, theirs, 3, stride=2, padding=1)
    if kind == "fitnets_stride" and all(t == 2 * s for s, t in pairs):
        return nn.ConvTranspose2d(ours, theirs, 4, stride=2, padding=1)
    if any(s < t for s, t in pairs):
        raise ShapeError(
            f"adapter={kind!r} cannot take the student's map {student} to the teacher's {teacher}, "
            "as a convolution without padding only shrinks. Tap an earlier layer of the student, "
            "or use adapter='conv1x1', which pools the teacher's."
        )
    height, width = (s - t + 1 for s, t in pairs)
    convolution = nn.Conv2d(ours, theirs, (height, width))
    return nn.Sequential(convolution, nn.ReLU()) if kind == "fitnets_relu" else convolution


def describe(adapter: Adapter, student: Tensor, teacher: Tensor) -> str:
    """Say in a line what the adapter does, for the log."""
    parts = []
    if not isinstance(adapter.project, nn.Identity):
        parts.append(f"projected by {adapter.project}")
    if student.ndim != teacher.ndim:
        parts.append("tokens laid out as a grid")
    elif student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:] and not adapter.regresses:
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
