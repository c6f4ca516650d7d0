import copy
import gc
import pickle
import weakref

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult, ATSSAssigner
from mmdet.models.utils import unpack_gt_instances

from taskdistill.core.errors import TeacherError
from taskdistill.tasks.detection.assignment.taught import (
    TaughtAssigner,
    own_assigner,
    taught_assigner,
)
from taskdistill.tasks.detection.positions import level_sizes


def some_labels(truth, anchors, seed=0):
    """A few random positives."""
    generator = torch.Generator().manual_seed(seed)
    gt_inds = torch.zeros(anchors, dtype=torch.long)
    labels = torch.full((anchors,), -1)
    if len(truth):
        chosen = torch.randperm(anchors, generator=generator)[:7]
        gt_inds[chosen] = torch.randint(1, len(truth) + 1, (7,), generator=generator)
        labels[chosen] = truth.labels[gt_inds[chosen] - 1]
    return AssignResult(len(truth), gt_inds, torch.zeros(anchors), labels)


def targets(model, inputs, samples):
    """What mmdet itself makes of the batch: classes and box targets of every level."""
    head = model.bbox_head
    truth, ignored, metas = unpack_gt_instances(samples)
    with torch.no_grad():
        sizes = level_sizes(head(model.extract_feat(inputs)))
    anchors, valid = head.get_anchors(sizes, metas, device="cpu")
    result = head.get_targets(anchors, valid, truth, metas, batch_gt_instances_ignore=ignored)
    return [torch.cat(list(x), 1) for x in (result[1:4] if len(result) == 6 else result[:3])]


@pytest.mark.parametrize("kind", ["ATSS", "GFL", "RetinaNet"])
def test_mmdet_trains_on_what_was_loaded(detector, batch, kind):
    inputs, samples = batch
    model = detector(kind)
    plain = targets(model, inputs, samples)
    count = plain[0].shape[1]
    truth = [sample.gt_instances for sample in samples]
    results = [some_labels(own, count, seed) for seed, own in enumerate(truth)]
    taught_assigner(model.bbox_head).load(truth, results)
    classes, weights, boxes = targets(model, inputs, samples)
    for i, result in enumerate(results):
        wanted = torch.where(result.gt_inds > 0, result.labels, 3)
        assert torch.equal(classes[i], wanted)
        assert (weights[i] == 1).all()
        if kind != "RetinaNet":  # its targets are deltas
            positive = result.gt_inds > 0
            assert torch.equal(boxes[i, positive], truth[i].bboxes[result.gt_inds[positive] - 1])
    assert not torch.equal(classes, plain[0])


@pytest.mark.parametrize("kind", ["ATSS", "GFL", "RetinaNet"])
def test_other_images_are_the_own_assigners(detector, batch, kind):
    inputs, samples = batch
    model = detector(kind)
    expected = targets(model, inputs, samples)
    others = [sample.gt_instances.clone() for sample in samples]
    results = [some_labels(own, expected[0].shape[1]) for own in others]
    taught_assigner(model.bbox_head).load(others, results)
    for a, b in zip(targets(model, inputs, samples), expected, strict=True):
        assert torch.equal(a, b)


def test_labels_go_with_their_batch(detector, batch):
    _, samples = batch
    assigner = taught_assigner(detector("GFL").bbox_head)
    truth = [sample.gt_instances.clone() for sample in samples]
    results = [some_labels(own, 20) for own in truth]
    kept = [weakref.ref(thing) for thing in (*truth, *results)]
    assigner.load(truth, results)
    assert all(thing() is not None for thing in kept)
    del truth, results
    gc.collect()
    assert not any(thing() is not None for thing in kept)


def test_put_in_place_once(detector):
    head = detector("GFL").bbox_head
    own = head.assigner
    assert taught_assigner(head) is taught_assigner(head) is head.assigner
    assert own_assigner(head) is own


def test_attributes_are_the_own_assigners():
    assigner = TaughtAssigner(ATSSAssigner(topk=5))
    assert assigner.topk == 5
    with pytest.raises(AttributeError, match="no_such"):
        _ = assigner.no_such


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_begin_with_nothing(batch, how):
    """An EMA copies the model in the middle of training."""
    _, samples = batch
    truth = [sample.gt_instances for sample in samples]
    assigner = TaughtAssigner(ATSSAssigner(topk=5))
    assigner.load(truth, [some_labels(own, 20) for own in truth])
    copied = how(assigner)
    assert copied.topk == 5 and copied.own is not assigner.own
    assert not copied._taught and assigner._taught


def test_labels_for_other_anchors(detector, batch):
    inputs, samples = batch
    model = detector("ATSS")
    truth = [sample.gt_instances for sample in samples]
    taught_assigner(model.bbox_head).load(truth, [some_labels(own, 20) for own in truth])
    with pytest.raises(TeacherError, match="for 20 anchors .* trains 84"):
        targets(model, inputs, samples)
