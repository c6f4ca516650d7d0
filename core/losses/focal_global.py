"""FGD: focal and global distillation of detectors (Yang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._autograd import by_hand, wants_gradient, with_gradient
from ._reduction import check_temperature, full_precision, matched_pair, weighted_mean

Block = Callable[[Tensor], Tensor]


def focal_global(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 0.5,
    foreground: float = 1e-3,
    background: float = 5e-4,
    attention: float = 0.256,
    relation: float = 1.28e-3,
    blocks: tuple[Block, Block] | None = None,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Focal and global distillation of one level of a feature pyramid.

    .. math:: L = \sum_{c,i} (\alpha S^f_i + \beta S^b_i) A^S_i A^C_c (t_{ci} - s_{ci})^2
        + \gamma \, \Delta(A) + \frac{\lambda}{HW} \lVert R(t) - R(s) \rVert^2

    an image, averaged over the images. The parts, each of which a factor of 0 leaves out:

    * Focal: squared differences at foreground and background cells. :math:`S^f` is 1 / (cells of
      the box) inside a box, of the smallest box where several overlap, so that a small object
      counts as much as a large one; :math:`S^b` is 1 / (cells outside of all boxes).
      :math:`A^S, A^C` is where, and on which channels, the *teacher* responds (see
      :func:`response_attention`).
    * Attention: :math:`\Delta(A)` is the mean absolute difference between student and teacher of
      :math:`A^S`, plus that of :math:`A^C`.
    * Global: R adds to every cell what a :class:`GlobalContext` block makes of the whole map. The
      blocks are trained, one for either side; without them this part is left out.

    The focal part is the paper's. In the other two the paper sums over channels and cells, so
    that they depend on the size of the map; here they are means over cells. The paper's
    :math:`\gamma` times C (channels) and times HW (cells) gives ours, :math:`\lambda` times HW
    gives ours. The defaults are those of the authors' loss, 1e-3, 5e-4, 1e-3 and 5e-6, taken over
    at 256 channels and a map of 16 x 16. Their RetinaNet configs have a gamma of 5e-4, theirs for
    Faster R-CNN are 5e-5, 2.5e-5, 5e-5 and 5e-7. Their code also counts one more row and column of
    cells to each box; with :func:`focal_distillation` any other foreground can be used.

    Args:
        student: (B, C, H, W) map.
        teacher: The same shape; use an adapter where channels or strides differ.
        target: Ground-truth boxes (B, N, 4) as x1, y1, x2, y2 in fractions of the (padded) image,
            so that they serve every level. Fill up with zeros: a box without area counts for
            nothing. None: everything is background.
        temperature: T of the attention; 0.5 as in the authors' code.
        foreground: alpha.
        background: beta.
        attention: gamma.
        relation: lambda.
        blocks: R's context blocks of student and teacher: (B, C, H, W) -> (B, C, 1, 1).
        weight: One number an image, (B,).
        total: Normaliser in place of `sum(weight)`, or of the number of images.

    Returns:
        A scalar >= 0. No second derivatives: backward with `create_graph=True` raises
        DistillError.

    Raises:
        ShapeError: If the maps are not (B, C, H, W) of one shape with at least one cell and
            channel, or the boxes or the weight do not go with them.
        ConfigError: If the temperature is not above 0 or a factor is negative.

    Reference:
        Yang et al.: Focal and Global Knowledge Distillation for Detectors, CVPR 2022
        (arXiv 2111.11837).

    Lecture:
        Object detection

    When it helps:
        Detectors whose background outweighs the objects, and small objects the large ones: each
        gets its share, at the places and channels that the teacher attends to.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])
        >>> value = focal_global(student, teacher, boxes)  # 2 channels: 2 alpha + 2 beta
        >>> round(value.item(), 6)
        0.003
    """
    _check_options(temperature, foreground, background, attention, relation)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        _check_map(student)
        height, width = student.shape[2:]
        if target is None:
            inside = student.new_zeros(len(student), height, width)
        else:
            if target.ndim != 3 or target.shape[0] != len(student) or target.shape[2] != 4:
                raise ShapeError(
                    f"target must be boxes (B, N, 4) for student {tuple(student.shape)}, got "
                    f"{tuple(target.shape)}. Fill the list of an image up with zeros."
                )
            inside = box_weights(target.to(student.dtype), height, width)
        parts = []
        if foreground or background:
            factors = {"foreground": foreground, "background": background}
            parts.append(
                focal_distillation(student, teacher, inside, temperature=temperature, **factors)
            )
        if attention:
            parts.append(attention * attention_distance(student, teacher, temperature))
        if relation and blocks is not None:
            ours, theirs = student + blocks[0](student), teacher + blocks[1](teacher)
            parts.append(relation * (theirs - ours).square().sum(1).mean((1, 2)))
        if not parts:  # still a loss with a graph
            parts.append(0.0 * student.flatten(1).sum(1))
        return weighted_mean(torch.stack(parts).sum(0), weight, total)


