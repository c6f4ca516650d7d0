import copy
import pickle

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS

from taskdistill.core.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    ShapeError,
    TapError,
    TeacherError,
)
from taskdistill.core.taps import flatten_tensors

LD = dict(student="outputs.box_bins", loss="LocalizationDistillation", region="main", name="ld")
NECK = dict(student="neck", loss="FeatureImitation", name="neck")


@pytest.fixture
def build(tiny):
    def make(*pairs, model=None, kind="GFL", teacher=None, **options):
        distill = tiny.distill(*pairs, kind=kind, **options)
        if teacher is not None:
            distill["teacher"] = teacher
        torch.manual_seed(0)
        cfg = tiny.wrap(tiny.config(model or tiny.model(kind), distill=distill), tiny.folder)
        return MODELS.build(cfg.model)

    return make


def total_of(model, losses):
    return model.parse_losses(losses)[0]


def test_it_holds_the_student_and_adapters_and_nothing_of_the_teacher(build, tiny):
    model = build()
    plain = tiny.build(tiny.model())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.state_dict()._metadata.keys() >= plain.state_dict()._metadata.keys()
    names = {name for name, _ in model.named_parameters()}
    students = {f"student.{name}" for name, _ in plain.named_parameters()}
    adapters = {
        f"distiller.adapters.neck.{i}.project.{p}" for i in range(3) for p in ("weight", "bias")
    }
    assert names == students | adapters
    teacher = model.distiller.teachers["teacher"].model
    ours = {id(t) for t in [*model.parameters(), *model.buffers()]}
    assert not ours & {id(t) for t in [*teacher.parameters(), *teacher.buffers()]}
    assert teacher not in list(model.modules())


def test_weights_go_out_and_in_under_the_students_names(build, tiny):
    model, plain = build(), tiny.build(tiny.model(), seed=5)
    adapters = copy.deepcopy(model.distiller.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, adapters[k]) for k, v in model.distiller.state_dict().items())
    # ... also inside another module, as EMA has it.
    outer, state = torch.nn.ModuleDict({"a": model}), plain.state_dict()
    outer.load_state_dict({f"a.{k}": v for k, v in state.items()}, strict=True)
    assert list(outer.state_dict()) == [f"a.{k}" for k in state]
    missing = dict(state)
    del missing["neck.fpn_convs.0.conv.bias"]
    with pytest.raises(RuntimeError, match="neck.fpn_convs.0.conv.bias"):
        model.load_state_dict(missing, strict=True)
    with pytest.raises(RuntimeError, match="surplus"):
        model.load_state_dict({**state, "surplus": torch.zeros(1)}, strict=True)


def test_it_predicts_as_the_student(build, tiny):
    model, plain = build(), tiny.build(tiny.model(), seed=5)
    model.load_state_dict(plain.state_dict())
    model.eval(), plain.eval()
    inputs, samples = tiny.batch(plain, split="val")
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        ours = model(inputs, copy.deepcopy(samples), mode="predict")
        theirs = plain(inputs, copy.deepcopy(samples), mode="predict")
        raw, expected = model(inputs, mode="tensor"), plain(inputs, mode="tensor")
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.pred_instances) > 0
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores)
    assert all(
        torch.equal(a, b)
        for x, y in zip(raw, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert model.bbox_head is model.student.bbox_head  # attributes are the student's


def test_the_students_own_losses_are_those_of_plain_training(build, tiny):
    model = build()
    plain = tiny.build(tiny.model())
    plain.load_state_dict(model.state_dict())
    inputs, samples = tiny.batch(plain)
    ours, theirs = model(inputs, samples, mode="loss"), plain(inputs, samples, mode="loss")
    extra = {
        f"{a}kd_{n}{b}" for n in ("neck", "cls", "ld") for a, b in (("loss_", ""), ("", "_raw"))
    }
    assert set(ours) - set(theirs) == extra
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)
    total, log = model.parse_losses(ours)
    expected = plain.parse_losses(theirs)[0] + sum(
        ours[k] for k in ours if k.startswith("loss_kd_")
    )
    torch.testing.assert_close(total, expected)
    assert ours["loss_kd_neck"] == 0.5 * ours["kd_neck_raw"] > 0
    assert not ours["kd_neck_raw"].requires_grad and "kd_ld_raw" in log


def test_the_teacher_stays_in_eval_without_gradient_or_dropout(build, tiny):
    model = build()
    teacher = model.distiller.teachers["teacher"].model
    before = copy.deepcopy(teacher.state_dict())
    inputs, samples = tiny.batch(model)
    values = []
    for _ in range(2):
        teacher.train()  # whatever was done to it in between
        model.train()
        state = copy.deepcopy(model.student.state_dict())
        losses = model(inputs, copy.deepcopy(samples), mode="loss")
        values.append(losses["kd_neck_raw"])
        assert not any(m.training for m in teacher.modules())
        total_of(model, losses).backward()
        model.student.load_state_dict(state)
    assert values[0] == values[1]  # its FPN has dropout 0.5
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_ema_copies_student_and_adapters_only(build):
    model = build()
    ema = ExponentialMovingAverage(model, momentum=0.5)
    copied = ema.module
    assert copied.student is not model.student and copied.distiller.student is copied.student
    assert copied.task.student is copied.student
    ours, theirs = model.distiller.teachers["teacher"], copied.distiller.teachers["teacher"]
    assert theirs is ours and copied.task.teachers["teacher"] is ours.model
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in model.named_parameters()]
    # Its entries lie under the student's names, and it loads them back.
    assert {f"module.{k}" for k in model.state_dict()} | {"steps"} == set(ema.state_dict())
    ema.load_state_dict(ema.state_dict(), strict=True)


