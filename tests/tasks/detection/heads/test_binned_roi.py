"""The binned second stage against mmdet's plain one, whose deltas it is made to say."""

import copy
import math

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.detection.heads import is_binned

COUNT = 9
KINDS = {
    "by class": {},
    "agnostic": dict(reg_class_agnostic=True),
    "decoded": dict(reg_decoded_bbox=True, loss_bbox=dict(type="GIoULoss", loss_weight=1.0)),
    "agnostic, decoded": dict(
        reg_class_agnostic=True,
        reg_decoded_bbox=True,
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
    ),
}
STDS = (0.1, 0.1, 0.2, 0.2)


def head_config(binned, **changes):
    config = dict(
        type="Shared2FCBBoxHead",
        in_channels=16,
        fc_out_channels=32,
        roi_feat_size=3,
        num_classes=3,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=list(STDS)),
    )
    if binned:
        config.update(type="BinnedShared2FCBBoxHead", bins=dict(count=COUNT))
    return {**config, **changes}


def build_head(binned, **changes):
    return MODELS.build(ConfigDict(head_config(binned, **changes)))


def detector(tiny, binned=True, **changes):
    """A tiny Faster R-CNN on the tiny pictures."""
    single = tiny.model("RetinaNet")
    assigner = dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3)
    sampler = dict(type="RandomSampler", num=32, pos_fraction=0.5, neg_pos_ub=-1)
    nms = dict(type="nms", iou_threshold=0.7)
    proposals = dict(nms_pre=100, max_per_img=40, nms=nms, min_bbox_size=0)
    return dict(
        type="FasterRCNN",
        **{key: single[key] for key in ("data_preprocessor", "backbone", "neck")},
        rpn_head=dict(
            type="RPNHead",
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type="AnchorGenerator", scales=[3], ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32]
            ),
            bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        roi_head=dict(
            type="StandardRoIHead",
            bbox_roi_extractor=dict(
                type="SingleRoIExtractor",
                roi_layer=dict(type="RoIAlign", output_size=3, sampling_ratio=0),
                out_channels=16,
                featmap_strides=[8, 16, 32],
                finest_scale=16,
            ),
            bbox_head=head_config(binned, **changes),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner={**assigner, "neg_iou_thr": 0.3},
                sampler={**sampler, "add_gt_as_proposals": False},
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=copy.deepcopy(proposals),
            rcnn=dict(
                assigner=dict(assigner),
                sampler={**sampler, "add_gt_as_proposals": True},
                pos_weight=-1,
                debug=False,
            ),
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
        ),
    )


def two_bins(bins, numbers):
    place = (numbers - bins.low) / (bins.high - bins.low) * (bins.count - 1)
    share = (1 - (place[..., None] - torch.arange(bins.count)).abs()).clamp(min=0)
    return share.log().clamp(min=-60)


def scene(head, boxes=12, positives=5, seed=0):
    """RoIs with made-up scores, deltas and the logits that stand for them, and targets."""
    generator = torch.Generator().manual_seed(seed)

    def corners():
        start = torch.rand(boxes, 2, generator=generator) * 30
        return torch.cat([start, start + 8 + torch.rand(boxes, 2, generator=generator) * 20], 1)

    rois = torch.cat([torch.zeros(boxes, 1), corners()], 1)
    near = rois[:, 1:] + torch.rand(boxes, 4, generator=generator) * 4 - 2
    scores = torch.randn(boxes, 4, generator=generator)
    groups = 1 if head.reg_class_agnostic else 3
    deltas = torch.rand(boxes, groups * 4, generator=generator) * 8 - 4
    labels = torch.randint(3, (boxes,), generator=generator)
    labels[positives:] = 3
    targets = near if head.reg_decoded_bbox else head.bbox_coder.encode(rois[:, 1:], near)
    weights = (labels < 3).float()[:, None].expand(-1, 4)
    return rois, near, scores, deltas, labels, targets * weights, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positives", [5, 0])
def test_losses_are_the_plain_heads_on_the_expectation(kind, positives):
    theirs, ours = build_head(False, **KINDS[kind]), build_head(True, **KINDS[kind])
    rois, _, scores, deltas, labels, targets, weights = scene(ours, positives=positives)
    logits = two_bins(ours.bins, deltas).flatten(1).requires_grad_()
    rest = (rois, labels, torch.ones(len(rois)), targets, weights)
    expected = theirs.loss(scores, deltas, *rest)
    found = ours.loss(scores, logits, *rest)
    assert set(found) == {*expected, "loss_dfl"}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(found["loss_bbox"] + found["loss_dfl"], logits)
    assert (found["loss_dfl"] == 0) == (found["loss_bbox"] == 0) == (positives == 0)
    grad = grad.view(len(rois), -1, 4, COUNT).abs().sum((2, 3)) > 0
    assert not grad[positives:].any()
    groups = 1 if ours.reg_class_agnostic else 3
    for row, label in zip(grad[:positives], labels, strict=False):
        assert row.tolist() == [groups == 1 or c == label for c in range(groups)]


