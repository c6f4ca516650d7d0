"""Transformer detectors: which queries are compared, and what of them."""

import copy
import math

import pytest
import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS as DETECTORS
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.core.recipe import Recipe
from taskdistill.tasks.detection.queries import QueryAdapter, run_queries

QUERIES = 20
KINDS = ("DETR", "DABDETR", "DeformableDETR", "DINO")
# mmdet's own code of these knows no other width than 256.
WIDE = ("ConditionalDETR", "two-stage")
_COSTS = [
    dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
    dict(type="IoUCost", iou_mode="giou", weight=2.0),
]


def _single_scale(kind, width, layers):
    """DETR, Conditional DETR and DAB-DETR: one level, whole attention."""
    plain = dict(embed_dims=width, num_heads=4)
    detr = kind == "DETR"
    # mmdet's attention for the latter two takes its queries and positions apart.
    own = dict(plain, batch_first=True) if detr else dict(plain, cross_attn=False)
    cross = dict(plain, batch_first=True) if detr else dict(plain, cross_attn=True)
    ffn = dict(embed_dims=width, feedforward_channels=2 * width, num_fcs=2, ffn_drop=0.0)
    # As in mmdet's configs.
    ffn["act_cfg"] = dict(type="PReLU" if kind == "DABDETR" else "ReLU")
    more = {}
    if kind == "DABDETR":
        more = dict(query_dim=4, query_scale_type="cond_elewise", with_modulated_hw_attn=True)
    layer = dict(self_attn_cfg=own, cross_attn_cfg=cross, ffn_cfg=ffn)
    return dict(
        encoder=dict(
            num_layers=2,
            layer_cfg=dict(self_attn_cfg=dict(plain, batch_first=True), ffn_cfg=ffn),
        ),
        decoder=dict(num_layers=layers, layer_cfg=layer, return_intermediate=True, **more),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
    )


def _deformable(width, layers):
    attention = dict(embed_dims=width, num_heads=4, num_levels=3, num_points=2, dropout=0.0)
    ffn = dict(embed_dims=width, feedforward_channels=2 * width, ffn_drop=0.0)
    return dict(
        num_feature_levels=3,
        encoder=dict(
            num_layers=2,
            layer_cfg=dict(self_attn_cfg=dict(attention, batch_first=True), ffn_cfg=ffn),
        ),
        decoder=dict(
            num_layers=layers,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=width, num_heads=4, dropout=0.0, batch_first=True),
                cross_attn_cfg=dict(attention, batch_first=True),
                ffn_cfg=ffn,
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
    )


def transformer(tiny, kind="DeformableDETR", width=32, layers=2, queries=QUERIES, classes=3):
    """A whole tiny transformer detector; no dropout, so that it equals itself in eval mode."""
    width = 256 if kind in WIDE else width
    plain = tiny.model()
    plain["backbone"]["norm_eval"] = True
    single = kind in ("DETR", "ConditionalDETR", "DABDETR")
    levels = [64] if single else [16, 32, 64]
    plain["backbone"]["out_indices"] = (3,) if single else (1, 2, 3)
    if single:
        # Stride 16 rather than 32: four by four places of these pictures.
        plain["backbone"]["strides"] = (1, 2, 2, 1)
    focal = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)
    softmax = dict(type="CrossEntropyLoss", use_sigmoid=False, bg_cls_weight=0.1, class_weight=1.0)
    cost = "ClassificationCost" if kind == "DETR" else "FocalLossCost"
    head = dict(
        type=f"{'DeformableDETR' if kind == 'two-stage' else kind}Head",
        num_classes=classes,
        embed_dims=width,
        loss_cls=softmax if kind == "DETR" else focal,
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    )
    model = dict(
        type=head["type"].removesuffix("Head"),
        num_queries=queries,
        data_preprocessor=plain["data_preprocessor"],
        backbone=plain["backbone"],
        neck=dict(
            type="ChannelMapper",
            in_channels=levels,
            kernel_size=1,
            out_channels=width,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=4),
            num_outs=len(levels),
        ),
        bbox_head=head,
        train_cfg=dict(
            assigner=dict(
                type="HungarianAssigner", match_costs=[dict(type=cost, weight=2.0), *_COSTS]
            )
        ),
        test_cfg=dict(max_per_img=10),
        **(_single_scale(kind, width, layers) if single else _deformable(width, layers)),
    )
    if kind in ("two-stage", "DINO"):
        model.update(with_box_refine=True, as_two_stage=True)
    if kind == "DINO":
        group = dict(dynamic=True, num_groups=None, num_dn_queries=6)
        model["dn_cfg"] = dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=group)
    return model


