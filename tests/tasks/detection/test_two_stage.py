"""What the adapter reads from two-stage detectors, against slow and independent references."""

import copy
import math

import pytest
import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures.bbox import bbox2roi
from mmengine.registry import MODELS

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.core.recipe import Recipe
from taskdistill.tasks.detection import DetectionAdapter, TwoStageAdapter

MARGIN = 0.05
CHEN = (
    dict(student="neck", loss="Hint", adapter="conv1x1", weight=0.5),
    dict(student="outputs.rpn_cls", loss="WeightedSoftCrossEntropy", activation="sigmoid"),
    dict(student="outputs.rpn_box", loss="BoundedRegression", margin=MARGIN, name="rpn_bounded"),
    dict(
        student="outputs.roi_cls", loss="WeightedSoftCrossEntropy", background=-1, name="roi_soft"
    ),
    dict(student="outputs.roi_box", loss="BoundedRegression", margin=MARGIN, name="roi_bounded"),
)


def distilled(tiny, *pairs, student=None, teacher=None, **options):
    """A distilled Faster R-CNN whose answers differ from place to place, and a batch."""
    files = tiny.save_teacher(teacher or tiny.model("FasterRCNN", width=16))
    entry = dict(teacher=files, pairs=[dict(p) for p in pairs], **options)
    config = tiny.config(student or tiny.model("FasterRCNN"), distill=entry)
    torch.manual_seed(0)
    model = MODELS.build(tiny.wrap(config, tiny.folder).model).train()
    generator = torch.Generator().manual_seed(3)
    for name, p in model.student.named_parameters():
        if "rpn_head" in name and p.ndim == 4 or ".fc_" in name and p.ndim == 2:
            p.data.normal_(0, 0.2, generator=generator)
    return model, *tiny.batch(model)


def own_samples(student, inputs, samples, seed):
    """What the student's loss samples and assigns, by mmdet's own parts and the same seed."""
    torch.manual_seed(seed)
    features = student.extract_feat(inputs)
    truth, ignored, metas = unpack_gt_instances(copy.deepcopy(samples))
    of_objects = copy.deepcopy(truth)
    for instances in of_objects:
        instances.labels = torch.zeros_like(instances.labels)
    head = student.rpn_head
    raw = head(features)
    sizes = [level.shape[-2:] for level in raw[0]]
    anchors, valid = head.get_anchors(sizes, metas, device=inputs.device)
    first = head.get_targets(anchors, valid, of_objects, metas, batch_gt_instances_ignore=ignored)
    proposals = head.predict_by_feat(
        *raw, batch_img_metas=metas, cfg=student.train_cfg.rpn_proposal
    )
    sampled = []
    for found, objects, skipped in zip(proposals, truth, ignored, strict=True):
        found.priors = found.pop("bboxes")
        result = student.roi_head.bbox_assigner.assign(found, objects, skipped)
        sampled.append(student.roi_head.bbox_sampler.sample(result, found, objects))
    rois = bbox2roi([one.priors for one in sampled])
    second = student.roi_head.bbox_head.get_targets(sampled, student.roi_head.train_cfg)
    answer = student.roi_head._bbox_forward(features, rois)
    return raw, first, rois, second, answer


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def bounded(s, t, y):
    s_error = sum((a - b) ** 2 for a, b in zip(s, y, strict=True))
    t_error = sum((a - b) ** 2 for a, b in zip(t, y, strict=True))
    return s_error if s_error + MARGIN > t_error else 0.0


