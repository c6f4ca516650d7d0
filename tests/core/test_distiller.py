"""Tests of the distiller. Run as a script, this file is one process of the DDP test."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from taskdistill.core import losses
from taskdistill.core.distiller import (
    Context,
    Distiller,
    Region,
    check_finite,
    default_outputs,
)
from taskdistill.core.errors import (
    ConfigError,
    DistillError,
    NonFiniteLossError,
    ShapeError,
    TapError,
    TeacherError,
)
from taskdistill.core.losses import (
    Hint,
    attention_qk,
    bounded_regression,
    fsp,
    hidden_state_transfer,
    hint,
    kl_div,
    sparse_logits,
)
from taskdistill.core.recipe import Progress, Recipe
from taskdistill.core.taps import Taps
from taskdistill.core.teacher import FrozenTeacher

HINT = {"student": "stem", "loss": "Hint", "name": "hint"}
LOGITS = {"student": "outputs.logits", "loss": "KLDivergence", "temperature": 2.0, "name": "kl"}


class Net(nn.Module):
    """A stem, a shared layer called three times, and a classifier."""

    def __init__(self, width: int, stride: int = 1, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shared = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(width, classes)
        self.classifier_calls = 0

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(image)))
        for i in range(3):
            x = self.shared(F.avg_pool2d(x, 2) if i else x)
        self.classifier_calls += 1
        return self.classifier(self.dropout(x.mean((2, 3))))


@pytest.fixture
def student() -> Net:
    return Net(4, stride=2)


@pytest.fixture
def teacher() -> Net:
    return Net(6)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(4, 3, 16, 16)


def set_up(distiller: Distiller, image: Tensor) -> Distiller:
    distiller.setup(distiller.student, lambda name: distiller.teachers[name].model, image)
    return distiller


def total(terms: dict[str, Any]) -> Tensor:
    return torch.stack([term.weighted for term in terms.values()]).sum()


# -- values ----------------------------------------------------------------------------------------


def test_terms_are_the_losses_on_the_tapped_tensors(student: Net, teacher: Net, image: Tensor):
    student.dropout.p = 0.0
    distiller = set_up(
        Distiller(student, teacher, [{**HINT, "weight": 3.0}, {**LOGITS, "weight": 0.5}]), image
    )
    output, terms = distiller(image)
    # By hand: the stem's output before the in-place activation, the teacher's pooled to 8 x 8.
    (adapter,) = distiller.adapters["hint"].children()
    ours = adapter.project(student.stem(image))  # type: ignore[operator]
    theirs = F.avg_pool2d(teacher.stem(image), 2)
    expected_hint = ((theirs - ours) ** 2).mean() / 2
    expected_kl = kl_div(output, teacher(image), temperature=2.0)
    assert list(terms) == ["hint", "kl"]
    torch.testing.assert_close(terms["hint"].raw, expected_hint.detach())
    torch.testing.assert_close(terms["hint"].weighted, 3.0 * expected_hint)
    torch.testing.assert_close(terms["kl"].raw, expected_kl.detach())
    torch.testing.assert_close(terms["kl"].weighted, 0.5 * expected_kl)
    assert not any(term.raw.requires_grad for term in terms.values())
    torch.testing.assert_close(output, student(image))


def test_gradient_is_that_of_the_loss_by_hand(student: Net, teacher: Net, image: Tensor):
    distiller = set_up(Distiller(student, teacher, [{**HINT, "weight": 3.0}]), image)
    _, terms = distiller(image)
    total(terms).backward()
    (adapter,) = distiller.adapters["hint"].children()
    ours = adapter.project(student.stem(image))  # type: ignore[operator]
    expected = 3.0 * hint(ours, F.avg_pool2d(teacher.stem(image), 2))
    wanted = [student.stem.weight, *distiller.parameters()]
    for parameter, grad in zip(wanted, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    assert student.classifier.weight.grad is None


def test_every_call_of_a_shared_module_has_its_adapter_and_counts_alike(
    student: Net, teacher: Net, image: Tensor
):
    recipe = [{"student": "shared", "loss": "Hint"}]
    distiller = set_up(Distiller(student, teacher, recipe), image)
    with distiller.watch() as seen:
        student(image)
    asked, _ = distiller.ask("teacher", image)
    terms = distiller.terms(seen, {"teacher": asked}, Context(), Progress())
    pairs = list(zip(seen.tensors("shared"), asked.tensors("shared"), strict=True))
    adapters = list(distiller.adapters["hint"].children())
    assert len(adapters) == len(pairs) == 3
    values = [hint(*adapter(s, t)) for adapter, (s, t) in zip(adapters, pairs, strict=True)]
    torch.testing.assert_close(terms["hint"].weighted, sum(values) / 3)  # type: ignore[operator]


WIDE = {n for n in losses.__all__ if getattr(getattr(losses, n), "any_channels", False)}


@pytest.mark.parametrize("loss", sorted(WIDE - {"SelfAttentionRelations"}))
def test_a_loss_for_any_width_gets_no_projection(
    loss: str, student: Net, teacher: Net, image: Tensor
):
    """Student and teacher differ in channels and in resolution; only the latter is matched."""
    tap = "classifier@input" if loss.startswith("RKD") else "stem"
    options = {"reduce_channels": "sum_sq"} if loss == "GradientAttentionTransfer" else {}
    if loss == "AttentionMap":
        options = {"form": "scores", "heads": "mean"}
    distiller = set_up(
        Distiller(student, teacher, [{"student": tap, "loss": loss, **options}]), image
    )
    assert not list(distiller.adapters.parameters())
    _, terms = distiller(image)
    total(terms).backward()
    assert student.stem.weight.grad is not None
    assert student.stem.weight.grad.abs().sum() > 0


def test_tokens_of_any_width_get_no_projection_either():
    student, teacher = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 8))
    pair = {"student": "0", "loss": "SelfAttentionRelations", "relation_heads": 2}
    distiller = Distiller(student, teacher, [pair])
    _, terms = set_up(distiller, torch.randn(2, 5, 3))(torch.randn(2, 5, 3))
    assert not list(distiller.parameters())
    assert total(terms) > 0


def test_a_projection_can_be_asked_for_even_so(student: Net, teacher: Net, image: Tensor):
    pair = {"student": "stem", "loss": "AttentionTransfer", "adapter": "conv1x1"}
    assert list(set_up(Distiller(student, teacher, [pair]), image).parameters())


def test_a_teacher_like_the_student_leaves_nothing_to_learn(student: Net, image: Tensor):
    student.eval()
    _, terms = Distiller(student, copy.deepcopy(student), [HINT, LOGITS])(image)
    assert [term.raw.item() for term in terms.values()] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_several_teachers(student: Net, teacher: Net, image: Tensor):
    other = Net(8)
    recipe = [{**LOGITS, "name": "first"}, {**LOGITS, "name": "second", "of": "b"}]
    recipe += [{**HINT, "of": "b"}]
    distiller = set_up(Distiller(student, {"a": teacher, "b": FrozenTeacher(other)}, recipe), image)
    output, terms = distiller(image)
    for name, model in (("first", teacher), ("second", other)):
        torch.testing.assert_close(
            terms[name].weighted, kl_div(output, model(image), temperature=2.0)
        )
    assert [pair.name for pair in distiller.pairs_of("b")] == ["second", "hint"]
    assert next(distiller.adapters["hint"].parameters()).shape[0] == 8


def test_a_schedule_weighs_the_terms(student: Net, teacher: Net, image: Tensor):
    recipe = Recipe.from_config([{**LOGITS, "weight": 4.0, "warmup": 10}], unit="step")
    student.eval()
    distiller = set_up(Distiller(student, teacher, recipe), image)
    raw = {}
    for step, factor in ((1, 0.4), (5, 2.0), (50, 4.0)):
        _, terms = distiller(image, progress=Progress(step=step))
        raw[step] = terms["kl"].raw
        torch.testing.assert_close(terms["kl"].weighted, factor * terms["kl"].raw)
        assert raw[step] == raw[1] > 0


def test_names_the_outputs_of_plain_models():
    class Output(dict[str, Tensor]):
        pass

    logits = torch.ones(2)
    assert default_outputs({"logits": logits, "loss": None}) == {"logits": logits}
    assert default_outputs(Output(logits=logits)) == {"logits": logits}
    assert default_outputs((logits,)) == {}


# -- a pair that is off ----------------------------------------------------------------------------


def test_a_pair_that_is_off_gives_its_adapters_a_zero_gradient(
    student: Net, teacher: Net, image: Tensor
):
    recipe = [{**HINT, "start": 5}, {"student": "shared", "loss": "Hint", "stop": 5}, LOGITS]
    distiller = set_up(Distiller(student, teacher, recipe), image)
    _, terms = distiller(image, progress=Progress(epoch=0))
    assert terms["hint"].raw == terms["hint"].weighted == 0
    total(terms).backward()
    off = list(distiller.adapters["hint"].parameters())
    assert off and all(p.grad is not None and not p.grad.any() for p in off)
    on = list(distiller.adapters["hint_2"].parameters())
    assert on and all(p.grad is not None and p.grad.any() for p in on)

    _, terms = distiller(image, progress=Progress(epoch=5))
    assert terms["hint"].raw > 0 and terms["hint_2"].raw == 0


def test_a_pair_that_is_off_is_where_the_student_is():
    student = nn.Linear(1, 1, device="meta")
    distiller = Distiller(student, nn.Linear(1, 1), [{**LOGITS, "start": 5}])
    with distiller.watch() as seen:
        pass
    (term,) = distiller.terms(seen, {}, Context(), Progress()).values()
    assert term.raw.device == term.weighted.device == student.weight.device


def test_a_loss_with_parameters_is_touched_too(student: Net, teacher: Net, image: Tensor):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return self.scale * hint(student, teacher)

    recipe = [{**HINT, "loss": Scaled(), "name": "scaled", "start": 5}]
    distiller = set_up(Distiller(student, teacher, recipe), image)
    _, terms = distiller(image)
    total(terms).backward()
    (scale,) = [p for n, p in distiller.named_parameters() if n == "losses.scaled.scale"]
    assert scale.grad is not None and scale.grad == 0
    assert "losses.scaled.scale" in distiller.state_dict()


# -- setup -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_setup_leaves_the_student_as_it_was(student: Net, teacher: Net, image: Tensor, fails: bool):
    student.norm.eval()  # a frozen batch norm in a student that trains
    before = copy.deepcopy(student.state_dict())
    modes = {name: module.training for name, module in student.named_modules()}
    flags = {name: p.requires_grad for name, p in student.named_parameters()}
    recipe = [HINT, {"student": "shared", "teacher": "shared[0]" if fails else "", "loss": "Hint"}]
    distiller = Distiller(student, teacher, recipe)
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ShapeError):
            set_up(distiller, image)
    else:
        set_up(distiller, image)
    assert torch.equal(torch.get_rng_state(), state)
    assert distiller.is_set_up is not fails
    assert {name: module.training for name, module in student.named_modules()} == modes
    assert {name: p.requires_grad for name, p in student.named_parameters()} == flags
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in student.parameters())


def test_setup_copies_what_an_activation_changes_in_place(
    student: Net, teacher: Net, image: Tensor, caplog: pytest.LogCaptureFixture
):
    recipe = [{"student": "norm", "loss": "Hint"}]
    distiller = Distiller(student, teacher, recipe)
    with distiller.watch() as seen:
        student(image)
    with pytest.raises(TapError, match="changed in place.*Distiller.setup"):
        seen.tensors("norm")
    with caplog.at_level(logging.INFO):
        set_up(distiller, image)
    assert "Copied when read, because changed in place later: norm" in caplog.text
    for _ in range(2):
        _, terms = distiller(image)
        captured, _ = distiller.ask("teacher", image)
        (theirs,) = captured.tensors("norm")
        assert (theirs < 0).any()
    (adapter,) = distiller.adapters["hint"].children()
    expected = hint(*adapter(student.norm(student.stem(image)), teacher.norm(teacher.stem(image))))
    torch.testing.assert_close(terms["hint"].raw, expected.detach())


def test_a_change_in_place_that_happens_in_training_only_is_told(image: Tensor):
    student, teacher = (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5, inplace=True)) for _ in range(2)
    )
    distiller = set_up(Distiller(student, teacher, [{"student": "0", "loss": "Hint"}]), image)
    with pytest.raises(TapError, match="in training only.*tap the next module"):
        distiller(image)


def test_setup_says_how_each_pair_is_matched(
    student: Net, teacher: Net, image: Tensor, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        set_up(Distiller(student, teacher, [HINT]), image)
    assert "Pair hint[0]: student (4, 4, 8, 8) - teacher (4, 6, 16, 16): projected" in caplog.text


def test_the_first_forward_sets_up_and_warns_that_the_optimizer_may_be_late(
    student: Net, teacher: Net, image: Tensor, caplog: pytest.LogCaptureFixture
):
    distiller = Distiller(student, teacher, [HINT])
    distiller(image)
    assert distiller.is_set_up and list(distiller.parameters())
    assert "call Distiller.setup before making it" in caplog.text
    caplog.clear()
    distiller(image)
    Distiller(student, teacher, [LOGITS])(image)  # nothing to train in there
    assert not caplog.records


def test_terms_without_setup(student: Net, teacher: Net, image: Tensor):
    distiller = Distiller(student, teacher, [HINT])
    with distiller.watch() as seen:
        student(image)
    asked, _ = distiller.ask("teacher", image)
    with pytest.raises(DistillError, match="no adapters yet. Call Distiller.setup"):
        distiller.terms(seen, {"teacher": asked}, Context(), Progress())


def test_adapters_have_the_student_s_precision(teacher: Net, image: Tensor):
    student = Net(4, stride=2).double()
    distiller = Distiller(student, teacher.double(), [HINT])
    set_up(distiller, image.double())
    assert {p.dtype for p in distiller.parameters()} == {torch.float64}
    _, terms = distiller(image.double())
    assert terms["hint"].raw.dtype == torch.float64


def test_adapters_stay_in_float32_where_setup_runs_in_autocast(
    student: Net, teacher: Net, image: Tensor
):
    distiller = Distiller(student, teacher, [HINT])
    with torch.autocast("cpu", torch.bfloat16):
        set_up(distiller, image)
        _, terms = distiller(image)
    assert {p.dtype for p in distiller.parameters()} == {torch.float32}
    assert terms["hint"].raw.dtype == torch.float32


# -- what belongs to whom --------------------------------------------------------------------------


def test_nothing_of_student_or_teacher_is_in_the_distiller(
    student: Net, teacher: Net, image: Tensor
):
    distiller = set_up(Distiller(student, teacher, [HINT, LOGITS]), image)
    names = {name for name, _ in distiller.named_parameters()}
    assert names == set(distiller.state_dict())
    assert names == {f"adapters.hint.0.project.{kind}" for kind in ("weight", "bias")}
    foreign = {*student.modules(), *teacher.modules()}
    assert not foreign & set(distiller.modules())


def test_adapters_are_saved_and_loaded(student: Net, teacher: Net, image: Tensor):
    first, second = (
        set_up(Distiller(student.eval(), teacher, [HINT, LOGITS]), image) for _ in range(2)
    )
    nn.init.normal_(next(first.parameters()))
    assert first(image)[1]["hint"].raw != second(image)[1]["hint"].raw
    second.load_state_dict(first.state_dict(), strict=True)
    assert first(image)[1]["hint"].raw == second(image)[1]["hint"].raw


class Training(nn.Module):
    """What a training loop (DDP, EMA) wraps: the student with its distiller."""

    def __init__(self, student: nn.Module, distiller: Distiller) -> None:
        super().__init__()
        self.student, self.distiller = student, distiller

    def forward(self, image: Tensor, progress: Progress | None = None) -> Tensor:
        output, terms = self.distiller(image, progress=progress)
        return total(terms) + output.square().mean()


def test_train_and_eval_of_the_whole_leave_the_teacher_in_eval_mode(
    student: Net, teacher: Net, image: Tensor
):
    statistics = copy.deepcopy(teacher.state_dict())
    training = Training(student, set_up(Distiller(student, teacher, [HINT, LOGITS]), image))
    for mode in (True, False, True):
        training.train(mode)
        student.train(mode)
        teacher.train()  # whoever did it
        training(image).backward()
        assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, statistics[n]) for n, v in teacher.state_dict().items())


def test_an_ema_copies_student_and_adapters_and_shares_the_teacher(
    student: Net, teacher: Net, image: Tensor
):
    training = Training(student, set_up(Distiller(student, teacher, [HINT, LOGITS]), image))
    ema = torch.optim.swa_utils.AveragedModel(training)
    copied = ema.module
    assert copied.distiller.student is copied.student
    assert copied.distiller.teachers["teacher"] is training.distiller.teachers["teacher"]
    assert len(ema.state_dict()) == len(training.state_dict()) + 1  # and the number of averages
    numbers = {id(p) for p in teacher.parameters()}
    assert not any(id(p) in numbers for p in ema.parameters())
    nn.init.zeros_(copied.student.stem.weight)
    nn.init.zeros_(copied.student.stem.bias)
    with copied.distiller.watch() as seen:  # its taps are on the copied student
        copied.student(image)
    assert not seen.tensors("stem")[0].any()


# -- early exit ------------------------------------------------------------------------------------


def asked_network(distiller: Distiller, name: str = "teacher") -> Any:
    """What a teacher runs, on which calls are counted: not the network that was given."""
    return distiller.teachers[name].network


def test_the_teacher_stops_after_the_last_tap(student: Net, teacher: Net, image: Tensor):
    distiller = set_up(Distiller(student, teacher, [HINT]), image)
    asks = asked_network(distiller)
    before = asks.classifier_calls, student.classifier_calls
    _, first = distiller(image)
    asked, output = distiller.ask("teacher", image)
    assert output is None
    torch.testing.assert_close(asked.tensors("stem")[0], teacher.stem(image))
    assert (asks.classifier_calls, student.classifier_calls) == (before[0], before[1] + 1)
    assert first["hint"].raw > 0


@pytest.mark.parametrize("start", [0, 5])
def test_the_teacher_runs_to_the_end_where_an_output_is_compared(
    student: Net, teacher: Net, image: Tensor, start: int
):
    distiller = set_up(Distiller(student, teacher, [HINT, {**LOGITS, "start": start}]), image)
    asks = asked_network(distiller)
    before = asks.classifier_calls
    distiller(image)
    assert asks.classifier_calls == before + 1


def test_each_teacher_stops_for_itself(student: Net, teacher: Net, image: Tensor):
    other = Net(8)
    recipe = [{**HINT, "of": "a"}, {**LOGITS, "of": "b"}]
    distiller = set_up(Distiller(student, {"a": teacher, "b": other}, recipe), image)
    asks = asked_network(distiller, "a"), asked_network(distiller, "b")
    before = [network.classifier_calls for network in asks]
    distiller(image)
    assert [network.classifier_calls for network in asks] == [before[0], before[1] + 1]


def test_a_teacher_that_is_called_by_its_own_name_runs_as_its_faster_copy(
    student: Net, teacher: Net, image: Tensor
):
    distiller = Distiller(student, teacher, [HINT, LOGITS])
    distiller.setup(student, lambda name: teacher, image)
    assert asked_network(distiller) is not teacher
    assert distiller.teachers["teacher"].runs_as["folded"] == 0  # the tap is on the convolution
    distiller(image)


def test_a_teacher_that_is_called_past_its_copy_runs_as_it_is(
    student: Net, teacher: Net, image: Tensor
):
    distiller = Distiller(student, teacher, [HINT, LOGITS])
    distiller.setup(student, lambda name: lambda x: teacher(x), image)
    assert asked_network(distiller) is teacher
    assert "call teachers[name].network" in distiller.teachers["teacher"].how
    asked, _ = distiller.ask("teacher", image, forward=lambda x: teacher(x))
    torch.testing.assert_close(asked.tensors("stem")[0], teacher.stem(image))


# -- outputs, regions, targets ---------------------------------------------------------------------


def compare(
    recipe: list[dict[str, Any]],
    student: Tensor,
    teacher: Tensor,
    region: Region | None = None,
    target: Tensor | None = None,
) -> dict[str, Any]:
    """The terms for outputs called ``x`` that some task has computed."""
    distiller = Distiller(nn.Linear(1, 1), nn.Linear(1, 1), recipe)
    context = Context(
        {"x": student},
        {"teacher": {"x": teacher}},
        {} if region is None else {"main": region},
        {} if target is None else {"x": target},
    )
    with distiller.watch() as seen:
        pass
    return distiller.terms(seen, {}, context, Progress())


def on(loss: str, **changes: Any) -> dict[str, Any]:
    return {"student": "outputs.x", "loss": loss, "name": "term", **changes}


def test_a_region_weighs_the_positions():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    weight = torch.tensor([0.0, 1.0, 0.25, 0.0, 2.0, 0.0])
    each = torch.stack([kl_div(s[None], t[None]) for s, t in zip(student, teacher, strict=True)])
    (term,) = compare(
        [on("KLDivergence", region="main")], student, teacher, Region(weight)
    ).values()
    torch.testing.assert_close(term.raw, (each * weight).sum() / 3.25)
    region = Region(weight, total=torch.tensor(10.0))
    (term,) = compare([on("KLDivergence", region="main")], student, teacher, region).values()
    torch.testing.assert_close(term.raw, (each * weight).sum() / 10)
    (term,) = compare(
        [on("KLDivergence", region="main")], student, teacher, Region(weight > 0)
    ).values()
    torch.testing.assert_close(term.raw, each[weight > 0].mean())


def test_positions_outside_a_region_do_not_matter_whatever_they_hold():
    student = torch.randn(4, 5)
    student[0] = torch.inf
    student.requires_grad_()
    region = Region(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    terms = compare([on("KLDivergence", region="main")], student, torch.randn(4, 5), region)
    total(terms).backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad.any(1).tolist() == [False, True, True, False]


REGIONAL = {
    "BoundedRegression": (7, 4),
    "FeatureImitation": (7, 4),
    "Hint": (7, 4),
    "KLDivergence": (7, 5),
    "LocalizationDistillation": (7, 4, 9),
    "WeightedSoftCrossEntropy": (7, 5),
}


@pytest.mark.parametrize("loss", REGIONAL)
def test_an_empty_region_gives_zero_and_zero_gradients(loss: str):
    student = torch.randn(REGIONAL[loss], requires_grad=True)
    teacher = torch.randn(REGIONAL[loss])
    target = torch.randn(7, 4)
    for none in (torch.zeros(7), torch.zeros(7, dtype=torch.bool)):
        terms = compare([on(loss, region="main")], student, teacher, Region(none), target)
        assert terms["term"].raw == 0
        (grad,) = torch.autograd.grad(total(terms), student)
        assert not grad.any()


def test_no_positions_at_all():
    student = torch.zeros(0, 5, requires_grad=True)
    region = Region(torch.zeros(0))
    terms = compare([on("KLDivergence", region="main")], student, torch.zeros(0, 5), region)
    assert terms["term"].raw == 0
    total(terms).backward()


@pytest.mark.parametrize("shape", [(5,), (7,), (5, 2), ()])
def test_a_region_of_another_length(shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match=r"region 'main'.*for each of the 6 positions"):
        compare(
            [on("KLDivergence", region="main")],
            torch.randn(6, 5),
            torch.randn(6, 5),
            Region(torch.ones(shape)),
        )


def test_a_region_that_the_task_does_not_know():
    with pytest.raises(ConfigError, match="no region 'mian'. Did you mean 'main'"):
        x = torch.zeros(1, 5)
        compare([on("KLDivergence", region="mian")], x, x, Region(torch.ones(1)))


def test_targets_reach_the_loss_also_within_a_region():
    student, teacher, target = torch.randn(3, 6, 4).unbind()
    (term,) = compare([on("BoundedRegression")], student, teacher, target=target).values()
    torch.testing.assert_close(term.raw, bounded_regression(student, teacher, target))
    inside = torch.tensor([True, False, True, True, False, False])
    recipe = [on("BoundedRegression", region="main")]
    (term,) = compare(recipe, student, teacher, Region(inside), target).values()
    expected = bounded_regression(student[inside], teacher[inside], target[inside])
    torch.testing.assert_close(term.raw, expected)


def test_a_target_that_the_task_does_not_give():
    with pytest.raises(ConfigError, match="no target 'x'.*Known here: none"):
        compare([on("BoundedRegression")], torch.zeros(2, 4), torch.zeros(2, 4))


def test_an_output_that_does_not_exist(student: Net, teacher: Net, image: Tensor):
    distiller = Distiller(student, teacher, [{**LOGITS, "student": "outputs.logit"}])
    with pytest.raises(ConfigError, match="no student output 'logit'. Did you mean 'logits'"):
        distiller(image)
    config = {**LOGITS, "teacher": "outputs.logit"}
    with pytest.raises(ConfigError, match="no teacher output 'logit'. Did you mean 'logits'"):
        Distiller(student, teacher, [config])(image)


def test_needs_are_told_to_the_task():
    recipe = [on("KLDivergence", region="main"), on("Hint", teacher="outputs.y", name="other")]
    distiller = Distiller(nn.Linear(1, 1), nn.Linear(1, 1), recipe)
    assert distiller.recipe.outputs == {"x", "y"}
    assert distiller.recipe.regions == {"main"}


def test_outputs_can_be_named_by_the_user(student: Net, teacher: Net, image: Tensor):
    recipe = [{**LOGITS, "student": "outputs.doubled"}]
    distiller = Distiller(student, teacher, recipe, outputs=lambda y: {"doubled": 2 * y})
    output, terms = distiller(image)
    expected = kl_div(2 * output, 2 * teacher(image), temperature=2.0)
    torch.testing.assert_close(terms["kl"].weighted, expected)


def test_further_taps_are_read_for_the_task(student: Net, teacher: Net, image: Tensor):
    distiller = Distiller(student, teacher, [LOGITS], reads=["shared"])
    with distiller.watch() as seen:
        student(image)
    assert len(seen.tensors("shared")) == 3


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_misspelt_tap_is_told_before_training(student: Net, teacher: Net, side: str):
    with pytest.raises(TapError, match="'stme'.*Did you mean 'stem'"):
        Distiller(student, teacher, [{**HINT, "teacher": "stem", side: "stme"}])


def test_an_unknown_teacher(student: Net, teacher: Net):
    with pytest.raises(ConfigError, match="'larg'.*Did you mean 'large'"):
        Distiller(student, {"large": teacher}, [{**HINT, "of": "larg"}])
    with pytest.raises(ConfigError, match="no teacher"):
        Distiller(student, {}, [HINT])


def test_a_teacher_that_is_the_student(student: Net):
    for teacher in (student, student.stem, nn.Sequential(student)):
        with pytest.raises(TeacherError, match=r"copy.deepcopy\(student\)"):
            Distiller(student, teacher, [LOGITS])
    assert all(p.requires_grad for p in student.parameters())


def test_a_frozen_part_may_be_shared(student: Net, teacher: Net, image: Tensor):
    student.stem = nn.Conv2d(3, 6, 3, padding=1).requires_grad_(False)
    student.norm, student.shared = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
    student.classifier = nn.Linear(6, 5)
    teacher.stem = student.stem
    _, terms = Distiller(student, teacher, [LOGITS])(image)
    assert terms["kl"].raw > 0


def test_a_frozen_stage_can_be_taught_nothing(student: Net, teacher: Net, image: Tensor):
    student.stem.requires_grad_(False)
    distiller = set_up(Distiller(student, teacher, [HINT]), image)
    with pytest.raises(TapError, match="'hint': no gradient reaches the student's 'stem'.*frozen"):
        distiller(image)
    with torch.no_grad():  # where no gradient is wanted, none is missed
        assert distiller(image)[1]["hint"].raw > 0


def test_numbers_of_levels_that_differ(student: Net, teacher: Net, image: Tensor):
    recipe = [{"student": "shared", "teacher": "shared[0:2]", "loss": "Hint", "name": "levels"}]
    with pytest.raises(ShapeError) as caught:
        set_up(Distiller(student, teacher, recipe), image)
    text = str(caught.value)
    assert "'levels'" in text and "'shared' gives 3" in text and "'shared[0:2]' 2" in text
    assert "'shared[0:2]'" in text.split("Select")[1]


def test_more_levels_in_training_than_in_setup(image: Tensor):
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.times = nn.Conv2d(3, 3, 1), 2

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = self.layer(x)
            return x

    student, teacher = Repeated(), Repeated()
    recipe = [{"student": "layer", "loss": "Hint"}, LOGITS]
    distiller = set_up(Distiller(student, teacher, recipe), image)
    student.times = asked_network(distiller).times = 3
    with pytest.raises(ShapeError, match="gives 3 tensors, but gave 2 in Distiller.setup"):
        distiller(image)


def test_tensors_that_no_adapter_relates(student: Net, teacher: Net, image: Tensor):
    recipe = [{**HINT, "teacher": "classifier"}]
    with pytest.raises(ShapeError, match=r"'hint' \('stem'\).*\(4, 4, 8, 8\).*\(4, 5\)"):
        set_up(Distiller(student, teacher, recipe), image)
    with pytest.raises(ShapeError, match="'hint'.*forbids a projection"):
        set_up(Distiller(student, teacher, [{**HINT, "adapter": "none"}]), image)


def test_outputs_of_different_shape(student: Net, image: Tensor):
    with pytest.raises(ShapeError, match=r"'kl'.*\(4, 5\).*\(4, 7\)"):
        Distiller(student, Net(6, classes=7), [LOGITS])(image)


def test_a_tap_that_is_not_called(student: Net, teacher: Net, image: Tensor):
    student.unused = nn.Identity()
    with pytest.raises(TapError, match="'unused'.*was not called"):
        set_up(
            Distiller(student, teacher, [{**HINT, "student": "unused", "teacher": "stem"}]), image
        )


def test_a_loss_without_weights_cannot_have_a_region(student: Net, teacher: Net):
    recipe = [{**LOGITS, "loss": nn.MSELoss(), "region": "main"}]
    del recipe[0]["temperature"]
    with pytest.raises(ConfigError, match="region 'main', but MSELoss takes no 'weight'"):
        Distiller(student, teacher, recipe)


def test_a_loss_on_the_ground_truth_cannot_be_on_a_tap(student: Net, teacher: Net):
    with pytest.raises(ConfigError, match="BoundedRegression compares with the ground truth"):
        Distiller(student, teacher, [{**HINT, "loss": "BoundedRegression"}])


def test_every_loss_for_outputs_takes_a_region():
    classes = {n for n in losses.__all__ if isinstance(getattr(losses, n), type)}
    assert set(REGIONAL) <= classes


# -- not finite ------------------------------------------------------------------------------------


def test_finite_losses_pass():
    check_finite({}, 0)
    check_finite({"a": torch.tensor(1e38), "b": torch.tensor([0.0, -1e38])}, 0)


def test_each_loss_that_is_not_finite_is_named_with_the_step():
    values = {"cls": 1.0, "kd_ld": float("nan"), "box": float("inf"), "dfl": -float("inf")}
    found = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    with pytest.raises(NonFiniteLossError) as caught:
        check_finite(found, 1234)
    text = str(caught.value)
    assert text.startswith("At step 1234 not finite: kd_ld=nan, box=inf, dfl=-inf.")
    with pytest.raises(FloatingPointError, match="levels=nan"):
        check_finite({"levels": torch.tensor([1.0, float("nan")])}, 1)


# -- training --------------------------------------------------------------------------------------


def test_plain_training_with_a_hint_brings_the_features_nearer(
    student: Net, teacher: Net, image: Tensor
):
    frozen = copy.deepcopy(teacher.state_dict())
    distiller = set_up(Distiller(student, teacher, [{**HINT, "weight": 2.0}, LOGITS]), image)
    start = copy.deepcopy(distiller.state_dict())
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.02)
    history = []
    for step in range(60):
        _, terms = distiller(image, progress=Progress(step=step))
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        history.append({name: term.raw.item() for name, term in terms.items()})
    assert history[-1]["hint"] < 0.5 * history[0]["hint"]
    assert history[-1]["kl"] < 0.8 * history[0]["kl"]
    assert any(not torch.equal(v, start[n]) for n, v in distiller.state_dict().items())
    assert all(torch.equal(v, frozen[n]) for n, v in teacher.state_dict().items())


@pytest.mark.slow
def test_a_compiled_student_gives_the_same_terms(teacher: Net, image: Tensor):
    student = Net(4, stride=2).eval()
    distiller = set_up(Distiller(student, teacher, [HINT, LOGITS]), image)
    _, expected = distiller(image)
    compiled = torch.compile(student, backend="eager")
    for _ in range(2):
        with distiller.watch() as seen:
            output = compiled(image)
        asked, theirs = distiller.ask("teacher", image)
        context = Context({"logits": output}, {"teacher": {"logits": theirs}})
        terms = distiller.terms(seen, {"teacher": asked}, context, Progress())
        for name in expected:
            torch.testing.assert_close(terms[name].raw, expected[name].raw)
        total(terms).backward()


def test_data_parallel_training_needs_no_search_for_unused_parameters(tmp_path: Path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    assert first["start"].keys() == first["end"].keys() == second["end"].keys()
    adapters = [name for name in first["end"] if name.startswith("distiller.adapters.")]
    assert adapters
    assert not any("teacher" in name for name in first["end"])
    for name, value in first["end"].items():
        if "running" in name or "num_batches" in name:
            continue  # batch norm keeps its own statistics on every rank
        assert torch.equal(value, second["end"][name]), name
    for name in adapters:  # one pair was on, the other off
        moved = not torch.equal(first["start"][name], first["end"][name])
        assert moved == name.startswith("distiller.adapters.hint."), name


def _train_one_rank(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    teacher = Net(6)
    torch.manual_seed(rank)  # so that equal adapters at the end are DDP's doing
    student = Net(4, stride=2)
    recipe = [HINT, {"student": "shared", "loss": Hint(), "name": "off", "start": 100}, LOGITS]
    distiller = set_up(Distiller(student, teacher, recipe), torch.zeros(1, 3, 16, 16))
    model = DistributedDataParallel(Training(student, distiller), find_unused_parameters=False)
    start = copy.deepcopy(model.module.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16, 16), Progress(step=step)).backward()
        optimizer.step()
    torch.save({"start": start, "end": model.module.state_dict()}, folder / f"{rank}.pth")
    dist.destroy_process_group()


# -- maps ------------------------------------------------------------------------------------------


def compare_maps(
    recipe: list[dict[str, Any]], student: Tensor, teacher: Tensor, context: Context
) -> dict[str, Any]:
    """The terms of outputs 'x' that are maps, and of the taps 'a' of two pass-through networks."""
    nets = [nn.Sequential(nn.Identity()) for _ in range(2)]
    distiller = Distiller(nets[0], nets[1], recipe, default_region="labelled")
    if any(not pair.is_output for pair in distiller.recipe.pairs):
        set_up(distiller, student.detach())
    else:
        distiller.is_set_up = True
    context.student, context.teachers = {"x": student}, {"teacher": {"x": teacher}}
    with distiller.watch() as seen:
        nets[0](student)
    taught, _ = distiller.ask("teacher", teacher)
    return distiller.terms(seen, {"teacher": taught}, context, Progress())


@pytest.fixture
def maps() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and which of the 8 x 8 pixels of the labels count."""
    labelled = torch.rand(2, 8, 8) > 0.4
    return torch.randn(2, 5, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4), labelled


