from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator

from taskdistill.core.errors import ConfigError, DataError, ShapeError
from taskdistill.tasks.classification.metrics import Accuracy, label_ranks


def predicted(scores: torch.Tensor, labels, **further: torch.Tensor) -> list[dict]:
    return [
        dict(scores=row, label=label, further={k: v[i] for k, v in further.items()})
        for i, (row, label) in enumerate(zip(scores, labels, strict=True))
    ]


def evaluated(metric: Accuracy, samples: list[dict], batch: int = 4) -> dict[str, float]:
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {"classes": ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")}
    for start in range(0, len(samples), batch):
        evaluator.process(data_samples=samples[start : start + batch], data_batch=None)
    return evaluator.evaluate(len(samples))


@given(count=st.integers(1, 20), seed=st.integers(0, 50))
def test_it_is_the_share_among_the_first_k(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, 7, generator=generator)
    labels = torch.randint(7, (count,), generator=generator).tolist()
    found = evaluated(Accuracy(topk=(1, 3, 5)), predicted(scores, labels))
    for k in (1, 3, 5):
        right = [label in row.topk(k).indices for row, label in zip(scores, labels, strict=True)]
        assert found[f"accuracy/top{k}"] == pytest.approx(100 * sum(right) / count)


def test_the_names_of_the_figures():
    assert set(evaluated(Accuracy(), predicted(torch.rand(9, 7), [0] * 9))) == {
        "accuracy/top1",
        "accuracy/top5",
    }


def test_further_scores_have_figures_of_their_own():
    labels = [0, 1, 2, 0]
    right, wrong = torch.eye(7)[labels], torch.eye(7)[[6] * 4]
    found = evaluated(Accuracy(), predicted(wrong, labels, ensemble=right, exit1=wrong), batch=3)
    assert found["accuracy/ensemble_top1"] == 100.0 and found["accuracy/exit1_top1"] == 0.0
    assert found["accuracy/top1"] == 0.0


def test_a_figure_for_each_class():
    labels = [0, 0, 0, 2]
    scores = torch.eye(7)[[0, 1, 0, 2]]
    found = evaluated(Accuracy(topk=(1,), per_class=True), predicted(scores, labels))
    assert found == {
        "accuracy/top1": 75.0,
        "accuracy/top1.ant": pytest.approx(200 / 3),
        "accuracy/top1.cow": 100.0,
    }


def test_who_says_nothing_is_not_right():
    """Equal scores, as of a network that has collapsed, are right about the first class only."""
    labels = list(range(7))
    found = evaluated(Accuracy(), predicted(torch.full((7, 7), 1 / 7), labels))
    assert found["accuracy/top1"] == pytest.approx(100 / 7)
    assert found["accuracy/top5"] == pytest.approx(500 / 7)
    nothing = evaluated(Accuracy(), predicted(torch.full((7, 7), float("nan")), labels))
    assert nothing == {"accuracy/top1": 0.0, "accuracy/top5": 0.0}


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.data())
def test_ranks_are_those_of_a_stable_sort(row: list[int], data: st.DataObject):
    label = data.draw(st.integers(0, len(row) - 1))
    order = sorted(range(len(row)), key=lambda index: -row[index])
    found = label_ranks(torch.tensor([row]).float(), torch.tensor([label]))
    assert found.item() == order.index(label)


def test_it_reads_what_a_classifier_predicts(tiny_data):
    model = tiny_data.build().eval()
    batch = model.data_preprocessor(tiny_data.batch(9), False)
    found = evaluated(Accuracy(), model(**batch, mode="predict"))
    right = (model(batch["inputs"]).argmax(1) == batch["data_samples"]).double().mean().item()
    assert found == {"accuracy/top1": pytest.approx(100 * right), "accuracy/top5": 100.0}


@pytest.mark.parametrize("topk", [(), (0,), (1, 2.5)])
def test_k_is_a_number(topk):
    with pytest.raises(ConfigError, match="topk"):
        Accuracy(topk=topk)


@pytest.mark.parametrize("label", [7, -1])
def test_labels_beyond_the_classes(label):
    with pytest.raises(DataError, match="the network knows 7 classes"):
        Accuracy().process(None, predicted(torch.rand(2, 7), [0, label]))


def test_labels_are_needed():
    with pytest.raises(DataError, match="needs labels"):
        Accuracy().process(None, predicted(torch.rand(2, 7), [0, None]))


def test_further_scores_are_of_the_same_classes():
    with pytest.raises(ShapeError, match="Further scores 'other'"):
        Accuracy().process(None, predicted(torch.rand(2, 7), [0, 1], other=torch.rand(2, 3)))
