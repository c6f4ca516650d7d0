"""Binned dense heads against mmdet's plain ones, whose four numbers they are made to say."""

import math

import pytest
import torch
from mmdet.models.utils import unpack_gt_instances
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.detection.heads import is_binned

GIOU = dict(type="GIoULoss", loss_weight=2.0)
# Kind of the detector, plain head's changes; stds of the coder are (0.1, 0.1, 0.2, 0.2).
KINDS = {
    "RetinaNet": ("RetinaNet", {}),
    "RetinaNet, decoded": ("RetinaNet", dict(reg_decoded_bbox=True, loss_bbox=GIOU)),
    "ATSS": ("ATSS", {}),
    "FCOS": ("FCOS", {}),
    "FCOS, normed": ("FCOS", dict(norm_on_bbox=True, centerness_on_reg=True)),
}
HEADS = {"RetinaNet": "BinnedRetinaHead", "ATSS": "BinnedATSSHead", "FCOS": "BinnedFCOSHead"}
REGRESSORS = {"RetinaNet": "retina_reg", "ATSS": "atss_reg", "FCOS": "conv_reg"}
STRIDES = (8, 16, 32)
COUNT = 9


def plain(tiny, name):
    kind, changes = KINDS[name]
    return tiny.build(tiny.model(kind, **changes))


def binned(tiny, name, **more):
    kind, changes = KINDS[name]
    bins = more.pop("bins", dict(count=COUNT))
    return tiny.build(tiny.model(kind, **{**changes, "type": HEADS[kind], "bins": bins, **more}))


def two_bins(bins, numbers):
    """Logits ``(..., count)`` whose expectation is each number: two neighbours share it."""
    place = (numbers - bins.low) / (bins.high - bins.low) * (bins.count - 1)
    share = (1 - (place[..., None] - torch.arange(bins.count)).abs()).clamp(min=0)
    return share.log().clamp(min=-60)


def made_up(head, seed=0, images=3):
    """Raw outputs of a binned head, and of a plain one that says the same.

    Numbers are in the units of the bins; the third image of the batch has no objects.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors = head.num_base_priors
    low, high = head.bins.low, min(head.bins.high, 10)
    scores, numbers, logits, centers = [], [], [], []
    for stride in STRIDES:
        h = w = 64 // stride
        scores.append(torch.randn(images, anchors * 3, h, w, generator=generator) - 1)
        centers.append(torch.randn(images, anchors, h, w, generator=generator))
        four = torch.rand(images, anchors * 4, h, w, generator=generator)
        four = low + (high - low) * (0.05 + 0.9 * four)
        numbers.append(four)
        spread = two_bins(head.bins, four)  # (images, anchors * 4, h, w, count)
        logits.append(spread.movedim(-1, 2).flatten(1, 2).requires_grad_())
    rest = () if "Retina" in type(head).__name__ else (centers,)
    return (scores, logits, *rest), (scores, numbers, *rest)


def in_units_of(head, raw, training):
    """The plain head's own unit: pixels of FCOS, but for normed ones in training."""
    if "FCOS" not in type(head).__name__ or (training and head.norm_on_bbox):
        return raw
    pixels = [level * stride for level, stride in zip(raw[1], STRIDES, strict=True)]
    return (raw[0], pixels, *raw[2:])


def losses_of(head, raw, samples):
    gts, ignored, metas = unpack_gt_instances(samples)
    found = head.loss_by_feat(*raw, gts, metas, ignored)
    return {k: sum(v) if isinstance(v, list) else v for k, v in found.items()}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("images", [("0", "1", "3"), ("3", "7")])
def test_losses_are_the_plain_heads_on_the_expectation(tiny, name, images):
    theirs, ours = plain(tiny, name), binned(tiny, name)
    _, samples = tiny.batch(ours, *images)
    raw, same = made_up(ours.bbox_head, images=len(images))
    expected = losses_of(
        theirs.bbox_head, in_units_of(theirs.bbox_head, same, training=True), samples
    )
    found = losses_of(ours.bbox_head, raw, samples)
    assert set(found) == {*expected, "loss_dfl"}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    empty = images == ("3", "7")
    assert (expected["loss_bbox"] == 0) == empty == (found["loss_dfl"] == 0)
    grads = torch.autograd.grad(found["loss_bbox"] + found["loss_dfl"], raw[1])
    assert any(g.any() for g in grads) is not empty


