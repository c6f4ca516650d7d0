from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from nlp_architectures import encoder
from transformers import BertConfig, DistilBertConfig

from taskdistill.core import losses
from taskdistill.core.errors import ConfigError, DistillError
from taskdistill.core.recipe import Pair, Progress, Recipe
from taskdistill.tasks.nlp.distillation import Distillation
from taskdistill.tasks.nlp.progressive import LayerStages
from taskdistill.tasks.nlp.recipes import READY, Plan, Shape, make_plan

SMALL, LARGE = Shape(layers=2, heads=2), Shape(layers=4, heads=2)
LOGITS = dict(student="outputs.logits", loss="KLDivergence")


def plan(spec: Any, student: Shape = SMALL, **teachers: Shape) -> Plan:
    return make_plan(spec, student, teachers or {"teacher": LARGE})


def line(**keys: Any) -> Pair:
    """What becomes of a single pair."""
    spec = {"student": "outputs.hidden_states", "loss": "HiddenStateTransfer", **keys}
    return plan([spec]).recipe.pairs[0]


# -- what a recipe may be -------------------------------------------------------------------------


def test_shapes_are_read_from_configs():
    assert Shape.of(BertConfig(num_hidden_layers=3, num_attention_heads=6)) == Shape(3, 6, 2)
    one = DistilBertConfig(n_layers=3, n_heads=6, num_labels=1)
    assert Shape.of(one) == Shape(3, 6, 1)
    assert Shape.of(SimpleNamespace(num_attention_heads=[2, 4])) == Shape(None, None)
    assert Shape.of(None) == Shape(None, None)


def test_the_logits_of_a_regression_are_compared_as_numbers():
    made = make_plan("logits", Shape(2, 2, 1), {"teacher": Shape(2, 2, 1)})
    assert [pair.loss for pair in made.recipe.pairs] == ["L2Logits"]


def test_forms_of_one_recipe():
    pairs = [LOGITS]
    listed = plan(pairs)
    assert listed == plan(tuple(pairs)) == plan(dict(pairs=pairs)) == plan(dict(recipe=pairs))
    assert listed.recipe == Recipe.from_config(pairs)
    assert (listed.task_weight, listed.layer_stages, listed.copy) == (1.0, None, False)
    assert plan(Recipe.from_config(pairs)) == listed
    assert plan([Pair("outputs.logits", "KLDivergence")]) == listed


def test_unit_stages_and_weight_of_the_task():
    stages = [dict(name="a", until=3, task_weight=0.5), dict(name="b")]
    made = plan(dict(pairs=[LOGITS], unit="step", stages=stages, task_weight=2))
    assert made.recipe.unit == "step"
    assert [stage.task_weight for stage in made.recipe.stages] == [0.5, 1.0]
    assert made.task_weight == 2.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (5, "A recipe is a list of pairs"),
        ([], "has no pairs"),
        (dict(pair=[LOGITS]), "Did you mean 'pairs'"),
        (LOGITS, "A recipe has no 'student'"),
        (dict(unit="step"), "either 'pairs' or the 'recipe'"),
        (dict(pairs=[LOGITS], recipe="logits"), "either 'pairs' or the 'recipe'"),
        (dict(recipe="logits", unit="step"), "Beside a ready 'recipe' stands unit"),
        (dict(pairs=[LOGITS], task_weight=-1), "task_weight=-1 is no finite number"),
        (dict(pairs=[LOGITS], task_weight="1"), "task_weight='1' is no finite number"),
        (dict(pairs=[LOGITS], task_weight=float("nan")), "task_weight=nan is no finite"),
        ("tinybret", "Did you mean 'tinybert'"),
        (dict(name="distil"), "There is no ready recipe 'distil'.* There are: logits"),
        (dict(name="logits", temperatur=2), "Did you mean 'temperature'"),
        (dict(name="minilm", student=3), "has no option 'student'.* It has: task_weight"),
        ([dict(LOGITS, student=5)], "student=5 of a pair is no string"),
        ([dict(LOGITS, student=[])], "Tap '' is not of the form"),
        ([dict(loss="KLDivergence")], "has no 'student'"),
        (["outputs.logits"], "A pair is dict"),
    ],
)
def test_what_cannot_be_meant(spec: Any, message: str):
    with pytest.raises(DistillError, match=message):
        plan(spec)


