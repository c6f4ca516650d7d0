from __future__ import annotations

import math
from inspect import signature
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, TapError
from taskdistill.core.losses import Hint, KLDivergence
from taskdistill.core.recipe import Pair, Progress, Recipe, resolve_loss


def line(**changes: Any) -> dict[str, Any]:
    return {"student": "neck", "loss": "FeatureImitation", **changes}


def output_line(**changes: Any) -> dict[str, Any]:
    return {"student": "outputs.cls", "loss": "KLDivergence", **changes}


class MyKDLoss(nn.Module):
    """A loss of a user's own."""

    def __init__(self, scale: float = 1.0, **others: Any) -> None:
        super().__init__()
        self.scale, self.others = scale, others

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.scale * (student - teacher).abs().mean()


class NeedsWidth(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


class Loss(nn.Module):
    pass


# -- what a line becomes ---------------------------------------------------------------------------


def test_defaults():
    (pair,) = Recipe.from_config([line()]).pairs
    assert pair == Pair(
        student="neck", teacher="neck", loss="FeatureImitation", name="feature_imitation"
    )
    assert pair.factor(0.0, None) == 1.0


def test_other_keys_reach_the_loss():
    (pair,) = Recipe.from_config([output_line(temperature=4.0, activation="sigmoid")]).pairs
    loss = pair.build_loss()
    assert isinstance(loss, KLDivergence)
    assert (loss.temperature, loss.activation) == (4.0, "sigmoid")


def test_a_module_is_taken_as_it_is():
    loss = Hint()
    (pair,) = Recipe.from_config([line(loss=loss)]).pairs
    assert pair.build_loss() is loss
    assert pair.name == "hint"


def test_a_loss_of_one_s_own_by_its_path():
    spec = "torch.nn:SmoothL1Loss"
    (pair,) = Recipe.from_config([line(loss=spec, beta=0.5)]).pairs
    loss = pair.build_loss()
    assert isinstance(loss, nn.SmoothL1Loss) and loss.beta == 0.5
    assert pair.name == "smooth_l1"


def test_a_loss_that_takes_any_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.nn, "MyKDLoss", MyKDLoss, raising=False)
    loss = Pair.from_config(line(loss="torch.nn:MyKDLoss", scale=2.0, extra=1)).build_loss()
    assert isinstance(loss, MyKDLoss)
    assert (loss.scale, loss.others) == (2.0, {"extra": 1})


def test_every_loss_of_the_package_is_found_by_its_name():
    classes = [n for n in losses.__all__ if hasattr(getattr(losses, n), "forward")]
    found = [n for n in classes if "student" in signature(getattr(losses, n).forward).parameters]
    assert len(found) > 30
    assert [resolve_loss(name) for name in found] == [getattr(losses, n) for n in found]
    for other in set(classes) - set(found):
        with pytest.raises(ConfigError, match="There is no loss"):
            resolve_loss(other)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"loss": "LocalizationDistillation", "region": "vlr"}, "localization_distillation_vlr"),
        ({"loss": "KLDivergence"}, "kl_divergence"),
        ({"loss": MyKDLoss()}, "my_kd"),
        ({"loss": Loss()}, "term"),
        ({"name": "mine"}, "mine"),
    ],
)
def test_names(changes: dict[str, Any], name: str):
    assert Pair.from_config(output_line(**changes)).name == name
    # mmengine adds up whatever has "loss" in its name.
    assert "loss" not in name


def test_names_are_made_unique():
    recipe = Recipe.from_config([line(), line(name="hint"), line(), line(name="hint"), line()])
    names = [pair.name for pair in recipe.pairs]
    assert names == [
        "feature_imitation",
        "hint",
        "feature_imitation_2",
        "hint_2",
        "feature_imitation_3",
    ]


def test_a_made_unique_name_does_not_take_another_s():
    recipe = Recipe.from_config([line(name="a"), line(name="a_2"), line(name="a")])
    assert len({pair.name for pair in recipe.pairs}) == 3