@pytest.mark.parametrize("kind", KINDS)
def test_dfl_against_a_slow_loop(kind):
    head = build_head(True, **KINDS[kind])
    rois, near, scores, _, labels, targets, weights = scene(head)
    logits = torch.randn(12, (1 if head.reg_class_agnostic else 3) * 4 * COUNT)
    found = head.loss(scores, logits, rois, labels, torch.ones(12), targets, weights)["loss_dfl"]
    total = 0.0
    for i in range(5):
        roi, box = rois[i, 1:].double(), near[i].double()
        size, wanted = roi[2:] - roi[:2], box[2:] - box[:2]
        move = ((box[:2] + box[2:]) / 2 - (roi[:2] + roi[2:]) / 2) / size
        numbers = torch.cat([move, (wanted / size).log()]) / torch.tensor(STDS)
        row = logits[i].view(-1, 4, COUNT)[0 if head.reg_class_agnostic else labels[i]]
        for z, number in zip(row.double().log_softmax(-1), numbers.tolist(), strict=True):
            place = min(max((number + 10) / 20 * (COUNT - 1), 0), COUNT - 1 - 1e-3)
            below = int(place)
            term = (below + 1 - place) * z[below] + (place - below) * z[below + 1]
            total -= 0.25 * term.item() / 4
    assert found.item() == pytest.approx(total / 12, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "cfg", [None, dict(score_thr=0.1, nms=dict(iou_threshold=0.5), max_per_img=9)]
)
def test_predictions_are_the_plain_heads_on_the_expectation(kind, cfg):
    theirs, ours = build_head(False, **KINDS[kind]), build_head(True, **KINDS[kind])
    rois, _, scores, deltas, *_ = scene(ours)
    logits = two_bins(ours.bins, deltas).flatten(1)
    meta = dict(img_shape=(64, 64), scale_factor=(2.0, 2.0))
    cfg = cfg and ConfigDict(cfg)
    # The second image has no boxes.
    split = [tuple(x.split([12, 0])) for x in (rois, scores, deltas, logits)]
    rest = dict(batch_img_metas=[meta, meta], rcnn_test_cfg=cfg, rescale=True)
    expected = theirs.predict_by_feat(split[0], split[1], split[2], **rest)
    found = ours.predict_by_feat(split[0], split[1], split[3], **rest)
    assert [len(one) for one in found] == [len(one) for one in expected]
    assert len(found[0]) > 3 and len(found[1]) == 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cascade_refines_by_the_expectation(kind):
    theirs, ours = build_head(False, **KINDS[kind]), build_head(True, **KINDS[kind])
    rois, _, scores, deltas, labels, *_ = scene(ours)
    logits = two_bins(ours.bins, deltas).flatten(1)
    sampled = [InstanceData(pos_is_gt=torch.zeros(5, dtype=torch.uint8))]
    results = dict(rois=rois, cls_score=scores, bbox_targets=(labels,))
    metas = [dict(img_shape=(64, 64))]
    (expected,) = theirs.refine_bboxes(sampled, dict(results, bbox_pred=deltas), metas)
    (found,) = ours.refine_bboxes(sampled, dict(results, bbox_pred=logits), metas)
    assert len(found) == 12
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-4, atol=1e-3)


