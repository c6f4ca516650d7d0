"""Faster and Mask R-CNN under the whole recipe of Chen et al. 2017: runs, files, odd batches."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmengine.model import ExponentialMovingAverage
from saved_runs import RANK_HOOK, assert_equal, curves

from taskdistill.core.errors import TeacherError
from taskdistill.core.losses import weighted_soft_cross_entropy
from taskdistill.tasks.openmm.hooks import SIDE_ENTRY
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

TRAIN = Path(__file__).parents[3] / "tools" / "train.py"

HINT = dict(student="neck", loss="FeatureImitation", adapter="conv1x1", weight=0.5, name="hint")
RPN_SOFT = dict(
    student="outputs.rpn_cls",
    loss="WeightedSoftCrossEntropy",
    activation="sigmoid",
    weight=0.5,
    name="rpn_soft",
)
ROI_SOFT = dict(
    student="outputs.roi_cls",
    loss="WeightedSoftCrossEntropy",
    background=-1,
    weight=0.5,
    name="roi_soft",
)
# A random teacher's boxes are no better than the student's: a margin that keeps every one active.
BOUND = dict(loss="BoundedRegression", margin=1e3, weight=0.5)
RPN_BOUNDED = dict(student="outputs.rpn_box", name="rpn_bounded", **BOUND)
ROI_BOUNDED = dict(student="outputs.roi_box", name="roi_bounded", **BOUND)
CHEN = (HINT, RPN_SOFT, ROI_SOFT, RPN_BOUNDED, ROI_BOUNDED)
SOFT, BOUNDED = ("rpn_soft", "roi_soft"), ("rpn_bounded", "roi_bounded")
HARD = dict(loss_rpn_cls=0.5, loss_cls=0.5)
OWN = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")

# Kinds of students, each with how its teacher differs from it beside the width.
KINDS = {
    "faster": ("FasterRCNN", {}),
    "agnostic": ("FasterRCNN", dict(reg_class_agnostic=True)),
    "single level": ("FasterRCNN", dict(strides=(16,))),
    "mask": ("MaskRCNN", {}),
}


def pairs_of(name):
    if name != "single level":
        return CHEN
    return ({**HINT, "student": "backbone"}, *CHEN[1:])


@pytest.fixture
def build(tiny):
    """A distilled model; ``change`` may edit the student's config."""

    def make(*pairs, name="faster", change=None, **options):
        kind, changes = KINDS[name]
        student = tiny.model(kind, **changes)
        if change is not None:
            change(student)
        distill = dict(pairs=[dict(p) for p in pairs or pairs_of(name)], task_weights=dict(HARD))
        if "teachers" not in options:
            distill["teacher"] = tiny.teacher(kind, **changes)
        config = tiny.config(student, distill={**distill, **options})
        torch.manual_seed(0)
        model = MODELS.build(tiny.wrap(config, tiny.folder).model)
        model.init_weights()
        return noisy(model)

    return make


