"""Transfer of the attention maps of a transformer (MobileBERT, Sun et al. 2020)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ._backend import compilable
from ._reduction import check_choice, compute_dtype, full_precision, weighted_mean
from ._row_kl import divergence as row_divergence
from ._rows import RowLoss
from ._sequence import Layers, check_mask, layer_pairs, lowest, mean_over_layers, padded_keys

Form = Literal["probabilities", "scores"]
Divergence = Literal["kl", "cross_entropy", "mse"]
Heads = Literal["same", "mean"]

# Of a probability, before its logarithm: small enough to change no sum, large enough to divide by.
_SMALLEST = 1e-30


def attention_map(
    student: Layers,
    teacher: Layers,
    *,
    form: Form = "probabilities",
    divergence: Divergence = "kl",
    heads: Heads = "same",
    mask: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Divergence of the attention that every query pays to the keys.

    .. math:: L = \frac{1}{A N} \sum_{a, i} \sum_j p^t_{aij} (\log p^t_{aij} - \log p^s_{aij})

    over A heads, N queries i and all keys j. Other models than BERT's are welcome, with any number
    of keys (cross attention).

    `divergence="kl"` is the paper's. Its published code leaves out the entropy of the teacher
    (`"cross_entropy"`): the same gradient, but not 0 at equality. `"mse"` is the mean over the
    keys of the squared difference, which TinyBERT takes of the scores. (Its common code counts
    padding, with scores set to 0 for padded keys; without padding the two agree.)

    `form` says what the maps are:

    * `"probabilities"`: after the softmax, as `transformers` returns them (with
      `attn_implementation="eager"`). Rows are divided by their sum first, which takes out rounding
      in half precision and the scale of dropout. Better switch the dropout of attention off while
      distilling: a key that it dropped looks like one the student overlooked. Probabilities below
      1e-30, with 0 among them, are taken for 1e-30 and get no gradient.
    * `"scores"`: before the softmax. They must be finite: where a model adds a mask of its own
      (a causal one), let it add a large negative number, not -inf.

    `mask` needs one number a token and does both: padded keys get no attention (on both sides, and
    the rest is normalised again) and padded queries do not count. With fewer or more keys than
    queries it weighs the queries only, since it does not know the keys.

    Args:
        student: (B, A, T, T) or (B, A, T, keys), or a tuple of such, one a layer, whose losses are
            averaged.
        teacher: The same shapes.
        form: `"probabilities"` or `"scores"`.
        divergence: `"kl"`, `"cross_entropy"` or `"mse"`.
        heads: `"same"` compares head by head. `"mean"` compares the averages over the heads, and
            the sides may have different numbers of them: the average of the probabilities (also
            from scores), for `"mse"` that of the maps as given.
        mask: (B, T), 1 for tokens and 0 for padding, as a tokenizer gives it; other numbers weigh
            the queries.
        total: Normaliser in place of `sum(mask)`, or of B * T.

    Returns:
        A scalar >= 0, in nats. The gradient is computed together with the value (but for
        `"mse"`), so there are no second derivatives: backward with `create_graph=True` raises
        DistillError.

    Raises:
        ShapeError: If the shapes differ or are not (B, A, T, keys), the mask does not fit, or the
            sides have different numbers of layers.
        ConfigError: If an option is unknown.

    Reference:
        Sun et al.: MobileBERT, ACL 2020, section 3.5, "attention transfer" (arXiv 2004.02984).
        Jiao et al.: TinyBERT, Findings of EMNLP 2020, equation 7 (arXiv 1909.10351), for `"mse"`.

    Lecture:
        Language models

    When it helps:
        For a transformer student with the teacher's number of heads, beside the transfer of hidden
        states: it shows which tokens to look at.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
        >>> round(attention_map(student, teacher, form="scores").item(), 4)
        0.1109
        >>> probabilities = student.softmax(-1), teacher.softmax(-1)
        >>> round(attention_map(*probabilities).item(), 4)
        0.1109
    """
    check_attention_options(form, divergence, heads)
    values = []
    for s, t in layer_pairs(student, teacher):
        _check_shapes(s, t, heads)
        check_mask(mask, s.shape[0], s.shape[2])
        padding = padded_keys(mask) if s.shape[2] == s.shape[3] else None
        with full_precision(s):
            dtype = compute_dtype(s, t)
            maps = [_prepare(m, dtype, form, divergence, heads, padding) for m in (s, t.detach())]
            if divergence == "mse":
                squares = _squares(*maps, padding)
                values.append(weighted_mean(squares.mean(1), mask, total))
                continue
            rows = row_divergence(3, 1.0) if form == "scores" else _of_probabilities(s.dtype)
            value = rows.mean(*maps, weight=mask, total=total, within=1)
            if divergence == "cross_entropy":
                value = value + weighted_mean(_entropy(maps[1], form).mean(1), mask, total)
            values.append(value)
    return mean_over_layers(values)