def test_pairs_made_in_python_are_completed_and_checked_too():
    (pair,) = Recipe.from_config([Pair("neck", "Hint")]).pairs
    assert (pair.teacher, pair.name) == ("neck", "hint")
    with pytest.raises(ConfigError, match="weight"):
        Recipe.from_config([Pair("neck", "Hint", weight=-1.0)])


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (line(wieght=2.0), "'wieght' is neither.*Did you mean 'weight'.*takes: nothing"),
        (output_line(temprature=2.0), "Did you mean 'temperature'"),
        (line(temperature=2.0), "'temperature' is neither a key of a pair nor an argument"),
        (line(loss=Hint(), wieght=2.0), r"\['wieght'\].*made already.*Did you mean 'weight'"),
        (line(options={"a": 1}), "'options' is neither"),
        ({"loss": "Hint"}, "has no 'student'"),
        ({"student": "neck"}, "has no 'loss'"),
        ({"studnet": "neck", "loss": "Hint"}, "has no 'student'.*Did you mean 'studnet'"),
        ("neck", "A pair is dict.*not 'neck'"),
        (line(student=3), "student=3 of a pair is no string"),
        (line(name=3), "name=3 of a pair is no string"),
        (line(loss="Hnit"), "no loss 'Hnit'.*Did you mean 'Hint'.*Known: .*KLDivergence"),
        (line(loss="kl_div"), "no loss 'kl_div'.*'KLDivergence'"),
        (line(loss="_losses"), "no loss"),
        (line(loss=Hint), "neither a name nor a module"),
        (line(loss=None), "neither a name nor a module"),
        (line(loss="no_such_package:Loss"), "cannot be imported: No module"),
        (line(loss="torch.nn:NoSuchLoss"), "cannot be imported"),
        (line(loss=":Loss"), "cannot be imported"),
        (line(loss=".relative:Loss"), "cannot be imported"),
        (line(loss="math:pi"), "no class derived from torch.nn.Module"),
        (output_line(temperature=-1.0), "temperature must be"),
        (output_line(temperature="hot"), "KLDivergence cannot be made from .*hot"),
        (line(adapter="conv1x2"), "adapter='conv1x2'.*Did you mean 'conv1x1'"),
        (line(student="a + b", teacher="a + b", adapter="conv1x1"), "joined tensors are compared"),
        (line(student="a + b", teacher="a"), "joins 2 of the student .* and 1 of the teacher"),
        (line(student="a + outputs.b"), "only be matched with an output"),
        (output_line(student="outputs.a@input"), "has no input to read"),
        (line(teacher="outputs.cls"), "only be matched with an output"),
        (output_line(teacher="neck"), "only be matched with an output"),
        (line(weight="1"), "weight of pair 'neck' is '1', which is no number"),
        (line(weight=True), "no number"),
        (line(weight=None), "no number"),
        (line(weight=-0.5), "expected a finite number >= 0"),
        (line(weight=math.nan), "expected a finite number"),
        (line(weight=math.inf), "expected a finite number"),
        (line(warmup=-1), "warmup of pair 'neck' is -1"),
        (line(start=2, stop=2), "never be active: it stops at 2, it starts at 2"),
        (line(stop="end"), "no number"),
        (line(name="a.b"), "name='a.b'.*cannot be used"),
        (line(name="keys"), "name='keys'.*cannot be used"),
        (line(stage="first"), r"for stage 'first', but the stages are \[\]"),
    ],
)
def test_a_line_that_cannot_be_meant(config: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        Recipe.from_config([config])


def test_a_required_argument_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.nn, "NeedsWidth", NeedsWidth, raising=False)
    with pytest.raises(ConfigError, match="NeedsWidth cannot be made.*width"):
        Recipe.from_config([line(loss="torch.nn:NeedsWidth")])


@pytest.mark.parametrize("key", ["student", "teacher"])
def test_a_malformed_tap(key: str):
    with pytest.raises(TapError, match="not of the form"):
        Recipe.from_config([line(**{key: "neck[0"})])


def test_no_pairs():
    with pytest.raises(ConfigError, match="no pairs: nothing would be distilled"):
        Recipe.from_config([])


