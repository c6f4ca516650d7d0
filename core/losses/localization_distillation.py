"""Localization distillation on the distributions of box edges (Zheng et al. 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._reduction import check_temperature, full_precision, matched_pair
from ._row_kl import divergence


def localization_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 10.0,
    bins: int | None = None,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence between the edge distributions of two GFL-style boxes.

    Every edge (left, top, right, bottom) is a distribution over n + 1 distances in units of the
    stride.

    .. math:: L = \frac{1}{4} \sum_{e} T^2 \, \mathrm{KL}
              (\mathrm{softmax}(b^t_e / T) \,\Vert\, \mathrm{softmax}(b^s_e / T))

    summed over the bins, averaged over the four edges and the positions.

    Other normalisations: the paper sums the edges, 4 times this value. mmdet's
    `KnowledgeDistillationKLDivLoss` also averages over the bins, and its `LDHead` divides the
    weighted sum over P positions times 4 edges by a fixed 4 instead of the weights: with a loss
    weight of 1 its value is `sum(weight) / (n + 1)` times this one.

    Args:
        student: Logits (P, 4 * (n + 1)), edge by edge as GFL's `gfl_reg` puts them out;
            (P, 4, n + 1); or a head's maps as they are, (B, 4 * (n + 1), H, W), which is the
            fastest: nothing has to be permuted.
        teacher: The same shape at the same positions.
        temperature: T, 10 in the paper.
        bins: n + 1, 17 in GFL. Found from the shape by default; give it to have it checked.
        weight: One number a position, (P,) or (B, H, W); LDHead takes the student's highest class
            score.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0 (nats times T squared); 0 at equality. No second derivatives,
        as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, are none of the three, or there are fewer than 2 bins
            (a head that regresses 4 plain numbers has no distribution).
        ConfigError: If the temperature is not above 0 or `bins` is below 2.

    Reference:
        Zheng et al.: Localization Distillation for Dense Object Detection, CVPR 2022
        (arXiv 2102.12252).

    Lecture:
        Object detection

    When it helps:
        With detectors that predict a distribution for every edge (GFL and its kin), teacher and
        student alike: it hands down where an edge is ambiguous, which a box alone cannot say.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [0.0, 0.0], [1.0, 1.0]]])
        >>> round(localization_distillation(torch.zeros(1, 4, 2), teacher).item(), 3)
        0.98
        >>> localization_distillation(teacher.flatten(1), teacher.flatten(1)).item()
        0.0
    """
    check_temperature(temperature)
    _check_bins(bins)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        shape = _edge_shape(student, bins)
        student, teacher = student.reshape(shape), teacher.reshape(shape)
        loss = divergence(2, temperature)
        return loss.mean(student, teacher, weight=weight, total=total, within=1)


def _check_bins(bins: int | None) -> None:
    if bins is not None and bins < 2:
        raise ConfigError(f"bins is n + 1 and must be at least 2, got {bins}.")


def _edge_shape(logits: Tensor, bins: int | None) -> tuple[int, ...]:
    shape = tuple(logits.shape)
    if logits.ndim in (2, 4) and shape[1] % 4 == 0:
        found = shape[1] // 4
    elif logits.ndim == 3 and shape[1] == 4:
        found = shape[2]
    else:
        raise ShapeError(
            "edge logits must be (P, 4 * (n + 1)), (P, 4, n + 1) or (B, 4 * (n + 1), H, W), got "
            f"shape {shape}."
        )
    if found < 2 or bins not in (None, found):
        expected = "at least 2" if bins is None else str(bins)
        raise ShapeError(
            f"expected {expected} bins an edge, got {found} from shape {shape}. Student and "
            "teacher need a head with a distribution over distances (GFL) of the same reg_max."
        )
    return (shape[0], 4, found, *(shape[2:] if logits.ndim == 4 else ()))


class LocalizationDistillation(nn.Module):
    """Module form of :func:`localization_distillation`, same arguments and defaults.

    Example:
        >>> import torch
        >>> loss = LocalizationDistillation(bins=17)
        >>> loss(torch.zeros(3, 68), torch.zeros(3, 68)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 10.0, bins: int | None = None) -> None:
        super().__init__()
        check_temperature(temperature)
        _check_bins(bins)
        self.temperature = temperature
        self.bins = bins

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return localization_distillation(
            student,
            teacher,
            temperature=self.temperature,
            bins=self.bins,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, bins={self.bins}"
