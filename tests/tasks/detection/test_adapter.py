"""What detectors of every kind have: features, where the objects are, and their own adapter."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.core.recipe import Recipe
from taskdistill.tasks.detection import (
    DenseHeadAdapter,
    DetectionAdapter,
    QueryAdapter,
    TwoStageAdapter,
)
from taskdistill.tasks.detection.adapter import (
    ground_truth,
    kind_of,
    level_map,
    padded_size,
    refuse_scaled,
)
from taskdistill.tasks.detection.regions import box_cells


@pytest.fixture
def itself(tiny):
    """A distilled GFL whose teacher has its weights but for those of the pyramid, and a batch."""

    def make(*pairs, kind="GFL"):
        config = tiny.model(kind)
        config["backbone"]["norm_eval"] = True
        entry = dict(teacher=tiny.save_teacher(config), pairs=[dict(p) for p in pairs])
        model = MODELS.build(tiny.wrap(tiny.config(config, distill=entry), tiny.folder).model)
        model.student.load_state_dict(model.distiller.teachers["teacher"].model.state_dict())
        torch.manual_seed(0)
        for p in model.student.neck.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return model.train(), *tiny.batch(model)

    return make


@pytest.mark.parametrize(
    ("kind", "name", "adapter"),
    [
        ("GFL", "dense", DenseHeadAdapter),
        ("FCOS", "dense", DenseHeadAdapter),
        ("FasterRCNN", "two_stage", TwoStageAdapter),
        ("MaskRCNN", "two_stage", TwoStageAdapter),
    ],
)
def test_each_kind_has_its_adapter(tiny, kind, name, adapter):
    model = tiny.build(tiny.model(kind))
    assert kind_of(model) == name
    assert DetectionAdapter.of(model) is adapter


def test_kinds_without_a_head_that_is_known():
    assert DetectionAdapter.of(nn.Linear(2, 2)) is DetectionAdapter
    assert QueryAdapter.outputs.keys() == {"cls", "box"}


@pytest.mark.parametrize("region", ["main", "gi", "boxes", "fine_grained", "teacher_score"])
def test_features_are_imitated_where_a_region_says(itself, region):
    line = dict(student="neck", loss="FeatureImitation", region=region, name="there")
    everywhere = dict(student="neck", loss="FeatureImitation", name="everywhere")
    model, inputs, samples = itself(line, everywhere)
    for each in (model.student, model.distiller.teachers["teacher"].model):
        each.bbox_head.gfl_reg.bias.data.view(4, 9)[:, 0] += 9  # small boxes
    kept = []
    handle = model.student.neck.register_forward_hook(
        lambda m, i, out: kept.append([x.retain_grad() or x for x in out])
    )
    losses = model(inputs, samples, mode="loss")
    losses["loss_kd_there"].backward()
    handle.remove()
    touched = torch.cat([(x.grad.abs().sum(1) > 0).flatten() for x in kept[0]])
    assert touched.any() and (not touched.all() or region == "teacher_score")
    assert 0 < float(losses["kd_there_raw"]) != float(losses["kd_everywhere_raw"])


def test_focal_and_global_distillation_is_given_the_boxes(itself):
    line = dict(student="neck", loss="FocalGlobal", channels=16, weight=[1, 1, 0.5], name="fgd")
    model, inputs, samples = itself(line)
    losses = model(inputs, samples, mode="loss")
    teacher = model.distiller.teachers["teacher"].model
    boxes = [sample.gt_instances.bboxes for sample in samples]
    boxes = [getattr(box, "tensor", box) / 64 for box in boxes]
    target = torch.zeros(len(boxes), max(map(len, boxes)), 4)
    for row, box in zip(target, boxes, strict=True):
        row[: len(box)] = box
    copies = [model.distiller.losses["fgd"], *model.distiller.further_losses["fgd"].children()]
    with torch.no_grad():
        ours, theirs = (m.neck(m.backbone(inputs)) for m in (model.student, teacher))
        each = [f(s, t, target) for f, s, t in zip(copies, ours, theirs, strict=True)]
    assert len(each) == 3 and target.sum() > 0
    torch.testing.assert_close(losses["kd_fgd_raw"], torch.stack(each).mean())
    weighted = torch.stack([each[0], each[1], each[2] / 2]).mean()
    torch.testing.assert_close(losses["loss_kd_fgd"].detach(), weighted)


@pytest.mark.parametrize("student", ["FasterRCNN", "GFL"])
def test_features_of_another_kind_of_detector(tiny, student):
    """A two-stage teacher of a dense student's pyramid, and the other way round."""
    teacher = {"FasterRCNN": "GFL", "GFL": "FasterRCNN"}[student]
    lines = [
        dict(student="neck", loss="FeatureImitation", region=region, name=region)
        for region in ("boxes", "fine_grained")
    ]
    config = tiny.config(tiny.model(student), distill=tiny.distill(*lines, kind=teacher))
    model = MODELS.build(tiny.wrap(config, tiny.folder).model).train()
    inputs, samples = tiny.batch(model)
    losses = model(inputs, samples, mode="loss")
    assert all(float(losses[f"kd_{name}_raw"]) > 0 for name in ("boxes", "fine_grained"))
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.student.neck.parameters())