@pytest.mark.parametrize("agnostic", [False, True])
def test_both_stages_by_slow_loops(tiny, agnostic):
    """Soft and bounded term of both stages, on the student's own proposals."""
    model, inputs, samples = distilled(
        tiny,
        *CHEN,
        student=tiny.model("FasterRCNN", reg_class_agnostic=agnostic),
    )
    student, teacher = model.student, model.distiller.teachers["teacher"].model
    torch.manual_seed(11)
    losses = model(inputs, copy.deepcopy(samples), mode="loss")
    with torch.no_grad():
        raw, first, rois, second, answer = own_samples(student, inputs, samples, 11)
        features = teacher.extract_feat(inputs)
        taught = teacher.rpn_head(features)
        again = teacher.roi_head._bbox_forward(features, rois)

    # The first stage: every anchor of every level of every image.
    soft = box = sampled = active = 0.0
    for level, (labels, weights, targets) in enumerate(zip(*first[:3], strict=True)):
        for image in range(len(inputs)):
            s, t = (r[0][level][image].permute(1, 2, 0).flatten().tolist() for r in (raw, taught))
            s_box, t_box = (
                r[1][level][image].permute(1, 2, 0).reshape(-1, 4).double().tolist()
                for r in (raw, taught)
            )
            for i, weight in enumerate(weights[image].tolist()):
                if weight == 0:
                    continue
                sampled += 1
                p = sigmoid(t[i])
                soft += p * softplus(-s[i]) + 1.5 * (1 - p) * softplus(s[i])
                if int(labels[image][i]) == 0:
                    value = bounded(s_box[i], t_box[i], targets[image][i].double().tolist())
                    box, active = box + value, active + (value > 0)
    assert sampled > 100 and active > 3
    name = "kd_weighted_soft_cross_entropy_raw"
    assert float(losses[name]) == pytest.approx(soft / sampled, rel=1e-5)
    assert float(losses["kd_rpn_bounded_raw"]) == pytest.approx(box / sampled, rel=1e-5)

    # The second: every sampled proposal, the deltas of the class it is assigned.
    labels, weights, targets, _ = second
    soft = box = active = 0.0
    for i, label in enumerate(labels.tolist()):
        p = again["cls_score"][i].double().softmax(0).tolist()
        z = answer["cls_score"][i].double().tolist()
        top = math.log(sum(math.exp(x - max(z)) for x in z)) + max(z)
        soft += sum((1.5 if c == 3 else 1) * p[c] * (top - z[c]) for c in range(4))
        if label < 3:
            s, t = (
                numbers[4 * (0 if alone else label) :][:4].double().tolist()
                for numbers, alone in (
                    (answer["bbox_pred"][i], agnostic),
                    (again["bbox_pred"][i], False),
                )
            )
            value = bounded(s, t, targets[i].double().tolist())
            box, active = box + value, active + (value > 0)
    assert len(rois) > 60 and active > 3
    assert float(losses["kd_roi_soft_raw"]) == pytest.approx(soft / len(rois), rel=1e-5)
    assert float(losses["kd_roi_bounded_raw"]) == pytest.approx(box / len(rois), rel=1e-5)


def test_the_teacher_sees_the_students_proposals(tiny):
    model, inputs, samples = distilled(tiny, *CHEN)
    teacher = model.distiller.teachers["teacher"].network
    seen = []
    handles = [
        part.roi_head.bbox_roi_extractor.register_forward_pre_hook(
            lambda module, args: seen.append(args[1])
        )
        for part in (model.student, teacher)
    ]
    model(inputs, samples, mode="loss")
    for handle in handles:
        handle.remove()
    ours, theirs = seen
    assert torch.equal(ours, theirs) and len(ours) > 0


def test_the_sum_is_that_of_the_paper(tiny):
    """mu weighs the hard class losses, 1 - mu the soft ones."""
    weights = dict(loss_rpn_cls=0.5, loss_cls=0.25)
    plain, inputs, samples = distilled(tiny, *CHEN)
    model, *_ = distilled(tiny, *CHEN, task_weights=weights)
    model.load_state_dict(plain.state_dict())
    both = []
    for one in (plain, model):
        torch.manual_seed(4)
        both.append(one(inputs, copy.deepcopy(samples), mode="loss"))
    before, after = both
    for name in before:
        expected = before[name]
        if name in weights:
            expected = (
                [v * weights[name] for v in expected]
                if isinstance(expected, list)
                else expected * weights[name]
            )
        torch.testing.assert_close(after[name], expected)


def test_a_wrong_name_of_a_loss_is_told(tiny):
    model, inputs, samples = distilled(tiny, *CHEN, task_weights=dict(loss_clss=0.5))
    with pytest.raises(ConfigError, match="'loss_clss', which is no loss.*'loss_cls'"):
        model(inputs, samples, mode="loss")