def test_an_empty_teacher_is_the_students_own():
    assert line(student="outputs.logits", teacher=None, loss="KLDivergence").teacher == (
        "outputs.logits"
    )


# -- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "student", "teacher"),
    [
        ("hidden_states", "hidden_states[1,2]", "hidden_states[2,4]"),
        # The embeddings stand before the layers' states, not before their maps.
        ("attentions", "attentions[0,1]", "attentions[1,3]"),
        ("queries", "queries[0,1]", "queries[1,3]"),
    ],
)
def test_layers_become_selections(output: str, student: str, teacher: str):
    pair = line(student=f"outputs.{output}", layers="uniform", loss="Hint")
    assert (pair.student, pair.teacher) == (f"outputs.{student}", f"outputs.{teacher}")


@pytest.mark.parametrize("joined", ["outputs.queries + outputs.keys",
                                    ["outputs.queries", "outputs.keys"]])  # fmt: skip
def test_layers_of_joined_outputs(joined: Any):
    pair = line(student=joined, layers="last", loss="AttentionQK")
    assert pair.student == "outputs.queries[0,1] + outputs.keys[0,1]"
    assert pair.teacher == "outputs.queries[2,3] + outputs.keys[2,3]"


def test_embeddings_are_layer_0():
    pair = line(layers={0: 0, 2: 3})
    assert pair.student == "outputs.hidden_states[0,2]"
    assert pair.teacher == "outputs.hidden_states[0,3]"