def noisy(model):
    """Weights of the last layers that make answers differ from place to place."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.student.named_parameters():
        if name.endswith(("rpn_cls.weight", "rpn_reg.weight", "fc_cls.weight", "fc_reg.weight")):
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def kd(losses, what="loss_kd_{}"):
    return {p["name"]: losses[what.format(p["name"])] for p in CHEN}


def assert_trains(model, losses):
    """Finite, and every trained parameter gets a finite gradient."""
    total, _ = model.parse_losses(losses)
    model.zero_grad()
    total.backward()
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# -- one step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_learns_by_every_term(build, tiny, name):
    model = build(name=name)
    teacher = model.distiller.teachers["teacher"].model
    before = copy.deepcopy(teacher.state_dict())
    losses = model(*tiny.batch(model), mode="loss")
    assert all(float(value) > 0 for value in kd(losses).values())
    for pair in CHEN:
        raw, weighted = (losses[k.format(pair["name"])] for k in ("kd_{}_raw", "loss_kd_{}"))
        torch.testing.assert_close(weighted, 0.5 * raw)
    assert_trains(model, losses)
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    # Each term by itself reaches its own head.
    heads = dict(
        rpn_soft="rpn_head.rpn_cls.weight",
        roi_soft="roi_head.bbox_head.fc_cls.weight",
        rpn_bounded="rpn_head.rpn_reg.weight",
        roi_bounded="roi_head.bbox_head.fc_reg.weight",
    )
    losses = model(*tiny.batch(model), mode="loss")
    parameters = dict(model.student.named_parameters())
    for term, head in heads.items():
        (gradient,) = torch.autograd.grad(
            losses[f"loss_kd_{term}"], [parameters[head]], retain_graph=True
        )
        assert gradient.abs().sum() > 0, term


@pytest.mark.parametrize("name", ["faster", "mask"])
def test_the_students_own_losses_are_those_of_plain_training(build, tiny, name):
    model = build(name=name)
    plain = tiny.build(tiny.model(KINDS[name][0]))
    plain.load_state_dict(model.state_dict())
    found = []
    for each in (model, plain):
        inputs, samples = tiny.batch(each)
        torch.manual_seed(5)  # both sample their proposals
        found.append(each(inputs, samples, mode="loss"))
    ours, theirs = found
    assert {k for k in ours if "kd_" not in k} == set(theirs)
    assert ("loss_mask" in theirs) == (name == "mask")
    for key, value in theirs.items():
        factor = HARD.get(key, 1.0)
        expected = [v * factor for v in value] if isinstance(value, list) else value * factor
        torch.testing.assert_close(ours[key], expected, rtol=0, atol=0)


def no_proposals(student):
    student["train_cfg"]["rpn_proposal"]["min_bbox_size"] = 1000


def test_terms_fall_where_nothing_else_is_learnt(build, tiny):
    # The regions of interest are the ground truth: proposals would change while the RPN learns.
    model = build(task_weights=dict.fromkeys(OWN, 0.0), change=no_proposals)
    inputs, samples = tiny.batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = []
    for _ in range(15):
        torch.manual_seed(0)
        losses = model(inputs, copy.deepcopy(samples), mode="loss")
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()
        seen.append({name: float(value) for name, value in kd(losses).items()})
    for name, value in seen[-1].items():
        assert value < seen[0][name], name


def test_an_ema_copies_student_and_adapters_only(build):
    model = build()
    copied = ExponentialMovingAverage(model, momentum=0.5).module
    assert copied.student is not model.student and copied.task.student is copied.student
    ours, theirs = model.distiller.teachers["teacher"], copied.distiller.teachers["teacher"]
    assert theirs is ours and copied.task.teachers["teacher"] is ours.model
    held = {id(t) for t in [*copied.parameters(), *copied.buffers()]}
    assert not held & {id(t) for t in [*ours.model.parameters(), *ours.model.buffers()]}
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in model.named_parameters()]


@MODELS.register_module(force=True)
class Float32RPNHead(RPNHead):
    """mmcv's non-maximum suppression takes no bfloat16 on a CPU."""

    def predict_by_feat(self, cls_scores, bbox_preds, *args, **kwargs):
        scores, numbers = ([x.float() for x in levels] for levels in (cls_scores, bbox_preds))
        return super().predict_by_feat(scores, numbers, *args, **kwargs)


@MODELS.register_module(force=True)
class Float32Extractor(SingleRoIExtractor):
    """Nor does its RoIAlign."""

    def forward(self, feats, rois, roi_scale_factor=None):
        return super().forward(tuple(x.float() for x in feats), rois, roi_scale_factor)


def in_float32(model):
    model["rpn_head"]["type"] = "Float32RPNHead"
    for key in ("bbox_roi_extractor", "mask_roi_extractor"):
        if key in model["roi_head"]:
            model["roi_head"][key]["type"] = "Float32Extractor"


@pytest.mark.parametrize("precision", [None, "fp32"])
@pytest.mark.parametrize("name", ["faster", "mask"])
def test_mixed_precision_keeps_it_finite(build, tiny, name, precision):
    """Where mmcv's own operators are not given bfloat16."""
    wide = tiny.model(KINDS[name][0], width=16)
    in_float32(wide)
    teachers = dict(teacher={**tiny.save_teacher(wide), "precision": precision})
    model = build(name=name, change=in_float32, teachers=teachers)
    inputs, samples = tiny.batch(model)
    torch.manual_seed(5)
    full = kd(model(inputs, copy.deepcopy(samples), mode="loss"))
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs, samples, mode="loss")
    assert_trains(model, losses)
    for term, value in kd(losses).items():
        assert value.dtype == torch.float32 and float(value) != float(full[term])
        # Proposals are ranked by rounded scores, so that others may be sampled.
        torch.testing.assert_close(value, full[term], rtol=0.3, atol=0.02)