@pytest.mark.parametrize("value", [-1.0, "half", True, float("nan")])
def test_a_bad_factor_is_told_before_training(tiny, value):
    with pytest.raises(ConfigError, match="task_weights"):
        distilled(tiny, *CHEN, task_weights=dict(loss_cls=value))


def test_targets_that_were_decoded_are_encoded_again(tiny):
    """With an IoU loss mmdet regresses decoded boxes; the outputs are deltas all the same."""
    giou = dict(type="GIoULoss", loss_weight=1.0)
    found = []
    for changes in ({}, dict(reg_decoded_bbox=True, loss_bbox=giou)):
        config = tiny.model("FasterRCNN", **changes)
        if changes:
            config["rpn_head"].update(reg_decoded_bbox=True, loss_bbox=giou)
        model, inputs, samples = distilled(tiny, *CHEN, student=config)
        torch.manual_seed(2)
        losses = model(inputs, samples, mode="loss")
        found.append([float(losses[f"kd_{name}_raw"]) for name in ("rpn_bounded", "roi_bounded")])
    assert min(found[0]) > 0
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_taps_inside_the_second_stage_are_of_the_same_proposals(tiny):
    pairs = (
        dict(student="roi_head.bbox_roi_extractor", loss="FeatureImitation", name="pooled"),
        dict(student="roi_head.bbox_head.shared_fcs.1", loss="FeatureImitation", name="fc"),
        dict(
            student="roi_head.bbox_roi_extractor",
            loss="FeatureImitation",
            region="roi_main",
            name="objects",
        ),
    )
    config = tiny.model("FasterRCNN")
    model, inputs, samples = distilled(tiny, *pairs, student=config, teacher=config)
    teacher = model.distiller.teachers["teacher"].model
    model.student.load_state_dict(teacher.state_dict())
    model.student.eval()  # the same statistics: then both see the same
    losses = model(inputs, copy.deepcopy(samples), mode="loss")
    assert all(float(losses[f"kd_{name}_raw"]) < 1e-8 for name in ("pooled", "fc", "objects"))
    model.train()
    losses = model(inputs, samples, mode="loss")
    assert all(float(losses[f"kd_{name}_raw"]) > 1e-6 for name in ("pooled", "fc", "objects"))


def test_one_level_without_a_pyramid(tiny):
    student, teacher = (tiny.model("FasterRCNN", width=w, strides=(16,)) for w in (8, 16))
    pairs = [dict(p, student="backbone") if p["student"] == "neck" else p for p in CHEN]
    model, inputs, samples = distilled(tiny, *pairs, student=student, teacher=teacher)
    losses = model(inputs, samples, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(float(losses[k]) > 0 for k in losses if k.endswith("_raw"))


def test_the_class_loss_alone_needs_no_second_stage_of_the_teacher(tiny):
    model, inputs, samples = distilled(tiny, CHEN[1])
    teacher = model.distiller.teachers["teacher"].model
    ran = []
    handle = teacher.roi_head.bbox_head.register_forward_hook(lambda *_: ran.append(1))
    losses = model(inputs, samples, mode="loss")
    handle.remove()
    assert not ran and float(losses["kd_weighted_soft_cross_entropy_raw"]) > 0


def test_a_teacher_of_larger_images_sees_the_same_objects(tiny):
    """Proposals are brought to the teacher's scale, each axis by its own factor."""
    files = tiny.save_teacher(tiny.model("FasterRCNN", width=16))
    entry = dict(teacher=dict(files, scale=1.5), pairs=[dict(CHEN[3])])
    cfg = tiny.wrap(tiny.config(tiny.model("FasterRCNN"), distill=entry), tiny.folder)
    model = MODELS.build(cfg.model).train()
    inputs, samples = tiny.batch(model)
    teacher, seen = model.distiller.teachers["teacher"].network, []
    handles = [
        part.roi_head.bbox_roi_extractor.register_forward_pre_hook(
            lambda module, args: seen.append((args[0][0].shape[-2:], args[1]))
        )
        for part in (model.student, teacher)
    ]
    losses = model(inputs, samples, mode="loss")
    for handle in handles:
        handle.remove()
    (ours, rois), (theirs, scaled) = seen
    y, x = theirs[0] / ours[0], theirs[1] / ours[1]
    assert (y, x) == (1.5, 1.5)
    torch.testing.assert_close(scaled, rois * torch.tensor([1, x, y, x, y]))
    assert float(losses["kd_roi_soft_raw"]) > 0


# -- what cannot be compared -------------------------------------------------------------------


def check(student, teacher, *pairs):
    recipe = Recipe.from_config([dict(p) for p in pairs])
    adapter = DetectionAdapter.of(student)
    assert adapter is TwoStageAdapter
    task = adapter(student, {"teacher": teacher}, recipe)
    task.check_names(recipe.outputs, recipe.regions)
    task.check(recipe.outputs, recipe.regions)


def changed(tiny, **changes):
    return tiny.build(tiny.model("FasterRCNN", **changes))


def test_what_differs_is_named_with_both_values(tiny):
    student = changed(tiny)
    with pytest.raises(TeacherError, match="number of classes: student 3, teacher 7"):
        check(student, changed(tiny, num_classes=7), CHEN[3])
    check(student, changed(tiny, num_classes=7), CHEN[1])  # objects have no class
    with pytest.raises(TeacherError, match="RPN's strides"):
        check(student, changed(tiny, strides=(16, 32)), CHEN[1])
    coder = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4)
    with pytest.raises(TeacherError, match="box coding of the RoI head.*0.1.*1.0"):
        check(student, changed(tiny, bbox_coder=coder), CHEN[4])
    with pytest.raises(TeacherError, match="'teacher' is a GFL, which has no two stages"):
        check(student, tiny.build(tiny.model("GFL")), CHEN[3])


