"""What the adapter reads from mmdet's heads, against slow and independent references."""

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.dense_heads import SABLRetinaHead, TOODHead, VFNetHead
from mmdet.models.utils import unpack_gt_instances
from mmengine.registry import MODELS
from torch import nn

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.tasks.detection import DenseHeadAdapter

KINDS = {
    "GFL": {},
    "ATSS": {},
    "RetinaNet": {},
    "FCOS": {},
    "FCOS, normed": {"norm_on_bbox": True},
    "PAA": {"reg_decoded_bbox": True},
    "RTMDet": {},
}
LD = dict(student="outputs.box_bins", loss="LocalizationDistillation", name="ld")


def own_model(tiny, kind, **changes):
    """A student whose batch norm keeps its statistics, so that it equals itself in eval mode."""
    built_on = {"PAA": "ATSS", "RTMDet": "GFL"}.get(kind, kind.split(",")[0])
    model = tiny.model(built_on, **{**KINDS[kind], **changes})
    model["backbone"]["norm_eval"] = True
    head = model["bbox_head"]
    if kind == "PAA":
        model["type"], head["type"] = "PAA", "PAAHead"
        model["train_cfg"]["assigner"] = dict(
            type="MaxIoUAssigner", pos_iou_thr=0.1, neg_iou_thr=0.1, ignore_iof_thr=-1
        )
    elif kind == "RTMDet":
        for key in ("reg_max", "loss_dfl"):
            del head[key]
        model["type"] = "RTMDet"
        head.update(
            type="RTMDetHead",
            with_objectness=False,
            anchor_generator=dict(
                type="MlvlPointGenerator", offset=0, strides=head["anchor_generator"]["strides"]
            ),
            bbox_coder=dict(type="DistancePointBBoxCoder"),
        )
        model["train_cfg"]["assigner"] = dict(type="DynamicSoftLabelAssigner", topk=5)
    return model


def noisy(model, seed=3):
    """Spread the head's outputs out: fresh heads say nearly the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.bbox_head.named_parameters():
        if p.ndim == 4:
            p.data.normal_(0, 0.15, generator=generator)
        elif "scale" in name:
            p.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture
def pair(tiny):
    """Student in training, a teacher of another width in eval mode, and a batch."""

    def make(kind):
        student = noisy(tiny.build(own_model(tiny, kind))).train()
        teacher = noisy(tiny.build(own_model(tiny, kind, width=16), seed=1), seed=5).eval()
        return student, teacher, *tiny.batch(student)

    return make


@pytest.fixture
def twins(tiny):
    """A distilled model whose teacher is the student itself, and a batch."""

    def make(kind, *pairs, **options):
        # mmdet's own ATSS compares decoded boxes.
        changes = dict(reg_decoded_bbox=True) if kind == "ATSS" and options else {}
        config = own_model(tiny, kind, **changes)
        entry = dict(teacher=tiny.save_teacher(config), pairs=[dict(p) for p in pairs], **options)
        cfg = tiny.wrap(tiny.config(config, distill=entry), tiny.folder)
        model = MODELS.build(cfg.model)
        model.student.load_state_dict(model.distiller.teachers["teacher"].model.state_dict())
        return model.train(), *tiny.batch(model)

    return make


class Seen:
    def __init__(self, raw):
        self.raw = raw

    def calls(self, spec):
        assert spec == "bbox_head"
        return [self.raw]


def raw_of(model, inputs):
    return model.bbox_head(model.extract_feat(inputs))


def context_of(student, teacher, inputs, samples, outputs, regions=()):
    task = DenseHeadAdapter(student, {"teacher": teacher})
    task.check_names(outputs, regions)
    task.check(outputs, regions)
    with torch.no_grad():
        asked = {"teacher": task.forward(teacher)(inputs)}
    raw = raw_of(student, inputs)
    return task.context(Seen(raw), asked, samples, outputs, regions), raw, asked["teacher"]


def slow_positions(raw, anchors):
    """Every position in the adapter's order: image, level, row, column, anchor."""
    for image in range(len(raw[0][0])):
        for level, scores in enumerate(raw[0]):
            for y in range(scores.shape[-2]):
                for x in range(scores.shape[-1]):
                    for anchor in range(anchors):
                        yield image, level, y, x, anchor


