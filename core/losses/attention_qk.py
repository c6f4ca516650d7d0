"""Attention transfer from queries and keys, without ever holding an attention map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ShapeError
from ._reduction import full_precision
from ._sequence import check_mask, check_scale, map_kl, mean_over_layers, same_number

QueriesKeys = tuple[Tensor, Tensor] | Sequence[tuple[Tensor, Tensor]]


def attention_qk(
    student: QueriesKeys,
    teacher: QueriesKeys,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence of attention maps, given the queries and keys that they are made of.

    .. math:: L = \frac{1}{A N} \sum_{a, i} \mathrm{KL}(p^t_{ai} \,\Vert\, p^s_{ai}), \qquad
        p_{ai} = \mathrm{softmax}_j(q_{ai} \cdot k_{aj} / \sqrt{d})

    over A heads and N queries: the value of :func:`attention_map` on the maps. The maps are
    computed a block at a time and the gradients of queries and keys together with the value, so
    that memory grows with the length of the sequence and not with its square. It suits models
    whose fused attention gives out no maps at all. Score terms beside the product (a causal mask,
    a position bias) are not known here; pass the maps themselves where there are such.

    Args:
        student: Queries and keys (q, k) of a layer, both (B, A, T, d); several such pairs give
            the mean over layers.
        teacher: The same with the same B, A and T; its d may differ.
        scale: What the product is multiplied with, on either side; 1 / sqrt(d) of that side by
            default. 1.0 for T5.
        mask: (B, T), 1 for tokens and 0 for padding, as a tokenizer gives it. Padded keys get no
            attention and padded queries do not count; other numbers weigh the queries.
        total: Normaliser in place of `sum(mask)`, or of the number of queries.

    Returns:
        A scalar >= 0 in nats, 0 at equality. The gradient is computed together with the value, so
        there are no second derivatives: backward with `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If batch, heads or lengths differ, or the mask does not fit.
        ConfigError: If `scale` is not above 0.

    Reference:
        Sun et al.: MobileBERT, ACL 2020, section 3.5 (arXiv 2004.02984).
        Wang et al.: MiniLM, NeurIPS 2020, section 3.1 (arXiv 2002.10957), for the last layer.

    Lecture:
        Language models

    When it helps:
        For attention transfer over long sequences or many layers, and with models whose attention
        kernels return no maps.

    Example:
        >>> import torch
        >>> q, k = torch.eye(2).view(1, 1, 2, 2), torch.eye(2).view(1, 1, 2, 2)
        >>> round(attention_qk((q, k), (2 * q, k)).item(), 4)
        0.0449
        >>> attention_qk((q, k), (q, k)).item()
        0.0
    """
    check_scale(scale)
    students, teachers = _layers(student), _layers(teacher)
    same_number(students, teachers)
    values = []
    for s, t in zip(students, teachers, strict=True):
        _check(s, t)
        check_mask(mask, s[0].shape[0], s[0].shape[2])
        with full_precision(s[0]):
            values.append(map_kl(s, t, scale=scale, mask=mask, total=total))
    return mean_over_layers(values)


def _layers(side: QueriesKeys) -> list[tuple[Tensor, Tensor]]:
    if isinstance(side, Tensor):
        raise ShapeError(
            "a side is a pair (queries, keys), or a sequence of such pairs, got one tensor of "
            f"shape {tuple(side.shape)}. For maps use attention_map."
        )
    pairs = [side] if side and isinstance(side[0], Tensor) else list(side)
    for pair in pairs:
        if len(pair) != 2:
            raise ShapeError(f"a layer is a pair (queries, keys), got {len(pair)} tensors.")
    return [(q, k) for q, k in pairs]  # type: ignore


def _check(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> None:
    (s_q, s_k), (t_q, t_k) = student, teacher
    if (
        s_q.ndim != 4
        or s_q.shape != s_k.shape
        or t_q.shape != t_k.shape
        or s_q.shape[:3] != t_q.shape[:3]
        or 0 in (*s_q.shape[1:], *t_q.shape[1:])
    ):
        shapes = [tuple(t.shape) for t in (s_q, s_k, t_q, t_k)]
        raise ShapeError(
            "queries and keys must be (B, A, T, d), not empty, with the same B, A and T on both "
            f"sides, got student {shapes[0]} and {shapes[1]}, teacher {shapes[2]} and {shapes[3]}. "
            "Where the numbers of heads differ use attention_map with heads='mean' or "
            "self_attention_relations."
        )


class AttentionQK(nn.Module):
    """Module form of :func:`attention_qk`; `weight` is the function's `mask`.

    Example:
        >>> import torch
        >>> qk = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4)
        >>> AttentionQK()(qk, qk).item()
        0.0
    """

    def __init__(self, *, scale: float | None = None) -> None:
        super().__init__()
        check_scale(scale)
        self.scale = scale

    def forward(
        self,
        student: QueriesKeys,
        teacher: QueriesKeys,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return attention_qk(student, teacher, scale=self.scale, mask=weight, total=total)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
