import copy
import gc

import pytest
import torch
from mmdet.models.task_modules.assigners import SimOTAAssigner
from mmdet.models.utils import unpack_gt_instances

from taskdistill.core.errors import ConfigError, TeacherError
from taskdistill.tasks.detection.assignment import Assignment, TaughtAssigner, taught_labels

KINDS = ("ATSS", "GFL", "PAA", "RetinaNet")


def said_by(model, inputs):
    with torch.no_grad():
        return model.bbox_head(model.extract_feat(inputs))


def total(losses):
    return sum(sum(x) if isinstance(x, list) else x for x in losses.values())


def gradients(model, losses):
    model.zero_grad()
    total(losses).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def taught_loss(student, teacher, batch, scheme="own", **options):
    assignment = Assignment(student.bbox_head, scheme, **options)
    assignment.check(teacher.bbox_head)
    inputs, samples = batch
    return assignment.loss(student, inputs, samples, teacher.bbox_head, said_by(teacher, inputs))


def check_equal(student, found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    ours, theirs = gradients(student, found), gradients(student, expected)
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("border", [-1, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_like_the_student_changes_nothing(detector, batch, kind, border):
    inputs, samples = batch
    student = detector(kind, border=border)
    expected = student(inputs, samples, mode="loss")
    found = taught_loss(student, copy.deepcopy(student), batch)
    check_equal(student, found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_may_be_its_own_teacher(detector, batch, kind):
    """The very same module, twice on the same batch: what it was taught is not what it says."""
    inputs, samples = batch
    student = detector(kind)
    expected = student(inputs, samples, mode="loss")
    first = taught_loss(student, student, batch)
    check_equal(student, first, expected)
    paa = taught_loss(student, student, batch, "paa")
    assert kind == "PAA" or not torch.allclose(total(paa), total(expected))
    torch.testing.assert_close(total(taught_loss(student, student, batch)), total(expected))


@pytest.mark.parametrize("scheme", ["own", "paa"])
@pytest.mark.parametrize("teacher_kind", ["ATSS", "GFL", "PAA"])
@pytest.mark.parametrize("kind", ["ATSS", "GFL", "PAA"])
def test_any_kind_teaches_any_other(detector, batch, kind, teacher_kind, scheme):
    inputs, samples = batch
    student, teacher = detector(kind), detector(teacher_kind, 5, width=16)
    losses = taught_loss(student, teacher, batch, scheme)
    assert losses.keys() == student(inputs, samples, mode="loss").keys()
    grads = gradients(student, losses)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads.keys() == dict(student.named_parameters()).keys()


@pytest.mark.parametrize(("kind", "scheme"), [("PAA", "own"), ("RetinaNet", "paa")])
def test_another_teacher_gives_another_loss(detector, batch, kind, scheme):
    student = detector(kind)
    values = [
        total(taught_loss(student, detector(kind, seed, width=16), batch, scheme)).item()
        for seed in (3, 4)
    ]
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_the_order_of_objects_does_not_matter(detector, tiny):
    """But where two share their best anchor: mmdet gives it to the later one."""
    student, teacher = detector("PAA"), detector("PAA", 5, width=16)
    batch = _, samples = tiny.batch(student, "0", "1")
    assert max(len(sample.gt_instances) for sample in samples) > 1
    before = taught_loss(student, teacher, batch)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[torch.arange(len(sample.gt_instances)).flip(0)]
    after = taught_loss(student, teacher, batch)
    for name, value in before.items():
        torch.testing.assert_close(value, after[name])


def test_both_paa_box_losses(detector, batch):
    student, teacher = detector("PAA"), detector("PAA", 5)
    weighted, plain = (
        taught_loss(student, teacher, batch, iou_weighted=choice) for choice in (True, False)
    )
    assert torch.equal(weighted["loss_cls"], plain["loss_cls"])
    assert not torch.allclose(weighted["loss_bbox"], plain["loss_bbox"])


@pytest.mark.parametrize("scheme", ["own", "paa"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects(detector, tiny, kind, scheme):
    student, teacher = detector(kind), detector(kind, 5)
    batch = tiny.batch(student, "3", "7")
    losses = taught_loss(student, teacher, batch, scheme)
    flat = {name: torch.as_tensor(total({name: value})) for name, value in losses.items()}
    assert flat.pop("loss_cls") > 0
    assert not any(flat.values())
    grads = gradients(student, losses)
    assert grads.keys() == dict(student.named_parameters()).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(detector, batch, kind):
    inputs, samples = batch
    student, teacher = detector(kind), detector(kind, 5)
    assignment = Assignment(student.bbox_head, "paa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = said_by(teacher, inputs)
        losses = assignment.loss(student, inputs, samples, teacher.bbox_head, raw)
    full = tuple([level.float() for level in levels] for levels in raw)
    expected = assignment.loss(student, inputs, samples, teacher.bbox_head, full)
    torch.testing.assert_close(total(losses), total(expected), rtol=0.1, atol=0.01)
    assert all(grad.isfinite().all() for grad in gradients(student, losses).values())


def test_hooks_see_everything(detector, batch):
    """Taps are hooks on modules: the head has to be called as one, once."""
    for kind in KINDS:
        student, called = detector(kind), []
        student.bbox_head.register_forward_hook(lambda *_, kind=kind, log=called: log.append(kind))
        student.neck.register_forward_hook(lambda *_, log=called: log.append("neck"))
        taught_loss(student, detector(kind, 5), batch)
        assert called == ["neck", kind]


class TestCentres:
    """ATSS's centerness and GFL's distances have no words for a centre outside the box."""

    @pytest.mark.parametrize("kind", ["ATSS", "GFL"])
    def test_positives_outside_are_ignored(self, detector, batch, kind):
        inputs, samples = batch
        student, teacher = detector(kind), detector("PAA", 5)
        given = taught_labels(teacher.bbox_head, said_by(teacher, inputs), samples)
        # Any anchor stands for the last object, wherever it lies.
        for result, sample in zip(given, samples, strict=True):
            if result.num_gts:
                result.gt_inds[::3] = result.num_gts
                result.labels[::3] = sample.gt_instances.labels[-1]
        assignment, anchors = Assignment(student.bbox_head), anchors_of(student, inputs)
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "taskdistill.tasks.detection.assignment.distillation.taught_labels",
                lambda *_: given,
            )
            losses = assignment.loss(
                student, inputs, samples, teacher.bbox_head, said_by(teacher, inputs)
            )
        assert torch.as_tensor(total(losses)).isfinite()
        dropped = 0
        for before, after, sample in zip(given, assignment.labels(samples), samples, strict=True):
            for index, number in enumerate(before.gt_inds.tolist()):
                expected = number
                if number > 0:
                    (x, y), box = centres[index], sample.gt_instances.bboxes[number - 1]
                    inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
                    expected = number if inside else -1
                    dropped += not inside
                assert after.gt_inds[index] == expected
        assert dropped > 5

    @pytest.mark.parametrize("kind", ["PAA", "RetinaNet"])
    def test_others_keep_them(self, detector, batch, kind):
        inputs, samples = batch
        student, teacher = detector(kind), detector(kind, 5)
        assignment = Assignment(student.bbox_head, "paa")
        raw = said_by(teacher, inputs)
        assignment.loss(student, inputs, samples, teacher.bbox_head, raw)
        expected = taught_labels(teacher.bbox_head, raw, samples, "paa")
        outside = 0
        for a, b, sample in zip(assignment.labels(samples), expected, samples, strict=True):
            assert torch.equal(a.gt_inds, b.gt_inds)
            positive = a.gt_inds > 0
            boxes = sample.gt_instances.bboxes[a.gt_inds[positive] - 1]
            anchors = anchors_of(student, inputs)[positive]
            centres = (anchors[:, :2] + anchors[:, 2:]) / 2
            outside += ((centres < boxes[:, :2]) | (centres > boxes[:, 2:])).any(1).sum()
        assert outside > 0


def anchors_of(model, inputs):
    sizes = [level.shape[-2:] for level in said_by(model, inputs)[0]]
    return torch.cat(model.bbox_head.prior_generator.grid_priors(sizes, device="cpu"))


def test_what_the_student_trains_is_its_own_matter(detector, batch):
    """The teacher trains every anchor, the student none that reach over the border."""
    inputs, samples = batch
    teacher = detector("PAA", 5, border=-1)
    for kind in ("PAA", "GFL"):
        student = detector(kind, border=0)
        assignment = Assignment(student.bbox_head)
        raw = said_by(teacher, inputs)
        assignment.loss(student, inputs, samples, teacher.bbox_head, raw)
        anchors = anchors_of(student, inputs)
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < 64).all(1)
        for result in assignment.labels(samples):
            assert (result.gt_inds[~inside] == -1).all() and (result.gt_inds[inside] >= 0).any()


@pytest.mark.parametrize("kind", ["ATSS", "PAA"])
def test_labels_go_with_their_batch(detector, tiny, kind):
    student, teacher = detector(kind), detector(kind, 5)
    assignment = Assignment(student.bbox_head, "paa")
    inputs, samples = tiny.batch(student)
    assignment.loss(student, inputs, samples, teacher.bbox_head, said_by(teacher, inputs))
    assert len(assignment.labels(samples)) == len(assignment._given) == len(samples)
    assert assignment.labels([*samples, copy.deepcopy(samples[0])]) is None
    del samples
    gc.collect()
    assert not len(assignment._given)


@pytest.mark.parametrize("kind", ["ATSS", "GFL", "RetinaNet"])
def test_targets_of_the_batch_are_those_taught(detector, batch, kind):
    """Regions of a recipe ask the head for its targets once more, after the loss."""
    inputs, samples = batch
    student, teacher = detector(kind), detector("PAA" if kind != "RetinaNet" else kind, 5)
    assignment = Assignment(student.bbox_head, "paa")
    raw = said_by(teacher, inputs)
    assignment.loss(student, inputs, samples, teacher.bbox_head, raw)
    truth, ignored, metas = unpack_gt_instances(samples)
    head = student.bbox_head
    sizes = [level.shape[-2:] for level in raw[0]]
    anchors, valid = head.get_anchors(sizes, metas, device="cpu")
    result = head.get_targets(anchors, valid, truth, metas, batch_gt_instances_ignore=ignored)
    classes = torch.cat(list(result[1] if len(result) == 6 else result[0]), 1)
    for found, label in zip(classes, assignment.labels(samples), strict=True):
        assert torch.equal(found, torch.where(label.gt_inds > 0, label.labels, 3))


def test_a_copy_of_the_model_is_taught_too(detector, batch):
    """An EMA copies the student; the assigner in the copy is the copy's own."""
    inputs, samples = batch
    student, teacher = detector("GFL"), detector("GFL", 5)
    assignment = Assignment(student.bbox_head, "paa")
    raw = said_by(teacher, inputs)
    expected = assignment.loss(student, inputs, samples, teacher.bbox_head, raw)
    copied = copy.deepcopy(student)
    assert isinstance(copied.bbox_head.assigner, TaughtAssigner)
    assert copied.bbox_head.assigner is not student.bbox_head.assigner
    found = assignment.loss(copied, inputs, samples, teacher.bbox_head, raw)
    torch.testing.assert_close(total(found), total(expected))


class TestCheck:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(head=dict(num_classes=5)), "number of classes: student 3, teacher 5"),
            (dict(strides=(16, 32)), r"strides: student \[8, 16, 32\], teacher \[16, 32\]"),
            (
                dict(
                    head=dict(
                        anchor_generator=dict(
                            type="AnchorGenerator",
                            ratios=[1.0],
                            octave_base_scale=4,
                            scales_per_octave=1,
                            strides=[8, 16, 32],
                        )
                    )
                ),
                "anchors",
            ),
        ],
    )
    def test_differences_are_named(self, detector, changes, message):
        with pytest.raises(TeacherError, match=message):
            Assignment(detector("GFL").bbox_head).check(detector("GFL", **changes).bbox_head)

    def test_another_kind_of_teacher(self, detector):
        with pytest.raises(TeacherError, match="FCOSHead; labels can be had from heads of ATSS"):
            Assignment(detector("GFL").bbox_head).check(detector("FCOS").bbox_head)

    def test_a_teacher_without_an_assigner(self, detector, batch):
        student, teacher = detector("GFL"), detector("GFL", 5)
        del teacher.bbox_head.assigner
        teacher.bbox_head.train_cfg = None
        with pytest.raises(TeacherError, match="no model.train_cfg.assigner.*scheme='paa'"):
            Assignment(student.bbox_head).check(teacher.bbox_head)
        losses = taught_loss(student, teacher, batch, "paa")
        assert torch.as_tensor(total(losses)).isfinite()

    def test_assigners_of_points(self, detector):
        teacher = detector("GFL")
        teacher.bbox_head.assigner = SimOTAAssigner()
        with pytest.raises(TeacherError, match="SimOTAAssigner assigns points"):
            Assignment(detector("GFL").bbox_head).check(teacher.bbox_head)
        Assignment(detector("GFL").bbox_head, "paa").check(teacher.bbox_head)

    def test_a_softmax_has_no_probabilistic_assignment(self, detector):
        softmax = dict(loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False))
        teacher = detector("RetinaNet", head=softmax)
        Assignment(detector("RetinaNet").bbox_head).check(teacher.bbox_head)
        with pytest.raises(TeacherError, match="yes/no question"):
            Assignment(detector("RetinaNet").bbox_head, "paa").check(teacher.bbox_head)

    def test_another_kind_of_student(self, detector):
        with pytest.raises(ConfigError, match="FCOSHead; heads of ATSS, GFL, PAA"):
            Assignment(detector("FCOS").bbox_head)

    def test_a_student_without_an_assigner(self, detector):
        head = detector("GFL").bbox_head
        del head.assigner
        with pytest.raises(ConfigError, match="model.train_cfg.assigner"):
            Assignment(head)

    def test_options(self, detector):
        head = detector("GFL").bbox_head
        with pytest.raises(ConfigError, match="Did you mean 'own'"):
            Assignment(head, "owns")
        with pytest.raises(ConfigError, match="topk must be at least 1, got 0"):
            Assignment(head, topk=0)

    @pytest.mark.parametrize("kind", ["PAA", "GFL"])
    def test_a_teacher_that_saw_another_size(self, detector, batch, kind):
        inputs, samples = batch
        student, teacher = detector(kind), detector(kind, 5)
        raw = said_by(teacher, torch.cat([inputs, inputs], -1))
        with pytest.raises(TeacherError, match=r"no teacher\.scale"):
            Assignment(student.bbox_head).loss(student, inputs, samples, teacher.bbox_head, raw)