def _check_shapes(student: Tensor, teacher: Tensor, heads: Heads) -> None:
    s, t = tuple(student.shape), tuple(teacher.shape)
    if len(s) != 4 or 0 in (s[1], s[3]):
        raise ShapeError(
            f"an attention map must be (B, A, T, keys), got student {s} and teacher {t}."
        )
    if s != t and (len(t) != 4 or heads == "same" or (s[0], *s[2:]) != (t[0], *t[2:])):
        raise ShapeError(
            f"student and teacher must have the same shape, got student {s} and teacher {t}. "
            "Where only the numbers of heads differ use heads='mean'."
        )


def _prepare(
    maps: Tensor,
    dtype: torch.dtype,
    form: Form,
    divergence: Divergence,
    heads: Heads,
    padding: Tensor | None,
) -> Tensor:
    """Bring the maps to what is compared: no padding, one head where these are averaged."""
    soften = form == "scores" and divergence != "mse"
    maps = maps.to(dtype)
    if padding is not None:
        maps = maps.masked_fill(padding, lowest(dtype) if soften else 0)
    if heads == "same":
        return maps
    if soften:
        # The constant log(A) is left out: it changes no softmax.
        return maps.log_softmax(3).logsumexp(1, keepdim=True)
    return maps.mean(1, keepdim=True)


def _squares(student: Tensor, teacher: Tensor, padding: Tensor | None) -> Tensor:
    squares = (student - teacher).square()
    if padding is None:
        return squares.mean(3)
    return squares.sum(3) / (~padding).sum(3).clamp(min=1)


def _entropy(maps: Tensor, form: Form) -> Tensor:
    logits = maps.clamp(min=_SMALLEST).log() if form == "probabilities" else maps
    log_p = logits.log_softmax(3)
    return -(log_p.exp() * log_p).sum(3)


def _of_probabilities(dtype: torch.dtype) -> RowLoss:
    """KL(teacher || student) of rows of probabilities, divided by their sums."""
    most = torch.finfo(dtype).max if dtype == torch.float16 else None
    return RowLoss(partial(_probability_kl, most=most), _plain_probability_kl, 3)


@compilable
def _probability_kl(
    student: Tensor,
    teacher: Tensor,
    extra: Tensor | None,
    scale: Tensor | float,
    out: Tensor | None,
    dim: int,
    wanted: bool,
    *,
    most: float | None,
) -> tuple[Tensor, Tensor | None]:
    s, t = student.clamp(min=_SMALLEST), teacher.clamp(min=_SMALLEST)
    sum_s, sum_t = s.sum(dim, True), t.sum(dim, True)
    ratio = t / s
    cross = (ratio.log() * t).sum(dim, True) / sum_t
    # Below 0 only by rounding.
    values = (cross + (sum_s / sum_t).log()).clamp(min=0).squeeze(dim)
    if not wanted:
        return values, None
    slope = ratio.mul_(-scale / sum_t).add_(scale / sum_s)
    if most is not None:
        slope = slope.clamp_(-most, most)  # what half precision can hold
    # A product with a mask of bool takes longer than the rest.
    live = s.gt_(_SMALLEST) if out is not None else (student > _SMALLEST).to(slope.dtype)
    return values, torch.mul(slope, live, out=out)


def _plain_probability_kl(
    student: Tensor, teacher: Tensor, extra: Tensor | None, dim: int
) -> Tensor:
    s, t = student.clamp(min=_SMALLEST), teacher.clamp(min=_SMALLEST)
    p_t = t / t.sum(dim, True)
    return (p_t * (p_t.log() - (s / s.sum(dim, True)).log())).sum(dim)


def check_attention_options(form: str, divergence: str, heads: str) -> None:
    """Raise ConfigError unless the options are known ones."""
    check_choice("form", form, get_args(Form))
    check_choice("divergence", divergence, get_args(Divergence))
    check_choice("heads", heads, get_args(Heads))


class AttentionMap(nn.Module):
    """Module form of :func:`attention_map`; `weight` is the function's `mask`.

    Example:
        >>> import torch
        >>> loss = AttentionMap(form="scores")
        >>> loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).item()
        0.0
    """

    any_channels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        form: Form = "probabilities",
        divergence: Divergence = "kl",
        heads: Heads = "same",
    ) -> None:
        super().__init__()
        check_attention_options(form, divergence, heads)
        self.form: Form = form
        self.divergence: Divergence = divergence
        self.heads: Heads = heads

    def forward(
        self,
        student: Layers,
        teacher: Layers,
        weight: Tensor | None = None,
        total: Tensor | float | None = None,
    ) -> Tensor:
        return attention_map(
            student,
            teacher,
            form=self.form,
            divergence=self.divergence,
            heads=self.heads,
            mask=weight,
            total=total,
        )

    def extra_repr(self) -> str:
        return f"form={self.form!r}, divergence={self.divergence!r}, heads={self.heads!r}"
