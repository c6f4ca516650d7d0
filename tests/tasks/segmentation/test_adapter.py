"""What the adapter reads from mmseg's networks, against what they compute themselves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from taskdistill.core.errors import ConfigError, ShapeError, TapError, TeacherError
from taskdistill.core.losses import decoupled_kd

KINDS = ["PSP", "FCN", "UPer", "FPN", "DA", "OCR", "DDRNet", "SegFormer"]
LOGITS = dict(student="outputs.logits", loss="PixelWise", name="pixels")
AUX = dict(student="outputs.aux", loss="PixelWise", name="aux")


def still(model):
    """Take the random numbers out of a network in training, so that it equals itself."""
    for module in model.modules():
        for rate in ("p", "drop_prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def run(model, inputs, samples):
    """The student's own losses, what the adapter makes of them, and the teacher's raw outputs."""
    teacher = model.distiller.teachers["teacher"].model
    with model.distiller.watch() as seen:
        losses = model.student(inputs, samples, mode="loss")
    with torch.no_grad():
        asked = {"teacher": model.task.forward(teacher)(inputs)}
    recipe = model.distiller.recipe
    return model.task.context(seen, asked, samples, recipe.outputs, recipe.regions), losses


def own_logits(model, inputs):
    """The main head's logits, by mmseg's own means."""
    features, head = model.extract_feat(inputs), model.decode_head
    if isinstance(head, torch.nn.ModuleList):
        return head[1].forward(features, head[0].forward(features))
    output = head.forward(features)
    return output[0] if isinstance(output, tuple) else output


def at_cells(maps, side):
    """Every map of labels or regions at the middle of the cells of a ``side`` x ``side`` grid."""
    step = maps.shape[-1] // side
    return maps[:, step // 2 :: step, step // 2 :: step]


def divergence(student, teacher):
    """KL of the student's classes from the teacher's, (B, h, w)."""
    student, teacher = student.double().log_softmax(1), teacher.double().log_softmax(1)
    return (student.exp() * (student - teacher)).sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_students_logits_are_those_its_head_computes(seg, kind):
    model = still(seg.distilled(LOGITS, model=seg.model(kind)))
    inputs, samples = seg.batch(model)
    context, _ = run(model, inputs, samples)
    expected = own_logits(model.student, inputs)
    assert expected.std() > 1e-3 and context.student["logits"].requires_grad
    torch.testing.assert_close(context.student["logits"], expected, rtol=0, atol=0)
    losses = model(inputs, samples, mode="loss")
    assert torch.isfinite(losses["loss_kd_pixels"]) and losses["loss_kd_pixels"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_logits_are_those_it_predicts_with(seg, kind):
    model = seg.distilled(LOGITS, teacher=seg.teacher(kind))
    inputs, samples = seg.batch(model)
    context, _ = run(model, inputs, samples)
    teacher = model.distiller.teachers["teacher"].model
    with torch.no_grad():
        logits = teacher(inputs, mode="tensor") if kind != "OCR" else own_logits(teacher, inputs)
        found = context.teachers["teacher"]["logits"]
        expected = logits[0] if isinstance(logits, tuple) else logits
        assert torch.equal(found, expected)
        predicted = teacher.predict(inputs)
    whole = F.interpolate(found, size=(64, 64), mode="bilinear", align_corners=False)
    for one, sample in zip(whole, predicted, strict=True):
        assert torch.equal(one.argmax(0), sample.pred_sem_seg.data[0])
    losses = model(inputs, samples, mode="loss")
    assert torch.isfinite(losses["loss_kd_pixels"]) and losses["loss_kd_pixels"] > 0


def test_a_logits_pair_compares_the_labelled_pixels(seg):
    """By default; its value is a hand computation, and the others get no gradient."""
    pairs = (LOGITS, {**LOGITS, "region": "all", "name": "all"})
    model = still(seg.distilled(*pairs))
    inputs, samples = seg.batch(model)
    for sample in samples:
        sample.gt_sem_seg.data[:, :20] = seg.ignored
    kept = []
    model.decode_head.conv_seg.register_forward_hook(lambda *args: kept.append(args[2]))
    losses = model(inputs, samples, mode="loss")
    (logits,) = kept
    with torch.no_grad():
        teacher = own_logits(model.distiller.teachers["teacher"].model, inputs)
    labels = at_cells(torch.cat([sample.gt_sem_seg.data for sample in samples]), 8)
    labelled = labels != seg.ignored
    assert 20 < labelled.sum() < labelled.numel() - 60
    expected = divergence(logits, teacher)
    for name, value in (("pixels", expected[labelled].mean()), ("all", expected.mean())):
        torch.testing.assert_close(losses[f"kd_{name}_raw"].double(), value, rtol=1e-5, atol=0)
    for name, counts in (("pixels", labelled), ("all", torch.ones_like(labelled))):
        (slope,) = torch.autograd.grad(losses[f"loss_kd_{name}"], logits, retain_graph=True)
        assert torch.equal(slope.abs().sum(1) > 0, counts)


def test_padding_is_not_labelled(seg):
    model = seg.distilled(LOGITS, {**LOGITS, "region": "all", "name": "all"})
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 40, 64, dtype=torch.long)))
    small = dict(
        inputs=[torch.randint(0, 255, (3, 40, 64), dtype=torch.uint8)], data_samples=[sample]
    )
    packed = model.data_preprocessor(small, training=True)
    context, _ = run(model.eval(), packed["inputs"], packed["data_samples"])
    assert packed["inputs"].shape[2:] == (64, 64)
    expected = torch.zeros(1, 64, 64)
    expected[:, :40] = 1
    assert torch.equal(context.regions["labelled"].weight, expected)
    assert torch.equal(context.regions["all"].weight, torch.ones(1, 64, 64))


def test_a_batch_without_a_label_teaches_nothing_and_breaks_nothing(seg):
    model = seg.distilled(
        LOGITS,
        dict(student="outputs.logits", loss="DecoupledKD", name="decoupled"),
        seg.features,
    )
    inputs, samples = seg.batch(model)
    for sample in samples:
        sample.gt_sem_seg.data[:] = seg.ignored
    losses = model(inputs, samples, mode="loss")
    names = ("pixels", "decoupled", "features")
    assert [float(losses[f"loss_kd_{name}"]) for name in names] == [0.0, 0.0, 0.0]
    torch.stack([losses[f"loss_kd_{name}"] for name in names]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("ours", "theirs", "sides"), [(8, 32, (8, 2)), (8, 16, (8, 4)), (32, 8, (2, 8))]
)
def test_a_teacher_of_another_stride_is_resized_and_that_is_said_once(
    seg, monkeypatch, ours, theirs, sides
):
    said = []
    monkeypatch.setattr(
        "taskdistill.tasks.segmentation.adapter.print_log", lambda text, **_: said.append(text)
    )
    teacher = seg.save_teacher(seg.model(width=16, stride=theirs))
    model = seg.distilled(
        {**LOGITS, "region": "all"}, model=seg.model(stride=ours), teacher=teacher
    )
    still(model)
    inputs, samples = seg.batch(model)
    for _ in range(2):
        losses = model(inputs, copy.deepcopy(samples), mode="loss")
    context, _ = run(model, inputs, samples)
    student, taught = context.student["logits"], context.teachers["teacher"]["logits"]
    assert (student.shape[2], taught.shape[2]) == sides
    resized = F.interpolate(
        taught, student.shape[2:], mode="bilinear", antialias=sides[0] < sides[1]
    )
    expected = divergence(student, resized).mean()
    torch.testing.assert_close(losses["kd_pixels_raw"].double(), expected, rtol=1e-5, atol=0)
    assert len(said) == 1
    assert "{0}x{0}".format(sides[1]) in said[0] and "{0}x{0}".format(sides[0]) in said[0]


def test_networks_of_one_stride_are_not_resized(seg, monkeypatch):
    said = []
    monkeypatch.setattr(
        "taskdistill.tasks.segmentation.adapter.print_log", lambda text, **_: said.append(text)
    )
    model = seg.distilled(LOGITS)
    model(*seg.batch(model), mode="loss")
    assert not said


def test_auxiliary_logits_against_the_teachers_auxiliary_and_main_logits(seg):
    pairs = (
        {**AUX, "region": "all"},
        {**AUX, "region": "all", "teacher": "outputs.logits", "name": "aux_from_main"},
    )
    model = still(seg.distilled(*pairs))
    inputs, samples = seg.batch(model)
    losses = model(inputs, samples, mode="loss")
    student, teacher = model.student, model.distiller.teachers["teacher"].model
    with torch.no_grad():
        ours = student.auxiliary_head.forward(student.extract_feat(inputs))
        theirs = teacher.auxiliary_head.forward(teacher.extract_feat(inputs))
        main = own_logits(teacher, inputs)
    for name, target in (("aux", theirs), ("aux_from_main", main)):
        expected = divergence(ours, target).mean()
        torch.testing.assert_close(losses[f"kd_{name}_raw"].double(), expected, rtol=1e-5, atol=0)
    names = {n for n, p in student.named_parameters() if p.grad is not None}
    assert not names
    losses["loss_kd_aux"].backward()
    trained = {n.split(".")[0] for n, p in student.named_parameters() if p.grad is not None}
    assert trained == {"backbone", "auxiliary_head"}


def test_several_auxiliary_heads_are_counted(seg):
    model = seg.distilled(
        {**AUX, "teacher": "outputs.aux_1"}, teacher=seg.save_teacher(seg.model(width=16, aux=2))
    )
    inputs, samples = seg.batch(model)
    context, _ = run(model, inputs, samples)
    teacher = model.distiller.teachers["teacher"].model
    with torch.no_grad():
        expected = teacher.auxiliary_head[1].forward(teacher.extract_feat(inputs))
    assert set(context.teachers["teacher"]) == {"aux_1"}
    assert torch.equal(context.teachers["teacher"]["aux_1"], expected)


@pytest.mark.parametrize(
    ("pairs", "calls"),
    [
        ([LOGITS], 0),
        ([LOGITS, AUX], 1),
        ([{**AUX, "teacher": "outputs.logits"}], 0),
        ([dict(student="backbone[2]", teacher="auxiliary_head.convs", loss="PairWise")], 1),
        ([dict(student="backbone[2]", teacher="auxil*.convs", loss="PairWise")], 1),
        ([dict(student="backbone[2]", loss="PairWise")], 0),
    ],
)
def test_the_teachers_auxiliary_head_runs_only_where_it_is_read(seg, pairs, calls):
    model = seg.distilled(*pairs)
    ran = []
    teacher = model.distiller.teachers["teacher"].network
    teacher.auxiliary_head.convs.register_forward_hook(lambda *_: ran.append("aux"))
    model(*seg.batch(model), mode="loss")
    assert len(ran) == calls


@pytest.mark.parametrize("way", ["from CNN", "from transformer"])
def test_tokens_meet_maps(seg, way):
    """Blocks of a transformer give (B, N, C), layers of a CNN (B, C, h, w)."""
    tokens, maps = "backbone.layers.3.1.0", "backbone.layer4"
    wide = seg.save_teacher(
        seg.model("PSP", width=16, stride=32)
        if way == "from CNN"
        else seg.model("SegFormer", width=16)
    )
    student, taught = (tokens, maps) if way == "from CNN" else (maps, tokens)
    pairs = [
        dict(student=student, teacher=taught, loss="FeatureImitation", name="last"),
        dict(student="outputs.logits", loss="PixelWise", name="pixels"),
        dict(student="backbone[1:3]", loss="PairWise", patch=0.5, name="affinity"),
    ]
    ours = seg.model("SegFormer") if way == "from CNN" else seg.model("PSP", stride=32)
    model = seg.distilled(*pairs, model=ours, teacher=wide)
    losses = model(*seg.batch(model), mode="loss")
    for name in ("last", "pixels", "affinity"):
        assert torch.isfinite(losses[f"loss_kd_{name}"]) and losses[f"loss_kd_{name}"] > 0
    losses["loss_kd_last"].backward()
    assert all(p.grad is not None for p in model.distiller.adapters["last"].parameters())
    assert model.backbone.get_submodule(student.removeprefix("backbone.")) is not None
    reached = [
        n for n, p in model.student.named_parameters() if p.grad is not None and p.grad.any()
    ]
    assert any(n.startswith(student) for n in reached)
    assert not any("head" in n for n in reached)


def test_several_levels_are_the_mean_of_each(seg):
    """The values of one pair over levels, and of a pair for each."""
    losses = ("AttentionTransfer", "PairWise")
    pairs = [
        dict(student=f"backbone[{levels}]", loss=loss, name=f"{loss}_{levels.replace(':', '_')}")
        for loss in losses
        for levels in ("1:4", "1", "2", "3")
    ]
    model = seg.distilled(*pairs)
    found = model(*seg.batch(model), mode="loss")
    for loss in losses:
        one = torch.stack([found[f"kd_{loss}_{level}_raw"] for level in "123"])
        assert one.unique().numel() == 3 and (one > 0).all()
        torch.testing.assert_close(found[f"kd_{loss}_1_4_raw"], one.mean())


def test_masked_feature_imitation_is_the_mean_over_labelled_places(seg):
    model = still(seg.distilled(seg.features))
    inputs, samples = seg.batch(model)
    losses = model(inputs, samples, mode="loss")
    with torch.no_grad():
        ours = model.student.extract_feat(inputs)[3]
        theirs = model.distiller.teachers["teacher"].model.extract_feat(inputs)[3]
        projected, target = model.distiller.adapters["features"][0](ours, theirs)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    labelled = at_cells(labels, ours.shape[-1]) != seg.ignored
    assert 0 < labelled.sum() < labelled.numel()
    expected = (projected - target).square().mean(1)[labelled].mean()
    torch.testing.assert_close(losses["kd_features_raw"], expected)
    torch.testing.assert_close(losses["loss_kd_features"], 0.1 * expected)


def test_losses_that_ask_for_labels_get_them_where_there_are_some(seg):
    model = still(seg.distilled(dict(student="outputs.logits", loss="DecoupledKD", name="dkd")))
    inputs, samples = seg.batch(model)
    samples[0].gt_sem_seg.data[:, 24:] = seg.ignored
    losses = model(inputs, samples, mode="loss")
    with torch.no_grad():
        ours = own_logits(model.student, inputs)
        theirs = own_logits(model.distiller.teachers["teacher"].model, inputs)
    labels = at_cells(torch.cat([sample.gt_sem_seg.data for sample in samples]), 8)
    labelled = labels != seg.ignored
    ours, theirs = (logits.movedim(1, -1)[labelled] for logits in (ours, theirs))
    expected = decoupled_kd(ours, theirs, labels[labelled])
    torch.testing.assert_close(losses["kd_dkd_raw"], expected, rtol=1e-5, atol=1e-7)


def test_the_students_own_losses_are_those_of_plain_training(seg):
    model = still(seg.distilled())
    plain = still(seg.build(seg.model())).train()
    plain.load_state_dict(model.state_dict())
    inputs, samples = seg.batch(plain)
    ours, theirs = model(inputs, samples, mode="loss"), plain(inputs, samples, mode="loss")
    names = ("pixels", "affinity", "maps", "features")
    extra = {f"{a}kd_{n}{b}" for n in names for a, b in (("loss_", ""), ("", "_raw"))}
    assert set(ours) - set(theirs) == extra
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)
    total, _ = model.parse_losses(ours)
    terms = sum(ours[f"loss_kd_{name}"] for name in names)
    torch.testing.assert_close(total, plain.parse_losses(theirs)[0] + terms)
    # Asking the teacher and the critic has changed nothing in the student.
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_it_predicts_as_the_student_and_holds_nothing_else(seg):
    model, plain = seg.distilled(), seg.build(seg.model(), seed=5)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)
    model.eval()
    plain.eval()
    inputs, samples = seg.batch(plain, split="val")
    with torch.no_grad():
        ours = model(inputs, copy.deepcopy(samples), mode="predict")
        theirs = plain(inputs, copy.deepcopy(samples), mode="predict")
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.seg_logits.data, b.seg_logits.data)
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)


# -- what cannot be compared ---------------------------------------------------------------------


def test_a_teacher_of_other_classes_is_refused_for_logits_only(seg):
    model = seg.model(width=16)
    for head in ("decode_head", "auxiliary_head"):
        model[head]["num_classes"] = 6
    teacher = seg.save_teacher(model)
    with pytest.raises(TeacherError, match="classes they score: student 4, teacher 6"):
        seg.distilled(LOGITS, teacher=teacher)
    model = seg.distilled(dict(student="backbone[3]", loss="PairWise", name="p"), teacher=teacher)
    assert model(*seg.batch(model), mode="loss")["loss_kd_p"] > 0


def test_networks_that_refine_points_are_refused_for_logits_only(seg):
    with pytest.raises(TeacherError, match="student refines.*single points.*PointRend"):
        seg.distilled(LOGITS, model=seg.model("PointRend"))
    with pytest.raises(TeacherError, match="teacher 'teacher' refines.*PointHead"):
        seg.distilled(LOGITS, teacher=seg.teacher("PointRend"))
    points = dict(num_points=64, oversample_ratio=3, importance_sample_ratio=0.75)
    model = seg.model("PointRend")
    model["train_cfg"] = points
    pair = dict(student="neck", loss="FeatureImitation", name="neck")
    model = seg.distilled(pair, model=model, teacher=seg.teacher("PointRend"))
    assert model(*seg.batch(model), mode="loss")["loss_kd_neck"] > 0


def test_heads_that_need_more_than_features_are_refused_for_logits_only(seg):
    """As those of MaskFormer, which score queries."""
    model = seg.distilled(dict(student="backbone[3]", loss="PairWise", name="p"))
    model.student.decode_head.forward = lambda features, data_samples: None
    model.task.check(set(), set())
    assert model.task.forward(model.student)(torch.zeros(1, 3, 64, 64)) == {}
    with pytest.raises(TeacherError, match="student's PSPHead computes no logits from features"):
        model.task.check({"logits"}, set())


@pytest.mark.parametrize(
    ("pair", "error", "words"),
    [
        (dict(student="decode_head"), ConfigError, "taps 'decode_head'.*decode_head.conv_seg"),
        (
            dict(student="backbone[3]", teacher="auxiliary_head"),
            ConfigError,
            "taps 'auxiliary_head'.*outputs.logits",
        ),
        (dict(student="decode_head@in"), (ConfigError, TapError), "decode_head"),
        (dict(student="outputs.logit"), ConfigError, "Did you mean 'logits'"),
        (dict(student="outputs.logits", region="labeled"), ConfigError, "Did you mean 'labelled'"),
        (dict(student="backbone[3]", region="lablled"), ConfigError, "Did you mean 'labelled'"),
        (dict(student="backbone", teacher="backbone[1:4]"), ShapeError, "4 tensors.*3"),
        (dict(student="decode_head.botleneck"), TapError, "Did you mean"),
        (
            dict(student="backbone[3]", loss="Holistic"),
            ConfigError,
            "Holistic plays on outputs",
        ),
        (
            dict(student="backbone[3]", loss="DecoupledKD"),
            ConfigError,
            "ground truth",
        ),
        (
            dict(student="backbone[3]", loss="AttentionTransfer", region="labelled"),
            ConfigError,
            "'weight' per position",
        ),
    ],
)
def test_what_a_pair_cannot_mean_is_told_before_training(seg, pair, error, words):
    with pytest.raises(error, match=words):
        seg.distilled({"loss": "FeatureImitation", **pair})


def test_auxiliary_heads_that_are_not_there(seg):
    with pytest.raises(ConfigError, match="student has no output 'aux'.*'logits'"):
        seg.distilled(AUX, model=seg.model(aux=0))
    with pytest.raises(ConfigError, match="teacher 'teacher' has no output 'aux'.*'logits'"):
        seg.distilled(AUX, teacher=seg.save_teacher(seg.model(width=16, aux=0)))
    with pytest.raises(ConfigError, match="no output 'aux'.*aux_0.*aux_1"):
        seg.distilled(AUX, model=seg.model(aux=2))
    with pytest.raises(ConfigError, match=r"no output 'aux'.*Known: logits"):
        teacher = seg.save_teacher(seg.model(width=16, aux=0))
        seg.distilled(AUX, model=seg.model(aux=0), teacher=teacher)


def test_a_head_whose_logits_no_module_returns_is_told(seg):
    model = seg.distilled(LOGITS)
    head = model.student.decode_head
    original = head.forward
    head.forward = lambda features: original(features) + 1
    with pytest.raises(ConfigError, match="outputs.logits cannot be read"):
        model.task.check({"logits"}, set())


def test_a_module_that_is_no_encoder_decoder_is_refused(seg):
    from taskdistill.core.recipe import Recipe
    from taskdistill.tasks.segmentation import SegmentorAdapter

    recipe = Recipe.from_config([LOGITS])
    plain = seg.build(seg.model())
    with pytest.raises(TeacherError, match="student is a Linear.*EncoderDecoder"):
        SegmentorAdapter(torch.nn.Linear(2, 2), {"teacher": plain}, recipe).check({"logits"}, set())
    with pytest.raises(TeacherError, match="teacher 'teacher' is a Linear"):
        other = {"teacher": torch.nn.Linear(2, 2)}
        SegmentorAdapter(plain, other, recipe).check({"logits"}, set())