def test_a_map_is_read_at_the_nearest_pixel_of_its_size(maps: tuple[Tensor, Tensor, Tensor]):
    student, teacher, labelled = maps
    context = Context(regions={"labelled": Region(labelled)})
    (term,) = compare_maps([on("PixelWise")], student, teacher, context).values()
    weight = labelled[:, 1::2, 1::2].float()  # the pixel just beyond the middle of two
    expected = losses.pixel_wise(student, teacher, weight=weight)
    torch.testing.assert_close(term.weighted, expected)
    term.weighted.backward()
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(1) > 0, weight > 0)


def test_the_default_region_is_for_losses_that_weigh_positions(maps):
    student, teacher, labelled = maps
    recipe = [on("PixelWise", region="all", name="all"), on("ChannelWiseDistillation", name="cwd")]
    everywhere = Region(torch.ones(2, 8, 8))
    context = Context(regions={"labelled": Region(labelled), "all": everywhere})
    terms = compare_maps(recipe, student, teacher, context)
    torch.testing.assert_close(terms["all"].weighted, losses.pixel_wise(student, teacher))
    torch.testing.assert_close(
        terms["cwd"].weighted, losses.channel_wise_distillation(student, teacher)
    )


def test_a_loss_with_one_weight_a_sample_cannot_be_limited_to_a_region():
    nets = nn.Linear(1, 1), nn.Linear(1, 1)
    for loss in ("PairWise", "ChannelWiseDistillation", "AttentionTransfer"):
        with pytest.raises(ConfigError, match=f"region 'labelled', but {loss} takes no 'weight'"):
            Distiller(*nets, [on(loss, region="labelled")])


