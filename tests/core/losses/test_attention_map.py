from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import AttentionMap, attention_map

LENGTHS = (5, 3, 1)


def scores(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def padding_mask(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(z - max(row)) for z in row]
    return [e / math.fsum(exps) for e in exps]


def slow(student: Tensor, teacher: Tensor, divergence: str, lengths: tuple[int, ...]) -> float:
    """The definition, one number at a time, on the scores of the tokens that are not padding."""

    def row(s: list[float], t: list[float]) -> float:
        if divergence == "mse":
            return math.fsum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        p_s, p_t = softmax(s), softmax(t)
        terms = [-b * math.log(a) for a, b in zip(p_s, p_t, strict=True)]
        if divergence == "kl":
            terms += [b * math.log(b) for b in p_t]
        return math.fsum(terms)

    values = []
    for s_maps, t_maps, length in zip(student.tolist(), teacher.tolist(), lengths, strict=True):
        for i in range(length):
            pairs = zip(s_maps, t_maps, strict=True)
            heads = [row(s_map[i][:length], t_map[i][:length]) for s_map, t_map in pairs]
            values.append(math.fsum(heads) / len(heads))
    return math.fsum(values) / len(values)


def test_golden(golden_bert: dict[str, Tensor]):
    student, teacher = golden_bert["as_"], golden_bert["at"]
    for form, pair in {
        "scores": (student, teacher),
        "probabilities": (student.softmax(-1), teacher.softmax(-1)),
    }.items():
        kl = attention_map(*pair, form=form)  # type: ignore
        ce = attention_map(*pair, form=form, divergence="cross_entropy")  # type: ignore
        assert kl.item() == pytest.approx(0.74390763, rel=1e-6)
        assert ce.item() == pytest.approx(2.37908435, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "mse"])
def test_equals_the_definition(divergence, masked: bool):
    student, teacher = scores(3, 2, 5, 5), scores(3, 2, 5, 5, seed=1)
    mask = padding_mask(*LENGTHS) if masked else None
    expected = slow(student, teacher, divergence, LENGTHS if masked else (5, 5, 5))
    value = attention_map(student, teacher, form="scores", divergence=divergence, mask=mask)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    if divergence != "mse":
        pair = student.softmax(-1), teacher.softmax(-1)
        value = attention_map(*pair, divergence=divergence, mask=mask)
        assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_probabilities_and_scores_train_alike(divergence):
    """What differs between the gradients of probabilities, the softmax behind them takes out."""
    student, teacher = scores(2, 3, 4, 4).requires_grad_(), scores(2, 3, 4, 4, seed=1)
    mask = padding_mask(4, 2)
    values = [
        attention_map(student, teacher, form="scores", divergence=divergence, mask=mask),
        attention_map(student.softmax(-1), teacher.softmax(-1), divergence=divergence, mask=mask),
    ]
    grads = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_what_lies_in_the_padding_does_not_matter():
    student, teacher = scores(2, 2, 4, 4).requires_grad_(), scores(2, 2, 4, 4, seed=1)
    mask = padding_mask(4, 2)
    hidden = ~(mask[:, None, :, None] & mask[:, None, None, :]).expand_as(student)
    for divergence in ("kl", "cross_entropy", "mse"):
        options = {"form": "scores", "divergence": divergence, "mask": mask}
        value = attention_map(student, teacher, **options)  # type: ignore
        (grad,) = torch.autograd.grad(value, student)
        assert not grad[hidden].any() and grad[~hidden].all()
        other = torch.where(hidden, 1e4 * student.detach().sign(), student.detach())
        low = -1e4 if divergence == "mse" else torch.finfo(torch.float64).min
        lowest = torch.where(hidden, low, teacher)
        moved = attention_map(other, lowest, **options)  # type: ignore
        torch.testing.assert_close(moved, value.detach())


@pytest.mark.parametrize("form", ["probabilities", "scores"])
def test_nothing_but_padding(form):
    maps = scores(2, 2, 3, 3).softmax(-1)
    student, teacher = maps.requires_grad_(), scores(2, 2, 3, 3, seed=1).softmax(-1)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    value = attention_map(student, teacher, form=form, mask=mask)
    torch.testing.assert_close(value, attention_map(student[:1], teacher[:1], form=form))
    (grad,) = torch.autograd.grad(value, student)
    assert grad[0].any() and not grad[1].any()
    value = attention_map(student, teacher, form=form, mask=torch.zeros(2, 3))
    assert value.item() == 0.0
    assert not torch.autograd.grad(value, student)[0].any()


def test_cross_entropy_has_the_gradient_of_kl():
    student, teacher = scores(2, 2, 4, 4).requires_grad_(), scores(2, 2, 4, 4, seed=1)
    kl, ce = (
        attention_map(student, teacher, form="scores", divergence=divergence)  # type: ignore
        for divergence in ("kl", "cross_entropy")
    )
    p = teacher.softmax(-1)
    torch.testing.assert_close(ce - kl, -(p * p.log()).sum(-1).mean())
    torch.testing.assert_close(
        torch.autograd.grad(ce, student)[0], torch.autograd.grad(kl, student)[0]
    )