def anchors_of(kind):
    return 2 if kind == "RetinaNet" else 1


STRIDES = (8, 16, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_position_by_position(pair, kind):
    student, teacher, inputs, samples = pair(kind)
    names = ["cls", "box"] + (["box_bins"] if kind == "GFL" else [])
    context, raw, taught = context_of(student, teacher, inputs, samples, names)
    for model, found, levels in (
        (student, context.student, raw),
        (teacher, context.teachers["teacher"], taught),
    ):
        cls, box = [], []
        for image, level, y, x, a in slow_positions(levels, anchors_of(kind)):
            cls.append(levels[0][level][image, 3 * a : 3 * a + 3, y, x])
            numbers = levels[1][level][image, :, y, x]
            if kind == "GFL":
                edges = numbers.view(4, 9).softmax(-1)
                numbers = torch.stack([(e * torch.arange(9.0)).sum() for e in edges])
            elif "FCOS" in kind or kind == "RTMDet":
                normed = "FCOS" in kind and model.bbox_head.norm_on_bbox
                in_pixels = not (normed and model.training)
                numbers = numbers / STRIDES[level] if in_pixels else numbers
            else:
                numbers = numbers[4 * a : 4 * a + 4]
            box.append(numbers)
        torch.testing.assert_close(found["cls"], torch.stack(cls))
        torch.testing.assert_close(found["box"], torch.stack(box))
        assert found["box"].std() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_students_training_outputs_are_in_the_units_of_a_teachers_in_eval(twins, kind):
    model, inputs, samples = twins(
        kind, dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", region="all")
    )
    teacher = model.distiller.teachers["teacher"].model
    context, *_ = context_of(model.student, teacher, inputs, samples, ["cls", "box"])
    assert model.student.bbox_head.training and not teacher.bbox_head.training
    for name in ("cls", "box"):
        torch.testing.assert_close(context.student[name], context.teachers["teacher"][name])
        assert context.student[name].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_is_zero_against_oneself(twins, kind):
    box = dict(student="outputs.box", loss="BoundedRegression")
    pairs = [
        dict(student="neck", loss="FeatureImitation", name="neck"),
        dict(student="backbone.layer*", loss="FeatureImitation", name="layers"),
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="all",
            name="all",
        ),
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="main",
            name="main",
        ),
        # Units that differ would make the student better or worse than itself.
        dict(**box, region="main", margin=1e6, name="box"),
    ]
    if kind == "GFL":
        regions = ("all", "main", "main_score", "vlr", "vlr_iou")
        pairs += [{**LD, "region": region, "name": f"ld_{region}"} for region in regions]
    model, inputs, samples = twins(kind, *pairs)
    losses = model(inputs, samples, mode="loss")
    for p in pairs:
        if p["name"] != "box":
            assert abs(float(losses[f"kd_{p['name']}_raw"])) < 1e-5, p["name"]
    # With a margin that keeps every box active, its value is the error of the positives.
    teacher = model.distiller.teachers["teacher"].model
    context, *_ = context_of(model.student, teacher, inputs, samples, ["box"], ["main"])
    error = (context.teachers["teacher"]["box"] - context.targets["box"]).square().sum(-1)
    main = context.regions["main"].weight.bool()
    assert main.sum() >= 4
    torch.testing.assert_close(losses["kd_box_raw"], error[main].mean(), rtol=1e-4, atol=1e-5)
    assert losses["kd_box_raw"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_targets_decode_back_to_the_ground_truth(pair, kind):
    student, teacher, inputs, samples = pair(kind)
    head = student.bbox_head
    context, raw, _ = context_of(student, teacher, inputs, samples, ["box"], ["main"])
    targets, main = context.targets["box"], context.regions["main"].weight.bool()
    assert main.any() and (targets[~main] == 0).all()
    sizes = [level.shape[-2:] for level in raw[0]]
    priors = head.prior_generator.grid_priors(sizes, device="cpu")
    found = set()
    for i, (image, level, y, x, a) in enumerate(slow_positions(raw, anchors_of(kind))):
        if not main[i]:
            continue
        truth = samples[image].gt_instances.bboxes
        truth = getattr(truth, "tensor", truth)
        prior = priors[level][(y * sizes[level][1] + x) * anchors_of(kind) + a]
        if kind in ("ATSS", "PAA", "RetinaNet"):
            box = head.bbox_coder.decode(prior[None], targets[i][None])[0]
        else:
            stride = STRIDES[level]
            offset = 0.0 if kind == "RTMDet" else 0.5
            cx, cy = (
                (prior[:2] + prior[2:]) / 2
                if kind == "GFL"
                else torch.tensor([(x + offset) * stride, (y + offset) * stride])
            )
            left, top, right, bottom = targets[i] * stride
            box = torch.stack([cx - left, cy - top, cx + right, cy + bottom])
        apart = (truth - box).abs().amax(1)
        assert apart.min() < 1e-2, (kind, box, truth)
        found.add((image, int(apart.argmin())))
    assert len(found) >= 4


@pytest.mark.parametrize("norm", [True, False])
def test_positives_of_fcos_by_a_slow_loop(pair, norm):
    student, teacher, inputs, samples = pair("FCOS, normed" if norm else "FCOS")
    context, raw, _ = context_of(student, teacher, inputs, samples, ["box"], ["main"])
    ranges = ((-1, 16), (16, 32), (32, 1e8))
    expected = []
    for image, level, y, x, _ in slow_positions(raw, 1):
        px, py = (x + 0.5) * STRIDES[level], (y + 0.5) * STRIDES[level]
        truth = samples[image].gt_instances.bboxes
        hit = False
        for x1, y1, x2, y2 in getattr(truth, "tensor", truth).tolist():
            sides = (px - x1, py - y1, x2 - px, y2 - py)
            hit |= min(sides) > 0 and ranges[level][0] <= max(sides) <= ranges[level][1]
        expected.append(float(hit))
    assert context.regions["main"].weight.tolist() == expected
    assert sum(expected) > 4


@pytest.mark.parametrize("kind", ["GFL", "ATSS", "PAA", "RetinaNet"])
def test_regions_of_anchor_heads(pair, kind):
    student, teacher, inputs, samples = pair(kind)
    names = ["all", "main", "main_score", "vlr", "vlr_iou", "teacher_score"]
    context, raw, taught = context_of(student, teacher, inputs, samples, ["cls"], names)
    weights = {name: region.weight for name, region in context.regions.items()}
    for name, region in context.regions.items():
        torch.testing.assert_close(region.total, weights[name].sum(), msg=name)
        assert not region.weight.requires_grad and (region.weight >= 0).all()
    score, taught_score = (
        context.student["cls"].sigmoid().amax(1),
        context.teachers["teacher"]["cls"].sigmoid().amax(1),
    )
    torch.testing.assert_close(weights["main_score"], weights["main"] * score.detach())
    torch.testing.assert_close(weights["teacher_score"], weights["all"] * taught_score)
    assert (weights["main"] <= weights["all"]).all()
    assert (weights["vlr"] * weights["main"]).sum() == 0
    assert ((weights["vlr_iou"] > 0) == (weights["vlr"] > 0)).all() and weights["vlr"].sum() > 0
    assert (weights["vlr_iou"] < 1).all()


def test_anchors_in_the_padding_do_not_count(tiny, pair):
    student, teacher, inputs, samples = pair("ATSS")
    samples[0].set_metainfo(dict(img_shape=(30, 64), pad_shape=(32, 64)))
    context, raw, _ = context_of(student, teacher, inputs, samples, ["cls"], ["all"])
    weight = iter(context.regions["all"].weight.tolist())
    for image, level, y, x, _ in slow_positions(raw, 1):
        inside = image != 0 or y * STRIDES[level] < 32
        assert next(weight) == float(inside), (image, level, y, x)


@pytest.mark.parametrize("kind", ["PAA", "RTMDet"])
def test_positives_follow_what_the_head_predicts(pair, kind):
    """Both choose by the student's own predictions; mmdet's loss tells how many they chose."""
    student, teacher, inputs, samples = pair(kind)
    given = []
    handle = student.bbox_head.loss_cls.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        student.bbox_head.loss(student.extract_feat(inputs), copy.deepcopy(samples))
    handle.remove()
    context, raw, _ = context_of(student, teacher, inputs, samples, ["box"], ["main"])
    found = context.regions["main"].weight.bool()
    if kind == "PAA":
        labels = given[-1][0][1]  # the last call is after the choice; images one after another
    else:
        images = len(inputs)
        labels = torch.cat([args[1][0].view(images, -1) for args, _ in given], 1).flatten()
    assert torch.equal(found, (labels >= 0) & (labels < 3))
    assert found.sum() > 4


@pytest.mark.parametrize("kind", ["GFL", "RetinaNet", "FCOS"])
def test_a_region_of_positions_is_a_map_of_each_level(pair, kind):
    student, teacher, inputs, samples = pair(kind)
    names = ["main", "teacher_score"]
    context, raw, _ = context_of(student, teacher, inputs, samples, [], names)
    sizes = [tuple(level.shape[-2:]) for level in raw[0]]
    for name in names:
        region, values = context.regions[name], {}
        for i, (image, level, y, x, _) in enumerate(slow_positions(raw, anchors_of(kind))):
            key = (level, image, y, x)
            values[key] = max(values.get(key, 0.0), float(region.weight[i]))
        for level, size in enumerate(sizes):
            cells = region.at(size)
            assert cells.shape == (len(inputs), *size)
            for (where, image, y, x), value in values.items():
                assert where != level or float(cells[image, y, x]) == value
        assert max(values.values()) > 0


def test_regions_where_student_and_teacher_differ(pair):
    """By the slow way: every position of a level, best first, those that overlap dropped."""
    student, teacher, inputs, samples = pair("GFL")
    for model in (student, teacher):
        model.bbox_head.gfl_reg.bias.data.view(4, 9)[:, 0] += 5  # small boxes
    samples[0].set_metainfo(dict(img_shape=(40, 64), pad_shape=(40, 64)))
    context, raw, taught = context_of(student, teacher, inputs, samples, [], ["gi"])
    cells = {size: context.regions["gi"].at(size) for size in ((8, 8), (4, 4), (2, 2))}
    # Nobody looks into the padding.
    inside, *_ = context_of(student, teacher, inputs, samples, ["cls"], ["all"])
    counted = inside.regions["all"].weight
    expected = {size: torch.zeros(len(inputs), *size) for size in cells}
    for image in range(len(inputs)):
        for level, size in enumerate(cells):
            ranked = []
            for i, (where, lvl, y, x, _) in enumerate(slow_positions(raw, 1)):
                if (where, lvl) != (image, level):
                    continue
                s, t = (r[0][level][image, :, y, x].sigmoid() * counted[i] for r in (raw, taught))
                gap = (s - t).abs()
                best = int(gap.argmax())
                side = taught if t[best] >= s[best] else raw
                edges = side[1][level][image, :, y, x].view(4, 9).softmax(-1) @ torch.arange(9.0)
                left, top, right, bottom = (edges * STRIDES[level]).tolist()
                px, py = x * STRIDES[level], y * STRIDES[level]
                ranked.append((float(gap.max()), (px - left, py - top, px + right, py + bottom)))
            ranked.sort(key=lambda item: -item[0])
            kept = []
            for _, box in ranked:
                if len(kept) < 10 and all(overlap(box, other) <= 0.3 for other in kept):
                    kept.append(box)
            step = 64 / size[0]
            for x1, y1, x2, y2 in kept:
                for y in range(size[0]):
                    for x in range(size[1]):
                        tiny = 1e-3 * step
                        touched = x1 < (x + 1) * step - tiny and x2 > x * step + tiny
                        touched &= y1 < (y + 1) * step - tiny and y2 > y * step + tiny
                        expected[size][image, y, x] += touched and x2 > x1 and y2 > y1
    for size, found in cells.items():
        assert torch.equal(found > 0, expected[size] > 0), size
    assert 0 < sum(found.sum() for found in cells.values())
    assert any((found == 0).any() for found in cells.values())


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return both / max(area[0] + area[1] - both, 1e-12)


@pytest.mark.parametrize("kind", ["ATSS", "PAA", "GFL"])
def test_labels_of_a_teacher_that_is_the_student_change_nothing(twins, kind):
    model, inputs, samples = twins(kind, assignment=dict(scheme="own"))
    noisy(model.student)
    teacher = model.distiller.teachers["teacher"].model
    teacher.load_state_dict(model.student.state_dict())
    expected = model.student(inputs, copy.deepcopy(samples), mode="loss")
    losses = model(inputs, samples, mode="loss")
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        for a, b in zip(*([v] if torch.is_tensor(v) else v for v in (losses[name], value))):  # noqa: B905
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["ATSS", "PAA"])
def test_labels_from_a_teacher_decide_the_regions_too(twins, kind):
    line = dict(student="outputs.cls", loss="FocalKLDivergence", region="main", name="soft")
    model, inputs, samples = twins(kind, line, assignment=dict(scheme="paa", of="teacher"))
    noisy(model.student)
    noisy(model.distiller.teachers["teacher"].model, seed=8)
    chosen = []
    loss = model.distiller.losses["soft"]
    handle = loss.register_forward_pre_hook(lambda module, args: chosen.append(len(args[0])))
    losses = model(inputs, samples, mode="loss")
    handle.remove()
    labels = model.task._assignment.labels(samples)
    taught = sum(int((label.gt_inds > 0).sum()) for label in labels)
    own = context_of(model.student, model.student, inputs, samples, [], ["main"])
    assert chosen == [taught] and taught > 4
    if kind == "PAA":  # whose own labels are others
        assert taught != int(own[0].regions["main"].weight.sum())
    assert float(losses["kd_soft_raw"]) > 0


