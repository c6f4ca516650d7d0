"""Relations between the tokens within queries, keys or values (MiniLM and MiniLMv2)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ._reduction import full_precision
from ._sequence import Layers, check_mask, layer_pairs, map_kl


def self_attention_relations(
    student: Layers,
    teacher: Layers,
    *,
    relation_heads: int | None = None,
    mask: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence of the softened similarities between the tokens' values (queries, keys).

    .. math:: L = \sum_{X \in \{Q, K, V\}} \frac{1}{A N} \sum_{a, i}
        \mathrm{KL}(r^t_{ai} \,\Vert\, r^s_{ai}), \qquad
        r_{ai} = \mathrm{softmax}_j(x_{ai} \cdot x_{aj} / \sqrt{d})

    over A relation heads and N tokens; summed over as many kinds of vectors as are given. A
    relation is as large for a narrow student as for a wide teacher, so no projection is needed,
    and the widths and numbers of attention heads may differ.

    * Values alone, with the model's own heads: the value relation of MiniLM, whose other term is
      :func:`attention_qk`.
    * Queries, keys and values with `relation_heads`: MiniLMv2, with all three weights 1. The
      vectors of all attention heads are joined and split anew.

    The relations are computed a block at a time and never held.

    Args:
        student: Vectors of the tokens, (B, T, H) or (B, A, T, d) by head, or a tuple of such, as
            (queries, keys, values).
        teacher: The same kinds, with the same B and T.
        relation_heads: Into how many heads the vectors are split. None keeps the heads of
            (B, A, T, d). MiniLMv2 uses 48 for teachers of base size and 64 for large ones.
        mask: (B, T), 1 for tokens and 0 for padding, as a tokenizer gives it. Nothing relates to
            padding; other numbers weigh the tokens.
        total: Normaliser in place of `sum(mask)`, or of the number of tokens.

    Returns:
        A scalar >= 0 in nats, 0 at equality. The gradient is computed together with the value, so
        there are no second derivatives: backward with `create_graph=True` raises DistillError.

    Raises:
        ShapeError: If batch, lengths or heads differ, a width is no multiple of
            `relation_heads`, the mask does not fit, or the sides give different numbers of
            tensors.
        ConfigError: If `relation_heads` is below 1.

    Reference:
        Wang et al.: MiniLM, NeurIPS 2020, section 3.2 (arXiv 2002.10957).
        Wang et al.: MiniLMv2, Findings of ACL 2021 (arXiv 2012.15828).

    Lecture:
        Language models

    When it helps:
        For a transformer student of another width and another number of heads than the teacher's:
        matching one layer is enough, and no projection has to be learned.

    Example:
        >>> import torch
        >>> student = torch.eye(2).view(1, 2, 2)
        >>> round(self_attention_relations(student, 2 * student, relation_heads=1).item(), 4)
        0.225
        >>> turned = student.flip(-1)
        >>> self_attention_relations(turned, student, relation_heads=1).item()
        0.0
    """
    check_relation_heads(relation_heads)
    values = []
    for s, t in layer_pairs(student, teacher):
        if (
            s.ndim not in (3, 4)
            or t.ndim not in (3, 4)
            or (len(s), s.shape[-2]) != (len(t), t.shape[-2])
            or 0 in (*s.shape[1:], *t.shape[1:])
        ):
            raise ShapeError(
                "the vectors of the tokens must be (B, T, H) or (B, A, T, d), not empty, with the "
                f"same B and T on both sides, got student {tuple(s.shape)} and teacher "
                f"{tuple(t.shape)}."
            )
        s_heads, t_heads = _split(s, relation_heads), _split(t, relation_heads)
        if s_heads.shape[1] != t_heads.shape[1]:
            raise ShapeError(
                "student and teacher must have the same number of heads, got student "
                f"{tuple(s.shape)} and teacher {tuple(t.shape)}. Give relation_heads to split the "
                "joined vectors of both sides anew."
            )
        check_mask(mask, len(s), s.shape[-2])
        with full_precision(s):
            values.append(
                map_kl((s_heads, s_heads), (t_heads, t_heads), scale=None, mask=mask, total=total)
            )
    return sum(values[1:], values[0])


def _split(vectors: Tensor, relation_heads: int | None) -> Tensor:
    """Return (B, A, T, d) with the wanted number of heads."""
    if relation_heads is None:
        if vectors.ndim == 3:
            raise ShapeError(
                f"vectors of shape {tuple(vectors.shape)} do not show their heads. Give "
                "relation_heads, or (B, A, T, d) to keep the heads of the model."
            )
        return vectors
    if vectors.ndim == 4:
        vectors = vectors.transpose(1, 2).flatten(2)
    if vectors.shape[2] % relation_heads:
        raise ShapeError(
            f"relation_heads={relation_heads} does not divide the width {vectors.shape[2]} of "
            f"vectors of shape {tuple(vectors.shape)}. Choose a common divisor of both widths."
        )
    return vectors.unflatten(2, (relation_heads, -1)).transpose(1, 2)


def check_relation_heads(relation_heads: int | None) -> None:
    """Raise ConfigError unless the number of heads is None or a positive integer."""
    if relation_heads is not None and not (isinstance(relation_heads, int) and relation_heads >= 1):
        raise ConfigError(f"relation_heads must be an integer >= 1 or None, got {relation_heads}.")


class SelfAttentionRelations(nn.Module):
    """Module form of :func:`self_attention_relations`; `weight` is the function's `mask`.

    Example:
        >>> import torch
        >>> loss = SelfAttentionRelations(relation_heads=2)
        >>> loss(torch.zeros(1, 3, 4), torch.zeros(1, 3, 6)).item()
        0.0
    """

    any_channels: ClassVar[bool] = True

    def __init__(self, *, relation_heads: int | None = None) -> None:
        super().__init__()
        check_relation_heads(relation_heads)
        self.relation_heads = relation_heads

    def forward(
        self,
        student: Layers,
        teacher: Layers,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return self_attention_relations(
            student, teacher, relation_heads=self.relation_heads, mask=weight, total=total
        )

    def extra_repr(self) -> str:
        return f"relation_heads={self.relation_heads}"