def test_scores_may_be_shifted_row_by_row():
    student, teacher = scores(2, 2, 4, 4), scores(2, 2, 4, 4, seed=1)
    shift = 100 * scores(2, 2, 4, 1, seed=2)
    expected = attention_map(student, teacher, form="scores")
    torch.testing.assert_close(attention_map(student + shift, teacher, form="scores"), expected)
    torch.testing.assert_close(attention_map(student, teacher - shift, form="scores"), expected)


def test_the_scale_of_dropout_and_rounding_are_taken_out():
    student, teacher = (scores(2, 2, 6, 6, seed=seed).softmax(-1) for seed in (0, 1))
    expected = attention_map(student, teacher)
    torch.testing.assert_close(attention_map(student / 0.9, teacher), expected)
    rounded = student.bfloat16()
    assert attention_map(rounded, rounded.float()).item() == 0.0
    assert attention_map(rounded, student.float()).item() == pytest.approx(0.0, abs=2e-5)


def test_layers_are_averaged():
    student = tuple(scores(2, 2, 4, 4, seed=seed) for seed in (0, 1, 2))
    teacher = [scores(2, 2, 4, 4, seed=seed) for seed in (3, 4, 5)]
    single = [attention_map(s, t, form="scores") for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(
        attention_map(student, teacher, form="scores"), sum(single[1:], single[0]) / 3
    )


@pytest.mark.parametrize("form", ["probabilities", "scores"])
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "mse"])
def test_averages_over_the_heads(form, divergence):
    student, teacher = scores(2, 2, 4, 4), scores(2, 6, 4, 4, seed=1)
    if form == "probabilities":
        student, teacher = student.softmax(-1), teacher.softmax(-1)
    options = {"form": form, "divergence": divergence}
    value = attention_map(student, teacher, heads="mean", **options)
    if form == "scores" and divergence != "mse":
        student, teacher = student.softmax(-1), teacher.softmax(-1)
        options["form"] = "probabilities"
    means = [maps.mean(1, keepdim=True) for maps in (student, teacher)]
    torch.testing.assert_close(value, attention_map(*means, **options))


def test_an_average_of_certainties_that_underflow():
    """In the logarithm of a mean, 1e4 apart is nothing special."""
    student = torch.tensor([[[[1e4, 0.0]], [[0.0, 1e4]]]], requires_grad=True)
    value = attention_map(student, torch.zeros(1, 1, 1, 2), form="scores", heads="mean")
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    same = torch.tensor([[[[1e4, 0.0]], [[1e4, 0.0]]]], requires_grad=True)
    value = attention_map(same, torch.zeros(1, 1, 1, 2), form="scores", heads="mean")
    assert value.item() == pytest.approx(5e3, rel=1e-3)
    (grad,) = torch.autograd.grad(value, same)
    assert torch.isfinite(grad).all() and (grad[..., 1] < 0).all()


def test_cross_attention():
    """Three queries, seven keys: the mask is one of queries."""
    student, teacher = scores(2, 2, 3, 7), scores(2, 2, 3, 7, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)
    expected = (rows.mean(1) * mask).sum() / 3
    torch.testing.assert_close(attention_map(student, teacher, form="scores", mask=mask), expected)


def test_causal_maps():
    """Zeros on both sides, and the lowest scores on both sides, change nothing."""
    student, teacher = scores(1, 2, 4, 4), scores(1, 2, 4, 4, seed=1)
    seen = torch.ones(4, 4).tril().bool()
    rows = []
    for i in range(4):
        s, t = (maps[..., i, : i + 1] for maps in (student, teacher))
        rows.append((t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean())
    expected = torch.stack(rows).mean()
    for low in (-1e4, torch.finfo(torch.float32).min):
        pair = [
            maps.float().masked_fill(~seen, low).requires_grad_() for maps in (student, teacher)
        ]
        value = attention_map(*pair, form="scores")
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.isfinite(torch.autograd.grad(value, pair[0])[0]).all()
        value = attention_map(*(maps.softmax(-1) for maps in pair))
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.isfinite(torch.autograd.grad(value, pair[0])[0]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", ["same", "mean"])
@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0]])])
def test_probabilities_of_any_kind_are_finite(dtype: torch.dtype, heads, mask):
    kinds: list[Tensor] = [
        torch.tensor([1.0, 0.0, 0.0]),
        torch.tensor([0.0, 1.0, 0.0]),
        torch.tensor([1.0, 6e-8, 0.0]),
        torch.zeros(3),
        torch.full((3,), 1e-30),
        torch.full((3,), 1e4),
        torch.tensor([-1.0, 2.0, -1e4]),
    ]
    for left in kinds:
        for right in kinds:
            student = left.to(dtype).expand(1, 2, 3, 3).clone().requires_grad_()
            teacher = right.to(dtype).expand(1, 2, 3, 3)
            value = attention_map(student, teacher, heads=heads, mask=mask)
            value.backward()
            assert torch.isfinite(value) and value >= 0
            assert student.grad is not None and torch.isfinite(student.grad).all()