def test_an_assignment_that_cannot_be_meant(twins):
    for options, said in (
        (dict(scheme="mine"), "assignment.scheme must be one of"),
        (dict(of="nobody"), "of teacher 'nobody', but the teachers are \\['teacher'\\]"),
        (dict(schema="own"), "schema"),
    ):
        with pytest.raises(ConfigError, match=said):
            twins("ATSS", assignment=options)


def test_localization_distillation_is_that_of_mmdets_ld_head(tiny, twins):
    """On mmdet's own head with the same outputs, after the documented factor."""
    model, inputs, samples = twins("GFL", {**LD, "region": "main_score", "temperature": 10.0})
    student = noisy(model.student)
    teacher = model.distiller.teachers["teacher"].model
    config = own_model(tiny, "GFL")
    config["bbox_head"].update(
        type="LDHead",
        loss_ld=dict(type="KnowledgeDistillationKLDivLoss", loss_weight=1.0, T=10),
    )
    theirs = tiny.build(config).bbox_head
    theirs.load_state_dict(student.bbox_head.state_dict())
    theirs.train()
    losses = model(inputs, samples, mode="loss")
    with torch.no_grad():
        soft = raw_of(teacher, inputs)[1]
    truth, ignored, metas = unpack_gt_instances(samples)
    raw = theirs(student.extract_feat(inputs))
    expected = theirs.loss_by_feat(*raw, truth, metas, soft, batch_gt_instances_ignore=ignored)
    total = sum(expected["loss_ld"])
    context, *_ = context_of(student, teacher, inputs, samples, ["box_bins"], ["main_score"])
    factor = context.regions["main_score"].weight.sum() / 9
    assert total > 0.1
    torch.testing.assert_close(losses["kd_ld_raw"] * factor, total, rtol=1e-5, atol=0)
    # ... and so are the gradients.
    names = ["gfl_reg.weight", "reg_convs.0.conv.weight", "scales.1.scale"]
    ours = dict(student.bbox_head.named_parameters())
    others = dict(theirs.named_parameters())
    got = torch.autograd.grad(losses["loss_kd_ld"] * factor, [ours[n] for n in names])
    wanted = torch.autograd.grad(total, [others[n] for n in names])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("region", ["main", "vlr"])
