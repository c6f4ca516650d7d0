import pytest
import torch
from mmdet.models.utils import unpack_gt_instances
from torchvision.ops import box_iou, generalized_box_iou_loss

from taskdistill.tasks.detection.assignment.labels import taught_labels
from taskdistill.tasks.detection.assignment.paa import paa_loss
from taskdistill.tasks.detection.positions import decoded_boxes

NAMES = {"loss_cls", "loss_bbox", "loss_iou"}


def said_by(model, inputs):
    return model.bbox_head(model.extract_feat(inputs))


def gradients(model, losses):
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(model, found, expected):
    assert set(found) == set(expected) == NAMES
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name])
        assert found[name].requires_grad
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_with_its_own_labels_it_is_paas_own_loss(detector, batch, seed):
    inputs, samples = batch
    student = detector("PAA", seed)
    truth, ignored, metas = unpack_gt_instances(samples)
    raw = said_by(student, inputs)
    labels = taught_labels(student.bbox_head, raw, samples)
    found = paa_loss(student.bbox_head, raw, labels, samples)
    expected = student.bbox_head.loss_by_feat(*said_by(student, inputs), truth, metas, ignored)
    check_equal(student, found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_unweighted_it_is_that_of_mmdets_lad_head(detector, batch, seed):
    inputs, samples = batch
    student, teacher = detector("LAD", seed), detector("LAD", seed + 5, width=16)
    truth, ignored, metas = unpack_gt_instances(samples)
    with torch.no_grad():
        taught = said_by(teacher, inputs)
        assigned = teacher.bbox_head.get_label_assignment(*taught, truth, metas, ignored)
    expected = student.bbox_head.loss(student.extract_feat(inputs), assigned, samples)
    labels = taught_labels(teacher.bbox_head, taught, samples)
    found = paa_loss(
        student.bbox_head, said_by(student, inputs), labels, samples, iou_weighted=False
    )
    check_equal(student, found, expected)


def test_the_weight_is_the_iou(detector, batch):
    inputs, samples = batch
    student, teacher = detector("PAA"), detector("PAA", 5)
    labels = taught_labels(teacher.bbox_head, said_by(teacher, inputs), samples)
    raw = said_by(student, inputs)
    boxes = decoded_boxes(student.bbox_head, raw)
    top = bottom = 0.0
    for said, label, sample in zip(boxes, labels, samples, strict=True):
        for index in (label.gt_inds > 0).nonzero().flatten().tolist():
            box = said[index, None]
            thing = sample.gt_instances.bboxes[label.gt_inds[index] - 1][None]
            iou = box_iou(box, thing).item()
            top += iou * 1.3 * generalized_box_iou_loss(box, thing).item()
            bottom += iou
    assert bottom > 0
    loss = paa_loss(student.bbox_head, raw, labels, samples)["loss_bbox"]
    assert loss.item() == pytest.approx(top / bottom, rel=1e-4)


def test_ignored_anchors_do_not_count(detector, batch):
    inputs, samples = batch
    student = detector("PAA")
    raw = said_by(student, inputs)
    labels = taught_labels(student.bbox_head, raw, samples)
    plain = paa_loss(student.bbox_head, raw, labels, samples)
    for label in labels:
        label.gt_inds[label.gt_inds == 0] = -1
    positives = paa_loss(student.bbox_head, raw, labels, samples)
    assert positives["loss_cls"] < plain["loss_cls"]
    assert torch.equal(positives["loss_bbox"], plain["loss_bbox"])


@pytest.mark.parametrize("iou_weighted", [True, False])
def test_without_positives_everything_is_background(detector, tiny, iou_weighted):
    student = detector("PAA")
    inputs, samples = tiny.batch(student, "3", "7")
    raw = said_by(student, inputs)
    labels = taught_labels(student.bbox_head, raw, samples)
    losses = paa_loss(student.bbox_head, raw, labels, samples, iou_weighted=iou_weighted)
    assert losses["loss_bbox"] == losses["loss_iou"] == 0 < losses["loss_cls"]
    # No parameter without a gradient: data-parallel training waits for all of them.
    grads = gradients(student, losses)
    assert {name for name, _ in student.bbox_head.named_parameters(prefix="bbox_head")} <= set(
        grads
    )


def test_half_precision(detector, batch):
    inputs, samples = batch
    student = detector("PAA")
    labels = taught_labels(student.bbox_head, said_by(student, inputs), samples)
    plain = paa_loss(student.bbox_head, said_by(student, inputs), labels, samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = paa_loss(student.bbox_head, said_by(student, inputs), labels, samples)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, plain[name], rtol=0.05, atol=0.01)