def test_a_pair_that_is_off_and_one_that_warms_up(build, tiny):
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    model = build(
        {**NECK, "stop": 3, "name": "early"},
        {**NECK, "start": 4, "warmup": 4, "weight": 2.0, "name": "late"},
        unit="step",
    )
    inputs, samples = tiny.batch(model)
    found = {}
    for step in (0, 3, 6, 9):
        hub.update_info("iter", step)
        losses = model(inputs, samples, mode="loss")
        found[step] = [float(losses[f"loss_kd_{n}"] > 0) for n in ("early", "late")]
        model.zero_grad()
        total_of(model, losses).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        if step == 6:
            torch.testing.assert_close(losses["loss_kd_late"], losses["kd_late_raw"] * 1.0)
    assert found == {0: [1.0, 0.0], 3: [0.0, 0.0], 6: [0.0, 1.0], 9: [0.0, 1.0]}


def test_a_stage_scales_the_students_own_losses(build, tiny):
    model = build(NECK, stages=[dict(name="hint", until=1, task_weight=0.0), dict(name="rest")])
    inputs, samples = tiny.batch(model)
    losses = model(inputs, samples, mode="loss")
    own = [v for k, v in losses.items() if k.startswith("loss") and "kd" not in k]
    assert own and all(float(x) == 0 for v in own for x in (v if isinstance(v, list) else [v]))
    torch.testing.assert_close(total_of(model, losses), losses["loss_kd_neck"])


@pytest.mark.parametrize("kind", ["GFL", "ATSS", "RetinaNet", "FCOS"])
def test_a_batch_without_objects_gives_zero_for_regions_of_positives(build, tiny, kind):
    pairs = [dict(student="outputs.box", loss="BoundedRegression", region="main", name="box")]
    if kind == "GFL":
        pairs += [
            LD,
            {**LD, "region": "vlr_iou", "name": "vlr"},
            {**LD, "region": "main_score", "name": "s"},
        ]
    model = build(*pairs, NECK, kind=kind)
    inputs, samples = tiny.batch(model, "3", "7")
    assert all(len(sample.gt_instances) == 0 for sample in samples)
    losses = model(inputs, samples, mode="loss")
    for pair in pairs:
        assert losses[f"loss_kd_{pair['name']}"] == 0
    assert losses["loss_kd_neck"] > 0
    total = total_of(model, losses)
    total.backward()
    assert torch.isfinite(total)
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for p in model.parameters()
        if p.requires_grad
    )


def test_a_loss_that_is_not_finite_is_named_with_its_step(build, tiny):
    from mmengine.logging import MessageHub

    model = build(NECK, dict(student="neck[0]", loss="tiny_parts:NanLoss", name="broken"))
    inputs, samples = tiny.batch(model)
    MessageHub.get_current_instance().update_info("iter", 41)
    losses = model(inputs, samples, mode="loss")
    with pytest.raises(NonFiniteLossError, match=r"step 42.*loss_kd_broken=nan") as error:
        model.parse_losses(losses)
    assert "loss_kd_neck" not in str(error.value)