def focal_distillation(
    student: Tensor,
    teacher: Tensor,
    inside: Tensor,
    *,
    temperature: float = 0.5,
    foreground: float = 1e-3,
    background: float = 5e-4,
) -> Tensor:
    """The focal part alone, one number an image: squared differences where it matters.

    Args:
        student: (B, C, H, W) map, in the computing precision.
        teacher: The same shape.
        inside: Weights of the foreground (B, H, W), as of :func:`box_weights`; 0 is background.
        temperature: T of the teacher's attention.
        foreground: alpha.
        background: beta.

    Example:
        >>> import torch
        >>> student, teacher, inside = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.eye(2)
        >>> focal_distillation(student, teacher, inside[None] / 2, background=0.0)
        tensor([0.0010])
    """
    places, channels = response_attention(teacher.detach(), temperature)
    outside = (inside == 0).to(inside)
    outside = outside / outside.sum((1, 2), keepdim=True).clamp(min=1)
    places = places * (foreground * inside + background * outside)

    def summed(difference: Tensor) -> Tensor:
        # Both sums as products of matrices: no weighted copy of the map.
        squares = difference.square().flatten(2)
        return (channels[:, None] @ squares @ places.flatten(1)[:, :, None]).flatten()

    if not (by_hand() and wants_gradient(student)):
        return summed(student - teacher)
    with torch.no_grad():
        difference = student - teacher
        values = summed(difference)
        slope = difference.mul_(channels[:, :, None, None]).mul_(places[:, None])
    # Half the derivative, that is: the 2 goes with the value, and spares a pass.
    return 2 * with_gradient(values / 2, (student,), (slope,), (len(student), 1, 1, 1))


def attention_distance(student: Tensor, teacher: Tensor, temperature: float = 0.5) -> Tensor:
    """Mean absolute difference of the two attentions, in space plus over channels, an image.

    Example:
        >>> import torch
        >>> attention_distance(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
        tensor([0.])
    """
    ours = response_attention(student, temperature)
    theirs = response_attention(teacher.detach(), temperature)
    differences = [(t - s).abs().flatten(1).mean(1) for s, t in zip(ours, theirs, strict=True)]
    return differences[0] + differences[1]