# -- batches of all sorts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_images_without_objects(build, tiny, name):
    model = build(name=name)
    inputs, samples = tiny.batch(model, "3", "7")
    assert all(len(sample.gt_instances) == 0 for sample in samples)
    losses = model(inputs, samples, mode="loss")
    for term, value in kd(losses).items():
        assert float(value) == 0 if term in BOUNDED else float(value) > 0, term
        assert value.requires_grad
    assert_trains(model, losses)


def test_one_image_without_objects_among_others(build, tiny):
    model = build()
    losses = model(*tiny.batch(model, "0", "3", "1"), mode="loss")
    assert all(float(value) > 0 for value in kd(losses).values())
    assert_trains(model, losses)


def nothing_overlaps(student):
    """No proposal is a positive; the anchors' assignment is as it was."""
    student["train_cfg"]["rcnn"]["assigner"].update(pos_iou_thr=1.1, neg_iou_thr=1.1)
    student["train_cfg"]["rcnn"]["sampler"]["add_gt_as_proposals"] = False


@pytest.mark.parametrize("name", KINDS)
def test_proposals_that_are_all_background(build, tiny, name):
    model = build(name=name, change=nothing_overlaps)
    losses = model(*tiny.batch(model), mode="loss")
    terms = kd(losses)
    assert float(terms["roi_bounded"]) == 0 and terms["roi_bounded"].requires_grad
    assert all(float(terms[term]) > 0 for term in ("hint", *SOFT, "rpn_bounded"))
    assert_trains(model, losses)


@pytest.mark.parametrize("name", ["faster", "mask"])
def test_the_second_stage_without_a_region(build, tiny, name):
    """Neither a proposal nor an object: mmdet then has no loss of the second stage's classes."""
    model = build(name=name, change=no_proposals)
    losses = model(*tiny.batch(model, "0", "1"), mode="loss")
    assert all(float(value) > 0 for value in kd(losses).values())  # of the objects alone
    losses = model(*tiny.batch(model, "3", "7"), mode="loss")
    terms = kd(losses)
    for term in ("roi_soft", *BOUNDED):
        assert float(terms[term]) == 0 and terms[term].requires_grad, term
    assert float(terms["hint"]) > 0 and float(terms["rpn_soft"]) > 0
    assert_trains(model, losses)


# -- teachers --------------------------------------------------------------------------------------


def test_a_teacher_for_each_stage(build, tiny):
    wide, same = tiny.teacher("FasterRCNN"), tiny.teacher("FasterRCNN", width=8)
    pairs = [{**p, "of": "wide" if p["name"].startswith("r") else "same"} for p in CHEN]
    pairs.append({**ROI_SOFT, "of": "same", "name": "roi_soft_same"})
    model = build(*pairs, teachers=dict(wide=wide, same=same))
    inputs, samples = tiny.batch(model)
    torch.manual_seed(5)
    losses = model(inputs, samples, mode="loss")
    assert_trains(model, losses)
    assert float(losses["kd_roi_soft_raw"]) != float(losses["kd_roi_soft_same_raw"])
    # Each teacher's terms are what they are with that teacher alone.
    for teacher, names in ((wide, {n: n for n in SOFT}), (same, {"roi_soft": "roi_soft_same"})):
        alone = build(*CHEN[1:], teachers=dict(only=teacher))
        alone.load_state_dict(model.state_dict())
        inputs, samples = tiny.batch(alone)
        torch.manual_seed(5)
        expected = alone(inputs, samples, mode="loss")
        for name, ours in names.items():
            torch.testing.assert_close(losses[f"kd_{ours}_raw"], expected[f"kd_{name}_raw"])