def noisy(model, seed=3):
    """Spread the predictions out: fresh heads say nearly the same of every query."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.startswith("bbox_head") and p.ndim == 2:
            p.data.normal_(0, 1.5 * p.shape[1] ** -0.5, generator=generator)
        elif "query_embedding" in name:
            p.data.normal_(0, 1.0, generator=generator)
    return model


@pytest.fixture
def pair(tiny):
    """Student in training, a wider teacher in eval mode, and a batch."""

    def make(kind="DeformableDETR", names=("0", "1", "3", "4"), **teacher):
        student = noisy(tiny.build(transformer(tiny, kind))).train()
        config = transformer(tiny, kind, **{"width": 48, **teacher})
        return (
            student,
            noisy(tiny.build(config, seed=1), seed=5).eval(),
            *tiny.batch(student, *names),
        )

    return make


@pytest.fixture
def distilled(tiny):
    """A distilled model and a batch; its teacher has the student's weights unless it differs."""

    def make(kind, *pairs, names=("0", "1", "3", "4"), **teacher):
        files = tiny.save_teacher(transformer(tiny, kind, **teacher))
        config = tiny.config(
            transformer(tiny, kind), distill=dict(teacher=files, pairs=[dict(p) for p in pairs])
        )
        torch.manual_seed(0)
        model = MODELS.build(tiny.wrap(config, tiny.folder).model)
        model.init_weights()
        noisy(model.student)
        taught = model.distiller.teachers["teacher"].model
        if teacher:
            noisy(taught, seed=5)
        else:
            taught.load_state_dict(model.student.state_dict())
        return model.train(), *tiny.batch(model, *names)

    return make


class Seen:
    def __init__(self, raw):
        self.raw = raw

    def calls(self, spec):
        assert spec == "bbox_head"
        return [self.raw]


def context_of(student, teachers, inputs, samples, outputs=("cls", "box"), regions=("all",)):
    """The context of one batch, and the raw outputs that it was made from."""
    teachers = teachers if isinstance(teachers, dict) else {"teacher": teachers}
    task = QueryAdapter(student, teachers)
    task.check_names(outputs, regions)
    task.check(outputs, regions)
    with torch.no_grad():
        asked = {n: run_queries(t, inputs, samples) for n, t in teachers.items()}
    raw = run_queries(student, inputs, samples)
    return task.context(Seen(raw), asked, samples, outputs, regions), raw, asked


def rows_of(layer, values):
    """Where each row of an output lies in one layer's (B, queries, n): image and query."""
    places = (layer[:, :, None] == values[None, None]).all(-1)
    assert (places.sum((0, 1)) == 1).all()
    return [tuple(place.nonzero()[0].tolist()) for place in places.permute(2, 0, 1)]


def paired(context, raw, asked, name="teacher"):
    """The pairs of the batch as (image, student's query, teacher's query), read from outputs."""
    ours = rows_of(raw[0][-1][:, -QUERIES:], context.student["cls"][-1])
    theirs = rows_of(asked[name][0][-1], context.teachers[name]["cls"][-1])
    assert [image for image, _ in ours] == [image for image, _ in theirs]
    return [(image, s, t) for (image, s), (_, t) in zip(ours, theirs, strict=True)]