def test_layers_count_those_of_the_pairs_own_teacher():
    spec = [dict(student="outputs.hidden_states", loss="Hint", layers="last", of="big")]
    made = plan(spec, small=Shape(2, 2), big=Shape(6, 2))
    assert made.recipe.pairs[0].teacher == "outputs.hidden_states[5,6]"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(student="outputs.logits"), "goes with outputs of every layer .*not with 'outputs.lo"),
        (dict(student="outputs.hidden_states[1]"), "not with 'outputs.hidden_states"),
        (dict(student="bert.encoder"), "not with 'bert.encoder'"),
        (dict(teacher="outputs.logits"), "not with 'outputs.logits'"),
        (dict(student="outputs.attentions", layers={0: 0}), "the embeddings pay no attention"),
        (dict(layers="same"), "2 layers and the teacher 4"),
        (dict(layers={3: 1}), "names layer 3 of the student"),
    ],
)
def test_misused_layers(keys: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        line(**{"layers": "uniform", **keys})


def test_layers_of_unknown_depth():
    spec = [dict(student="outputs.hidden_states", loss="Hint", layers="last")]
    with pytest.raises(ConfigError, match=r"Select layers by hand: 'outputs.hidden_states\[1,2\]'"):
        plan(spec, Shape(None, 2))


# -- heads ----------------------------------------------------------------------------------------


def test_other_numbers_of_heads_are_averaged(caplog: pytest.LogCaptureFixture):
    spec = [dict(student="outputs.attentions[-1]", loss="AttentionMap")]
    with caplog.at_level(logging.WARNING):
        made = plan(spec, teacher=Shape(4, 6)).recipe.pairs[0]
    assert made.options == {"heads": "mean"}
    assert "2 attention heads and the teacher 6" in caplog.text
    caplog.clear()
    assert plan(spec).recipe.pairs[0].options == {}
    asked = plan([dict(spec[0], heads="same")], teacher=Shape(4, 6)).recipe.pairs[0]
    assert asked.options == {"heads": "same"}
    assert not caplog.records


def test_scores_are_compared_as_scores():
    pair = line(student="outputs.attention_scores[-1]", loss="AttentionMap")
    assert pair.options == {"form": "scores"}
    assert line(student="outputs.attentions[-1]", loss="AttentionMap").options == {}


# -- ready recipes --------------------------------------------------------------------------------


def test_logits():
    made = plan(dict(name="logits", temperature=4.0, weight=0.5, task_weight=0.5))
    (pair,) = made.recipe.pairs
    assert (pair.loss, pair.options, pair.weight) == ("KLDivergence", {"temperature": 4.0}, 0.5)
    assert made.task_weight == 0.5


def test_tinybert_in_two_phases():
    made = plan("tinybert")
    assert made.task_weight == 0.0
    assert _active(made, Progress(epoch=2.9)) == ["embeddings", "hidden", "attention"]
    assert _active(made, Progress(epoch=3.0)) == ["prediction"]
    hidden, attention = made.recipe.pairs[1:3]
    # The paper sums over layers where a pair averages.
    assert hidden.weight == attention.weight == 2.0
    assert hidden.teacher == "outputs.hidden_states[2,4]"
    assert attention.options == {"divergence": "mse", "form": "scores"}
    later = plan(dict(name="tinybert", intermediate=10))
    assert _active(later, Progress(epoch=9.9)) != ["prediction"]


@pytest.mark.parametrize(
    ("phase", "names"),
    [("intermediate", ["embeddings", "hidden", "attention"]), ("prediction", ["prediction"])],
)
def test_tinybert_in_one_phase(phase: str, names: list[str]):
    made = plan(dict(name="tinybert", phase=phase, temperature=2.0))
    assert _active(made, Progress(epoch=0)) == _active(made, Progress(epoch=50)) == names
    assert made.recipe.stages == ()


def _active(made: Plan, progress: Progress) -> list[str]:
    factors = made.recipe.factors(progress)
    return [pair.name for pair, factor in zip(made.recipe.pairs, factors, strict=True) if factor]


def test_minilm():
    attention, values = plan("minilm").recipe.pairs
    assert attention.student == "outputs.queries[-1] + outputs.keys[-1]"
    assert (values.student, values.options) == ("outputs.values[-1]", {})
    assert plan("minilm").task_weight == 0.0


def test_minilmv2():
    (pair,) = plan(dict(name="minilmv2", teacher_layer=2, relation_heads=4)).recipe.pairs
    assert pair.teacher == "outputs.queries[2] + outputs.keys[2] + outputs.values[2]"
    assert pair.student == "outputs.queries[-1] + outputs.keys[-1] + outputs.values[-1]"
    assert pair.options == {"relation_heads": 4}


@pytest.mark.parametrize(
    ("strategy", "until", "first", "last"),
    [
        ("progressive", [5, 10, None], ["feature_1", "attention_1"], ["mlm", "next_sentence"]),
        ("joint", [7, None], ["feature", "attention"], ["mlm", "next_sentence"]),
        ("auxiliary", [], ["feature", "attention", "mlm", "next_sentence"], None),
    ],
)
def test_mobilebert(strategy: str, until: list[Any], first: list[str], last: list[str] | None):
    spec = dict(name="mobilebert", strategy=strategy, steps_per_layer=5, transfer_steps=7)
    made = plan(spec, teacher=SMALL)
    assert made.recipe.unit == "step" and made.copy and made.task_weight == 0.0
    assert [stage.until for stage in made.recipe.stages] == until
    assert _active(made, Progress(step=0, epoch=99)) == first
    assert _active(made, Progress(step=100)) == (last or first)
    if strategy == "progressive":
        assert _active(made, Progress(step=5)) == ["feature_2", "attention_2"]
        assert made.layer_stages == LayerStages(2, 5, 0.0, 0.1)
    else:
        assert made.layer_stages is None


def test_options_of_mobilebert():
    spec = dict(
        name="mobilebert",
        strategy="auxiliary",
        alpha=0.25,
        next_sentence=False,
        feature_weight=100.0,
        attention_weight=2.0,
        normalize="layer_norm",
        copy=False,
    )
    made = plan(spec, teacher=SMALL)
    feature, attention, mlm = made.recipe.pairs
    assert (feature.weight, feature.options) == (100.0, {"normalize": "layer_norm"})
    assert attention.weight == 2.0
    # Of the loss, alpha is the teacher's share.
    assert mlm.options["alpha"] == 0.75
    assert not made.copy
    slowed = plan(dict(name="mobilebert", lower=0.1, warmup=0.0, steps_per_layer=3), teacher=SMALL)
    assert slowed.layer_stages == LayerStages(2, 3, 0.1, 0.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(name="tinybert", phase="first"), "phase='first' is not 'both'"),
        (dict(name="tinybert", intermediate=0), "one after another"),
        (dict(name="tinybert", temperature=0), "temperature must be"),
        (dict(name="logits", weight=-1.0), "weight"),
        (dict(name="minilmv2", relation_heads=0), "relation_heads must be an integer >= 1"),
        (dict(name="mobilebert", strategy="all"), "strategy='all' is not"),
        (dict(name="mobilebert", alpha=1.5), "alpha=1.5, the labels' share"),
        (dict(name="mobilebert", alpha="0.5"), "alpha='0.5', the labels' share"),
        (dict(name="mobilebert", steps_per_layer=0), "steps=0 of progressive transfer|one after"),
        (dict(name="mobilebert", lower=2.0), "lower=2.0 of progressive transfer"),
        (dict(name="mobilebert", normalize="batch"), "normalize"),
        (dict(name="mobilebert", strategy="joint", transfer_steps="x"), "'x'"),
    ],
)
def test_options_that_cannot_be_meant(spec: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        plan(spec, teacher=SMALL)


def test_recipes_for_models_that_do_not_fit():
    with pytest.raises(
        ConfigError, match="matches layer by layer, but the student has 2 layers an"
    ):
        plan("mobilebert")
    with pytest.raises(ConfigError, match="4 layers, more than the teacher's 2"):
        plan("tinybert", Shape(4, 2), teacher=SMALL)
    with pytest.raises(ConfigError, match="depth of student or teacher is not in its config"):
        plan("tinybert", Shape(None, None))


def test_losses_of_ready_recipes_exist():
    for name in READY:
        assert all(hasattr(losses, str(p.loss)) for p in plan(name, teacher=SMALL).recipe.pairs)


# -- on models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "head"),
    [
        ("logits", "DistilBert", "Bert", "ForSequenceClassification"),
        ("logits", "ModernBert", "Deberta", "ForTokenClassification"),
        ("tinybert", "Roberta", "Bert", "ForMaskedLM"),
        ("minilm", "DistilBert", "Electra", "ForTokenClassification"),
        ("minilm", "Albert", "Bert", "ForSequenceClassification"),
        (dict(name="minilmv2", relation_heads=4), "Bert", "DebertaV2", "ForQuestionAnswering"),
        (dict(name="mobilebert", next_sentence=False), "MobileBert", "IBBert", "ForMaskedLM"),
        ("mobilebert", "MobileBert", "IBBert", "ForPreTraining"),
        (dict(name="mobilebert", copy=False), "Bert", "MobileBert", "ForPreTraining"),
    ],
)
def test_ready_recipes_fit(spec: Any, student: str, teacher: str, head: str):
    models = encoder(student, head), encoder(teacher, head, seed=1)
    made = Distillation(models[0], {"teacher": models[1]}, spec)
    assert made.distiller.is_set_up


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "head", "message"),
    [
        ("logits", "Bert", "Bert", "ForQuestionAnswering", "gives no logits; it gives: start_log"),
        ("minilm", "ModernBert", "Bert", "ForMaskedLM", "outputs.keys cannot be read from Modern"),
        ("tinybert", "Bert", "RoFormer", "ForMaskedLM", "teacher 'teacher' cannot be made"),
        ("tinybert", "RoFormer", "Bert", "ForMaskedLM", "of the student cannot be made"),
        ("minilmv2", "Bert", "Bert", "ForMaskedLM", "relation_heads=12 does not divide"),
        ("mobilebert", "MobileBert", "IBBert", "ForMaskedLM", "gives no seq_relationship_logits"),
        (dict(name="mobilebert", copy=False), "Albert", "Bert", "ForPreTraining", "0 lists of 2"),
        (dict(name="minilmv2", relation_heads=4, teacher_layer=9), "Bert", "Bert", "Model", "9"),
    ],
)
def test_ready_recipes_that_do_not_fit(
    spec: Any, student: str, teacher: str, head: str, message: str
):
    models = encoder(student, head), encoder(teacher, head, seed=1)
    with pytest.raises(DistillError, match=message):
        Distillation(models[0], {"teacher": models[1]}, spec)
