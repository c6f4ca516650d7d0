import math

import numpy as np
import pytest
import torch
from mmdet.models.losses import FocalLoss, GIoULoss
from mmengine.structures import InstanceData
from scipy.stats import norm

from taskdistill.core.errors import TeacherError
from taskdistill.tasks.detection.assignment.probabilistic import (
    assignment_cost,
    likely_positives,
    probabilistic_assignment,
)

CLASSES = 3


def scene(seed=0, objects=3, levels=(64, 16, 4)):
    """Random anchors of three levels, what a detector says there, and objects near anchors."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    corners = rand(sum(levels), 2) * 60
    anchors = torch.cat([corners, corners + 8 + rand(sum(levels), 2) * 24], 1)
    chosen = torch.randperm(len(anchors), generator=generator)[:objects]
    truth = InstanceData(
        bboxes=anchors[chosen] + rand(objects, 4) * 3,
        labels=torch.randint(CLASSES, (objects,), generator=generator),
    )
    boxes = anchors + torch.randn(len(anchors), 4, generator=generator) * 3
    logits = torch.randn(len(anchors), CLASSES, generator=generator) * 2
    return logits, boxes, anchors, list(levels), truth


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0.0) * max(height, 0.0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = sum(areas) - inside
    return inside / union, inside / union - (around - union) / around


def slow_cost(logits, box, label, truth):
    cost = 1.3 * (1 - slow_iou(box, truth)[1])
    for index, z in enumerate(logits):
        p = 1 / (1 + math.exp(-z))
        if index == label:
            cost -= 0.25 * (1 - p) ** 2 * math.log(p)
        else:
            cost -= 0.75 * p**2 * math.log(1 - p)
    return cost


def slow_positives(costs):
    """EM for two Gaussians from the lowest and the highest, in the paper's own terms."""
    x = np.asarray(costs, dtype=np.float64)
    weight, mean, variance = np.full(2, 0.5), np.array([x.min(), x.max()]), np.ones(2)
    likelihood = -np.inf
    for _ in range(100):
        parts = weight * norm.pdf(x[:, None], mean, np.sqrt(variance))
        mixed = parts.sum(1)
        share = parts / mixed[:, None]
        count = share.sum(0) + 10 * np.finfo(float).eps
        mean = (share * x[:, None]).sum(0) / count
        variance = (share * (x[:, None] - mean) ** 2).sum(0) / count + 1e-6
        weight = count / len(x)
        before, likelihood = likelihood, np.log(mixed).mean()
        if abs(likelihood - before) < 1e-3:
            break
    parts = weight * norm.pdf(x[:, None], mean, np.sqrt(variance))
    cheap = [i for i in range(len(x)) if parts[i, 0] >= parts[i, 1]]
    if not cheap:
        return []
    top = max(range(len(cheap)), key=lambda i: parts[cheap[i]].sum())
    return cheap[: top + 1]


def slow_assignment(logits, boxes, anchors, levels, truth, topk):
    logits, boxes, anchors = logits.tolist(), boxes.tolist(), anchors.tolist()
    objects, labels = truth.bboxes.tolist(), truth.labels.tolist()
    table = [[slow_iou(anchor, thing)[0] for thing in objects] for anchor in anchors]
    owner = []
    for row in table:
        best = max(range(len(objects)), key=row.__getitem__)
        owner.append(best if row[best] >= 0.1 else None)
    for thing in range(len(objects)):
        column = [row[thing] for row in table]
        for index, value in enumerate(column):
            if value == max(column):
                owner[index] = thing
    found = [0] * len(anchors)
    for thing in range(len(objects)):
        kept, start = [], 0
        for count in levels:
            mine = [
                (slow_cost(logits[i], boxes[i], labels[thing], objects[thing]), i)
                for i in range(start, start + count)
                if owner[i] == thing
            ]
            kept += sorted(mine)[:topk]
            start += count
        kept.sort()
        if len(kept) >= 2:
            for index in slow_positives([cost for cost, _ in kept]):
                found[kept[index][1]] = thing + 1
    return found