def test_images_without_objects_have_no_cells(itself):
    line = dict(student="neck", loss="FeatureImitation", region="boxes", name="there")
    model, inputs, samples = itself(line)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    losses = model(inputs, samples, mode="loss")
    assert float(losses["kd_there_raw"]) == 0.0
    losses["loss_kd_there"].backward()


def test_ground_truth_and_size_of_a_batch(tiny):
    model = tiny.build(tiny.model("GFL"))
    _, samples = tiny.batch(model)
    boxes = ground_truth(samples)
    assert padded_size(samples) == (64, 64)
    assert [len(box) for box in boxes] == [len(sample.gt_instances) for sample in samples]
    assert box_cells(boxes, (64, 64), (8, 8)).shape == (len(samples), 8, 8)


def test_the_map_of_a_level_is_found_by_its_size():
    levels = [torch.full((2, size, size), float(size)) for size in (8, 4, 1, 1)]
    levels[3] += 1
    assert level_map(levels, (4, 4)) is not levels[0]
    assert level_map(levels, (4, 4)).unique().tolist() == [4.0]
    assert level_map(levels, (1, 1)).unique().tolist() == [2.0]  # two of a size, together
    assert level_map(levels, (7, 7)).unique().tolist() == [8.0]  # the nearest


def test_anchors_where_there_are_none(tiny):
    student = tiny.build(tiny.model("FCOS"))
    line = dict(student="neck", loss="FeatureImitation", region="fine_grained")
    recipe = Recipe.from_config([line])
    task = DetectionAdapter.of(student)(student, {}, recipe)
    with pytest.raises(ConfigError, match="fine_grained is made from anchors, of which FCOS has"):
        task.check([], recipe.regions)


def test_a_teacher_of_another_scale_is_refused_where_positions_correspond():
    class Larger:
        scale = 2.0

    refuse_scaled({"b": Larger()}, ["a"], "outputs")
    with pytest.raises(TeacherError, match="'b' sees the image scale=2.0 times as large; outputs"):
        refuse_scaled({"b": Larger()}, ["a", "b"], "outputs")


def test_a_dense_teacher_of_another_scale(tiny):
    """Features yes, outputs no."""
    teacher = dict(tiny.teacher("GFL"), scale=1.5)
    features = dict(student="neck", loss="FeatureImitation", name="neck")
    classes = dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid", region="all")

    def build(*pairs):
        config = tiny.config(distill=dict(teacher=teacher, pairs=list(pairs)))
        return MODELS.build(tiny.wrap(config, tiny.folder).model).train()

    model = build(features)
    losses = model(*tiny.batch(model), mode="loss")
    assert float(losses["kd_neck_raw"]) > 0
    with pytest.raises(TeacherError, match="scale=1.5 times as large; outputs of dense heads"):
        build(features, classes)
