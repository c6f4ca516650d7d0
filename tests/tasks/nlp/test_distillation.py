from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nlp_architectures import encoder, texts
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from taskdistill.core import losses as L
from taskdistill.core.distiller import Term
from taskdistill.core.errors import CheckpointError, ConfigError, DistillError, TeacherError
from taskdistill.core.recipe import Progress
from taskdistill.core.teacher import FrozenTeacher, state_sha256
from taskdistill.tasks.nlp.distillation import STATE_FILE, Distillation

CLASSIFIER = "ForSequenceClassification"
WIDE: dict[str, Any] = dict(hidden_size=12, num_hidden_layers=4, intermediate_size=24)
GOLDEN = Path(__file__).parents[2] / "core" / "losses" / "golden.json"


def pair_of(
    spec: Any,
    head: str = CLASSIFIER,
    student: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    **options: Any,
) -> Distillation:
    """A BERT student of a teacher that is twice as deep and half as wide again."""
    models = (
        encoder("Bert", head, **(student or {})),
        encoder("Bert", head, seed=1, **{**WIDE, **(teacher or {})}),
    )
    return Distillation(models[0], {"teacher": models[1]}, spec, **options)


def terms(
    made: Distillation,
    batch: dict[str, Tensor],
    totals: Tensor | None = None,
    progress: Progress | None = None,
) -> dict[str, Term]:
    """One batch, as training does it."""
    with made.active(), made.distiller.watch() as seen:
        output = made.student(**made.student_inputs(batch))
    return made.terms(seen, output, batch, totals, progress or Progress())


def value(made: Distillation, batch: dict[str, Tensor], **more: Any) -> float:
    (term,) = terms(made, batch, **more).values()
    return term.raw.item()


def answers(made: Distillation, batch: dict[str, Tensor]) -> tuple[Any, Any]:
    """What student and teacher return by themselves, everything in it."""
    teacher = made.distiller.teachers["teacher"].model
    found = []
    for model in (made.student, teacher):
        plain: Any = copy.deepcopy(model).eval()
        plain.set_attn_implementation("eager")
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask") if k in batch}
        with torch.no_grad():
            found.append(plain(**inputs, output_hidden_states=True, output_attentions=True))
    return found[0], found[1]


def vectors(made: Distillation, who: str, kind: str, layer: int, state: Tensor) -> Tensor:
    """Queries, keys or values by head (B, A, T, d), from a layer's input."""
    model: Any = made.student if who == "student" else made.distiller.teachers["teacher"].model
    attention = model.bert.encoder.layer[layer].attention.self
    with torch.no_grad():
        flat = getattr(attention, kind)(state)
    return flat.unflatten(2, (model.config.num_attention_heads, -1)).transpose(1, 2)