def response_attention(feature: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Where a map responds, and on which channels.

    .. math:: A^S = HW \, \mathrm{softmax}(\mathrm{mean}_c |f| / T), \qquad
        A^C = C \, \mathrm{softmax}(\mathrm{mean}_{hw} |f| / T)

    Returns:
        (B, H, W) and (B, C), each 1 on average.

    Example:
        >>> import torch
        >>> places, channels = response_attention(torch.ones(1, 2, 3, 3))
        >>> places.unique(), channels
        (tensor([1.]), tensor([[1., 1.]]))
    """
    size = feature.abs()
    attended = []
    for response in (size.mean(1), size.mean((2, 3))):
        flat = response.flatten(1)
        attended.append(((flat / temperature).softmax(1) * flat.shape[1]).view_as(response))
    return attended[0], attended[1]


def box_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """Give every cell of a map 1 / (cells of the smallest box that covers it), 0 outside.

    A box covers every cell it touches by more than a thousandth; a box without area covers none.

    Args:
        boxes: (B, N, 4) as x1, y1, x2, y2 in fractions of the image.
        height: Cells of the map.
        width: Likewise.

    Returns:
        (B, height, width)

    Example:
        >>> import torch
        >>> box_weights(torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.4, 0.5]]]), 2, 2)
        tensor([[[1.0000, 0.2500],
                 [0.2500, 0.2500]]])
    """
    boxes = boxes.detach()
    if boxes.shape[1] == 0:
        return boxes.new_zeros(len(boxes), height, width)
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows, columns = _covered(y1, y2, height), _covered(x1, x2, width)
    cells = (rows.sum(-1) * columns.sum(-1)).clamp(min=1)
    covered = rows[..., :, None] & columns[..., None, :]
    return torch.where(covered, (1 / cells.to(boxes))[..., None, None], 0.0).amax(1)


def _covered(first: Tensor, last: Tensor, size: int) -> Tensor:
    """Which of `size` cells an interval touches, by more than a thousandth of a cell.

    Without the tolerance, rounding would add a cell where a box ends between two.
    """
    cells = torch.arange(size, device=first.device)
    begins = (first * size + 1e-3).floor()[..., None]
    ends = (last * size - 1e-3).ceil()[..., None]
    return (begins <= cells) & (cells < ends) & (first < last)[..., None]


class GlobalContext(nn.Module):
    """What a whole map says to each of its channels: the GC block of Cao et al. 2019.

    A softmax over the cells gathers the map into one vector, two 1x1 convolutions with a layer
    norm and a ReLU between them turn it into an addend per channel. The last one starts at 0.

    Args:
        channels: C.
        ratio: The width between the convolutions is C / ratio; 2 in FGD.

    Raises:
        ConfigError: If `ratio` leaves no channels.

    Example:
        >>> import torch
        >>> GlobalContext(8)(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        if ratio < 1 or channels // ratio < 1:
            raise ConfigError(
                f"channels / ratio must be at least 1, got {channels} channels and ratio {ratio}."
            )
        hidden = channels // ratio
        self.attend = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        nn.init.zeros_(self.attend.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.transform[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.transform[-1].bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor) -> Tensor:
        attention = self.attend(feature).flatten(2).softmax(2)
        gathered = (feature.flatten(2) @ attention.mT).flatten(1)
        return self.transform(gathered)[:, :, None, None]


class FocalGlobal(nn.Module):
    """:func:`focal_global` with its context blocks `student_context` and `teacher_context`.

    Args:
        channels: C of the teacher's map, and of the student's behind its adapter.
        temperature: As in the function, like all below.
        foreground: alpha.
        background: beta.
        attention: gamma.
        relation: lambda; at 0 there are no blocks.

    Raises:
        ConfigError: If the temperature is not above 0, a factor is negative or there are fewer
            than two channels.

    Example:
        >>> import torch
        >>> loss = FocalGlobal(4)
        >>> student = torch.zeros(1, 4, 6, 6, requires_grad=True)
        >>> loss(student, torch.ones(1, 4, 6, 6), torch.tensor([[[0.1, 0.1, 0.6, 0.9]]])).backward()
        >>> student.grad is None
        False
    """

    per_position: ClassVar[bool] = False  # a weight is one a sample
    per_tensor: ClassVar[bool] = True  # the blocks of a level are its own
    target_name: ClassVar[str] = "boxes"

    def __init__(
        self,
        channels: int,
        *,
        temperature: float = 0.5,
        foreground: float = 1e-3,
        background: float = 5e-4,
        attention: float = 0.256,
        relation: float = 1.28e-3,
    ) -> None:
        super().__init__()
        _check_options(temperature, foreground, background, attention, relation)
        self.temperature = temperature
        self.foreground = foreground
        self.background = background
        self.attention = attention
        self.relation = relation
        self.student_context = GlobalContext(channels) if relation else None
        self.teacher_context = GlobalContext(channels) if relation else None

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        blocks = None
        if self.student_context is not None and self.teacher_context is not None:
            blocks = (self.student_context, self.teacher_context)
        return focal_global(
            student,
            teacher,
            target,
            temperature=self.temperature,
            foreground=self.foreground,
            background=self.background,
            attention=self.attention,
            relation=self.relation,
            blocks=blocks,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, foreground={self.foreground}, "
            f"background={self.background}, attention={self.attention}, relation={self.relation}"
        )


def _check_options(temperature: float, *factors: float) -> None:
    check_temperature(temperature)
    if min(factors) < 0:
        raise ConfigError(f"no factor may be negative, got {factors}.")


def _check_map(feature: Tensor) -> None:
    if feature.ndim != 4 or 0 in feature.shape[1:]:
        raise ShapeError(
            "student and teacher must be maps (B, C, H, W) with a channel and a cell, got shape "
            f"{tuple(feature.shape)}."
        )