@pytest.mark.parametrize("name", KINDS)
def test_predictions_are_the_plain_heads_on_the_expectation(tiny, name):
    theirs, ours = plain(tiny, name).eval(), binned(tiny, name).eval()
    _, samples = tiny.batch(ours, "0", "1", "3")
    metas = [sample.metainfo for sample in samples]
    raw, same = made_up(ours.bbox_head)
    same = in_units_of(theirs.bbox_head, same, training=False)
    expected = theirs.bbox_head.predict_by_feat(*same, batch_img_metas=metas)
    found = ours.bbox_head.predict_by_feat(*raw, batch_img_metas=metas)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 5
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
    # Which of the modes the head is in does not matter: its logits have one unit.
    again = ours.train().bbox_head.predict_by_feat(*raw, batch_img_metas=metas)
    assert torch.equal(again[0].bboxes, found[0].bboxes)


def anchor_targets(head, samples):
    """Every positive by mmdet's own assignment: level, image, index, anchor and target."""
    gts, _, metas = unpack_gt_instances(samples)
    sizes = [(64 // s, 64 // s) for s in STRIDES]
    targets = head.get_targets(*head.get_anchors(sizes, metas, device="cpu"), gts, metas)
    anchors, _ = head.get_anchors(sizes, metas, device="cpu")
    labels, boxes = (targets[0], targets[2]) if len(targets) == 5 else (targets[1], targets[3])
    for level, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        for image, index in (label < 3).nonzero().tolist():
            yield level, image, index, anchors[image][level][index], box[image, index]


def deltas(anchor, box):
    (ax, ay), (bx, by) = ((corners[:2] + corners[2:]).div(2) for corners in (anchor, box))
    (aw, ah), (bw, bh) = (corners[2:] - corners[:2] for corners in (anchor, box))
    raw = [(bx - ax) / aw, (by - ay) / ah, math.log(bw / aw), math.log(bh / ah)]
    return [float(d) / std for d, std in zip(raw, (0.1, 0.1, 0.2, 0.2), strict=True)]


def centerness(left, top, right, bottom):
    across, down = sorted((left, right)), sorted((top, bottom))
    return math.sqrt(across[0] / across[1] * down[0] / down[1])


def two_bin_entropy(bins, logits, target):
    place = (target - bins.low) / (bins.high - bins.low) * (bins.count - 1)
    place = min(max(place, 0.0), bins.count - 1 - 1e-3)
    below = int(place)
    lower, upper = logits.double().log_softmax(-1)[below : below + 2].tolist()
    return -((below + 1 - place) * lower + (place - below) * upper)


def spread_out(raw, seed=4):
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(level.shape, generator=generator) for level in raw[1]]
    return (raw[0], levels, *raw[2:])


def edges(head, raw, level, image, index):
    """The four distributions of an anchor, by the layout the docstring promises."""
    per = head.num_base_priors
    cell, anchor = divmod(index, per)
    y, x = divmod(cell, 64 // STRIDES[level])
    return raw[1][level][image, :, y, x].view(per, 4, head.bins.count)[anchor]


@pytest.mark.parametrize("name", ["RetinaNet", "RetinaNet, decoded", "ATSS"])
def test_dfl_of_anchors_against_a_slow_loop(tiny, name):
    head = binned(tiny, name).bbox_head
    _, samples = tiny.batch(binned(tiny, name), "0", "1", "2", "4", "3")
    raw = spread_out(made_up(head, images=5)[0])
    found = losses_of(head, raw, samples)["loss_dfl"]

    # The box of each positive, whichever form the head's targets have.
    total = weights = 0.0
    boxes = [s.gt_instances.bboxes for s in samples]
    for level, image, index, anchor, target in anchor_targets(head, samples):
        if head.reg_decoded_bbox:
            numbers = deltas(anchor, target)
            assert any(torch.equal(target, box) for box in boxes[image])
        else:
            numbers = target.tolist()
            assert any(deltas(anchor, b) == pytest.approx(numbers, abs=1e-3) for b in boxes[image])
        weight = 1.0
        if name == "ATSS":
            center = (anchor[:2] + anchor[2:]) / 2
            weight = centerness(*(center - target[:2]).tolist(), *(target[2:] - center).tolist())
        logits = edges(head, raw, level, image, index)
        terms = [two_bin_entropy(head.bins, z, n) for z, n in zip(logits, numbers, strict=True)]
        total += 0.25 * weight * sum(terms) / 4
        weights += weight
    assert weights > 4
    # mmdet counts an image without positives as one.
    avg_factor = weights if name == "ATSS" else weights + 1
    assert found.item() == pytest.approx(total / avg_factor, rel=1e-4)


@pytest.mark.parametrize("name", ["FCOS", "FCOS, normed"])
def test_dfl_of_points_against_a_slow_loop(tiny, name):
    head = binned(tiny, name).bbox_head
    _, samples = tiny.batch(binned(tiny, name), "0", "1", "3")
    raw = spread_out(made_up(head)[0])
    found = losses_of(head, raw, samples)["loss_dfl"]

    total = weights = 0.0
    for image, sample in enumerate(samples):
        for level, stride in enumerate(STRIDES):
            side = 64 // stride
            lowest, highest = head.regress_ranges[level]
            for index in range(side * side):
                x, y = (index % side + 0.5) * stride, (index // side + 0.5) * stride
                best = None
                for x1, y1, x2, y2 in sample.gt_instances.bboxes.tolist():
                    far = (x - x1, y - y1, x2 - x, y2 - y)
                    area = (x2 - x1) * (y2 - y1)
                    if min(far) > 0 and lowest <= max(far) <= highest:
                        if best is None or area < best[0]:
                            best = area, far
                if best is None:
                    continue
                weight = centerness(*best[1])
                logits = edges(head, raw, level, image, index)
                pairs = zip(logits, best[1], strict=True)
                terms = [two_bin_entropy(head.bins, z, d / stride) for z, d in pairs]
                total += 0.25 * weight * sum(terms) / 4
                weights += weight
    assert weights > 3
    assert found.item() == pytest.approx(total / weights, rel=1e-4)


def test_dfl_is_smallest_at_the_target(tiny):
    """A head that says exactly the target has less to lose than one a bin away."""
    head = binned(tiny, "FCOS", bins=dict(count=17)).bbox_head
    _, samples = tiny.batch(binned(tiny, "FCOS"), "0", "1")
    gts, _, _ = unpack_gt_instances(samples)
    points = head.prior_generator.grid_priors([(64 // s, 64 // s) for s in STRIDES], device="cpu")
    _, boxes = head.get_targets(points, gts)
    scores, _, centers = made_up(head, images=2)[0]
    values = []
    for shift in (0.0, 1.0, 2.0):
        levels = []
        for box, stride in zip(boxes, STRIDES, strict=True):
            spread = two_bins(head.bins, (box / stride).clamp(0, 13) + shift)
            side = 64 // stride
            levels.append(spread.view(2, side, side, -1).permute(0, 3, 1, 2).clamp(min=-5))
        values.append(losses_of(head, (scores, levels, centers), samples)["loss_dfl"].item())
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", ["RetinaNet", "ATSS", "FCOS"])
def test_targets_are_made_once(tiny, name, monkeypatch):
    model = binned(tiny, name)
    calls = []
    parent = type(model.bbox_head).get_targets
    monkeypatch.setattr(
        type(model.bbox_head),
        "get_targets",
        lambda self, *a, **k: calls.append(1) or parent(self, *a, **k),
    )
    inputs, samples = tiny.batch(model)
    model.loss(inputs, samples)
    assert len(calls) == 1


@pytest.mark.parametrize("name", KINDS)
def test_learns_under_plain_mmdet(tiny, name):
    """Losses fall on one batch, and the regression layer learns."""
    model = binned(tiny, name).train()
    inputs, samples = tiny.batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    layer = getattr(model.bbox_head, REGRESSORS[KINDS[name][0]])
    before = layer.weight.detach().clone()
    seen = []
    for _ in range(25):
        losses = model(inputs, samples, mode="loss")
        total, log = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append({k: v.item() for k, v in log.items() if "loss" in k})
    first, last = seen[0], seen[-1]
    assert last["loss"] < 0.8 * first["loss"]
    assert last["loss_dfl"] < 0.9 * first["loss_dfl"]
    assert last["loss_bbox"] < first["loss_bbox"]
    moved = (layer.weight - before).abs().view(-1, COUNT, *layer.weight.shape[1:])
    assert (moved.amax((0, 2, 3, 4)) > 0).all()  # every bin


@pytest.mark.parametrize("name", KINDS)
def test_predict_and_tensor_modes(tiny, name):
    model = binned(tiny, name).eval()
    inputs, samples = tiny.batch(model)
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        raw = model(inputs, samples, mode="tensor")
        found = model(inputs, samples, mode="predict")
    for level, stride in zip(raw[1], STRIDES, strict=True):
        side = 64 // stride
        assert level.shape == (4, model.bbox_head.num_base_priors * 4 * COUNT, side, side)
    for sample in found:
        boxes = sample.pred_instances.bboxes
        assert len(boxes) and boxes.isfinite().all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_autocast(tiny, name):
    model = binned(tiny, name).train()
    inputs, samples = tiny.batch(model)
    exact, _ = model.parse_losses(model.loss(inputs, samples))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(inputs, samples)
    total, _ = model.parse_losses(losses)
    assert total.item() == pytest.approx(exact.item(), rel=0.05)
    total.backward()
    layer = getattr(model.bbox_head, REGRESSORS[KINDS[name][0]])
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


@pytest.mark.parametrize("name", KINDS)
def test_images_without_objects(tiny, name):
    model = binned(tiny, name).train()
    inputs, samples = tiny.batch(model, "3", "7")
    losses = model.loss(inputs, samples)
    total, log = model.parse_losses(losses)
    assert log["loss_dfl"].item() == 0 and log["loss_bbox"].item() == 0
    total.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values())


@pytest.mark.parametrize("name", ["RetinaNet", "ATSS", "FCOS"])
def test_checkpoints(tiny, name):
    model, other = binned(tiny, name), binned(tiny, name)
    for p in other.parameters():
        p.data.add_(1)
    other.load_state_dict(model.state_dict(), strict=True)
    # A plain detector's weights fit everywhere but in the last regression layer.
    theirs = plain(tiny, name).state_dict()
    ours = model.state_dict()
    assert list(theirs) == list(ours)
    differ = {k for k in ours if ours[k].shape != theirs[k].shape}
    layer = f"bbox_head.{REGRESSORS[name]}"
    assert differ == {f"{layer}.weight", f"{layer}.bias"}
    assert len(ours[f"{layer}.bias"]) == COUNT * len(theirs[f"{layer}.bias"])


@pytest.mark.parametrize("name", ["RetinaNet", "ATSS", "FCOS"])
def test_starts_as_mmdet_starts_heads(tiny, name):
    """Small normal weights, no bias: nearly the middle of the bins everywhere."""
    model = binned(tiny, name).eval()
    layer = getattr(model.bbox_head, REGRESSORS[name])
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not layer.bias.any()
    inputs, _ = tiny.batch(model)
    logits = model.bbox_head(model.extract_feat(inputs))[1][0]
    numbers = model.bbox_head.bins.expect(logits.unflatten(1, (-1, COUNT)).movedim(2, -1))
    middle = (model.bbox_head.bins.low + model.bbox_head.bins.high) / 2
    assert (numbers - middle).abs().max() < 0.1 * (model.bbox_head.bins.high - middle)


def test_scores_do_not_change(tiny):
    """FCOS's own forward, but for the numbers: class scores and centerness are the plain head's."""
    for on_reg in (False, True):
        ours = tiny.build(tiny.model("FCOS", type="BinnedFCOSHead", centerness_on_reg=on_reg))
        theirs = tiny.build(tiny.model("FCOS", centerness_on_reg=on_reg))
        state = {k: v for k, v in ours.bbox_head.state_dict().items() if "conv_reg" not in k}
        theirs.bbox_head.load_state_dict(state, strict=False)
        features = [torch.randn(2, 16, 64 // s, 64 // s) for s in STRIDES]
        found, expected = ours.bbox_head(features), theirs.bbox_head(features)
        for kind in (0, 2):
            for one, other in zip(found[kind], expected[kind], strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "name,low,high", [("RetinaNet", -10, 10), ("ATSS", -10, 10), ("FCOS", 0, 16)]
)
def test_default_bins(tiny, name, low, high):
    head = binned(tiny, name, bins=None).bbox_head
    assert is_binned(head) and not is_binned(plain(tiny, name).bbox_head)
    assert (head.bins.low, head.bins.high, head.bins.count) == (low, high, 17)
    assert head.loss_dfl.loss_weight == 0.25


def test_loss_dfl_can_be_chosen(tiny):
    weights = dict(loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.5))
    model, twice = binned(tiny, "ATSS"), binned(tiny, "ATSS", **weights)
    twice.load_state_dict(model.state_dict())
    inputs, samples = tiny.batch(model)
    one, two = (m.parse_losses(m.loss(inputs, samples))[1]["loss_dfl"] for m in (model, twice))
    assert two.item() == pytest.approx(2 * one.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["RetinaNet", "ATSS", "FCOS"])
def test_unknown_entries_of_bins(tiny, name):
    with pytest.raises(ConfigError, match="Did you mean 'low'"):
        binned(tiny, name, bins=dict(lo=0))


def test_atss_without_decoded_boxes_is_refused(tiny):
    with pytest.raises(ConfigError, match="reg_decoded_bbox=True"):
        binned(tiny, "ATSS", reg_decoded_bbox=False)


def test_a_failed_loss_leaves_nothing_behind(tiny):
    """FCOS keeps its targets for as long as the loss is computed, and no longer."""
    head = binned(tiny, "FCOS").bbox_head
    _, samples = tiny.batch(binned(tiny, "FCOS"), "0", "1")
    raw, _ = made_up(head, images=2)
    before = dict(vars(head))
    with pytest.raises(IndexError):
        losses_of(head, (raw[0], raw[1], [c[:, :, :1] for c in raw[2]]), samples)
    assert vars(head) == before
    losses_of(head, raw, samples)
    assert vars(head) == before


def test_registered_by_name():
    for name in HEADS.values():
        with_scope = MODELS.build(
            ConfigDict(
                type=f"mmdet.{name}",
                num_classes=3,
                in_channels=32,
                **(dict(bins=dict(low=-1, high=1)) if "ATSS" in name else {}),
            )
        )
        assert is_binned(with_scope)