# -- running a detector ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS + WIDE)
def test_a_detector_is_run_as_mmdet_runs_it(tiny, kind):
    model = noisy(tiny.build(transformer(tiny, kind)))
    inputs, samples = tiny.batch(model)
    samples[1].set_metainfo(dict(img_shape=(40, 64)))
    seen = []
    handle = model.bbox_head.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        found = run_queries(model.eval(), inputs, samples)
        expected = model(inputs, samples, mode="tensor")
        # ... and in training what the head's own loss is computed from.
        torch.manual_seed(0)
        model.train()(inputs, samples, mode="loss")
        torch.manual_seed(0)
        training = run_queries(model, inputs, samples)
    handle.remove()
    assert len(seen) == 3, "the head is not called as a module: taps would not see it"
    for ours, theirs, tapped, again in zip(found, expected, seen[1], training, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(tapped, again, rtol=0, atol=0)
    assert found[0].shape == (2, 4, QUERIES, 4 if kind == "DETR" else 3)
    assert found[1].shape == (2, 4, QUERIES, 4) and 0 <= found[1].min() <= found[1].max() <= 1


@pytest.mark.parametrize("kind", ["DETR", "DINO"])
def test_of_the_samples_only_proportions_count(tiny, kind):
    """A teacher may see the images at another size than its student."""
    model = noisy(tiny.build(transformer(tiny, kind))).eval()
    inputs, samples = tiny.batch(model)
    larger = torch.nn.functional.interpolate(inputs, scale_factor=2.0, mode="bilinear")
    samples[1].set_metainfo(dict(img_shape=(32, 48)))
    twice = copy.deepcopy(samples)
    for sample in twice:
        height, width = sample.img_shape
        sample.set_metainfo(dict(img_shape=(2 * height, 2 * width), batch_input_shape=(128, 128)))
    with torch.no_grad():
        found, expected = run_queries(model, larger, samples), run_queries(model, larger, twice)
        whole = run_queries(model, larger)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # Without samples nothing is taken for padding.
    torch.testing.assert_close(whole[0][:, 0], found[0][:, 0], rtol=1e-4, atol=1e-4)
    assert (whole[0][:, 1] - found[0][:, 1]).abs().max() > 1e-3


# -- which queries are compared ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS + WIDE)
def test_a_teacher_with_the_students_weights_is_matched_query_by_query(tiny, kind):
    student = noisy(tiny.build(transformer(tiny, kind)))
    inputs, samples = tiny.batch(student, "0", "1", "3", "4")
    teacher = copy.deepcopy(student).eval()
    context, raw, asked = context_of(
        student.train(), teacher, inputs, samples, regions=("all", "main")
    )
    for name in ("cls", "box"):
        assert len(context.student[name]) == 2
        for ours, theirs in zip(
            context.student[name], context.teachers["teacher"][name], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(context.student["cls"][0]) == 4 * QUERIES
    # One pair a ground truth, though the third image has none.
    counts = [len(sample.gt_instances) for sample in samples]
    assert counts[2] == 0 and context.regions["main"].weight.sum() == sum(counts)


def slow_cost(kind, logits, box, label, other):
    """mmdet's three costs for one prediction and one box with a label, by hand."""
    if kind == "DETR":
        classes = -float(logits.double().softmax(0)[label])
    else:
        p = float(logits.double().sigmoid()[label])
        classes = -math.log(p + 1e-12) * 0.25 * (1 - p) ** 2
        classes += math.log(1 - p + 1e-12) * 0.75 * p**2
    a, b = box.double().tolist(), other.double().tolist()
    l1 = sum(abs(x - y) for x, y in zip(a, b, strict=True))
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)
    )
    inner = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = a[2] * a[3] + b[2] * b[3] - inner
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return 2 * classes + 5 * l1 - 2 * (inner / union - (hull - union) / hull)


