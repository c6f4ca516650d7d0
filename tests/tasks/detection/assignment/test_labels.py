import warnings

import pytest
import torch
from mmdet.models.task_modules.assigners import TaskAlignedAssigner
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.tasks.detection.assignment.labels import (
    flat_targets,
    is_supported,
    taught_labels,
    trainable_anchors,
)
from taskdistill.tasks.detection.assignment.probabilistic import probabilistic_assignment
from taskdistill.tasks.detection.positions import decoded_boxes, flatten, level_sizes

KINDS = ("ATSS", "GFL", "PAA", "RetinaNet")


def said_by(model, inputs):
    with torch.no_grad():
        return model.bbox_head(model.extract_feat(inputs))


def own_targets(head, raw, samples):
    """Classes, class-loss weights and box targets of every position, by mmdet's own get_targets."""
    truth, ignored, metas = unpack_gt_instances(samples)
    anchors, valid = head.get_anchors(level_sizes(raw), metas, device="cpu")
    result = head.get_targets(anchors, valid, truth, metas, batch_gt_instances_ignore=ignored)
    found = result[1:4] if len(result) == 6 else result[:3]
    return [torch.cat(list(levels), 1).flatten(0, 1) for levels in found]


@pytest.mark.parametrize("border", [-1, 0])
@pytest.mark.parametrize("kind", ["ATSS", "GFL", "RetinaNet"])
def test_own_labels_are_the_heads_targets(detector, batch, kind, border):
    inputs, samples = batch
    model = detector(kind, border=border)
    raw = said_by(model, inputs)
    labels = taught_labels(model.bbox_head, raw, samples)
    classes, counts, boxes = flat_targets(model.bbox_head, labels, samples)
    expected = own_targets(model.bbox_head, raw, samples)
    assert torch.equal(classes, expected[0])
    assert torch.equal(counts, expected[1])
    positive = classes < 3
    assert positive.any() and (border < 0 or (counts == 0).any())
    if model.bbox_head.reg_decoded_bbox or kind == "GFL":
        assert torch.equal(boxes[positive], expected[2][positive])
    assert not boxes[~positive].any()


@pytest.mark.parametrize("border", [-1, 0])
def test_own_labels_of_paa_are_those_of_its_loss(detector, batch, border):
    """``LADHead.get_label_assignment`` is mmdet's own way from a PAA head to its labels."""
    inputs, samples = batch
    head = detector("LAD", border=border).bbox_head
    raw = said_by(detector("LAD"), inputs)
    classes, counts, boxes = flat_targets(head, taught_labels(head, raw, samples), samples)
    truth, ignored, metas = unpack_gt_instances(samples)
    expected = head.get_label_assignment(*raw, truth, metas, ignored)
    assert torch.equal(classes, expected[0]) and torch.equal(counts, expected[1])
    positive = expected[4]
    assert len(positive) == expected[6] > 0
    assert torch.equal(boxes[positive], expected[2][positive])


def test_the_probabilistic_scheme_is_paas_own(detector, batch):
    """With the paper's candidates and losses, mmdet's code and this one choose the same."""
    inputs, samples = batch
    for seed in range(4):
        model = detector("PAA", seed)
        raw = said_by(model, inputs)
        own, paa = (
            taught_labels(model.bbox_head, raw, samples, scheme) for scheme in ("own", "paa")
        )
        for a, b in zip(own, paa, strict=True):
            assert torch.equal(a.gt_inds, b.gt_inds)
        assert sum((a.gt_inds > 0).sum() for a in own) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_probabilistic_scheme_reads_any_head(detector, batch, kind):
    inputs, samples = batch
    model = detector(kind, border=0)
    raw = said_by(model, inputs)
    truth, _, metas = unpack_gt_instances(samples)
    anchors, inside = trainable_anchors(model.bbox_head, level_sizes(raw), metas, inputs.device)
    assert not inside.all()
    logits = flatten(raw[0], 3).unflatten(0, (len(samples), -1))
    boxes = decoded_boxes(model.bbox_head, raw)
    level = torch.repeat_interleave(torch.tensor([level[0, 0].numel() for level in raw[0]]))
    level = level.repeat_interleave(2 if kind == "RetinaNet" else 1)
    found = taught_labels(model.bbox_head, raw, samples, "paa", topk=4)
    for i, result in enumerate(found):
        counts = [int((level[inside[i]] == number).sum()) for number in range(3)]
        chosen = probabilistic_assignment(
            logits[i, inside[i]], boxes[i, inside[i]], anchors[inside[i]], counts, truth[i], topk=4
        )
        assert torch.equal(result.gt_inds[inside[i]], chosen)
        assert (result.gt_inds[~inside[i]] == -1).all()
        assert result.num_gts == len(truth[i])