def test_a_tapped_map_may_have_a_region(maps):
    student, teacher, labelled = maps
    context = Context(regions={"labelled": Region(labelled)})
    line = {"student": "0", "loss": "FeatureImitation", "region": "labelled"}
    (term,) = compare_maps([line], student, teacher, context).values()
    expected = losses.feature_imitation(student, teacher, mask=labelled[:, 1::2, 1::2].float())
    torch.testing.assert_close(term.weighted, expected)


def test_a_map_does_not_fit_what_is_no_map():
    context = Context(regions={"labelled": Region(torch.ones(2, 8, 8))})
    line = {"student": "0", "loss": "FeatureImitation", "region": "labelled"}
    tokens = torch.randn(2, 9, 4, requires_grad=True)
    with pytest.raises(ShapeError, match=r"'labelled' is a map \(2, 8, 8\), but '0' is \(2, 9, 4"):
        compare_maps([line], tokens, torch.randn(2, 9, 4), context)


def test_the_sum_over_a_map_can_be_that_of_all_processes(maps):
    student, teacher, labelled = maps
    context = Context(regions={"labelled": Region(labelled, average=lambda total: 2 * total)})
    (term,) = compare_maps([on("PixelWise")], student, teacher, context).values()
    weight = labelled[:, 1::2, 1::2].float()
    expected = losses.pixel_wise(student, teacher, weight=weight) / 2
    torch.testing.assert_close(term.weighted, expected)