def test_a_key_that_the_student_overlooks_costs_much_but_not_everything():
    student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.5, 0.5]]]])
    value = attention_map(student, teacher).item()
    assert value == pytest.approx(0.5 * math.log(1e30) - math.log(2), rel=1e-5)


CASES: dict[str, dict[str, object]] = {
    "probabilities": {},
    "heads": {"heads": "mean"},
    "scores, heads": {"heads": "mean", "form": "scores"},
    "cross entropy": {"divergence": "cross_entropy"},
    "mse": {"divergence": "mse", "form": "scores"},
}


def loss_of(case: str, masked: bool) -> Callable[[Tensor], Tensor]:
    options = CASES[case]
    teacher = scores(2, 2, 3, 3, seed=1)
    if options.get("form") != "scores":
        teacher = teacher.softmax(-1)
    mask = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 2.0]]) if masked else None
    return lambda student: attention_map(student, teacher, mask=mask, **options)  # type: ignore


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case: str, masked: bool):
    student = scores(2, 2, 3, 3).softmax(-1).requires_grad_()
    loss = loss_of(case, masked)
    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-7, rtol=1e-6)
    (expected,) = torch.autograd.grad(loss(student), student)
    with losses.backend("reference"):
        torch.testing.assert_close(torch.autograd.grad(loss(student), student)[0], expected)
        assert torch.autograd.gradgradcheck(loss, (student,), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["probabilities", "scores, heads"])
def test_compiles_in_one_graph(case: str):
    student = scores(2, 2, 3, 3).softmax(-1).requires_grad_()
    loss = loss_of(case, masked=True)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(student)
    torch.testing.assert_close(compiled, loss(student))
    torch.testing.assert_close(
        *(torch.autograd.grad(value, student)[0] for value in (compiled, loss(student)))
    )


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(0, 3),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 4),
    keys=st.integers(1, 4),
    form=st.sampled_from(["probabilities", "scores"]),
    seed=st.integers(0, 10**6),
)
def test_odd_shapes(batch: int, heads: int, tokens: int, keys: int, form, seed: int):
    s, t = (scores(batch, heads, tokens, keys, seed=seed + i) for i in (0, 1))
    rows = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)
    expected = rows.mean() if batch else torch.zeros((), dtype=torch.float64)
    pair = (s, t) if form == "scores" else (s.softmax(-1), t.softmax(-1))
    torch.testing.assert_close(attention_map(*pair, form=form), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["probabilities", "scores"])
def test_keeps_one_tensor_a_layer(form):
    student = [torch.rand(2, 2, 8, 8, requires_grad=True) for _ in range(3)]
    teacher = [torch.rand(2, 2, 8, 8) for _ in range(3)]
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention_map(student, teacher, form=form)
    assert sum(held.values()) <= sum(layer.numel() for layer in student) + 8


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "mse"])
def test_the_teacher_may_come_from_inference_mode(divergence):
    with torch.inference_mode():
        teacher = torch.rand(1, 2, 3, 3)
    student = torch.rand(1, 2, 3, 3, requires_grad=True)
    attention_map(student, teacher, divergence=divergence).backward()
    assert student.grad is not None and student.grad.any()


def test_second_derivatives_are_refused():
    student = torch.rand(1, 1, 2, 2, requires_grad=True)
    value = attention_map(student, torch.rand(1, 1, 2, 2)) + student.square().sum()
    with pytest.raises(DistillError, match="create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)


def test_head_counts_must_agree_unless_averaged():
    student, teacher = torch.zeros(2, 4, 3, 3), torch.zeros(2, 12, 3, 3)
    with pytest.raises(ShapeError, match=r"\(2, 4, 3, 3\).*\(2, 12, 3, 3\).*heads='mean'"):
        attention_map(student, teacher)
    with pytest.raises(ShapeError, match="same shape"):
        attention_map(student, teacher[..., :2], heads="mean")


def test_what_is_no_attention_map():
    with pytest.raises(ShapeError, match=r"must be \(B, A, T, keys\)"):
        attention_map(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ShapeError, match=r"must be \(B, A, T, keys\)"):
        attention_map(torch.zeros(2, 1, 3, 0), torch.zeros(2, 1, 3, 0))
    maps = torch.zeros(2, 1, 3, 3)
    with pytest.raises(ShapeError, match="same number of layers.* 2 and 1"):
        attention_map((maps, maps), (maps,))
    with pytest.raises(ShapeError, match="at least one"):
        attention_map((), ())
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) for \(B, T\), got \(2, 1, 3\)"):
        attention_map(maps, maps, mask=torch.ones(2, 1, 3))


@pytest.mark.parametrize(
    "option", [{"form": "logits"}, {"divergence": "js"}, {"heads": "sum"}], ids=str
)
def test_unknown_options(option: dict):
    with pytest.raises(ConfigError, match="must be one of"):
        attention_map(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), **option)
    with pytest.raises(ConfigError, match="must be one of"):
        AttentionMap(**option)