def test_localization_distillation_by_a_slow_loop(twins, region):
    model, inputs, samples = twins("GFL", {**LD, "region": region, "temperature": 2.0})
    student, teacher = noisy(model.student), model.distiller.teachers["teacher"].model
    losses = model(inputs, samples, mode="loss")
    context, raw, taught = context_of(student, teacher, inputs, samples, ["box_bins"], [region])
    chosen = context.regions[region].weight.tolist()
    values, levels = [], set()
    for i, (image, level, y, x, _) in enumerate(slow_positions(raw, 1)):
        if chosen[i] == 0:
            continue
        levels.add(level)
        s = raw[1][level][image, :, y, x].view(4, 9).double() / 2
        t = taught[1][level][image, :, y, x].view(4, 9).double() / 2
        edges = []
        for edge in range(4):
            p, q = t[edge].softmax(0).tolist(), s[edge].softmax(0).tolist()
            edges.append(
                4 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
            )
        values.append(sum(edges) / 4)
    assert len(levels) >= 2
    torch.testing.assert_close(
        float(losses["kd_ld_raw"]), sum(values) / len(values), rtol=1e-4, atol=1e-7
    )


def test_all_levels_of_a_shared_head_are_matched(twins):
    pairs = (
        {**LD, "region": "all"},
        dict(student="bbox_head.gfl_reg", loss="FeatureImitation", name="calls"),
    )
    model, inputs, samples = twins("GFL", *pairs)
    noisy(model.student)
    kept = []
    handle = model.student.bbox_head.gfl_reg.register_forward_hook(
        lambda m, i, out: (out.retain_grad(), kept.append(out))[0]
    )
    for name in ("loss_kd_ld", "loss_kd_calls"):
        kept.clear()
        losses = model(inputs, copy.deepcopy(samples), mode="loss")
        losses[name].backward()
        assert len(kept) == 3
        # Every position of every level, of every picture.
        assert all((out.grad.abs().sum(1) > 0).all() for out in kept), name
    handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_keeps_it_finite(twins, kind):
    pairs = [
        dict(
            student="outputs.cls", loss="KLDivergence", activation="sigmoid", region="teacher_score"
        ),
        dict(student="outputs.box", loss="BoundedRegression", region="main", margin=0.1),
    ]
    if kind == "GFL":
        pairs.append({**LD, "region": "vlr_iou"})
    model, inputs, samples = twins(kind, *pairs)
    noisy(model.student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs, samples, mode="loss")
        total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert all(losses[k].dtype == torch.float32 for k in losses if k.startswith("loss_kd"))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# -- what cannot be compared -------------------------------------------------------------------