def test_labels_reach_the_loss_at_the_size_of_the_logits(maps):
    student, teacher, labelled = maps
    labels = torch.randint(5, (2, 8, 8))
    context = Context(regions={"labelled": Region(labelled)}, targets={"x": labels})
    (term,) = compare_maps([on("DecoupledKD", dim=1)], student, teacher, context).values()
    expected = losses.decoupled_kd(
        student, teacher, labels[:, 1::2, 1::2], dim=1, weight=labelled[:, 1::2, 1::2].float()
    )
    torch.testing.assert_close(term.weighted, expected)


def test_two_sizes_are_an_error_unless_the_task_brings_them_together(maps):
    student, _, labelled = maps
    teacher = torch.randn(2, 5, 2, 2)
    context = Context(regions={"labelled": Region(labelled)})
    with pytest.raises(ShapeError, match=r"is \(2, 5, 4, 4\), teacher's outputs.x is \(2, 5, 2"):
        compare_maps([on("PixelWise")], student, teacher, context)
    context.match = lambda ours, theirs: F.interpolate(theirs, ours.shape[2:])
    (term,) = compare_maps([on("PixelWise")], student, teacher, context).values()
    larger = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = losses.pixel_wise(student, larger, weight=labelled[:, 1::2, 1::2].float())
    torch.testing.assert_close(term.weighted, expected)