def slow_pairs(kind, ours, theirs, boxes, labels):
    """Pairs of one image: those of each ground truth, then those by prediction."""

    def assign(cls, box, queries, targets):
        cost = [[slow_cost(kind, cls[q], box[q], *t) for t in targets] for q in queries]
        if not queries or not targets:
            return {}
        rows, columns = linear_sum_assignment(cost)
        return {int(c): queries[int(r)] for r, c in zip(rows, columns, strict=True)}

    truth = list(zip(labels, boxes, strict=True))
    own = assign(*ours, list(range(len(ours[0]))), truth)
    taught = assign(*theirs, list(range(len(theirs[0]))), truth)
    pairs = [(own[i], taught[i]) for i in range(len(truth)) if i in own and i in taught]
    free = [q for q in range(len(ours[0])) if q not in {s for s, _ in pairs}]
    left = [q for q in range(len(theirs[0])) if q not in {t for _, t in pairs}]
    top = [(int(theirs[0][q][:3].argmax()), theirs[1][q]) for q in left]
    rest = {s: left[j] for j, s in assign(*ours, free, top).items()}
    return pairs + sorted(rest.items())


@pytest.mark.parametrize("queries", [QUERIES, 26, 12])
@pytest.mark.parametrize("kind", ["DETR", "DeformableDETR", "DINO"])
def test_pairs_by_a_slow_reference(pair, kind, queries):
    student, teacher, inputs, samples = pair(kind, queries=queries)
    samples[1].set_metainfo(dict(img_shape=(60, 64)))
    context, raw, asked = context_of(student, teacher, inputs, samples, regions=("all", "main"))
    expected, main, sides = [], [], []
    for image, sample in enumerate(samples):
        height, width = sample.img_shape
        x1, y1, x2, y2 = (
            sample.gt_instances.bboxes / torch.tensor([width, height, width, height])
        ).unbind(1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        ours, theirs = (
            (r[0][-1][image, -n:], r[1][-1][image, -n:])
            for r, n in ((raw, QUERIES), (asked["teacher"], queries))
        )
        sides.append((ours, theirs))
        found = slow_pairs(kind, ours, theirs, boxes, sample.gt_instances.labels.tolist())
        expected += [(image, s, t) for s, t in found]
        main += [i < len(boxes) for i in range(len(found))]
    got = paired(context, raw, asked)
    assert [pair for pair, true in zip(got, main, strict=True) if true] == [
        pair for pair, true in zip(expected, main, strict=True) if true
    ]
    # Untrained queries say nearly the same: which of two equal costs is taken, float32 decides,
    # another way on another processor.
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 0.05 * len(expected)

    def cost(pairs):
        total = 0.0
        for image, s, t in pairs:
            ours, theirs = sides[image]
            label = int(theirs[0][t][:3].argmax())
            total += slow_cost(kind, ours[0][s], ours[1][s], label, theirs[1][t])
        return total

    assert cost(got) == pytest.approx(cost(expected), rel=1e-6)
    for side in (1, 2):  # no query twice
        assert len({(pair[0], pair[side]) for pair in got}) == len(got)
    assert len(expected) == 4 * min(QUERIES, queries)
    assert context.regions["main"].weight.tolist() == main
    # Not what the order of the queries says.
    assert sum(s == t for _, s, t in expected) < len(expected) / 2


def test_the_order_of_the_teachers_queries_is_no_matter(pair):
    student, teacher, inputs, samples = pair()
    context, raw, asked = context_of(student, teacher, inputs, samples)
    mixed = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(1))
    task = QueryAdapter(student, {"teacher": teacher})
    shuffled = tuple(part[:, :, mixed] for part in asked["teacher"])
    again = task.context(Seen(raw), {"teacher": shuffled}, samples, ["cls", "box"], ["all"])
    for name in ("cls", "box"):
        for one, other in (
            (context.student, again.student),
            (context.teachers["teacher"], again.teachers["teacher"]),
        ):
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    assert paired(context, raw, asked) != paired(again, raw, {"teacher": shuffled})