def test_a_teacher_at_twice_the_size_judges_the_same_regions(build, tiny):
    teacher = {**tiny.teacher("FasterRCNN"), "scale": 2}
    model = build(HINT, ROI_SOFT, ROI_BOUNDED, teachers=dict(large=teacher), task_weights={})
    inputs, samples = tiny.batch(model)
    seen = []
    head = model.student.roi_head
    handle = head.bbox_roi_extractor.register_forward_hook(lambda m, i, o: seen.append(i[1]))
    scores = head.bbox_head.register_forward_hook(lambda m, i, o: seen.append(o[0]))
    losses = model(inputs, samples, mode="loss")
    handle.remove(), scores.remove()
    rois, ours = seen
    large = model.distiller.teachers["large"].model
    with torch.no_grad():
        features = large.extract_feat(F.interpolate(inputs, scale_factor=2, mode="bilinear"))
        twice = torch.cat([rois[:, :1], rois[:, 1:] * 2], 1)
        theirs, _ = large.roi_head.bbox_head(large.roi_head.bbox_roi_extractor(features, twice))
    expected = weighted_soft_cross_entropy(ours, theirs, background=-1)
    torch.testing.assert_close(losses["kd_roi_soft_raw"], expected)
    assert_trains(model, losses)
    with pytest.raises(TeacherError, match="scale=2"):
        build(RPN_SOFT, teachers=dict(large=teacher), task_weights={})


# -- runs ------------------------------------------------------------------------------------------

# A machine that has mmdet and no taskdistill: build from the file alone, load strictly, predict.
PLAIN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "taskdistill":
            raise ImportError("this process must not need " + name)

sys.meta_path.insert(0, Blocked())
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

job = json.load(open(sys.argv[1]))
register_all_modules()
found = {}
for path in job["checkpoints"]:
    checkpoint = torch.load(path, weights_only=False)
    cfg = Config.fromstring(checkpoint["meta"]["cfg"], ".py")
    assert "distill" not in cfg
    model = MODELS.build(cfg.model)
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    detector = init_detector(cfg, path, device="cpu")
    result = inference_detector(detector, job["picture"]).pred_instances
    found[path] = {key: result[key] for key in result.keys()}
torch.save(found, job["out"])
"""


def run_config(tiny, kind):
    """Dropout in the model, augmentation, and a hint that warms up."""
    model = tiny.model(kind, neck=dict(type="DropoutFPN"))
    pairs = [{**HINT, "warmup": 1.5}, *CHEN[1:]]
    distill = dict(teacher=tiny.teacher(kind), pairs=pairs, task_weights=dict(HARD))
    return tiny.config(model, distill=distill)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Uninterrupted runs: Faster R-CNN without EMA, Mask R-CNN with it."""
    folder = tmp_path_factory.mktemp("two_stage")
    configs = {kind: run_config(tiny, kind) for kind in ("FasterRCNN", "MaskRCNN")}
    configs["MaskRCNN"]["custom_hooks"] = [dict(type="EMAHook", momentum=0.3)]
    return {kind: tiny.train(config, folder / kind) for kind, config in configs.items()}


def files_of(runner):
    return sorted(str(path) for path in Path(runner.work_dir).glob("*.pth"))


def test_checkpoints_load_strictly_into_plain_mmdet_elsewhere(tiny, runs, tmp_path):
    files = [path for runner in runs.values() for path in files_of(runner)]
    assert [os.path.basename(path) for path in files] == ["epoch_1.pth", "epoch_2.pth"] * 2
    picture = str(tiny.data / "val" / "1.png")
    job = dict(checkpoints=files, picture=picture, out=str(tmp_path / "out.pt"))
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "plain.py").write_text(PLAIN)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "plain.py"), str(tmp_path / "job.json")],
        env=tiny.env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt")
    for path in files:
        assert len(found[path]["bboxes"]) > 0 and found[path]["scores"].isfinite().all()
        assert ("masks" in found[path]) == ("MaskRCNN" in path)
    # The last file of a run without EMA predicts what the trained model predicts.
    from mmdet.apis import inference_detector, init_detector

    last = files_of(runs["FasterRCNN"])[-1]
    config = str(Path(runs["FasterRCNN"].work_dir) / "student_config.py")
    detector = init_detector(config, last, device="cpu")
    detector.load_state_dict(runs["FasterRCNN"].model.state_dict(), strict=True)
    ours = inference_detector(detector, picture).pred_instances
    assert torch.equal(ours.bboxes, found[last]["bboxes"])
    assert torch.equal(ours.scores, found[last]["scores"])