def check(student, teacher, outputs, regions=()):
    DenseHeadAdapter(student, {"teacher": teacher}).check(outputs, regions)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_one_kind_can_be_compared(pair, kind):
    student, teacher, *_ = pair(kind)
    check(student, teacher, ["cls", "box"], ["main"])


@pytest.mark.parametrize(
    ("kind", "changes", "outputs", "words"),
    [
        ("GFL", dict(num_classes=7), ["cls"], "number of classes: student 3, teacher 7"),
        ("GFL", dict(reg_max=16), ["box_bins"], "reg_max: student 8, teacher 16"),
        ("FCOS", dict(strides=(16, 32)), ["cls"], "strides"),
        (
            "ATSS",
            dict(
                bbox_coder=dict(
                    type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4
                )
            ),
            ["box"],
            "box coding.*0.1.*1.0",
        ),
        (
            "RetinaNet",
            dict(
                anchor_generator=dict(
                    type="AnchorGenerator",
                    ratios=[0.5, 2.0],
                    octave_base_scale=4,
                    scales_per_octave=1,
                    strides=list(STRIDES),
                )
            ),
            ["box"],
            "anchors or points",
        ),
        (
            "RetinaNet",
            dict(
                anchor_generator=dict(
                    type="AnchorGenerator",
                    ratios=[0.5, 1.0, 2.0],
                    octave_base_scale=3,
                    scales_per_octave=1,
                    strides=list(STRIDES),
                )
            ),
            ["cls"],
            "anchors a location",
        ),
    ],
)
def test_what_differs_is_named_with_both_values(tiny, kind, changes, outputs, words):
    student = tiny.build(own_model(tiny, kind))
    teacher = tiny.build(own_model(tiny, kind, **changes))
    with pytest.raises(TeacherError, match=words):
        check(student, teacher, outputs)