def test_the_cost_is_that_of_mmdets_losses():
    logits, boxes, anchors, _, truth = scene()
    own = torch.arange(len(anchors)) % len(truth)
    labels, targets = truth.labels[own], truth.bboxes[own]
    cost = assignment_cost(logits, boxes, labels, targets)
    focal = FocalLoss(use_sigmoid=True, gamma=2.0, alpha=0.25, reduction="none")
    giou = GIoULoss(loss_weight=1.3, reduction="none")
    torch.testing.assert_close(cost, focal(logits, labels).sum(1) + giou(boxes, targets))


@pytest.mark.parametrize("seed", range(8))
def test_likely_positives_against_plain_em(seed):
    random = np.random.default_rng(seed)
    costs = np.sort(np.concatenate([random.normal(1, 0.3, 7), random.normal(4, 1.0, 12)]))
    found = likely_positives(costs).tolist()
    assert 0 < len(found) < len(costs)
    assert found == slow_positives(costs)


@pytest.mark.parametrize("costs", [[1.0, 1.0], [0.0] * 9, [2.0, 2.0, 2.0 + 1e-7], [0.1, 5.0]])
def test_costs_that_hardly_differ(costs, recwarn):
    """Some of the candidates at least, and no word of a mixture that does not converge."""
    found = likely_positives(np.array(costs)).tolist()
    assert 0 < len(found) <= len(costs)
    assert not recwarn


def test_the_global_random_numbers_are_left_alone():
    np.random.seed(5)  # noqa: NPY002 - what scikit-learn would draw from
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    likely_positives(np.array([0.1, 0.2, 3.0, 4.0]))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("topk", [3, 9])
def test_against_a_slow_reference(seed, topk):
    inputs = scene(seed)
    found = probabilistic_assignment(*inputs, topk=topk).tolist()
    assert found == slow_assignment(*inputs, topk)
    assert set(found) - {0}


def test_the_order_of_objects_is_that_of_their_numbers():
    *said, truth = scene(3, objects=4)
    found = probabilistic_assignment(*said, truth)
    order = torch.tensor([2, 0, 3, 1])
    moved = probabilistic_assignment(*said, truth[order])
    numbers = torch.cat([torch.tensor([0]), order + 1])
    assert torch.equal(found, numbers[moved])


def test_better_predictions_win():
    """The same anchors: what the detector says there decides."""
    logits, boxes, anchors, levels, truth = scene(1, objects=1)
    plain = probabilistic_assignment(logits, boxes, anchors, levels, truth)
    rejected = ((plain == 0) & (slow_owner(anchors, truth) > 0)).nonzero()[0]
    logits, boxes = logits.clone(), boxes.clone()
    logits[rejected] = -6.0
    logits[rejected, truth.labels[0]] = 6.0
    boxes[rejected] = truth.bboxes[0]
    assert probabilistic_assignment(logits, boxes, anchors, levels, truth)[rejected] == 1


def slow_owner(anchors, truth):
    ious = [slow_iou(a, truth.bboxes[0].tolist())[0] for a in anchors.tolist()]
    return torch.tensor([1 if iou >= 0.1 else 0 for iou in ious])


def test_nothing_to_find():
    logits, boxes, anchors, levels, truth = scene()
    empty = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    assert not probabilistic_assignment(logits, boxes, anchors, levels, empty).any()


def test_an_object_with_one_candidate_has_no_positive():
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [40.0, 40.0, 48.0, 48.0]])
    truth = InstanceData(bboxes=anchors[:1] + 1, labels=torch.tensor([0]))
    logits = torch.full((2, CLASSES), 2.0)
    assert not probabilistic_assignment(logits, anchors, anchors, [2], truth).any()


def test_costs_that_are_not_finite():
    logits, boxes, anchors, levels, truth = scene()
    with pytest.raises(TeacherError, match="not finite"):
        probabilistic_assignment(logits * math.nan, boxes, anchors, levels, truth)


def test_high_costs_that_nearly_agree():
    """In single precision their variance would be negative, an error of the mixture."""
    costs = np.array([5.0, 13.00001, 13.00002, 13.00003], dtype=np.float32)
    assert likely_positives(costs).tolist() == [0]