def test_pairs_of_a_ground_truth_have_it_for_a_target(pair):
    """As mmdet's own head assigns and encodes it."""
    student, teacher, inputs, samples = pair()
    samples[1].set_metainfo(dict(img_shape=(60, 64)))
    context, raw, asked = context_of(student, teacher, inputs, samples, regions=("main",))
    main, targets = context.regions["main"].weight.bool(), context.targets["box"]
    assert targets.shape == (4 * QUERIES, 4) and (targets[~main] == 0).all()
    truth, _, metas = unpack_gt_instances(samples)
    for column, (model, out) in enumerate(((student, raw), (teacher, asked["teacher"])), start=1):
        labels, _, boxes, *_ = model.bbox_head.get_targets(
            list(out[0][-1]), list(out[1][-1]), truth, metas
        )
        seen = 0
        for row, found in enumerate(paired(context, raw, asked)):
            image, query = found[0], found[column]
            assert (labels[image][query] < 3) == main[row]
            if main[row]:
                torch.testing.assert_close(boxes[image][query], targets[row])
                seen += 1
        assert seen == sum(len(t) for t in truth) >= 4


def test_more_objects_than_queries(tiny):
    student = noisy(tiny.build(transformer(tiny, queries=6))).train()
    teacher = noisy(tiny.build(transformer(tiny, queries=4), seed=1), seed=5).eval()
    inputs, samples = tiny.batch(student, "0")
    corners = torch.rand(9, 2, generator=torch.Generator().manual_seed(0)) * 40
    samples[0].gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + 20], 1), labels=torch.arange(9) % 3
    )
    context, *_ = context_of(student, teacher, inputs, samples, regions=("all", "main"))
    assert context.regions["all"].weight.tolist() == [1.0] * 4
    main = context.regions["main"].weight.bool()
    assert main.tolist() == sorted(main.tolist(), reverse=True)
    assert (context.targets["box"][main] > 0).all() and (context.targets["box"][~main] == 0).all()


def test_denoising_queries_are_left_out(tiny):
    student = noisy(tiny.build(transformer(tiny, "DINO"))).train()
    inputs, samples = tiny.batch(student)
    kept = {}
    original = student.bbox_head.loss

    def loss(hidden_states, references, dn_meta, **rest):
        kept["meta"] = dn_meta
        return original(hidden_states, references, dn_meta=dn_meta, **rest)

    student.bbox_head.loss = loss
    handle = student.bbox_head.register_forward_hook(lambda m, i, out: kept.update(raw=out))
    student(inputs, samples, mode="loss")
    handle.remove()
    assert kept["meta"]["num_denoising_queries"] > 0
    cls, box, *_ = student.bbox_head.split_outputs(*kept["raw"], kept["meta"])
    teacher = copy.deepcopy(student).eval()
    task = QueryAdapter(student, {"teacher": teacher})
    with torch.no_grad():
        asked = {"teacher": run_queries(teacher, inputs, samples)}
    assert asked["teacher"][0].shape[2] == QUERIES
    context = task.context(Seen(kept["raw"]), asked, samples, ["cls", "box"], ["all"])
    for name, values in (("cls", cls), ("box", box)):
        for layer, found in zip(values, context.student[name], strict=True):
            # Each query once, in whatever order.
            flat, rows = layer.flatten(0, 1), found
            assert len(rows) == 4 * QUERIES
            torch.testing.assert_close(rows.sort(0).values, flat.sort(0).values, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["DETR", "DINO"])
def test_batches_without_any_object(distilled, kind):
    activation = "softmax" if kind == "DETR" else "sigmoid"
    model, inputs, samples = distilled(
        kind,
        dict(student="outputs.cls", loss="KLDivergence", activation=activation, name="cls"),
        dict(student="outputs.box", loss="BoundedRegression", name="box"),
        names=("3", "7"),
        width=48,
    )
    assert not any(len(sample.gt_instances) for sample in samples)
    losses = model(inputs, samples, mode="loss")
    assert losses["kd_cls_raw"] > 0 and losses["kd_box_raw"] == 0
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_several_teachers(tiny, pair):
    student, first, inputs, samples = pair()
    second = noisy(tiny.build(transformer(tiny, width=16, queries=24), seed=2), seed=9).eval()
    both = {"first": first, "second": second}
    regions = ("all", "main", "teacher_score")
    context, raw, asked = context_of(student, both, inputs, samples, regions=regions)
    for name, teacher in both.items():
        alone, _, told = context_of(student, teacher, inputs, samples, regions=regions)
        assert paired(context, raw, asked, name) == paired(alone, raw, told)
        torch.testing.assert_close(alone.regions["main"].weight, context.regions["main"].weight)
    scores = [context.teachers[n]["cls"][-1].sigmoid().amax(1) for n in both]
    torch.testing.assert_close(context.regions["teacher_score"].weight, torch.maximum(*scores))
    # A small one leaves only the student's queries that it has a partner for.
    both["second"] = noisy(tiny.build(transformer(tiny, width=16, queries=10), seed=2)).eval()
    context, raw, asked = context_of(student, both, inputs, samples, regions=regions)
    alone, _, told = context_of(student, both["second"], inputs, samples, regions=regions)
    assert len(context.student["cls"][0]) == 4 * 10
    assert paired(context, raw, asked, "second") == paired(alone, raw, told)


