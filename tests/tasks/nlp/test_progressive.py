from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nlp_architectures import encoder, texts
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from taskdistill.core.errors import ConfigError
from taskdistill.core.recipe import Progress
from taskdistill.tasks.nlp.distillation import Distillation
from taskdistill.tasks.nlp.layers import encoder_layers
from taskdistill.tasks.nlp.progressive import LayerStages, ProgressiveTraining

State = dict[str, Tensor]
PARTS = ("layer.0.", "layer.1.")


def pair(steps: int = 2, **options: Any) -> Distillation:
    """A MobileBERT student of an IB-BERT teacher, both of two layers."""
    student = encoder("MobileBert", "ForPreTraining").train()
    recipe = dict(name="mobilebert", steps_per_layer=steps, **{"warmup": 0.0, **options})
    return Distillation(student, {"teacher": encoder("IBBert", "ForPreTraining", seed=1)}, recipe)


def batch() -> dict[str, Tensor]:
    inputs = texts()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return {**inputs, "labels": labels, "next_sentence_label": torch.tensor([0, 1, 1])}


def train(
    made: Distillation, make: Callable[[list[nn.Parameter]], Optimizer], steps: range | list[int]
) -> list[tuple[State, State, State]]:
    """Train by hand: the weights before and after each step, and the gradients."""
    student, training = made.student, made.progressive
    assert training is not None
    optimizer = make(list(student.parameters()))
    training.split_groups(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    training.start()
    moves = []
    with made.active():
        for step in steps:
            training.at(step)
            optimizer.zero_grad()
            inputs = batch()
            with made.distiller.watch() as seen:
                output = student(**made.student_inputs(inputs))
            terms = made.terms(seen, output, inputs, None, Progress(step=step))
            torch.stack([term.weighted for term in terms.values()]).sum().backward()
            training.before_step(optimizer)
            grads = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
            before = _weights(student)
            optimizer.step()
            training.after_step(optimizer)
            assert [group["lr"] for group in optimizer.param_groups] == rates
            moves.append((before, _weights(student), grads))
    training.stop()
    return moves


def _weights(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _moved(before: State, after: State) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def _adamw(parameters: list[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=0.01, weight_decay=0.1)


def _sgd(parameters: list[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.5)


# -- the schedule ---------------------------------------------------------------------------------


def test_layers_come_one_after_another():
    stages = LayerStages(layers=3, steps=2)
    assert [stages.layer(step) for step in range(8)] == [0, 0, 1, 1, 2, 2, None, None]


def test_warmup_of_every_stage():
    stages = LayerStages(layers=2, steps=8, warmup=0.5)
    rise = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [stages.factor(step) for step in range(18)] == [*rise, *rise, 1.0, 1.0]
    assert {LayerStages(2, 8, warmup=0.0).factor(step) for step in range(18)} == {1.0}
    # Shorter than a step: there is nothing to rise over.
    assert LayerStages(2, 4, warmup=0.1).factor(0) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        dict(layers=0),
        dict(steps=0),
        dict(steps=2.5),
        dict(steps=True),
        dict(steps="10"),
        dict(lower=-0.1),
        dict(lower=1.1),
        dict(warmup=float("nan")),
        dict(warmup="0.1"),
    ],
)
def test_numbers_that_cannot_be_meant(changes: dict[str, Any]):
    (name,) = changes
    with pytest.raises(ConfigError, match=f"{name}=.* of progressive transfer"):
        LayerStages(**{"layers": 2, "steps": 2, **changes})


def test_another_depth():
    with pytest.raises(ConfigError, match="set up for 3 layers, the student has 2"):
        ProgressiveTraining(encoder("Bert"), LayerStages(3, 1))


# -- what moves -----------------------------------------------------------------------------------


def test_only_the_layer_in_turn_moves():
    made = pair(steps=3)
    layers = encoder_layers(made.student)[0]
    moves = train(made, _adamw, range(6))
    for step, (before, after, grads) in enumerate(moves):
        own = {name for name in before if name.startswith(f"{layers}.{step // 3}.")}
        assert set(grads) == own  # nothing else enters the optimizer's averages either
        # Bitwise, and all of it: weight decay and momentum of an earlier stage move nothing else.
        assert _moved(before, after) == own
        assert len(own) > 20


def test_everything_moves_after_the_last_stage():
    made = pair(steps=1)
    before, after, _ = train(made, _adamw, range(4))[2]
    assert _moved(before, after) == set(before)


def test_no_gradient_below_the_layer_in_turn():
    made = pair()
    training = made.progressive
    assert training is not None
    training.start()
    training.at(2)  # layer 2
    with made.active(), made.distiller.watch() as seen:
        output = made.student(**made.student_inputs(batch()))
        terms = made.terms(seen, output, batch(), None, Progress(step=2))
    torch.stack([term.weighted for term in terms.values()]).sum().backward()
    reached = {name for name, p in made.student.named_parameters() if p.grad is not None}
    assert reached and all(".layer.1." in name for name in reached)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_lower_layers_are_slowed(warmup: float):
    made = pair(steps=4, lower=0.1, warmup=warmup)
    moves = train(made, _sgd, range(4, 8))
    for step, (before, after, grads) in enumerate(moves):
        factor = (step + 1) / 4 if warmup else 1.0
        for part, share in zip(PARTS, (0.1, 1.0), strict=True):
            names = [name for name in before if part in name]
            assert len(_moved(before, after) & set(names)) > 20
            for name in names:
                expected = before[name].add(grads[name], alpha=-0.5 * (factor * share))
                assert torch.equal(after[name], expected)
        assert all(".layer." in name for name in _moved(before, after))


def test_first_layer_has_nothing_slowed_below():
    made = pair(steps=4, lower=0.1)
    before, after, _ = train(made, _sgd, [0])[0]
    moved = _moved(before, after)
    assert moved and all(".layer.0." in name for name in moved)


def test_adapters_are_never_held():
    made = pair()
    training = made.progressive
    assert training is not None
    adapter = nn.Linear(2, 2)
    optimizer = SGD([*made.student.parameters(), *adapter.parameters()], lr=0.5)
    training.split_groups(optimizer)
    training.at(0)
    adapter.weight.grad = torch.ones(2, 2)
    for parameter in made.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    expected = adapter.weight.detach() - 0.5
    training.before_step(optimizer, adapter.parameters())
    optimizer.step()
    assert torch.equal(adapter.weight, expected)


# -- what is left ---------------------------------------------------------------------------------


def test_groups_keep_their_settings_and_parameters():
    made = pair()
    training = made.progressive
    assert training is not None
    named = list(made.student.named_parameters())
    groups: list[dict[str, Any]] = [
        dict(params=[p for n, p in named if "bias" not in n], weight_decay=0.1, lr=0.3),
        dict(params=[p for n, p in named if "bias" in n], weight_decay=0.0, lr=0.2),
    ]
    optimizer = AdamW(groups)
    training.split_groups(optimizer)
    # Each of the two in three: two layers, and the rest.
    assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == (
        [(0.1, 0.3)] * 3 + [(0.0, 0.2)] * 3
    )
    kept = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(kept) == sorted(id(p) for _, p in named)


def test_hooks_are_gone_after_stop():
    made = pair()
    train(made, _sgd, [0])
    training = made.progressive
    assert training is not None
    assert not any(module._forward_pre_hooks for module in made.student.modules())
    training.at(2)
    made.student(**batch()).loss.backward()
    assert all(p.grad is not None for p in made.student.parameters())


def test_evaluation_is_not_cut_off():
    made = pair()
    training = made.progressive
    assert training is not None
    training.start()
    training.at(2)
    made.student.eval()
    made.student(**batch()).loss.backward()
    assert all(p.grad is not None for p in made.student.parameters())


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "Electra", "DebertaV2",
                                  "MobileBert", "ModernBert", "IBBert"])  # fmt: skip
def test_any_encoder_is_cut_off_below_the_layer(kind: str):
    model = encoder(kind).train()
    training = ProgressiveTraining(model, LayerStages(2, 1))
    training.start()
    training.at(1)
    _, layers = encoder_layers(model)
    model(**texts()).logits.sum().backward()
    assert all(p.grad is None for p in layers[0].parameters())
    assert any(p.grad is not None for p in layers[1].parameters())