def test_outputs_and_regions_of_two_stages_do_not_mix(tiny):
    student = changed(tiny)
    with pytest.raises(ConfigError, match="other positions than region 'rpn'.*roi_main"):
        check(student, student, dict(CHEN[3], region="rpn"))
    for tap, region in (("neck", "rpn"), ("neck", "roi"), ("roi_head.bbox_head", "rpn_main")):
        with pytest.raises(ConfigError, match="of single positions, but .* is a tap"):
            check(student, student, dict(student=tap, loss="FeatureImitation", region=region))
    with pytest.raises(ConfigError, match="no output 'cls'"):
        check(student, student, dict(CHEN[3], student="outputs.cls"))
    with pytest.raises(ConfigError, match="roi_bins needs a binned RoI head"):
        check(student, student, dict(student="outputs.roi_bins", loss="LocalizationDistillation"))


def test_heads_that_run_otherwise_are_refused(tiny):
    student, teacher = changed(tiny), changed(tiny)
    teacher.roi_head.bbox_head = torch.nn.ModuleList([teacher.roi_head.bbox_head])
    with pytest.raises(TeacherError, match="outputs and taps of a StandardRoIHead"):
        check(student, teacher, CHEN[3])
    check(student, teacher, CHEN[1])
    pooled = dict(student="roi_head.bbox_roi_extractor", loss="FeatureImitation")
    with pytest.raises(TeacherError, match="outputs and taps of a StandardRoIHead"):
        check(student, teacher, pooled, CHEN[1])
    teacher.rpn_head = torch.nn.Linear(2, 2)
    with pytest.raises(TeacherError, match="rpn_head is a Linear"):
        check(student, teacher, CHEN[1])


def test_features_need_neither_stage(tiny):
    """So that cascades and the like may teach, and be taught, their pyramids."""
    line = dict(student="neck", loss="FeatureImitation", region="boxes")
    student, teacher = changed(tiny), changed(tiny, width=16)
    for model in (student, teacher):
        model.roi_head.bbox_head = torch.nn.ModuleList([model.roi_head.bbox_head])
        model.rpn_head.forward = None
    task = TwoStageAdapter(student, {}, Recipe.from_config([line]))
    task.check([], ["boxes"])
    assert task.reads == []
    for model in (student, teacher):
        assert task.forward(model)(torch.zeros(1, 3, 64, 64)) == {}