@pytest.mark.parametrize("kind", ["DETR", "DINO"])
def test_regions(pair, kind):
    student, teacher, inputs, samples = pair(kind)
    names = ("all", "main", "teacher_score")
    context, raw, asked = context_of(student, teacher, inputs, samples, regions=names)
    logits = context.teachers["teacher"]["cls"][-1]
    score = logits.softmax(1)[:, :3] if kind == "DETR" else logits.sigmoid()
    torch.testing.assert_close(context.regions["teacher_score"].weight, score.amax(1))
    assert context.regions["all"].weight.tolist() == [1.0] * (4 * QUERIES)
    for name in names:
        region = context.regions[name]
        torch.testing.assert_close(region.total, region.weight.sum())
        assert not region.weight.requires_grad


# -- in training -------------------------------------------------------------------------------


def cls_pair(kind, **options):
    activation = "softmax" if kind == "DETR" else "sigmoid"
    return {**dict(student="outputs.cls", loss="KLDivergence", activation=activation), **options}


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_zero_against_oneself(distilled, kind):
    model, inputs, samples = distilled(
        kind,
        cls_pair(kind, name="cls"),
        cls_pair(kind, student="outputs.cls[-1]", region="all", name="last"),
        dict(student="outputs.box", loss="L2Logits", region="all", name="box"),
        dict(student="outputs.box", loss="BoundedRegression", margin=1e6, name="bounded"),
        dict(student="encoder", loss="FeatureImitation", name="encoder"),
    )
    losses = model(inputs, samples, mode="loss")
    for name in ("cls", "last", "box", "encoder"):
        assert abs(float(losses[f"kd_{name}_raw"])) < 1e-5, name
    # With a margin that keeps every box active, its value is the error of the main pairs.
    taught = model.distiller.teachers["teacher"].model
    context, *_ = context_of(model.student, taught, inputs, samples, regions=("main",))
    main = context.regions["main"].weight.bool()
    errors = [
        (box - context.targets["box"]).square().sum(1)[main].mean()
        for box in context.teachers["teacher"]["box"]
    ]
    torch.testing.assert_close(
        losses["kd_bounded_raw"], torch.stack(errors).mean(), rtol=1e-3, atol=1e-5
    )
    assert losses["kd_bounded_raw"] > 0


def test_a_term_by_a_slow_loop(distilled):
    """The default region of classes, layer by layer."""
    model, inputs, samples = distilled("DeformableDETR", cls_pair("DINO", name="cls"), width=48)
    losses = model(inputs, samples, mode="loss")
    taught = model.distiller.teachers["teacher"].model
    context, raw, asked = context_of(model.student, taught, inputs, samples)
    layers = []
    for layer in range(2):
        total, weights = 0.0, 0.0
        for image, s, t in paired(context, raw, asked):
            p = asked["teacher"][0][layer, image, t].double().sigmoid().tolist()
            q = raw[0][layer, image, s].double().sigmoid().tolist()
            value = sum(
                a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
                for a, b in zip(p, q, strict=True)
            )
            weight = float(asked["teacher"][0][-1, image, t].sigmoid().max())
            total, weights = total + weight * value, weights + weight
        layers.append(total / weights)
    torch.testing.assert_close(float(losses["kd_cls_raw"]), sum(layers) / 2, rtol=1e-4, atol=1e-6)