# -- critics ---------------------------------------------------------------------------------------

HOLISTIC = {"student": "outputs.logits", "loss": "Holistic", "channels": 4, "layers": 2}


class Segmenter(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.classifier = nn.Conv2d(width, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.stem(image).relu())


def rivals(**options: Any) -> tuple[Distiller, Tensor]:
    hint = {"student": "stem", "loss": "Hint", "name": "hint"}
    line = {**HOLISTIC, "attention": (2,), "weight": 0.5, "name": "rival", **options}
    distiller = Distiller(Segmenter(4), Segmenter(6), [hint, line])
    image = torch.randn(2, 3, 16, 16)
    return set_up(distiller, image), image


def test_a_critic_is_made_in_setup_and_trained_apart():
    distiller, _ = rivals()
    critics, partners = distiller.critic_parameters(), distiller.partner_parameters()
    assert critics and partners
    assert {id(p) for p in critics} == {id(p) for p in distiller.losses["rival"].parameters()}
    assert {id(p) for p in partners} == {id(p) for p in distiller.adapters.parameters()}
    assert any(name.startswith("losses.rival.critic.") for name in distiller.state_dict())


def test_student_and_critic_learn_from_the_same_maps_and_not_from_each_other():
    distiller, image = rivals()
    output, terms = distiller(image)
    teacher = distiller.teachers["teacher"](image)
    rival = distiller.losses["rival"].eval()  # spectral norm stands still
    _, terms = distiller(image)
    torch.testing.assert_close(terms["rival"].weighted, 0.5 * rival(output, teacher, image))
    total(terms).backward()
    assert all(p.grad is None for p in distiller.critic_parameters())
    assert all(p.grad is not None for p in distiller.student.parameters())
    distiller.student.zero_grad()
    torch.manual_seed(0)
    found = distiller.critic_losses()
    assert list(found) == ["rival"]
    torch.manual_seed(0)
    expected = rival.critic_step_losses(output, teacher, image)  # type: ignore[operator]
    for name, value in expected.items():
        torch.testing.assert_close(found["rival"][name], value)
    found["rival"]["loss"].backward()
    assert all(p.grad is None for p in distiller.student.parameters())
    assert all(p.grad is not None for p in distiller.critic_parameters())


def test_a_critic_rests_while_its_pair_is_off():
    distiller, image = rivals(start=1)
    _, terms = distiller(image)
    assert terms["rival"].raw == 0 and distiller.critic_losses() == {}
    total(terms).backward()
    assert all(p.grad is None for p in distiller.critic_parameters())
    distiller(image, progress=Progress(epoch=1.0))
    assert list(distiller.critic_losses()) == ["rival"]


def test_a_critic_judges_outputs_only():
    with pytest.raises(ConfigError, match="Holistic plays on outputs.*'stem' is a tap"):
        Distiller(Segmenter(4), Segmenter(6), [{**HOLISTIC, "student": "stem", "attention": ()}])


if __name__ == "__main__":
    _train_one_rank(int(sys.argv[1]), Path(sys.argv[2]))


# -- one output a layer, tokens, joined tensors ----------------------------------------------------


def layered(
    pairs: list[dict], student: Any, teacher: Any, region: Any = None, **options: Any
) -> Any:
    """The terms of outputs given by hand, adapters made from their shapes."""
    distiller = Distiller(
        nn.Linear(1, 1), nn.Linear(1, 1), pairs, outputs=lambda found: found, **options
    )
    distiller.setup(lambda: student, lambda name: lambda: teacher)
    context = Context(student=student, teachers={"teacher": teacher}, regions=region or {})
    empty = Taps(nn.Identity(), [])
    with empty.capture() as captured:
        pass
    return distiller, distiller.terms(captured, {"teacher": captured}, context, Progress())


def states(layers: int, width: int = 4, tokens: int = 3) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, tokens, width) for _ in range(layers))