def test_what_a_checkpoint_holds(tiny, runs):
    for kind, runner in runs.items():
        checkpoint = read_mm_checkpoint(files_of(runner)[-1])
        plain = set(tiny.build(tiny.model(kind, neck=dict(type="DropoutFPN"))).state_dict())
        assert set(checkpoint["state_dict"]) == plain
        side = checkpoint[SIDE_ENTRY]
        assert {name.split(".")[1] for name in side["adapters"]} == {"hint"}
        assert set(side["teachers"]) == {"teacher"}
    assert {f"module.{name}" for name in plain} | {"steps"} == set(checkpoint["ema_state_dict"])


@pytest.mark.parametrize("kind", ["FasterRCNN", "MaskRCNN"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tiny, runs, tmp_path, kind):
    """Sampled proposals, dropout, augmentation, warm-up and averages included."""
    config = run_config(tiny, kind)
    if kind == "MaskRCNN":
        config["custom_hooks"] = [dict(type="EMAHook", momentum=0.3)]
    half = shutil.copy(files_of(runs[kind])[0], tmp_path)
    tiny.train({**config, "resume": True, "load_from": str(half)}, tmp_path)
    first, second = (
        read_mm_checkpoint(path) for path in (files_of(runs[kind])[-1], tmp_path / "epoch_2.pth")
    )
    found = curves(first)
    assert_equal(found, curves(second), "curves")
    entries = ["state_dict", "optimizer", "param_schedulers", SIDE_ENTRY]
    for entry in entries + ["ema_state_dict"] * (kind == "MaskRCNN"):
        assert_equal(first[entry], second[entry], entry)
    assert len(found["loss"]) == 6
    names = {k.format(p["name"]) for p in CHEN for k in ("loss_kd_{}", "kd_{}_raw")}
    assert names <= set(found)
    assert len(set(found["kd_roi_bounded_raw"])) == 6


def comparable_config(tiny, batch_size):
    """One epoch whose terms do not depend on which pictures are together in a process.

    Nothing is left to chance, batch norm is fixed, and the student's own losses, which mmdet
    divides by the numbers of each process, do not count.
    """
    model = tiny.model("MaskRCNN")
    model["backbone"]["norm_eval"] = True
    for stage in ("rpn", "rcnn"):
        model["train_cfg"][stage]["sampler"]["num"] = 4096
    off = dict.fromkeys((*OWN, "loss_mask"), 0.0)
    distill = dict(teacher=tiny.teacher("MaskRCNN"), pairs=list(CHEN), task_weights=off)
    config = tiny.config(model, distill=distill, custom_hooks=[], param_scheduler=None)
    config["train_cfg"]["max_epochs"] = 1
    config["train_dataloader"]["batch_size"] = batch_size
    config["optim_wrapper"] = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05))
    return config


@pytest.mark.slow
def test_two_processes_train_as_one(tiny, tmp_path):
    """Gloo on a CPU, no search for unused parameters; pictures without objects among them."""
    (tmp_path / "rank_hook.py").write_text(RANK_HOOK)
    config = comparable_config(tiny, batch_size=2)
    config["custom_imports"]["imports"].append("rank_hook")
    config["custom_hooks"].append(dict(type="RankHook"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", str(TRAIN), tiny.write(config), "--launcher", "pytorch"]
    env = {**tiny.env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{tiny.env['PYTHONPATH']}"}
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path / "two")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / "two" / f"rank{rank}.json").read_text())
        assert found == dict(backend="gloo", world=2, equal=True, finite=True)
    runner, start = tiny.runner(comparable_config(tiny, batch_size=4), tmp_path / "one"), {}
    initialise = runner.model.init_weights

    def remember():
        initialise()
        start.update(copy.deepcopy(runner.model.state_dict()))

    runner.model.init_weights = remember
    runner.train()
    two, one = (read_mm_checkpoint(str(tmp_path / name / "epoch_1.pth")) for name in ("two", "one"))
    options = dict(rtol=1e-3, atol=1e-5)
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, **options, msg=name)
    torch.testing.assert_close(two[SIDE_ENTRY]["adapters"], one[SIDE_ENTRY]["adapters"], **options)
    # That is no matter of having gone nowhere.
    for name in ("backbone.conv1", "rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls"):
        moved = (one["state_dict"][f"{name}.weight"] - start[f"{name}.weight"]).abs()
        assert moved.max() > 3e-4, name
