"""A teacher whose wrong classes are shuffled (Furlanello et al. 2018, DKPP)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from ._reduction import check_temperature, class_axis, full_precision, matched_pair
from .soft_cross_entropy import soft_cross_entropy


def permuted_dark_knowledge(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    generator: Generator | None = None,
    dim: int = 1,
    weight: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Soft cross-entropy with a teacher whose smaller probabilities changed places.

    .. math:: L = -T^2 \Bigl( p^t_m \log p^s_m + \sum_{c \ne m} p^t_{\pi(c)} \log p^s_c \Bigr),
              \qquad m = \arg\max_c p^t_c

    with a permutation :math:`\pi` of the other classes drawn anew for every position and every
    call. The teacher's own answer and its entropy stay; which of the wrong classes it finds likely
    is gone. With it the paper asks whether a teacher helps by that.

    Args:
        student: Logits, any shape with the classes on `dim`: (B, K), (B, K, H, W), ...
        teacher: Logits of the same shape.
        temperature: T, 1 in the paper.
        generator: Source of the permutations, on the device of the logits; torch's own by default.
        dim: Axis of the classes; -1 for (B, T, K).
        weight: One number a position: the shape of the logits without `dim`.
        total: Normaliser in place of `sum(weight)`, or of the number of positions.

    Returns:
        A scalar >= 0, in nats (times T squared). With two classes it is
        :func:`soft_cross_entropy`. No second derivatives, as in :func:`kl_div`.

    Raises:
        ShapeError: If the shapes differ, `dim` is no axis, or there is a single class.
        ConfigError: If the temperature is not above 0.

    Reference:
        Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born-Again Neural Networks, ICML 2018,
        section "Dark Knowledge Under the Light" (arXiv 1805.04770).

    Lecture:
        Output logits

    When it helps:
        To find out what a teacher adds: compare with :func:`soft_cross_entropy`, which differs in
        nothing but the order of the wrong classes.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[4.0, 2.0, 1.0, 0.0]])
        >>> student = torch.tensor([[4.0, 0.0, 0.0, 0.0]])  # any order of its wrong classes is one
        >>> round(permuted_dark_knowledge(student, teacher).item(), 4)
        0.7297
        >>> from taskdistill.core.losses import soft_cross_entropy
        >>> round(soft_cross_entropy(student, teacher).item(), 4)
        0.7297
    """
    check_temperature(temperature)
    with full_precision(student):
        student, teacher = matched_pair(student, teacher)
        axis = class_axis(student, dim, "softmax")
        return soft_cross_entropy(
            student,
            permute_others(teacher, axis, generator),
            temperature=temperature,
            dim=axis,
            weight=weight,
            total=total,
        )


def permute_others(logits: Tensor, dim: int, generator: Generator | None = None) -> Tensor:
    """Shuffle all but the largest logit of each position.

    Args:
        logits: Any shape with the classes on `dim`.
        dim: Axis of the classes.
        generator: Source of the permutations.

    Returns:
        The same numbers, the largest where it was.

    Example:
        >>> import torch
        >>> mixed = permute_others(torch.tensor([[1.0, 9.0, 2.0, 3.0]]), 1)
        >>> mixed[0, 1].item(), sorted(mixed[0].tolist())
        (9.0, [1.0, 2.0, 3.0, 9.0])
    """
    top = logits.argmax(dim, keepdim=True)
    # Two lists of the classes, each with the largest first: one in order, one drawn.
    keys = torch.rand(logits.shape, generator=generator, device=logits.device)
    drawn = keys.scatter(dim, top, -1.0).argsort(dim)
    shape = [-1 if axis == dim % logits.ndim else 1 for axis in range(logits.ndim)]
    classes = torch.arange(logits.shape[dim], device=logits.device).reshape(shape)
    ordered = classes.expand(logits.shape).scatter(dim, top, -1).argsort(dim)
    return torch.empty_like(logits).scatter(dim, ordered, logits.gather(dim, drawn))


class PermutedDarkKnowledge(nn.Module):
    """Module form of :func:`permuted_dark_knowledge`, same defaults.

    The permutations come from torch's own random numbers, which a training run seeds step by step.

    Example:
        >>> import torch
        >>> loss = PermutedDarkKnowledge()
        >>> round(loss(torch.zeros(3, 2), torch.zeros(3, 2)).item(), 4)
        0.6931
    """

    def __init__(self, *, temperature: float = 1.0, dim: int = 1) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.dim = dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return permuted_dark_knowledge(
            student,
            teacher,
            temperature=self.temperature,
            dim=self.dim,
            weight=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, dim={self.dim}"