def test_another_reg_max_is_no_obstacle_where_bins_are_not_compared(tiny):
    student, teacher = (tiny.build(own_model(tiny, "GFL", reg_max=m)) for m in (8, 16))
    check(student, teacher, ["cls", "box"])


def test_boxes_of_points_and_of_anchor_centres_do_not_mix(tiny):
    """FCOS counts from the middle of a cell, GFL from its corner: half a stride apart."""
    student, teacher = (tiny.build(own_model(tiny, kind)) for kind in ("GFL", "FCOS"))
    check(student, teacher, ["cls"])
    with pytest.raises(TeacherError, match="anchors or points: student offset 0"):
        check(student, teacher, ["box"])


def test_what_a_head_does_not_have_is_refused(tiny):
    gfl, retina, fcos = (tiny.build(own_model(tiny, k)) for k in ("GFL", "RetinaNet", "FCOS"))
    with pytest.raises(ConfigError, match="box_bins needs a GFL-type student"):
        check(retina, retina, ["box_bins"])
    with pytest.raises(ConfigError, match="FCOS has no anchors"):
        check(fcos, fcos, ["cls"], ["vlr"])
    with pytest.raises(TeacherError, match="Linear has no dense bbox_head"):
        check(gfl, torch.nn.Linear(2, 2), ["cls"])
    other = copy.deepcopy(gfl)
    other.bbox_head = torch.nn.Linear(2, 2)
    with pytest.raises(TeacherError, match="teacher 'teacher''s head is a Linear"):
        check(gfl, other, ["cls"])