def test_unknown_unit():
    with pytest.raises(ConfigError, match="unit='iter'"):
        Recipe.from_config([line()], unit="iter")


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"name": "a"}, {"name": "b"}], "end one after another"),
        ([{"name": "a", "until": 3}, {"name": "b", "until": 2}], r"end at \[3, 2\]"),
        ([{"name": "a", "until": 3}, {"name": "b", "until": 3}], "end one after another"),
        ([{"name": "a", "until": 0}, {"name": "b"}], "end one after another"),
        ([{"name": "a", "until": "3"}], "until of stage 'a' is '3', which is no number"),
        ([{"name": "a", "until": 3}, {"name": "a"}], "Two stages have one name"),
        ([{"name": "a", "untill": 3}], "no 'untill'. Did you mean 'until'"),
        ([{"until": 3}], "has no 'name'"),
        ([{"name": "a", "task_weight": -1}], "task_weight of stage 'a'"),
        (["a"], "A stage is dict"),
    ],
)
def test_stages_that_cannot_be_meant(stages: list[Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Recipe.from_config([line()], stages=stages)


# -- schedules -------------------------------------------------------------------------------------

amounts = st.floats(0, 1e6)


@given(amounts, amounts, st.none() | amounts, amounts, amounts)
def test_factor_is_between_nothing_and_the_weight(
    weight: float, start: float, stop: float | None, warmup: float, now: float
):
    pair = Pair("neck", "Hint", weight=weight, start=start, stop=stop, warmup=warmup)
    factor = pair.factor(now, None)
    assert 0 <= factor <= weight
    if now < start or (stop is not None and now >= stop):
        assert factor == 0
    elif warmup == 0:
        assert factor == weight
    assert pair.factor(now, "some stage") == factor  # of no stage in particular
    later = pair.factor(now + 1, None)
    assert later >= factor or (stop is not None and now + 1 >= stop)


@given(st.text("abc", max_size=3), st.text("abc", max_size=3))
def test_a_pair_of_a_stage_is_off_in_the_others(own: str, current: str):
    pair = Pair("neck", "Hint", weight=2.0, stage=own)
    assert pair.factor(5.0, current) == (2.0 if own == current else 0.0)
    assert pair.factor(5.0, None) == 0.0


def test_warmup_rises_linearly():
    pair = Pair("neck", "Hint", weight=8.0, start=10, warmup=4, stop=20)
    values = [pair.factor(t, None) for t in (9.99, 10, 11, 12, 13, 14, 19.99, 20)]
    assert values == [0, 0, 2, 4, 6, 8, 8, 0]


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_the_unit_decides_what_counts(unit: str):
    recipe = Recipe.from_config([line(stop=10), line(start=10)], unit=unit)
    few, many = Progress(step=3, epoch=30.5), Progress(step=30, epoch=3.5)
    early, late = (many, few) if unit == "epoch" else (few, many)
    assert recipe.factors(early) == [1.0, 0.0]
    assert recipe.factors(late) == [0.0, 1.0]


def test_stages_follow_each_other_and_the_last_one_holds_on():
    recipe = Recipe.from_config(
        [line(stage="hint", weight=3.0), line(stage="joint"), line()],
        unit="step",
        stages=[{"name": "hint", "until": 100, "task_weight": 0}, {"name": "joint", "until": 200}],
    )
    seen = {}
    for step in (0, 99, 100, 199, 200, 10_000):
        progress = Progress(step=step, epoch=step / 7)
        stage = recipe.stage(progress)
        assert stage is not None
        seen[step] = (stage.name, recipe.factors(progress), recipe.task_weight(progress))
    first, second = ("hint", [3.0, 0.0, 1.0], 0), ("joint", [0.0, 1.0, 1.0], 1.0)
    assert seen == {0: first, 99: first, 100: second, 199: second, 200: second, 10_000: second}


def test_one_stage_is_no_stage():
    recipe = Recipe.from_config([line()])
    assert recipe.stage(Progress(5, 5)) is None
    assert recipe.task_weight(Progress(5, 5)) == 1.0


def test_joined_taps_may_be_a_list():
    pair = Pair.from_config(dict(student=["outputs.q[-1]", "outputs.k[-1]"], loss="AttentionQK"))
    assert pair.student == pair.teacher == "outputs.q[-1] + outputs.k[-1]"
    assert Recipe.from_config([pair]).outputs == {"q", "k"}


def test_a_weight_may_be_a_list():
    pair = Pair.from_config({"student": "neck", "loss": "Hint", "weight": [1, 0.5], "warmup": 2})
    assert pair.shares == (1, 0.5)
    assert [pair.factor(t, None) for t in (0.0, 1.0, 5.0)] == [0.0, 0.5, 1.0]
    off = Pair.from_config({"student": "neck", "loss": "Hint", "weight": [0, 0]})
    assert off.factor(3.0, None) == 0.0
    assert Pair.from_config({"student": "neck", "loss": "Hint", "weight": 2}).shares is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": []}, "empty list"),
        ({"weight": [1.0, -1.0]}, "weight of pair 'neck' is -1.0"),
        ({"weight": [1.0, "a"]}, "weight of pair 'neck' is 'a', which is no number"),
        ({"avg_factor": 0}, "avg_factor of pair 'neck' is 0"),
        ({"avg_factor": -4.0}, "avg_factor of pair 'neck' is -4.0"),
    ],
)
def test_weights_and_divisors_that_cannot_be_meant(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Pair.from_config({"student": "neck", "loss": "FeatureImitation", **changes})


def test_no_pairs_where_something_else_is_distilled():
    assert Recipe.from_config([], may_be_empty=True).pairs == ()


# -- stages that end early, hold parts, and weights that fall -------------------------------------


def test_a_stage_that_came_to_a_plateau_is_over_and_the_next_begins():
    stages = [dict(name="a", until=5, plateau=dict(patience=2)), dict(name="b", until=8)]
    recipe = Recipe.from_config([line(stage="b")], stages=[*stages, dict(name="c")])

    def names(ended: dict[str, float]) -> str:
        found = [recipe.stage(Progress(epoch=e, ended=ended)) for e in range(9)]
        return "".join(stage.name for stage in found if stage is not None)

    assert names({}) == "aaaaabbbc"
    assert names({"a": 2.0}) == "aabbbbbbc"
    assert names({"a": 2.0, "b": 3.0}) == "aabcccccc"
    assert recipe.factors(Progress(epoch=3, ended={"a": 2.0})) == [1.0]


def test_what_a_stage_holds():
    stages = [dict(name="a", until=1, train=[]), dict(name="b", until=2, freeze=["x"])]
    recipe = Recipe.from_config([line()], stages=[*stages, dict(name="c")])
    assert [stage.holds for stage in recipe.stages] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(train="layer1"), r"train of stage 'a' is 'layer1'; expected a list of module names"),
        (dict(freeze=[1]), r"freeze of stage 'a' is \[1\]"),
        (dict(plateau=3), "plateau of stage 'a' is 3"),
        (dict(plateau=dict(patience=0)), "patience=0"),
    ],
)
def test_options_of_a_stage_that_cannot_be_meant(change: dict[str, Any], said: str):
    stages = [dict(name="a", until=1, **change), dict(name="b")]
    with pytest.raises(ConfigError, match=said):
        Recipe.from_config([line()], stages=stages)


def test_after_the_last_stage_s_plateau_nothing_would_come():
    with pytest.raises(ConfigError, match="'b' is the last one and has a plateau"):
        Recipe.from_config(
            [line()],
            stages=[dict(name="a", until=1), dict(name="b", plateau=dict(patience=1))],
        )


def test_a_weight_that_falls_linearly_to_its_end():
    pair = Pair.from_config(line(weight=4.0, final_weight=1.0, start=2, stop=8))
    assert [pair.factor(t, None) for t in (1, 2, 4, 8)] == [0.0, 4.0, 3.0, 0.0]
    assert pair.factor(7.999, None) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(final_weight=1.0), "which is reached at its 'stop'"),
        (dict(final_weight=1.0, stop=2, weight=[1.0, 2.0]), "which is reached at its 'stop'"),
        (dict(final_weight=-1.0, stop=2), "final_weight of pair 'neck' is -1.0"),
    ],
)
def test_final_weights_that_cannot_be_meant(change: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Pair.from_config(line(**change))
