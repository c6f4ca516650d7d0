from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core.errors import ConfigError, DistillError, ShapeError
from taskdistill.core.losses import (
    FactorTransfer,
    ParaphrasedFactorTransfer,
    Paraphraser,
    Translator,
    backend,
    factor_transfer,
    paraphraser_loss,
)

Golden = dict[str, Tensor]


def by_hand(student: Tensor, teacher: Tensor, p: int, form: str) -> float:
    """The definition, one number after the other."""
    channels, positions = student.shape[1], student[0, 0].numel()

    def direction(sample: Tensor) -> list[float]:
        if form == "attention":
            places = sample.reshape(channels, positions).T.tolist()
            numbers = [sum(a * a for a in place) / channels for place in places]
        else:
            numbers = sample.flatten().tolist()
        length = sum(a * a for a in numbers) ** 0.5
        return [a / length for a in numbers]

    values = []
    for s, t in zip(student, teacher, strict=True):
        powers = [abs(a - b) ** p for a, b in zip(direction(s), direction(t), strict=True)]
        if form == "paper":
            values.append(positions ** (1 / 2 - 1 / p) * sum(powers) ** (1 / p))
        else:
            values.append(sum(powers) / len(powers))
    return sum(values) / len(values)


@pytest.mark.parametrize(("form", "expected"), [("code", 0.056957338), ("attention", 0.0663191676)])
def test_reference_values(golden_cls: Golden, form: str, expected: float):
    value = factor_transfer(golden_cls["fs"], golden_cls["ft"], form=form)  # type: ignore
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_factors_between_the_forms(golden_cls: Golden):
    fs, ft = golden_cls["fs"], golden_cls["ft"]
    paper, code = factor_transfer(fs, ft), factor_transfer(fs, ft, form="code")
    torch.testing.assert_close(paper, 6 * 64**0.5 * code)
    directions = [nn.functional.normalize(x.flatten(1)) for x in (fs, ft)]
    norms = [(directions[0] - directions[1]).norm(p, dim=1).mean() for p in (1, 2)]
    torch.testing.assert_close(64**0.5 * paper, norms[0])
    torch.testing.assert_close(factor_transfer(fs, ft, p=2), norms[1])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)),
    axes=st.integers(2, 4),
    p=st.sampled_from([1, 2]),
    form=st.sampled_from(["paper", "code", "attention"]),
    seed=st.integers(0, 999),
)
def test_the_definition_number_by_number(shape, axes, p, form, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(shape[:axes], generator=generator, dtype=torch.float64) for _ in range(2)
    )
    value = factor_transfer(student, teacher, p=p, form=form)
    if axes == 2:
        student, teacher = student.unsqueeze(2), teacher.unsqueeze(2)
    assert value.item() == pytest.approx(by_hand(student, teacher, p, form), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("form", ["paper", "code", "attention"])
def test_gradients_of_all_options(p: int, form: str):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(3, 4, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    student.requires_grad_()

    def loss(s: Tensor) -> Tensor:
        return factor_transfer(s, teacher, p=p, form=form)  # type: ignore

    assert torch.autograd.gradcheck(loss, student)
    (grad,) = torch.autograd.grad(loss(student), student)
    with backend("reference"):
        (expected,) = torch.autograd.grad(loss(student), student)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("form", ["paper", "code", "attention"])
def test_the_size_of_a_factor_does_not_count(golden_cls: Golden, p: int, form: str):
    fs, ft = golden_cls["fs"].double(), golden_cls["ft"].double()
    sizes = torch.tensor([1e-3, 7.0, 2.0, 1e5]).double().view(4, 1, 1, 1)
    values = [
        factor_transfer(s, t, p=p, form=form)  # type: ignore
        for s, t in ((fs, ft), (sizes * fs, 0.1 * ft), (ft, fs))
    ]
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(values[2], values[0], rtol=1e-9, atol=0)
    equal = factor_transfer(fs, 3 * fs, p=p, form=form)  # type: ignore
    assert equal.item() == pytest.approx(0.0, abs=1e-12)


def test_the_sign_of_a_factor_counts():
    student = torch.tensor([[3.0, 4.0]])
    assert factor_transfer(student, -student, p=2).item() == pytest.approx(2.0)


@pytest.mark.parametrize("size", [1e-12, 1e4, 1e15])
@pytest.mark.parametrize("form", ["paper", "code", "attention"])
def test_sizes_that_squares_hardly_survive(size: float, form: str):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    scaled = (size * student).requires_grad_()
    value = factor_transfer(scaled, size * teacher, form=form)  # type: ignore
    value.backward()
    expected = factor_transfer(student, teacher, form=form)  # type: ignore
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    assert scaled.grad is not None and torch.isfinite(scaled.grad).all()
    assert scaled.grad.abs().max() > 0


@pytest.mark.parametrize("form", ["paper", "code", "attention"])
def test_zeros_stay_zeros(form: str):
    student, teacher = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    student[1] = torch.randn(4, 2, 2)
    student.requires_grad_()
    factor_transfer(student, teacher, form=form).backward()  # type: ignore
    assert student.grad is not None and student.grad[0].abs().max() == 0
    assert student.grad[1].abs().max() > 0


def test_backward_twice():
    student = torch.randn(2, 3, 4, requires_grad=True)
    loss = factor_transfer(student, torch.randn(2, 3, 4))
    first, second = (torch.autograd.grad(loss, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(DistillError, match="second derivatives"):
        torch.autograd.grad(loss, student, create_graph=True)


@pytest.mark.parametrize("shape", [(1, 700, 32, 32), (300, 4, 33), (5000, 70), (3, 700, 500)])
@pytest.mark.parametrize("p", [1, 2])
def test_large_factors_are_worked_on_in_parts(shape: tuple[int, ...], p: int):
    with torch.inference_mode():
        teacher = torch.randn(shape)
    student = torch.randn(shape, requires_grad=True)
    value = factor_transfer(student, teacher, p=p)
    (grad,) = torch.autograd.grad(value, student)
    with backend("reference"):
        expected = factor_transfer(student, teacher, p=p)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6 * grad.abs().max().item())


def test_options_and_shapes_are_checked():
    x = torch.ones(1, 2, 3)
    for options, message in (
        ({"p": 3}, "p must be 1 or 2"),
        ({"form": "codes"}, "Did you mean 'code'"),
    ):
        with pytest.raises(ConfigError, match=message):
            factor_transfer(x, x, **options)  # type: ignore
        with pytest.raises(ConfigError, match=message):
            FactorTransfer(**options)  # type: ignore
    for shape in ((3,), (2, 0), (2, 3, 0, 4)):
        with pytest.raises(ShapeError, match="with channels and positions"):
            factor_transfer(torch.ones(shape), torch.ones(shape))
    assert repr(FactorTransfer(p=2)) == "FactorTransfer(p=2, form='paper')"


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_layers_of_the_paraphraser(batch_norm: bool):
    paraphraser = Paraphraser(64, rate=0.75, batch_norm=batch_norm)
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] if batch_norm else [nn.Conv2d, nn.LeakyReLU]
    assert [type(m) for m in paraphraser.encoder] == 3 * kinds
    convolutions = [
        (m.in_channels, m.out_channels, m.kernel_size, m.bias is None)
        for m in paraphraser.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    widths = [64, 64, 48, 48, 48, 64, 64]
    assert convolutions == [
        (a, b, (3, 3), batch_norm) for a, b in zip(widths, widths[1:], strict=False)
    ]
    assert all(m.negative_slope == 0.1 for m in paraphraser.encoder if type(m) is nn.LeakyReLU)
    assert paraphraser.factor_channels == 48
    assert paraphraser(torch.randn(2, 64, 5, 7)).shape == (2, 48, 5, 7)
    assert paraphraser.reconstruct(torch.randn(2, 64, 5, 7)).shape == (2, 64, 5, 7)


def test_the_translator_is_built_like_the_encoder():
    translator = Translator(16, 48)
    assert translator(torch.randn(2, 16, 5, 7)).shape == (2, 48, 5, 7)
    sizes = [m.weight.shape[:2] for m in translator.encoder if isinstance(m, nn.Conv2d)]
    assert sizes == [(16, 16), (48, 16), (48, 48)]


def test_widths_are_checked():
    for rate in (0.0, -1.0, float("nan"), 0.01):
        with pytest.raises(ConfigError, match="rate must leave"):
            Paraphraser(16, rate=rate)
    with pytest.raises(ConfigError, match="channels must be at least 1"):
        Paraphraser(0)
    with pytest.raises(ConfigError, match="factor_channels must be at least 1"):
        Translator(4, 0)
    for network in (Paraphraser(4), Translator(4, 2)):
        for shape in ((1, 5, 3, 3), (4, 3, 3)):
            with pytest.raises(ShapeError, match=r"\(B, 4, H, W\)"):
                network(torch.ones(shape))


def test_the_loss_of_the_paraphraser():
    torch.manual_seed(0)
    paraphraser, x = Paraphraser(4), torch.randn(2, 4, 5, 3, requires_grad=True)
    difference = paraphraser.reconstruct(x.detach()) - x.detach()
    paper, code = (paraphraser_loss(paraphraser, x, form=form) for form in ("paper", "code"))
    torch.testing.assert_close(paper, difference.square().sum() / (2 * 5 * 3))
    torch.testing.assert_close(code, difference.abs().mean())
    weight = torch.zeros(2, 5, 3)
    weight[1, 2, 2] = 3.0
    one = paraphraser_loss(paraphraser, x, weight=weight)
    torch.testing.assert_close(one, difference[1, :, 2, 2].square().sum())
    paper.backward()
    assert x.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in paraphraser.parameters())
    with pytest.raises(ConfigError, match="form must be one of"):
        paraphraser_loss(paraphraser, x, form="l1")  # type: ignore


def test_both_stages_bring_the_student_to_the_teacher():
    """In small: train the paraphraser, freeze it, train the translator on top of it."""
    torch.manual_seed(0)
    feature_t, feature_s = torch.randn(8, 6, 4, 4), torch.randn(8, 3, 4, 4)
    paraphraser, translator = Paraphraser(6), Translator(3, 3)
    first = paraphraser_loss(paraphraser, feature_t).item()
    optimizer = torch.optim.Adam(paraphraser.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = paraphraser_loss(paraphraser, feature_t)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * first
    factor = paraphraser.eval().requires_grad_(False)(feature_t)
    first = factor_transfer(translator(feature_s), factor).item()
    optimizer = torch.optim.Adam(translator.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = factor_transfer(translator(feature_s), factor)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * first


# -- both stages in one loss -----------------------------------------------------------------------


def whole(**options: object) -> tuple[ParaphrasedFactorTransfer, Tensor, Tensor]:
    torch.manual_seed(0)
    loss = ParaphrasedFactorTransfer((3, 6), **options)  # type: ignore[arg-type]
    return loss, torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(4, 6, 5, 5)


def test_in_the_first_stage_it_is_the_paraphraser_s_loss_and_leaves_the_student_alone():
    loss, student, teacher = whole(reconstruction=2.0, reconstruction_form="code")
    assert loss.paraphraser is not None
    value = loss(student, teacher, stage="paraphrase")
    expected = 2.0 * paraphraser_loss(loss.paraphraser, teacher, form="code")
    torch.testing.assert_close(value, expected)
    value.backward()
    assert student.grad is None
    assert all(p.grad.abs().sum() > 0 for p in loss.paraphraser.parameters())  # type: ignore
    assert set(loss.still("paraphrase")) == set(loss.translator.parameters())  # type: ignore


def test_in_any_other_stage_the_paraphraser_is_frozen():
    loss, student, teacher = whole(batch_norm=True, form="code")
    assert loss.paraphraser is not None and loss.translator is not None
    statistics = loss.paraphraser.encoder[1].running_mean.clone()  # type: ignore[union-attr]
    value = loss(student, teacher, stage="transfer")
    factor = loss.paraphraser.eval()(teacher).detach()
    torch.testing.assert_close(
        value, factor_transfer(loss.translator(student), factor, form="code")
    )
    value.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    # Data-parallel training counts on a gradient of all; here it is zero.
    assert all(float(p.grad.abs().sum()) == 0 for p in loss.paraphraser.parameters())  # type: ignore
    assert torch.equal(loss.paraphraser.encoder[1].running_mean, statistics)  # type: ignore
    assert set(loss.still("transfer")) == set(loss.paraphraser.parameters())
    # Called "paraphrase" or not: the name is an option.
    assert set(whole(paraphrase="first")[0].still("first")) != set(loss.still("first"))


def test_without_stages_both_are_trained_at_once_and_the_factor_is_no_student_s():
    loss, student, teacher = whole()
    assert loss.paraphraser is not None
    value = loss(student, teacher)
    value.backward()
    together = [p.grad.clone() for p in loss.paraphraser.parameters()]  # type: ignore[union-attr]
    loss.zero_grad()
    paraphraser_loss(loss.paraphraser, teacher).backward()
    for ours, alone in zip(together, loss.paraphraser.parameters(), strict=True):
        torch.testing.assert_close(ours, alone.grad)
    assert loss.still(None) == []


def test_the_whole_takes_its_channels_from_an_example():
    loss = ParaphrasedFactorTransfer(rate=0.5)
    with pytest.raises(DistillError, match="has no networks yet"):
        loss(torch.ones(1, 3, 2, 2), torch.ones(1, 8, 2, 2))
    loss.fit(torch.ones(1, 3, 2, 2), torch.ones(1, 8, 2, 2))
    assert loss.paraphraser is not None and loss.paraphraser.factor_channels == 4
    with pytest.raises(ShapeError, match="expected a map"):
        loss.fit(torch.ones(1, 3), torch.ones(1, 8))
    with pytest.raises(ConfigError, match="rate must be above 0"):
        ParaphrasedFactorTransfer(rate=0)
    with pytest.raises(ConfigError, match="reconstruction must be a number above 0"):
        ParaphrasedFactorTransfer(reconstruction=0)