def test_layers_of_a_deeper_teacher_are_selected(distilled):
    whole = cls_pair("DINO", name="cls")
    with pytest.raises(TeacherError, match=r"2 decoder layers of the student, .* of 3 of teacher"):
        distilled("DINO", whole, width=48, layers=3)
    chosen = dict(whole, teacher="outputs.cls[0,-1]")
    last = cls_pair("DINO", student="outputs.cls[-1]", name="last")
    model, inputs, samples = distilled("DINO", chosen, last, width=48, layers=3)
    losses = model(inputs, samples, mode="loss")
    assert losses["kd_cls_raw"] > 0 and losses["kd_last_raw"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_student_and_nothing_else(distilled, kind):
    model, inputs, samples = distilled(
        kind,
        cls_pair(kind, name="cls"),
        dict(student="outputs.box", loss="L2Logits", name="box"),
        dict(student="encoder", loss="FeatureImitation", name="encoder"),
        width=48,
    )
    for name, reached in (
        ("cls", ["bbox_head", "decoder", "encoder", "neck", "backbone"]),
        ("box", ["bbox_head", "decoder", "encoder", "neck", "backbone"]),
        ("encoder", ["encoder", "neck", "backbone"]),
    ):
        model.zero_grad()
        losses = model(inputs, samples, mode="loss")
        assert losses[f"loss_kd_{name}"] > 0
        losses[f"loss_kd_{name}"].backward()
        touched = {
            n.split(".")[0]
            for n, p in model.student.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert set(reached) <= touched, (name, touched)
        assert name != "encoder" or not touched & {"bbox_head", "decoder"}
    # The encoder's term also trains the linear map to the teacher's width.
    (adapter,) = model.distiller.adapters["encoder"].children()
    assert adapter.project.weight.shape == (48, 32) and adapter.project.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.distiller.teachers["teacher"].model.parameters())


@pytest.mark.parametrize("kind", ["DETR", "DeformableDETR", "DINO"])
def test_padding_and_mixed_precision_keep_it_finite(distilled, kind):
    model, inputs, samples = distilled(
        kind,
        cls_pair(kind, name="cls"),
        dict(student="outputs.box", loss="BoundedRegression", margin=1.0, name="box"),
        dict(student="encoder", loss="FeatureImitation", name="encoder"),
        width=48,
    )
    # Half of one image is padding, and one has hardly any place of its own on the last level.
    inputs[1, :, :, 30:] = 0
    samples[1].set_metainfo(dict(img_shape=(64, 30)))
    samples[2].set_metainfo(dict(img_shape=(12, 12)))
    samples[1].gt_instances.bboxes.clamp_(max=30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs, samples, mode="loss")
        total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    for name in ("cls", "box", "encoder"):
        assert losses[f"loss_kd_{name}"].dtype == torch.float32 and losses[f"kd_{name}_raw"] > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_teacher_of_features_alone_may_have_another_head_and_is_left_after_the_encoder(tiny):
    files = tiny.save_teacher(transformer(tiny, "two-stage", classes=7))
    encoder = dict(student="encoder", loss="FeatureImitation", name="encoder")
    boxes = dict(student="neck", loss="FeatureImitation", region="boxes", name="boxes")
    config = tiny.config(
        transformer(tiny, "DINO"), distill=dict(teacher=files, pairs=[encoder, boxes])
    )
    torch.manual_seed(0)
    model = MODELS.build(tiny.wrap(config, tiny.folder).model)
    model.init_weights()
    called = []
    taught = model.distiller.teachers["teacher"].model
    taught.decoder.register_forward_hook(lambda *args: called.append(args))
    losses = model.train()(*tiny.batch(model), mode="loss")
    assert losses["kd_encoder_raw"] > 0 and losses["kd_boxes_raw"] > 0 and not called


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_teacher_may_see_a_larger_image(tiny, scale):
    """Queries have no position, and boxes are fractions."""
    config = transformer(tiny, "DINO")
    files = dict(tiny.save_teacher(config), scale=scale)
    config = tiny.config(config, distill=dict(teacher=files, pairs=[cls_pair("DINO", name="cls")]))
    torch.manual_seed(0)
    model = MODELS.build(tiny.wrap(config, tiny.folder).model).train()
    taught = noisy(model.distiller.teachers["teacher"].model)
    model.student.load_state_dict(taught.state_dict())
    inputs, samples = tiny.batch(model)
    samples[1].set_metainfo(dict(img_shape=(64, 30)))
    samples[1].gt_instances.bboxes.clamp_(max=30)
    losses = model(inputs, samples, mode="loss")
    assert (losses["kd_cls_raw"] > 1e-3) == (scale != 1.0) and losses["kd_cls_raw"] >= 0
    assert torch.isfinite(losses["kd_cls_raw"])


# -- what cannot be compared -------------------------------------------------------------------


def check(student, teacher, outputs=("cls",)):
    QueryAdapter(student, {"teacher": teacher}).check(outputs, ())


def test_what_differs_is_named_with_both_values(tiny):
    student = tiny.build(transformer(tiny))
    with pytest.raises(TeacherError, match="number of classes: student 3, teacher 7"):
        check(student, tiny.build(transformer(tiny, classes=7)))
    with pytest.raises(TeacherError, match="activation.*student sigmoid, teacher softmax with"):
        check(student, tiny.build(transformer(tiny, "DETR")))
    # Features need none of it.
    check(student, tiny.build(transformer(tiny, "DETR", classes=7)), outputs=())


def test_other_kinds_of_one_family_go_together(tiny, pair):
    _, teacher, *_ = pair("DINO")
    for kind in ("ConditionalDETR", "DABDETR", "DeformableDETR", "two-stage"):
        check(tiny.build(transformer(tiny, kind)), teacher)


def test_regions_of_queries_and_of_features_do_not_mix(tiny):
    student, teacher = (tiny.build(transformer(tiny)) for _ in range(2))
    for line, words in (
        (dict(student="neck", region="main"), "region 'main' is one of queries, which 'neck'"),
        (dict(student="outputs.cls", region="boxes"), "'boxes' is one of features, which 'outp"),
    ):
        recipe = Recipe.from_config([dict(line, loss="FeatureImitation", name="x")])
        with pytest.raises(ConfigError, match=words):
            QueryAdapter(student, {"teacher": teacher}, recipe).check(
                recipe.outputs, recipe.regions
            )
    with pytest.raises(ConfigError, match="fine_grained is made from anchors"):
        QueryAdapter(student, {"teacher": teacher}).check((), ("fine_grained",))


def test_other_heads_are_refused(tiny):
    student, dense = tiny.build(transformer(tiny)), tiny.build(tiny.model())
    with pytest.raises(TeacherError, match="Teacher 'teacher''s head is a GFLHead"):
        check(student, dense)
    # Though it descends from DINO's, with dense queries behind the distinct ones in training.
    other = copy.deepcopy(student)
    ddq = DETECTORS.get("DDQDETRHead")
    other.bbox_head = ddq.__new__(ddq)
    torch.nn.Module.__init__(other.bbox_head)
    with pytest.raises(TeacherError, match="head is a DDQDETRHead"):
        check(student, other)


def test_a_student_without_a_hungarian_assigner_is_refused(tiny):
    student, teacher = (tiny.build(transformer(tiny)) for _ in range(2))
    # A teacher's config may be one for prediction alone.
    del teacher.bbox_head.assigner
    check(student, teacher)
    inputs, samples = tiny.batch(student)
    context, *_ = context_of(student.train(), teacher.eval(), inputs, samples)
    assert len(context.student["cls"][0]) == 4 * QUERIES
    del student.bbox_head.assigner
    with pytest.raises(ConfigError, match="HungarianAssigner; the student's is NoneType"):
        check(student, teacher)