@pytest.mark.parametrize(("kind", "scheme"), [("PAA", "own"), ("GFL", "paa"), ("ATSS", "paa")])
def test_another_teacher_gives_other_labels(detector, batch, kind, scheme):
    inputs, samples = batch
    found = []
    for seed in (0, 1):
        model = detector(kind, seed)
        labels = taught_labels(model.bbox_head, said_by(model, inputs), samples, scheme)
        found.append(torch.cat([result.gt_inds for result in labels]))
    assert not torch.equal(*found)


@pytest.mark.parametrize("scheme", ["own", "paa"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_objects_is_that_of_their_numbers(detector, batch, kind, scheme):
    inputs, samples = batch
    model = detector(kind)
    raw = said_by(model, inputs)
    before = taught_labels(model.bbox_head, raw, samples, scheme)
    orders = []
    for sample in samples:
        order = torch.randperm(len(sample.gt_instances), generator=torch.Generator().manual_seed(1))
        orders.append(order.flip(0))
        sample.gt_instances = sample.gt_instances[orders[-1]]
    after = taught_labels(model.bbox_head, raw, samples, scheme)
    for a, b, order in zip(before, after, orders, strict=True):
        numbers = torch.cat([torch.tensor([0]), order + 1, torch.tensor([-1])])
        assert torch.equal(a.gt_inds, numbers[b.gt_inds])
        assert torch.equal(a.labels, b.labels)


def test_what_a_result_says_of_its_positives(detector, batch):
    inputs, samples = batch
    model = detector("GFL")
    raw = said_by(model, inputs)
    anchors = torch.cat(model.bbox_head.prior_generator.grid_priors(level_sizes(raw), device="cpu"))
    for result, sample in zip(taught_labels(model.bbox_head, raw, samples), samples, strict=True):
        for index, number in enumerate(result.gt_inds.tolist()):
            if number < 1:
                assert result.labels[index] == -1 and result.max_overlaps[index] == 0
                continue
            box, thing = anchors[index], sample.gt_instances.bboxes[number - 1]
            sides = torch.minimum(box[2:], thing[2:]) - torch.maximum(box[:2], thing[:2])
            inside = sides.clamp(min=0).prod()
            areas = [(b[2:] - b[:2]).prod() for b in (box, thing)]
            torch.testing.assert_close(result.max_overlaps[index], inside / (sum(areas) - inside))
            assert result.labels[index] == sample.gt_instances.labels[number - 1]


@pytest.mark.parametrize("scheme", ["own", "paa"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects(detector, tiny, kind, scheme):
    model = detector(kind)
    inputs, samples = tiny.batch(model, "3", "7")
    assert not any(len(sample.gt_instances) for sample in samples)
    for result in taught_labels(model.bbox_head, said_by(model, inputs), samples, scheme):
        assert not result.gt_inds.any() and result.num_gts == 0


@pytest.mark.parametrize("kind", ["GFL", "ATSS", "PAA"])
def test_half_precision_is_computed_in_full(detector, batch, kind):
    inputs, samples = batch
    model = detector(kind)
    raw = tuple([level.bfloat16() for level in levels] for levels in said_by(model, inputs))
    full = tuple([level.float() for level in levels] for levels in raw)
    expected = taught_labels(model.bbox_head, full, samples, "paa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = taught_labels(model.bbox_head, raw, samples, "paa")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.gt_inds, b.gt_inds)


class TestAssignersThatLookAtPredictions:
    def test_task_aligned(self, detector, batch):
        inputs, samples = batch
        model = detector("GFL")
        model.bbox_head.assigner = TaskAlignedAssigner(topk=5)
        raw = said_by(model, inputs)
        boxes = decoded_boxes(model.bbox_head, raw)
        scores = flatten(raw[0], 3).unflatten(0, (len(samples), -1)).sigmoid()
        anchors = torch.cat(
            model.bbox_head.prior_generator.grid_priors(level_sizes(raw), device="cpu")
        )
        found = taught_labels(model.bbox_head, raw, samples)
        for result, sample, score, box in zip(found, samples, scores, boxes, strict=True):
            said = InstanceData(priors=anchors, scores=score, bboxes=box)
            expected = TaskAlignedAssigner(topk=5).assign(said, sample.gt_instances)
            assert torch.equal(result.gt_inds, expected.gt_inds)

    def test_atss_with_a_cost(self, detector, batch):
        """DDOD's: its scores are logits."""
        inputs, samples = batch
        model = detector("ATSS")
        config = dict(type="ATSSAssigner", topk=9, alpha=0.8)
        model.bbox_head.assigner = TASK_UTILS.build(config)
        raw = said_by(model, inputs)
        boxes = decoded_boxes(model.bbox_head, raw)
        logits = flatten(raw[0], 3).unflatten(0, (len(samples), -1))
        levels = [level[0, 0].numel() for level in raw[0]]
        anchors = torch.cat(
            model.bbox_head.prior_generator.grid_priors(level_sizes(raw), device="cpu")
        )
        found = taught_labels(model.bbox_head, raw, samples)
        for result, sample, logit, box in zip(found, samples, logits, boxes, strict=True):
            said = InstanceData(priors=anchors, scores=logit, bboxes=box)
            expected = TASK_UTILS.build(config).assign(said, levels, sample.gt_instances)
            assert torch.equal(result.gt_inds, expected.gt_inds)

    @pytest.mark.parametrize("kind", ["ATSS", "GFL"])
    def test_the_usual_ones_are_not_given_any(self, detector, batch, kind):
        """mmdet's warns of predictions that it does not read."""
        inputs, samples = batch
        model = detector(kind)
        raw = said_by(model, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            taught_labels(model.bbox_head, raw, samples)


def test_boxes_to_be_ignored_reach_the_own_assigner(detector, batch):
    inputs, samples = batch
    model = detector("RetinaNet")
    model.bbox_head.assigner.ignore_iof_thr = 0.5
    raw = said_by(model, inputs)
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    samples[0].ignored_instances = InstanceData(bboxes=box)
    first, second = taught_labels(model.bbox_head, raw, samples)[:2]
    assert (first.gt_inds == -1).sum() > 10 > (second.gt_inds == -1).sum()


@pytest.mark.parametrize("scheme", ["own", "paa"])
def test_costs_that_are_not_finite(detector, batch, scheme):
    inputs, samples = batch
    model = detector("PAA")
    raw = said_by(model, inputs)
    raw[0][0].fill_(float("nan"))
    with pytest.raises(TeacherError, match="not finite"):
        taught_labels(model.bbox_head, raw, samples, scheme)


def test_a_scheme_that_there_is_not(detector, batch):
    inputs, samples = batch
    model = detector("GFL")
    with pytest.raises(ConfigError, match="Did you mean 'paa'"):
        taught_labels(model.bbox_head, said_by(model, inputs), samples, "papa")


def test_positives_of_another_weight(detector, batch):
    inputs, samples = batch
    model = detector("GFL")
    labels = taught_labels(model.bbox_head, said_by(model, inputs), samples)
    model.bbox_head.train_cfg["pos_weight"] = 2.5
    classes, counts, _ = flat_targets(model.bbox_head, labels, samples)
    assert (counts[classes < 3] == 2.5).all() and (counts[classes == 3] == 1).all()


@pytest.mark.parametrize(("kind", "known"), [*((k, True) for k in KINDS), ("FCOS", False)])
def test_kinds(detector, kind, known):
    assert is_supported(detector(kind).bbox_head) is known