def test_layers_are_selected_and_averaged():
    ours, theirs = states(3), states(5)
    line = dict(
        student="outputs.h[1,2]", teacher="outputs.h[2,4]", loss="HiddenStateTransfer", name="term"
    )
    _, terms = layered([line], {"h": ours}, {"h": theirs})
    expected = (
        hidden_state_transfer(ours[1], theirs[2]) + hidden_state_transfer(ours[2], theirs[4])
    ) / 2
    torch.testing.assert_close(terms["term"].raw, expected)


def test_as_many_layers_on_both_sides():
    line = dict(student="outputs.h[1:]", loss="HiddenStateTransfer")
    with pytest.raises(ShapeError, match="gives 2 tensors, the teacher's .* 4"):
        layered([line], {"h": states(3)}, {"h": states(5)})
    with pytest.raises(TapError, match="selects none of the 3"):
        layered([{**line, "student": "outputs.h[7]"}], {"h": states(3)}, {"h": states(5)})


def test_a_single_output_has_nothing_to_select():
    line = dict(student="outputs.logits[0]", loss="KLDivergence")
    with pytest.raises(ConfigError, match="is one tensor"):
        layered([line], {"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(2, 3)})


def test_an_adapted_output_gets_one_adapter_a_layer():
    line = dict(student="outputs.h[0,1]", loss="HiddenStateTransfer", name="term")
    distiller, terms = layered(
        [line], {"h": states(2, width=3)}, {"h": states(2, width=5)}, adapted=["h"]
    )
    weights = [p.shape for n, p in distiller.adapters.named_parameters() if n.endswith("weight")]
    assert [tuple(shape[:2]) for shape in weights] == [(5, 3), (5, 3)]
    terms["term"].weighted.backward()
    assert all(p.grad is not None for p in distiller.partner_parameters())


def test_an_output_of_another_width_that_is_not_adapted():
    line = dict(student="outputs.h[0]", loss="HiddenStateTransfer", name="term")
    with pytest.raises(ShapeError, match="student's outputs.h"):
        layered([line], {"h": states(1, width=3)}, {"h": states(1, width=5)})


def test_an_adapter_where_none_can_be():
    line = dict(student="outputs.h[0]", loss="HiddenStateTransfer", adapter="conv1x1")
    with pytest.raises(ConfigError, match="adapters go with taps and with outputs.g"):
        layered([line], {"h": states(1)}, {"h": states(1)}, adapted=["g"])


def test_tokens_that_count():
    ours, theirs = states(1), states(1)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    line = dict(student="outputs.h[0]", loss="HiddenStateTransfer", name="term")
    _, terms = layered(
        [line],
        {"h": ours},
        {"h": theirs},
        {"tokens": Region(mask, torch.tensor(6.0))},
        default_region={"h": "tokens"},
    )
    expected = hidden_state_transfer(ours[0], theirs[0], mask=mask, total=6.0)
    torch.testing.assert_close(terms["term"].raw, expected)


def test_tokens_of_logits_laid_out_flat():
    ours, theirs = torch.randn(6, 5), torch.randn(6, 5)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    line = dict(student="outputs.logits", loss="KLDivergence", region="tokens", name="term")
    _, terms = layered([line], {"logits": ours}, {"logits": theirs}, {"tokens": Region(mask)})
    kept = [0, 1, 3]
    torch.testing.assert_close(terms["term"].raw, kl_div(ours[kept], theirs[kept]))


# -- logits of which some classes were kept --------------------------------------------------------


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_a_teacher_known_in_part_gives_the_same_terms(tail: str):
    student, teacher = Net(4), Net(6)
    student.dropout.p = 0.0
    line = dict(student="outputs.logits", loss="TopKKLDivergence", k=3, temperature=4.0, tail=tail)
    distiller = Distiller(student, teacher, [line])
    image = torch.randn(4, 3, 16, 16)
    output, terms = distiller(image)
    (live,) = terms.values()
    logits = distiller.teachers["teacher"](image)
    kept = sparse_logits(logits, 3, temperature=4.0, tail=tail)  # type: ignore[arg-type]
    for answer in (kept, {"logits": kept}):
        context = Context(default_outputs(output), {"teacher": default_outputs(answer)})
        with distiller.watch() as seen:
            pass
        (stored,) = distiller.terms(seen, {}, context, Progress()).values()
        torch.testing.assert_close(stored.weighted, live.weighted, rtol=0, atol=0)
    assert live.raw > 0


@pytest.mark.parametrize("form", ["rows", "no tail", "tokens", "map"])
def test_a_region_weighs_a_teacher_known_in_part(form: str):
    shape = {"tokens": (2, 3, 5), "map": (2, 5, 2, 3)}.get(form, (6, 5))
    weight = torch.tensor([0.0, 1.0, 0.25, 0.0, 2.0, 0.0])
    weight = weight.view({"tokens": (2, 3), "map": (2, 2, 3)[:1] + (1, 3)}.get(form, (6,)))
    student, teacher = torch.randn(shape), torch.randn(shape)
    dim = 1 if form == "map" else -1
    kept = sparse_logits(teacher, 2, dim=dim)
    if form == "no tail":
        kept = kept._replace(tail=None)
    line = on("TopKKLDivergence", k=2, dim=dim, region="main")
    terms = [
        compare([line], student, answer, Region(weight))["term"].raw for answer in (teacher, kept)
    ]
    torch.testing.assert_close(terms[1], terms[0])
    assert terms[0] > 0


@pytest.mark.parametrize("sparse", [False, True])
def test_an_empty_region_of_a_teacher_known_in_part(sparse: bool):
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    answer: Any = sparse_logits(teacher, 2) if sparse else teacher
    line = on("TopKKLDivergence", k=2, region="main")
    terms = compare([line], student, answer, Region(torch.zeros(6)))
    assert terms["term"].raw == 0
    (grad,) = torch.autograd.grad(total(terms), student)
    assert not grad.any()


def test_a_loss_that_needs_all_classes_refuses_a_teacher_known_in_part():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    with pytest.raises(ConfigError, match="KLDivergence needs all. Use TopKKLDivergence"):
        compare([on("KLDivergence")], student, sparse_logits(teacher, 2))  # type: ignore
    with pytest.raises(ShapeError, match=r"x is \(5, 5\), .* some classes are known, \(6, 2\)"):
        compare([on("TopKKLDivergence")], student[:5], sparse_logits(teacher, 2))  # type: ignore
    with pytest.raises(ConfigError, match="add k=10, say"):
        compare([on("TopKKLDivergence")], student, teacher)
    with pytest.raises(ConfigError, match="is one tensor: nothing to select"):
        line = {**on("TopKKLDivergence"), "student": "outputs.x", "teacher": "outputs.x[0]"}
        compare([line], student, sparse_logits(teacher, 2))  # type: ignore


def test_joined_outputs_go_to_the_loss_together():
    def vectors(heads: int = 2) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(2, heads, 3, 4) for _ in range(2))

    ours = {"q": vectors(), "k": vectors()}
    theirs = {"q": vectors(), "k": vectors()}
    line = dict(student=["outputs.q[1]", "outputs.k[1]"], loss="AttentionQK", name="term")
    _, terms = layered([line], ours, theirs)
    expected = attention_qk((ours["q"][1], ours["k"][1]), (theirs["q"][1], theirs["k"][1]))
    torch.testing.assert_close(terms["term"].raw, expected)


def test_joined_taps_go_to_the_loss_together():
    student, teacher = (nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1)) for _ in range(2))
    distiller = Distiller(student, teacher, [dict(student="0 + 1", loss="FSP", name="term")])
    x = torch.randn(2, 2, 5, 5)
    _, terms = distiller(x)
    expected = fsp((student[0](x), student(x)), (teacher[0](x), teacher(x)))
    torch.testing.assert_close(terms["term"].raw, expected)
    terms["term"].weighted.backward()
    assert student[0].weight.grad is not None


