from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from taskdistill.core.distiller import Distiller
from taskdistill.core.errors import TapError
from taskdistill.core.recipe import Progress, Recipe, Stage
from taskdistill.core.stages import Holding, held_modules


class Net(nn.Module):
    """Two stages with batch norm, and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.layer2 = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer2(self.layer1(images).relu()).relu().mean((2, 3)))


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make(stages: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> tuple[Net, Distiller]:
    torch.manual_seed(0)
    student, teacher = Net(4), Net(6)
    distiller = Distiller(student, teacher, Recipe.from_config(pairs, stages=stages))
    distiller.setup(student, lambda name: teacher, IMAGES)
    return student, distiller


HINT = dict(student="layer1", loss="Hint", stage="hint")
KD = dict(student="outputs.logits", loss="KLDivergence", stage="kd")
STAGES = [
    dict(name="hint", until=2, task_weight=0, train=["layer1"]),
    dict(name="kd", freeze=["layer1.1"]),
]


def step(student: Net, distiller: Distiller, holding: Holding, epoch: float, opt: Any) -> None:
    """One step as training loops do it: with weight decay, momentum, and a loss on everything."""
    student.train()
    progress = Progress(epoch=epoch)
    holding.update(progress)
    opt.zero_grad()
    with distiller.watch() as seen:
        logits = student(IMAGES)
    captured, answer = distiller.ask("teacher", IMAGES)
    from taskdistill.core.distiller import Context

    context = Context({"logits": logits}, {"teacher": {"logits": answer}})
    terms = distiller.terms(seen, {"teacher": captured}, context, progress)
    (logits.square().mean() + sum(term.weighted for term in terms.values())).backward()
    holding.drop_gradients()
    opt.step()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}


def test_a_stage_trains_what_it_names_and_nothing_else_moves():
    student, distiller = make(STAGES, [HINT, KD])
    holding = Holding(distiller)
    parameters = [*student.parameters(), *distiller.parameters()]
    opt = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    for epoch in (0.0, 0.5, 1.5):
        before, side = state(student), state(distiller)
        step(student, distiller, holding, epoch, opt)
        names = changed(before, student)
        # Statistics of batch norms included, although the data-parallel loss reached them all.
        assert names and all(name.startswith("layer1.") for name in names)
        assert {"layer1.0.weight", "layer1.1.running_mean", "layer1.1.weight"} <= names
        assert changed(side, distiller)  # the hint's adapter
    before, side = state(student), state(distiller)
    step(student, distiller, holding, 2.0, opt)
    names = changed(before, student)
    assert not any(name.startswith("layer1.1.") for name in names)
    assert {"layer1.0.weight", "layer2.1.running_var", "fc.weight"} <= names
    # The adapter of a pair that is off is not even decayed.
    assert not changed(side, distiller)


def test_a_recipe_without_stages_touches_nothing():
    student, distiller = make([], [dict(student="layer1", loss="Hint")])
    holding = Holding(distiller)
    student(IMAGES).sum().backward()
    student.layer1[1].eval()
    holding.update(Progress(epoch=3))
    holding.drop_gradients()
    assert not student.layer1[1].training
    assert all(p.grad is not None for p in student.parameters())


def test_what_a_network_keeps_in_eval_mode_stays_so():
    student, distiller = make(STAGES, [HINT, KD])
    holding = Holding(distiller)
    student.train()
    student.layer2[1].eval()  # as detectors' norm_eval
    holding.update(Progress(epoch=0))
    assert not student.fc.training
    holding.update(Progress(epoch=2))
    assert not student.layer2[1].training
    assert student.fc.training


def test_parts_are_named_by_globs_and_held_with_all_below_them():
    net = Net(4)
    everything = held_modules(net, Stage("none", train=[]))
    assert len(everything) == 5
    assert held_modules(net, Stage("all")) == held_modules(net, None) == []
    assert held_modules(net, Stage("most", freeze=["layer*"])) == [*net.layer1, *net.layer2]
    assert held_modules(net, Stage("norms", train=["layer*"], freeze=["**.1"])) == [
        net.layer1[1],
        net.layer2[1],
        net.fc,
    ]


@pytest.mark.parametrize("key", ["train", "freeze"])
def test_a_misspelt_part_is_told_before_training(key: str):
    with pytest.raises(TapError, match=rf"Stage 'a', {key}=\['layr1'\].*Did you mean 'layer1'"):
        held_modules(Net(4), Stage("a", **{key: ["layr1"]}))


def test_a_loss_may_leave_something_alone_in_a_stage():
    pairs = [dict(student="layer1", loss="ParaphrasedFactorTransfer")]
    stages = [dict(name="paraphrase", until=1, train=[], task_weight=0), dict(name="transfer")]
    student, distiller = make(stages, pairs)
    holding = Holding(distiller)
    parameters = [*student.parameters(), *distiller.parameters()]
    opt = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1)
    before, side = state(student), state(distiller)
    step(student, distiller, holding, 0.0, opt)
    assert not changed(before, student)
    assert {name.split(".")[2] for name in changed(side, distiller)} == {"paraphraser"}
    side = state(distiller)
    step(student, distiller, holding, 1.0, opt)
    assert changed(before, student)
    assert {name.split(".")[2] for name in changed(side, distiller)} == {"translator"}