def on_tokens(values: Tensor, batch: dict[str, Tensor]) -> float:
    """Mean over the tokens that are no padding of (B, T)."""
    return values[batch["attention_mask"] != 0].mean().item()


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of probabilities, summed over the last axis."""
    return (teacher * ((teacher + 1e-30).log() - (student + 1e-30).log())).sum(-1)


# -- logits ---------------------------------------------------------------------------------------


def test_classification_logits():
    made, batch = pair_of(dict(name="logits", temperature=2.0, weight=0.5)), texts()
    ours, theirs = answers(made, batch)
    soft = [(o.logits / 2).log_softmax(-1) for o in (ours, theirs)]
    expected = 4 * F.kl_div(*soft, log_target=True, reduction="batchmean").item()
    (term,) = terms(made, batch).values()
    assert term.raw.item() == pytest.approx(expected, rel=1e-4)
    assert term.weighted.item() == 0.5 * term.raw.item()


def test_regression():
    one = dict(num_labels=1)
    spec = [dict(student="outputs.logits", loss="L2Logits")]
    made, batch = pair_of(spec, student=one, teacher=one), texts()
    ours, theirs = answers(made, batch)
    expected = 0.5 * (ours.logits - theirs.logits).square().mean().item()
    assert value(made, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForMaskedLM"])
def test_only_labelled_positions_count(head: str):
    made, batch = pair_of([dict(student="outputs.logits", loss="KLDivergence")], head), texts()
    batch["labels"] = torch.full((3, 6), -100)
    batch["labels"][0, 2], batch["labels"][1, 3], batch["labels"][0, 5] = 1, 0, 1
    ours, theirs = answers(made, batch)
    chosen = batch["labels"] != -100
    rows = kl(ours.logits.softmax(-1), theirs.logits.softmax(-1))
    assert value(made, batch) == pytest.approx(rows[chosen].mean().item(), rel=1e-5)

    batch["labels"][:] = -100
    (term,) = terms(made, batch).values()
    assert term.raw.item() == 0.0
    term.weighted.backward()  # a batch without labels: gradients of 0, not an error


def test_all_tokens_on_request():
    spec = [dict(student="outputs.logits", loss="KLDivergence", region="tokens")]
    made, batch = pair_of(spec, "ForMaskedLM"), texts()
    ours, theirs = answers(made, batch)
    rows = kl(ours.logits.softmax(-1), theirs.logits.softmax(-1))
    assert value(made, batch) == pytest.approx(on_tokens(rows, batch), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_labels_and_teacher_together(alpha: float):
    spec = [
        dict(
            student="outputs.logits",
            loss="CrossEntropyKLDivergence",
            alpha=alpha,
            temperature=2.0,
        )
    ]
    made, batch = pair_of(spec), texts()
    batch["labels"] = torch.tensor([0, 1, 1])
    ours, theirs = answers(made, batch)
    hard = F.cross_entropy(ours.logits, batch["labels"]).item()
    soft = 4 * kl((ours.logits / 2).softmax(-1), (theirs.logits / 2).softmax(-1)).mean().item()
    expected = (1 - alpha) * hard + alpha * soft
    assert value(made, batch) == pytest.approx(expected, rel=1e-5)


def test_labels_that_are_not_there():
    spec = [dict(student="outputs.logits", loss="CrossEntropyKLDivergence")]
    with pytest.raises(ConfigError, match="no target 'logits'"):
        terms(pair_of(spec), texts())


def test_pre_training_as_mobilebert():
    spec = dict(name="mobilebert", strategy="joint", transfer_steps=1, alpha=0.25, copy=False)
    made = pair_of(spec, "ForPreTraining", teacher=dict(num_hidden_layers=2))
    batch = texts()
    batch["labels"] = batch["input_ids"].masked_fill(torch.arange(6) % 2 == 0, -100)
    batch["labels"][batch["attention_mask"] == 0] = -100
    batch["next_sentence_label"] = torch.tensor([[0], [1], [1]])
    ours, theirs = answers(made, batch)
    chosen = batch["labels"] != -100
    logits, targets = ours.prediction_logits[chosen], batch["labels"][chosen]
    taught = theirs.prediction_logits[chosen]
    mlm = F.cross_entropy(logits, targets).item()
    kd = kl(logits.softmax(-1), taught.softmax(-1)).mean().item()
    nsp = F.cross_entropy(ours.seq_relationship_logits, batch["next_sentence_label"].flatten())
    found = terms(made, batch, progress=Progress(step=1))
    assert found["mlm"].raw.item() == pytest.approx(0.25 * mlm + 0.75 * kd, rel=1e-5)
    assert found["next_sentence"].raw.item() == pytest.approx(nsp.item(), rel=1e-5)
    assert found["feature"].raw.item() == found["attention"].raw.item() == 0.0


def test_answers():
    spec = [
        dict(student=f"outputs.{side}_logits", loss="KLDivergence", name=side)
        for side in ("start", "end")
    ]
    made, batch = pair_of(spec, "ForQuestionAnswering"), texts()
    ours, theirs = answers(made, batch)
    found = terms(made, batch)
    for side in ("start", "end"):
        shares = [
            o[f"{side}_logits"].masked_fill(batch["attention_mask"] == 0, -torch.inf).softmax(-1)
            for o in (ours, theirs)
        ]
        assert found[side].raw.item() == pytest.approx(kl(*shares).mean().item(), rel=1e-5)


# -- layers ---------------------------------------------------------------------------------------


def test_hidden_states_through_adapters():
    spec = [dict(student="outputs.hidden_states", layers="uniform", loss="HiddenStateTransfer")]
    made, batch = pair_of(spec), texts()
    ours, theirs = answers(made, batch)
    adapters = list(made.distiller.adapters["hidden_state_transfer"].children())
    assert len(adapters) == 2
    expected = []
    for adapter, layer, target in zip(adapters, (1, 2), (2, 4), strict=True):
        project: Any = adapter.project
        assert (project.in_features, project.out_features) == (8, 12)
        gaps = project(ours.hidden_states[layer]) - theirs.hidden_states[target]
        expected.append(on_tokens(gaps.square().mean(-1), batch))
    assert value(made, batch) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_embeddings():
    spec = [dict(student="outputs.embeddings", loss="HiddenStateTransfer")]
    made, batch = pair_of(spec, teacher=dict(hidden_size=8)), texts()
    assert not made.partner_parameters  # equal widths are compared as they are
    ours, theirs = answers(made, batch)
    gaps = (ours.hidden_states[0] - theirs.hidden_states[0]).square().mean(-1)
    assert value(made, batch) == pytest.approx(on_tokens(gaps, batch), rel=1e-5)


def test_attention_probabilities():
    spec = [dict(student="outputs.attentions", layers="last", loss="AttentionMap")]
    made, batch = pair_of(spec), texts()
    ours, theirs = answers(made, batch)
    expected = [
        on_tokens(kl(s, t).mean(1), batch)
        for s, t in zip(ours.attentions, theirs.attentions[2:], strict=True)
    ]
    assert value(made, batch) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_attention_scores_give_the_same_divergence():
    spec = dict(layers="last", loss="AttentionMap")
    maps, scores = (
        value(pair_of([dict(spec, student=f"outputs.{name}")]), texts())
        for name in ("attentions", "attention_scores")
    )
    qk = [dict(student="outputs.queries + outputs.keys", layers="last", loss="AttentionQK")]
    assert scores == pytest.approx(maps, rel=1e-4)
    assert value(pair_of(qk), texts()) == pytest.approx(maps, rel=1e-4)


def test_attention_scores_as_tinybert_compares_them():
    spec = [dict(student="outputs.attention_scores[-1]", loss="AttentionMap", divergence="mse")]
    made, batch = pair_of(spec), texts()
    ours, theirs = answers(made, batch)
    scores = []
    for who, layer, output in (("student", 1, ours), ("teacher", 3, theirs)):
        state = output.hidden_states[layer]
        q, k = (vectors(made, who, kind, layer, state) for kind in ("query", "key"))
        scores.append(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]))
    keys = batch["attention_mask"][:, None, None].float()
    squares = ((scores[0] - scores[1]).square() * keys).sum(-1) / keys.sum(-1)
    assert value(made, batch) == pytest.approx(on_tokens(squares.mean(1), batch), rel=1e-5)


def test_other_numbers_of_heads_are_averaged(caplog: pytest.LogCaptureFixture):
    spec = [dict(student="outputs.attentions", layers="last", loss="AttentionMap")]
    with caplog.at_level(logging.WARNING):
        made, batch = pair_of(spec, teacher=dict(num_attention_heads=3)), texts()
    assert "2 attention heads and the teacher 3" in caplog.text
    ours, theirs = answers(made, batch)
    expected = [
        on_tokens(kl(s.mean(1), t.mean(1)), batch)
        for s, t in zip(ours.attentions, theirs.attentions[2:], strict=True)
    ]
    assert value(made, batch) == pytest.approx(sum(expected) / 2, rel=1e-4)


def _relation(x: Tensor, y: Tensor, batch: dict[str, Tensor]) -> Tensor:
    scores = x @ y.transpose(2, 3) / math.sqrt(x.shape[-1])
    return scores.masked_fill(batch["attention_mask"][:, None, None] == 0, -1e30).softmax(-1)


def test_minilm():
    made, batch = pair_of("minilm"), texts()
    ours, theirs = answers(made, batch)
    last = {"student": (1, ours), "teacher": (3, theirs)}
    found = terms(made, batch)
    maps, relations = [], []
    for who, (layer, output) in last.items():
        value_ = vectors(made, who, "value", layer, output.hidden_states[layer])
        maps.append(output.attentions[layer])
        relations.append(_relation(value_, value_, batch))
    for name, sides in (("attention", maps), ("value_relations", relations)):
        expected = on_tokens(kl(*sides).mean(1), batch)
        assert found[name].raw.item() == pytest.approx(expected, rel=1e-4)


def test_minilmv2_of_other_widths_and_heads():
    spec = dict(name="minilmv2", relation_heads=4, teacher_layer=2)
    made, batch = pair_of(spec, teacher=dict(num_attention_heads=3)), texts()
    ours, theirs = answers(made, batch)
    expected = 0.0
    for kind in ("query", "key", "value"):
        sides = []
        for who, layer, output in (("student", 1, ours), ("teacher", 2, theirs)):
            own = vectors(made, who, kind, layer, output.hidden_states[layer])
            split = own.transpose(1, 2).flatten(2).unflatten(2, (4, -1)).transpose(1, 2)
            sides.append(_relation(split, split, batch))
        expected += on_tokens(kl(*sides).mean(1), batch)
    assert value(made, batch) == pytest.approx(expected, rel=1e-4)


def test_tinybert_in_two_phases():
    made, batch = pair_of(dict(name="tinybert", intermediate=2)), texts()
    ours, theirs = answers(made, batch)
    first = terms(made, batch, progress=Progress(epoch=1.9))
    assert first["prediction"].weighted.item() == 0.0
    assert all(first[name].weighted > 0 for name in ("embeddings", "hidden", "attention"))
    assert first["hidden"].weighted.item() == pytest.approx(2 * first["hidden"].raw.item())

    second = terms(made, batch, progress=Progress(epoch=2.0))
    soft = -(theirs.logits.softmax(-1) * ours.logits.log_softmax(-1)).sum(-1).mean().item()
    assert second["prediction"].weighted.item() == pytest.approx(soft, rel=1e-5)
    off = [second[name].weighted for name in ("embeddings", "hidden", "attention")]
    assert [weight.item() for weight in off] == [0.0] * 3
    # What is off still touches its adapters, which data-parallel training waits for.
    torch.stack(off).sum().backward()
    assert all(p.grad is not None for p in made.partner_parameters)


def test_tapped_modules():
    spec = [
        dict(student="bert.encoder.layer.1", teacher="bert.encoder.layer.3", loss="Hint"),
    ]
    made, batch = pair_of(spec), texts()
    ours, theirs = answers(made, batch)
    project: Any = made.distiller.adapters["hint"].get_submodule("0.project")
    with torch.no_grad():
        gap = L.hint(project(ours.hidden_states[2]), theirs.hidden_states[4]).item()
    assert value(made, batch) == pytest.approx(gap, rel=1e-5)


def test_several_teachers():
    spec = [
        dict(student="outputs.logits", loss="KLDivergence", of=of, name=of) for of in ("a", "b")
    ]
    student = encoder("Bert")
    teachers = {"a": encoder("DistilBert", seed=1), "b": encoder("Albert", seed=2)}
    made, batch = Distillation(student, dict(teachers), spec), texts()
    found = terms(made, batch)
    for name, teacher in teachers.items():
        shares = [m(**batch).logits.softmax(-1) for m in (student, teacher)]
        assert found[name].raw.item() == pytest.approx(kl(*shares).mean().item(), rel=1e-4)


# -- many batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [CLASSIFIER, "ForMaskedLM"])
def test_terms_of_parts_add_up(head: str):
    spec = [
        dict(student="outputs.logits", loss="KLDivergence", name="kl"),
        dict(student="outputs.hidden_states[-1]", loss="HiddenStateTransfer", name="hidden"),
        dict(student="outputs.attentions[-1]", loss="AttentionMap", name="attention"),
    ]
    made, batch = pair_of(spec, head), texts()
    labels = batch["input_ids"].masked_fill(batch["input_ids"] % 3 == 0, -100)
    batch["labels"] = torch.tensor([0, 1, 1]) if head == CLASSIFIER else labels
    parts = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 1), slice(1, 3))]
    totals = made.count(parts)
    assert torch.equal(totals, made.count([batch]))  # type: ignore[arg-type]
    whole = terms(made, batch)
    split = [terms(made, part, totals=totals) for part in parts]
    for name, term in whole.items():
        total = sum(found[name].raw.item() for found in split)
        assert total == pytest.approx(term.raw.item(), rel=1e-5)
    assert all(made.is_exact(pair) for pair in made.plan.recipe.pairs)


def test_nothing_to_count():
    made = pair_of([dict(student="bert.pooler", loss="Hint")], teacher=dict(hidden_size=8))
    assert made.count([texts()]) is None
    assert not made.is_exact(made.plan.recipe.pairs[0])
    assert pair_of("logits").count([]) is None


# -- the edges of a batch -------------------------------------------------------------------------

EVERYTHING: list[dict[str, Any]] = [
    dict(student="outputs.embeddings", loss="HiddenStateTransfer"),
    dict(student="outputs.hidden_states", layers="uniform", loss="HiddenStateTransfer"),
    dict(student="outputs.hidden_states[-1]", loss="HiddenStateTransfer", normalize="layer_norm"),
    dict(student="outputs.attentions", layers="uniform", loss="AttentionMap"),
    dict(student="outputs.attention_scores", layers="uniform", loss="AttentionMap"),
    dict(student="outputs.attention_scores[-1]", loss="AttentionMap", divergence="mse"),
    dict(student="outputs.queries[-1] + outputs.keys[-1]", loss="AttentionQK"),
    dict(student="outputs.values[-1]", loss="SelfAttentionRelations"),
]


@pytest.mark.parametrize("lengths", [(1,), (1, 1), (3, 0), (0, 0), (4, 1, 0)])
@pytest.mark.parametrize("head", [CLASSIFIER, "ForMaskedLM", "ForQuestionAnswering"])
def test_short_and_empty_texts_are_finite(head: str, lengths: tuple[int, ...]):
    names = ["start_logits", "end_logits"] if "Question" in head else ["logits"]
    heads = [
        dict(student=f"outputs.{name}", loss="KLDivergence", region="samples" if name != "logits"
             else None) for name in names
    ]  # fmt: skip
    made = pair_of([*EVERYTHING, *heads], head)
    mask = (torch.arange(max(*lengths, 2)) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": 5 * mask, "attention_mask": mask}
    if head == "ForMaskedLM":
        batch["labels"] = (7 * mask).masked_fill(mask == 0, -100)
    found = terms(made, batch)
    for term in found.values():
        assert math.isfinite(term.raw.item()) and term.raw >= 0
    torch.stack([term.weighted for term in found.values()]).sum().backward()
    grads = [p.grad for p in (*made.student.parameters(), *made.partner_parameters)]
    assert all(grad is None or bool(torch.isfinite(grad).all()) for grad in grads)
    assert sum(grad is not None for grad in grads) > 10


def test_equal_models_have_nothing_to_learn():
    spec = [*EVERYTHING, dict(student="outputs.logits", loss="KLDivergence")]
    student = encoder("Bert")
    made = Distillation(student, {"teacher": copy.deepcopy(student)}, spec)
    assert not made.partner_parameters
    for term in terms(made, texts()).values():
        assert term.raw.item() == pytest.approx(0.0, abs=1e-6)


def test_padding_changes_nothing():
    spec = [*EVERYTHING, dict(student="outputs.logits", loss="KLDivergence")]
    made = pair_of(spec)
    short = texts((4, 3))
    padded = {key: F.pad(tensor, (0, 3)) for key, tensor in short.items()}
    one, other = terms(made, short), terms(made, padded)
    for name, term in one.items():
        assert other[name].raw.item() == pytest.approx(term.raw.item(), rel=1e-4, abs=1e-7)


# -- values of the published codes ----------------------------------------------------------------


class Fixed(nn.Module):
    """Returns given states and maps of one layer, cut to the length of the input."""

    def __init__(self, states: Tensor, scores: Tensor) -> None:
        super().__init__()
        self.config = BertConfig(num_hidden_layers=1, num_attention_heads=4, hidden_size=16)
        self.states, self.scores = nn.Parameter(states), nn.Parameter(scores)

    def forward(self, input_ids: Tensor, **_: Any) -> ModelOutput:
        length = input_ids.shape[1]
        maps = self.scores[:, :, :length, :length].softmax(-1)
        states = self.states[:, :length]
        return ModelOutput(hidden_states=(torch.zeros_like(states), states), attentions=(maps,))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (
            "MobileBERT FMT: mse(LN(hs),LN(ht)) (no affine)",
            dict(
                student="outputs.hidden_states", loss="HiddenStateTransfer", normalize="layer_norm"
            ),
        ),
        (
            "raw mse (paper, no LN)",
            dict(student="outputs.hidden_states", loss="HiddenStateTransfer"),
        ),
        (
            "MobileBERT AT: CE form (google code)",
            dict(student="outputs.attentions", loss="AttentionMap", divergence="cross_entropy"),
        ),
        (
            "MobileBERT AT: KL (paper)",
            dict(student="outputs.attentions", loss="AttentionMap"),
        ),
    ],
)
def test_known_values(name: str, keys: dict[str, Any]):
    generator = torch.Generator().manual_seed(0)
    hs = 2 * torch.randn(2, 7, 16, generator=generator) + 1
    ht = 3 * torch.randn(2, 7, 16, generator=generator) - 1
    scores = [torch.randn(2, 4, 7, 7, generator=generator) for _ in range(2)]
    made = Distillation(
        Fixed(hs, scores[0]), {"teacher": Fixed(ht, scores[1])}, [dict(keys, layers="same")]
    )
    batch = {"input_ids": torch.ones(2, 7, dtype=torch.long)}
    golden = json.loads(GOLDEN.read_text())[f"extra: {name}"]
    assert value(made, batch) == pytest.approx(golden, rel=1e-5)


# -- what making it leaves alone ------------------------------------------------------------------


def test_student_and_random_numbers_are_untouched():
    student = encoder("Bert", attn_implementation="sdpa").train()
    embeddings = student.get_submodule("bert.embeddings").eval()  # a part that a user froze
    modes = {name: module.training for name, module in student.named_modules()}
    # transformers puts hooks of its own on a model that it was once asked for states or maps.
    student(**texts(), output_hidden_states=True, output_attentions=True)
    hooks = _hooks(student)
    before, state = state_sha256(student), torch.random.get_rng_state()
    spec = [*EVERYTHING, dict(student="outputs.logits", loss="KLDivergence")]
    Distillation(student, {"teacher": encoder_without_noise(**WIDE)}, spec, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert state_sha256(student) == before
    assert {name: module.training for name, module in student.named_modules()} == modes
    assert not embeddings.training
    assert student.config._attn_implementation == "sdpa"
    assert _hooks(student) == hooks
    assert all(p.requires_grad and p.grad is None for p in student.parameters())


def _hooks(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def encoder_without_noise(**changes: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        return encoder("Bert", seed=1, **changes)


def test_adapters_are_of_the_seed():
    spec = [dict(student="outputs.hidden_states[-1]", loss="HiddenStateTransfer")]
    first, same, other = (pair_of(spec, seed=seed).partner_parameters[0] for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_attention_is_put_back_after_an_error():
    student = encoder("Bert", attn_implementation="sdpa")
    spec = [dict(student="outputs.attentions[-1]", loss="AttentionMap", heads="same")]
    teacher = encoder("Bert", seed=1, num_attention_heads=4)
    with pytest.raises(DistillError, match="same shape"):
        Distillation(student, {"teacher": teacher}, spec)
    assert student.config._attn_implementation == "sdpa"


def test_teacher_is_frozen():
    teacher = encoder("Bert", seed=1).train()
    Distillation(encoder("Bert"), {"teacher": FrozenTeacher(teacher)}, "logits")
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_dropout_of_attention_is_warned_of(caplog: pytest.LogCaptureFixture):
    spec = [dict(student="outputs.attentions[-1]", loss="AttentionMap")]
    with caplog.at_level(logging.WARNING):
        pair_of(spec)
        assert not caplog.records
        pair_of(spec, student=dict(attention_probs_dropout_prob=0.25))
    assert "after a dropout of 0.25" in caplog.text
    assert "Set attention_probs_dropout_prob=0" in caplog.text


# -- columns --------------------------------------------------------------------------------------


def test_columns_of_the_teacher_alone():
    teacher = encoder("Bert", seed=1)
    made = Distillation(encoder("DistilBert"), {"teacher": teacher}, "logits")
    assert "token_type_ids" in made.teacher_columns
    batch = {**texts(), "token_type_ids": torch.ones(3, 6, dtype=torch.long)}
    assert "token_type_ids" not in made.student_inputs(batch)
    shares = [(m.logits / 2).softmax(-1) for m in (made.student(**texts()), teacher(**batch))]
    assert value(made, batch) == pytest.approx(4 * kl(*shares).mean().item(), rel=1e-4)


def test_inputs_of_a_teacher():
    made, batch = pair_of("logits"), texts()
    other = texts(seed=3)
    with made.distiller.watch() as seen:
        output = made.student(**batch)
    found = made.terms(seen, output, batch, None, Progress(), {"teacher": other})
    teacher = made.distiller.teachers["teacher"].model
    # In float64: of nearly equal logits, float32 leaves a few of its own steps.
    shares = [(o.logits.double() / 2).softmax(-1) for o in (output, teacher(**other))]
    expected = 4 * kl(*shares).mean().item()
    assert found["kl_divergence"].raw.item() == pytest.approx(expected, abs=5e-7)


# -- copying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [True, False])
def test_embeddings_and_head_of_the_teacher(copied: bool):
    student = encoder("MobileBert", "ForPreTraining")
    teacher = encoder("IBBert", "ForPreTraining", seed=1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    Distillation(student, {"teacher": teacher}, dict(name="mobilebert", copy=copied))
    own, other = student.state_dict(), teacher.state_dict()
    changed = {name for name in own if not torch.equal(own[name], before[name])}
    if not copied:
        assert not changed
        return
    assert not any(".encoder." in name for name in changed)
    assert {
        "mobilebert.embeddings.word_embeddings.weight",
        "mobilebert.embeddings.position_embeddings.weight",
        "mobilebert.embeddings.embedding_transformation.weight",
        "cls.predictions.bias",
        "cls.seq_relationship.weight",
    } <= changed  # fmt: skip
    for name in changed:
        assert torch.equal(own[name], other[name.replace("mobilebert.", "ib_bert.", 1)])


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "student", "teacher", "message"),
    [
        (CLASSIFIER, dict(num_labels=1), dict(num_labels=2), "1 labels .* and the teacher 2"),
        (CLASSIFIER, dict(num_labels=2, problem_type="regression"),
         dict(num_labels=2, problem_type="single_label_classification"),
         "problem is 'regression' and the teacher's 'single_label"),
        (CLASSIFIER, dict(id2label={0: "good", 1: "bad"}), dict(id2label={0: "bad", 1: "good"}),
         "in another order"),
        (CLASSIFIER, {}, dict(vocab_size=90), "50 tokens and the teacher's 90"),
        ("ForMaskedLM", {}, dict(vocab_size=56), "output layer has 50 words and the teacher's 56"),
        (CLASSIFIER, {}, dict(max_position_embeddings=10), "the teacher reads 10"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit(
    head: str, student: dict[str, Any], teacher: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        pair_of("logits", head, student, teacher)


def test_labels_matter_for_logits_alone():
    spec = [dict(student="outputs.hidden_states[-1]", loss="HiddenStateTransfer")]
    pair_of(spec, teacher=dict(num_labels=5))
    # Of a head over words they say nothing.
    pair_of("logits", "ForMaskedLM", teacher=dict(num_labels=5))


def test_one_number_is_no_distribution():
    one = dict(num_labels=1)
    with pytest.raises(DistillError, match="softmax needs at least 2"):
        pair_of([dict(student="outputs.logits", loss="KLDivergence")], student=one, teacher=one)


def test_no_teacher_and_wrong_teachers():
    student = encoder("Bert")
    with pytest.raises(ConfigError, match="There is no teacher"):
        Distillation(student, {}, "logits")
    with pytest.raises(TeacherError, match="has parameters of the student"):
        Distillation(student, {"teacher": student}, "logits")
    with pytest.raises(ConfigError, match="must be models of transformers.* and Linear"):
        Distillation(student, {"teacher": nn.Linear(1, 1)}, "logits")
    with pytest.raises(ConfigError, match="is of teacher 'big', but the teachers are"):
        pair_of([dict(student="outputs.logits", loss="KLDivergence", of="big")])


def test_a_model_that_returns_tuples():
    student = encoder("Bert")
    student.config.return_dict = False
    with pytest.raises(ConfigError, match="returns tuple; expected a model output"):
        Distillation(student, {"teacher": encoder("Bert", seed=1)}, "logits")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(student="outputs.hidden_states[9]"), "9"),
        (dict(student="outputs.hidden_state[1]"), "Did you mean 'hidden_states'"),
        (dict(student="outputs.hidden_states[1]", region="token"), "Did you mean 'tokens'"),
        (dict(student="outputs.hidden_states[1]", region="samples"), "one number a position"),
        (dict(student="outputs.hidden_states[1]", teacher="outputs.hidden_states[1,2]"), "gives 1"),
        (dict(student="outputs.logits[0]"), "nothing to select"),
        (dict(student="bert.encodr"), "encoder"),
    ],
)
def test_pairs_that_do_not_fit(keys: dict[str, Any], message: str):
    with pytest.raises(DistillError, match=message):
        pair_of([{"loss": "HiddenStateTransfer", **keys}])


def test_what_comes_later_is_tried_now():
    bad = dict(student="outputs.attentions[-1]", loss="AttentionMap", heads="same")
    stages = [dict(name="first", until=2.5), dict(name="second")]
    for late in (dict(stage="second"), dict(start=3.0, warmup=2.0)):
        for unit in ("epoch", "step"):
            spec = dict(
                pairs=[dict(student="outputs.logits", loss="KLDivergence"), {**bad, **late}],
                stages=stages,
                unit=unit,
            )
            with pytest.raises(DistillError, match="same shape"):
                pair_of(spec, teacher=dict(num_attention_heads=3))


# -- checkpoints ----------------------------------------------------------------------------------

ADAPTED = [dict(student="outputs.hidden_states", layers="uniform", loss="HiddenStateTransfer")]


def _saved(made: Distillation, folder: Path) -> Path:
    torch.save(made.state_dict(), folder / STATE_FILE)
    return folder


def test_adapters_come_back(tmp_path: Path):
    first, second = pair_of(ADAPTED, seed=1), pair_of(ADAPTED, seed=2)
    batch = texts()
    assert value(first, batch) != value(second, batch)
    second.restore(_saved(first, tmp_path))
    for one, other in zip(first.partner_parameters, second.partner_parameters, strict=True):
        assert torch.equal(one, other)
    assert value(first, batch) == value(second, batch)


def test_adapters_of_another_recipe(tmp_path: Path):
    folder = _saved(pair_of(ADAPTED), tmp_path)
    for spec in ("logits", [dict(ADAPTED[0], layers={1: 1})], [dict(ADAPTED[0], name="states")]):
        with pytest.raises(CheckpointError, match="adapters of another recipe"):
            pair_of(spec).restore(folder)


def test_another_teacher_has_another_fingerprint(tmp_path: Path):
    folder = _saved(pair_of("logits"), tmp_path)
    student = encoder("Bert")
    other = encoder("Bert", seed=2, **WIDE)
    with pytest.raises(CheckpointError, match="its weights differ"):
        Distillation(student, {"teacher": other}, "logits").restore(folder)
    with pytest.raises(CheckpointError, match="its weights differ"):
        Distillation(student, {"renamed": encoder("Bert", seed=1, **WIDE)}, "logits").restore(
            folder
        )


def test_checkpoints_that_are_none(tmp_path: Path):
    made = pair_of("logits")
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} is missing"):
        made.restore(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or no checkpoint"):
        made.restore(tmp_path)
    for state in ([1, 2], {}, {"teachers": {}, "distiller": 3}):
        torch.save(state, tmp_path / STATE_FILE)
        with pytest.raises(CheckpointError, match="is not what a distillation run writes"):
            made.restore(tmp_path)