def test_targets_of_samples():
    """The whole way from sampling results, in which mmdet makes the targets itself."""
    ours = build_head(True)
    box = torch.tensor([[10.0, 10, 40, 40]])
    priors = torch.tensor([[12.0, 10, 42, 40], [0, 0, 5, 5]])
    assigned = AssignResult(1, torch.tensor([1, 0]), None, labels=torch.tensor([1, -1]))
    result = SamplingResult(
        pos_inds=torch.tensor([0]),
        neg_inds=torch.tensor([1]),
        priors=priors,
        gt_bboxes=box,
        assign_result=assigned,
        gt_flags=torch.zeros(2, dtype=torch.uint8),
    )
    logits = torch.zeros(2, 3, 4, COUNT)
    move = (-2 / 30) / 0.1  # of the centre, in the coder's units
    wanted = torch.tensor([move, 0, 0, 0])
    right, wrong = logits.clone(), logits.clone()
    right[0, 1] = two_bins(ours.bins, wanted).clamp(min=-8)
    wrong[0, 0] = right[0, 1]  # what another class says is not asked
    rois = torch.cat([torch.zeros(2, 1), priors], 1)
    cfg = ConfigDict(pos_weight=-1)
    low, high = (
        ours.loss_and_target(torch.zeros(2, 4), z.flatten(1), rois, [result], cfg)["loss_bbox"]
        for z in (right, wrong)
    )
    assert low["loss_bbox"].item() == pytest.approx(0, abs=1e-2)
    assert low["loss_dfl"] < 0.5 * high["loss_dfl"]
    assert high["loss_dfl"].item() == pytest.approx(0.25 * math.log(COUNT) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_learns_given_boxes(kind):
    """On fixed boxes and features the distributions come near their targets."""
    head = build_head(True, **KINDS[kind])
    head.init_weights()
    rois, _, _, _, labels, targets, weights = scene(head)
    features = torch.randn(12, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    seen = []
    for _ in range(40):
        losses = head.loss(*head(features), rois, labels, torch.ones(12), targets, weights)
        optimizer.zero_grad()
        (losses["loss_cls"] + losses["loss_bbox"] + losses["loss_dfl"]).backward()
        optimizer.step()
        seen.append({key: value.item() for key, value in losses.items()})
    assert seen[-1]["loss_bbox"] < 0.5 * seen[0]["loss_bbox"]
    assert seen[-1]["loss_dfl"] < 0.5 * seen[0]["loss_dfl"]


@pytest.mark.parametrize("kind", KINDS)
def test_learns_under_plain_mmdet(tiny, kind):
    model = tiny.build(detector(tiny, **KINDS[kind])).train()
    inputs, samples = tiny.batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = []
    torch.manual_seed(0)
    for _ in range(25):
        total, log = model.parse_losses(model(inputs, samples, mode="loss"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append({k: v.item() for k, v in log.items() if "loss" in k})
    assert seen[-1]["loss"] < 0.8 * seen[0]["loss"]
    model.eval()
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        found = model(inputs, samples, mode="predict")
        raw = model(inputs, samples, mode="tensor")
    assert all(len(s.pred_instances.bboxes) for s in found)
    groups = 1 if "agnostic" in kind else 3
    assert raw[-1][1].shape[1] == groups * 4 * COUNT


def test_images_without_objects(tiny):
    model = tiny.build(detector(tiny)).train()
    inputs, samples = tiny.batch(model, "3", "7")
    total, log = model.parse_losses(model.loss(inputs, samples))
    assert log["loss_dfl"].item() == 0
    total.backward()
    layer = model.roi_head.bbox_head.fc_reg
    assert layer.weight.grad is not None and not layer.weight.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast(kind):
    # The head alone: mmcv's RoIAlign has no bfloat16 on a CPU.
    head = build_head(True, **KINDS[kind])
    head.init_weights()
    rois, _, _, _, labels, targets, weights = scene(head)
    features = torch.randn(12, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    rest = (rois, labels, torch.ones(12), targets, weights)
    exact = head.loss(*head(features), *rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, logits = head(features)
        found = head.loss(scores, logits, *rest)
    assert logits.dtype == torch.bfloat16
    for key in ("loss_cls", "loss_bbox", "loss_dfl"):
        assert found[key].item() == pytest.approx(exact[key].item(), rel=0.02, abs=0.01)
    (found["loss_bbox"] + found["loss_dfl"]).backward()
    assert head.fc_reg.weight.grad.isfinite().all() and head.fc_reg.weight.grad.any()


def test_checkpoints_and_first_weights(tiny):
    model, theirs = tiny.build(detector(tiny)), tiny.build(detector(tiny, binned=False))
    other = tiny.build(detector(tiny), seed=1)
    other.load_state_dict(model.state_dict(), strict=True)
    ours, plain = model.state_dict(), theirs.state_dict()
    assert list(ours) == list(plain)
    differ = {k for k in ours if ours[k].shape != plain[k].shape}
    assert differ == {f"roi_head.bbox_head.fc_reg.{name}" for name in ("weight", "bias")}
    assert ours["roi_head.bbox_head.fc_reg.weight"].std().item() == pytest.approx(0.001, rel=0.1)


def test_regression_layer_of_another_kind():
    """reg_predictor_cfg is heeded as in the plain head."""
    head = build_head(True, reg_predictor_cfg=dict(type="NormedLinear", temperature=20))
    assert type(head.fc_reg).__name__ == "NormedLinear"
    assert head.fc_reg.out_features == 3 * 4 * COUNT


def test_default_bins_and_what_is_refused():
    head = build_head(True, bins=None)
    assert is_binned(head) and not is_binned(build_head(False))
    assert (head.bins.low, head.bins.high, head.bins.count) == (-10, 10, 17)
    with pytest.raises(ConfigError, match="Did you mean 'count'"):
        build_head(True, bins=dict(counts=3))
    with pytest.raises(ConfigError, match="with_reg=False"):
        build_head(True, with_reg=False)