def test_a_loss_that_takes_any_width_is_given_them_as_they_are():
    ours, theirs = torch.rand(1, 2, 3, 3).softmax(-1), torch.rand(1, 4, 3, 3).softmax(-1)
    line = dict(student="outputs.a[0]", loss="AttentionMap", heads="mean", name="term")
    _, terms = layered([line], {"a": (ours,)}, {"a": (theirs,)})
    assert terms["term"].raw > 0


# -- levels of a pyramid -----------------------------------------------------------------------


class Pyramid(nn.Module):
    """Three levels, 8, 4 and 2 cells a side."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image, size) for size in (1, 2, 4)]


def on_levels(
    line: dict[str, Any], context: Context | None = None, change: float = 0.0
) -> tuple[Any, list[Tensor], list[Tensor], Distiller]:
    """One term of the levels of two pyramids, and what they gave."""
    nets = [nn.Sequential(Pyramid()) for _ in range(2)]
    distiller = Distiller(nets[0], nets[1], [{"student": "0", "name": "term", **line}])
    student = torch.randn(2, 5, 8, 8, requires_grad=True)
    teacher = torch.randn(2, 5, 8, 8)
    set_up(distiller, torch.zeros(2, 5, 8, 8))
    for index, p in enumerate(distiller.parameters()):
        p.data += change * (index + 1)
    with distiller.watch() as seen:
        ours = nets[0](student)
    taught, _ = distiller.ask("teacher", teacher)
    terms = distiller.terms(seen, {"teacher": taught}, context or Context(), Progress())
    return terms["term"], ours, nets[1](teacher), distiller


def test_each_level_may_have_a_weight_of_its_own():
    weights = [1.0, 0.5, 0.0]
    term, ours, theirs, _ = on_levels({"loss": "FeatureImitation", "weight": weights})
    each = [losses.feature_imitation(s, t) for s, t in zip(ours, theirs, strict=True)]
    expected = sum(w * v for w, v in zip(weights, each, strict=True)) / 3
    torch.testing.assert_close(term.weighted, expected)
    torch.testing.assert_close(term.raw, torch.stack(each).mean())


def test_as_many_weights_as_levels():
    with pytest.raises(ShapeError, match=r"weight has 2 numbers \[1.0, 0.5\].*gives 3 tensors"):
        on_levels({"loss": "FeatureImitation", "weight": [1.0, 0.5]})


def test_a_region_may_be_another_map_at_each_level():
    maps = {size: (torch.rand(2, size, size) > 0.5).float() for size in (8, 4, 2)}
    region = Region(at=lambda size: maps[size[0]], average=lambda total: 2 * total)
    line = {"loss": "FeatureImitation", "region": "near"}
    term, ours, theirs, _ = on_levels(line, Context(regions={"near": region}))
    each = [
        losses.feature_imitation(s, t, mask=maps[s.shape[2]], total=2 * maps[s.shape[2]].sum())
        for s, t in zip(ours, theirs, strict=True)
    ]
    torch.testing.assert_close(term.weighted, torch.stack(each).mean())


def test_a_region_of_features_is_none_of_outputs():
    region = Region(at=lambda size: torch.ones(2, *size))
    with pytest.raises(ConfigError, match="region 'main' is one of features; 'outputs.x' is an"):
        compare([on("KLDivergence", region="main")], torch.randn(6, 5), torch.randn(6, 5), region)


def test_a_fixed_number_may_replace_the_sum_of_the_weights():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    weight = torch.tensor([0.0, 1.0, 0.25, 0.0, 2.0, 0.0])
    for total in (None, torch.tensor(10.0)):
        (term,) = compare(
            [on("KLDivergence", region="main", avg_factor=4.0)],
            student,
            teacher,
            Region(weight, total),
        ).values()
        each = torch.stack(
            [kl_div(s[None], t[None]) for s, t in zip(student, teacher, strict=True)]
        )
        torch.testing.assert_close(term.raw, (each * weight).sum() / 4)
    term, ours, theirs, _ = on_levels({"loss": "FeatureImitation", "avg_factor": 2.0})
    each = [losses.feature_imitation(s, t, total=2.0) for s, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(term.raw, torch.stack(each).mean())


def test_a_loss_that_averages_itself_has_no_number_to_replace(student: Net, teacher: Net):
    with pytest.raises(ConfigError, match="avg_factor=2.0, but Hint|AttentionTransfer takes no"):
        line = {"student": "stem", "loss": "AttentionTransfer", "avg_factor": 2.0}
        Distiller(student, teacher, [line])


def test_a_loss_that_learns_of_each_level_has_a_copy_for_each():
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]], [[0.2, 0.3, 0.9, 0.6]]])
    context = Context(targets={"boxes": boxes})
    term, ours, theirs, distiller = on_levels(
        {"loss": "FocalGlobal", "channels": 5}, context, change=1e-2
    )
    copies = [distiller.losses["term"], *distiller.further_losses["term"].children()]
    assert len(copies) == 3
    each = [loss(s, t, boxes) for loss, s, t in zip(copies, ours, theirs, strict=True)]
    torch.testing.assert_close(term.weighted, torch.stack(each).mean())
    term.weighted.backward()
    # All of them are trained, saved, and touched while the pair is off.
    of_losses = {id(p) for copy in copies for p in copy.parameters()}
    assert of_losses <= {id(p) for p in distiller.partner_parameters()}
    assert all(p.grad is not None for copy in copies for p in copy.parameters())
    assert any(key.startswith("further_losses.term.1") for key in distiller.state_dict())
    pair = distiller.recipe.pairs[0]
    assert of_losses <= {id(p) for p in distiller.parameters_of(pair)}


def test_a_loss_of_features_names_the_ground_truth_it_wants():
    with pytest.raises(ConfigError, match="no target 'boxes'"):
        on_levels({"loss": "FocalGlobal", "channels": 5})


def test_features_of_single_positions_are_weighed_as_outputs_are():
    """Pooled regions of interest: a weight each, wherever in it."""
    weight = torch.tensor([1.0, 0.0, 0.5])
    student = torch.randn(3, 4, 2, 2, requires_grad=True)
    teacher = torch.randn(3, 4, 2, 2)
    nets = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
    line = {"student": "0", "loss": "FeatureImitation", "region": "main", "name": "term"}
    distiller = Distiller(*nets, [line])
    set_up(distiller, student.detach())
    each = ((student - teacher) ** 2).mean((1, 2, 3))
    for total, divisor in ((None, 1.5), (torch.tensor(6.0), 6.0)):
        with distiller.watch() as seen:
            nets[0](student)
        taught, _ = distiller.ask("teacher", teacher)
        context = Context(regions={"main": Region(weight, total)})
        terms = distiller.terms(seen, {"teacher": taught}, context, Progress())
        torch.testing.assert_close(terms["term"].raw, (each * weight).sum().detach() / divisor)


def test_a_teacher_can_be_asked_to_run_to_its_end(student: Net, teacher: Net, image: Tensor):
    for whole, calls in (((), 0), (("teacher",), 1)):
        distiller = set_up(Distiller(student, teacher, [HINT], whole=whole), image)
        asks = asked_network(distiller)
        asks.classifier_calls = 0
        _, output = distiller.ask("teacher", image)
        assert asks.classifier_calls == calls
        assert (output is not None) == bool(calls)


def test_regions_in_use_are_told_to_the_task():
    recipe = [on("KLDivergence", region="main"), on("BoundedRegression", name="box"), on("Hint")]
    distiller = Distiller(nn.Linear(1, 1), nn.Linear(1, 1), recipe, default_region={"x": "all"})
    assert distiller.regions == {"main", "all"}