@pytest.mark.parametrize(
    ("pair", "error", "words"),
    [
        (dict(student="nekc"), TapError, "Did you mean 'neck'"),
        (dict(teacher="nekc"), TapError, "Did you mean 'neck'"),
        (dict(loss="FeatureImitatoin"), ConfigError, "Did you mean 'FeatureImitation'"),
        (dict(wieght=2.0), ConfigError, "'wieght'.*Did you mean 'weight'"),
        (dict(student="outputs.boxbins"), ConfigError, "Did you mean 'box_bins'"),
        (dict(student="outputs.cls", region="mian"), ConfigError, "Did you mean 'main'"),
        (dict(name="my_loss"), ConfigError, "contains 'loss'"),
        (dict(of="other"), ConfigError, "teacher 'other'"),
        (dict(student="neck[0:2]", teacher="neck"), ShapeError, "2 tensors.*3"),
        (dict(region="mian"), ConfigError, "no region 'mian'.*Did you mean 'main'"),
        (dict(loss="AttentionTransfer", region="main"), ConfigError, "takes no 'weight'"),
        (dict(weight=[1.0, 0.5]), ShapeError, "2 numbers.*3 tensors"),
    ],
)
def test_what_a_pair_cannot_mean_is_told_before_training(build, pair, error, words):
    with pytest.raises(error, match=words):
        build({"student": "neck", "loss": "FeatureImitation", **pair})


def test_options_of_distill_are_checked(build, tiny):
    with pytest.raises(ConfigError, match="Did you mean 'stages'"):
        build(NECK, stage=[])
    with pytest.raises(ConfigError, match="needs either teacher="):
        build(NECK, teachers={})
    with pytest.raises(ConfigError, match="nothing would be distilled"):
        cfg = dict(teacher=tiny.teacher(), pairs=[])
        MODELS.build(dict(type="DistilledModel", student=tiny.model(), distill=cfg, scope="mmdet"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(num_classes=4), "number of classes: student 3, teacher 4"),
        (dict(reg_max=16), "reg_max: student 8, teacher 16"),
        (dict(strides=(16, 32)), r"strides: student \[8, 16, 32\], teacher \[16, 32\]"),
    ],
)
def test_a_teacher_that_differs_is_refused(build, tiny, change, words):
    with pytest.raises(TeacherError, match=words):
        build(LD, teacher=tiny.save_teacher(tiny.model(width=16, **change)))


def test_a_frozen_stage_as_the_students_tap_is_refused(build, tiny):
    model = tiny.model()
    model["backbone"]["frozen_stages"] = 2
    model = build(dict(student="backbone.layer2", loss="FeatureImitation"), model=model)
    model.train()
    inputs, samples = tiny.batch(model)
    with pytest.raises(TapError, match="no gradient reaches"):
        model(inputs, samples, mode="loss")


def test_two_teachers_each_with_their_own_pairs(build, tiny):
    distill = dict(
        teachers=dict(wide=tiny.teacher(), same=tiny.save_teacher(tiny.model())),
        pairs=[
            {**NECK, "of": "wide", "name": "a"},
            {**NECK, "of": "same", "name": "b"},
            {**LD, "of": "same"},
        ],
    )
    cfg = tiny.wrap(tiny.config(distill=distill), tiny.folder)
    model = MODELS.build(cfg.model)
    losses = model(*tiny.batch(model), mode="loss")
    assert {k for k in losses if k.startswith("loss_kd")} == {
        "loss_kd_a",
        "loss_kd_b",
        "loss_kd_ld",
    }
    assert len(list(model.distiller.adapters["a"].parameters())) == 6
    assert not list(model.distiller.adapters["b"].parameters())


def test_the_teachers_forward_ends_after_the_last_tap(build, tiny):
    model = build(dict(student="backbone.layer3", loss="FeatureImitation"))
    calls = []
    teacher = model.distiller.teachers["teacher"].model
    teacher.neck.register_forward_hook(lambda *_: calls.append("neck"))
    model(*tiny.batch(model), mode="loss")
    assert not calls


def test_a_teacher_that_begins_before_the_student_says_the_same(build, tiny):
    model = build(NECK, dict(student="outputs.cls", loss="KLDivergence", activation="sigmoid"))
    inputs, samples = tiny.batch(model)
    captured, answer = model._ask_ahead(inputs, samples)["teacher"]
    later, other = model.ask_teacher("teacher", inputs, samples)
    assert all(
        torch.equal(a, b)
        for a, b in zip(captured.tensors("neck"), later.tensors("neck"), strict=True)
    )
    pairs = zip(flatten_tensors(answer), flatten_tensors(other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_unreadable_teacher_weights_are_told_on_building(build, tiny):
    with pytest.raises(CheckpointError, match="does not exist"):
        build(NECK, teacher={**tiny.teacher(), "checkpoint": "gone.pth"})


def test_missing_attributes_are_missing(build):
    model = build(NECK)
    with pytest.raises(AttributeError):
        model.no_such_thing  # noqa: B018
    assert pickle.loads(pickle.dumps(model.state_dict())).keys() == model.state_dict().keys()