@pytest.mark.parametrize("kind", [TOODHead, VFNetHead, SABLRetinaHead])
def test_heads_with_other_box_numbers_are_refused(kind):
    """Though the first two descend from ATSS and FCOS."""
    model = SimpleNamespace(bbox_head=kind.__new__(kind))
    with pytest.raises(TeacherError, match=f"student's head is a {kind.__name__}"):
        DenseHeadAdapter(model, {}).check(["cls"], [])


def test_features_alone_need_no_like_heads(tiny):
    student = tiny.build(own_model(tiny, "GFL"))
    check(student, tiny.build(own_model(tiny, "FCOS", num_classes=9)), [])


@pytest.mark.parametrize("kind", ["GFL", "RetinaNet", "FCOS", "RTMDet", "ATSS"])
def test_labels_are_assigned_once_and_the_same_as_anew(twins, kind, monkeypatch):
    pairs = (
        dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", region="main"),
        dict(student="outputs.box", loss="FeatureImitation", region="main", name="box"),
    )
    model, inputs, samples = twins(kind, *pairs)
    with torch.no_grad():  # both would be zero against oneself
        model.distiller.teachers["teacher"].network.bbox_head.apply(
            lambda m: m.weight.add_(0.1) if isinstance(m, nn.Conv2d) else None
        )
    head, calls = model.student.bbox_head, []
    own = type(head).get_targets
    monkeypatch.setattr(
        type(head), "get_targets", lambda *args, **kw: (calls.append(1), own(*args, **kw))[1]
    )
    torch.manual_seed(0)
    once = model(inputs, samples, mode="loss")
    assert len(calls) == 1 and "get_targets" not in vars(head)
    monkeypatch.setattr("taskdistill.tasks.detection.dense._assigning", lambda _: nullcontext([]))
    torch.manual_seed(0)
    anew = model(inputs, samples, mode="loss")
    assert len(calls) == 3
    for name in (n for n in once if n.startswith("loss_kd")):
        assert torch.equal(once[name], anew[name]), name
