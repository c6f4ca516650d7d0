"""The shipped configs: read, sound, as large as the papers say, and (slow) a real step of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from taskdistill.core.critics import MapCritic, SelfAttention2d
from taskdistill.core.losses import Holistic, PixelWise
from taskdistill.core.recipe import Recipe
from taskdistill.tasks.common.cost import count_macs, count_parameters
from taskdistill.tasks.openmm.config import load_config, plain_config, prepare_config
from taskdistill.tasks.openmm.teacher import read_model_config
from taskdistill.tasks.segmentation import SegmentorAdapter

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs/segmentation"
RECIPES = sorted(
    path
    for path in CONFIGS.rglob("*.py")
    if path.relative_to(CONFIGS).parts[0]
    not in ("_base_", "demo", "camvid")  # tested by the demo's
)
DISTILLED = [path for path in RECIPES if "distill = dict(" in path.read_text()]
STUDENT = CONFIGS / "structured/skd_pspnet-r18_pspnet-r101_cityscapes.py"
TEACHER = CONFIGS / "structured/pspnet_r101_cityscapes.py"


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.fixture(autouse=True)
def mmseg_scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@cache
def _parsed(path: Path) -> Config:
    return load_config(str(path))


def read(path: Path) -> Config:
    return copy.deepcopy(_parsed(path))


def read_teacher(cfg: Config) -> Config:
    path = cfg.distill.teacher.config
    return read_model_config(path if "::" in path else str(ROOT / path), "teacher")


def without_downloads(model: Any) -> Any:
    model.pretrained = model.backbone.init_cfg = None
    return model


def build(path: Path) -> Any:
    """The plain network of a config in eval mode, shapes without numbers."""
    with torch.device("meta"):
        return MODELS.build(without_downloads(read(path).model)).eval()


def street(height: int, width: int, **metainfo: Any) -> dict[str, list[Any]]:
    """What a loader gives for one noisy image, labelled but for its upper quarter."""
    sample = SegDataSample(metainfo=dict(ori_shape=(height, width), **metainfo))
    labels = torch.randint(19, (1, height, width))
    labels[:, : height // 4] = 255
    sample.gt_sem_seg = PixelData(data=labels)
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return dict(inputs=[pixels], data_samples=[sample])


# -- every config --------------------------------------------------------------------------------


def test_there_are_recipes():
    assert len(DISTILLED) >= 7


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_config_reads_and_its_recipe_is_sound(path):
    cfg = read(path)
    assert cfg.default_scope == "mmseg"
    if "distill" not in cfg:
        assert prepare_config(cfg).model == cfg.model
        return
    recipe = Recipe.from_config(cfg.distill.pairs)
    assert {p.student for p in recipe.pairs if p.is_output} <= {"outputs.logits", "outputs.aux"}
    assert {p.region for p in recipe.pairs if p.region} <= set(SegmentorAdapter.regions)
    assert prepare_config(cfg).model.student == plain_config(cfg).model
    assert "distill" not in plain_config(cfg)


@pytest.mark.parametrize("path", DISTILLED, ids=name)
def test_the_teacher_has_weights_and_knows_the_same_classes(path):
    cfg = read(path)
    teacher = cfg.distill.teacher
    if "::" in teacher.config:
        found = get_config(teacher.config, pretrained=True)
        assert found.model_path.endswith(".pth")
    else:
        found = read(ROOT / teacher.config)
        # Where training the teacher's own config puts them.
        folder, steps = Path(teacher.config).stem, found.train_cfg.max_iters
        assert teacher.checkpoint == f"work_dirs/{folder}/iter_{steps}.pth"
        assert steps % found.default_hooks.checkpoint.interval == 0
    assert found.model.decode_head.num_classes == cfg.model.decode_head.num_classes


def distilled(path: Path, folder: Path) -> tuple[Any, Any]:
    """The whole networks of a config, made for crops of 96x96, and their optimizers."""
    cfg = read(path)
    checkpoint = folder / "teacher.pth"
    teacher = without_downloads(read_teacher(cfg).model)
    torch.save({"state_dict": MODELS.build(teacher).state_dict()}, checkpoint)
    cfg.distill.teacher.checkpoint = str(checkpoint)
    if "::" not in cfg.distill.teacher.config:
        cfg.distill.teacher.config = str(ROOT / cfg.distill.teacher.config)
    without_downloads(cfg.model)
    padded = cfg.model.data_preprocessor.size[0] % 2
    cfg.model.data_preprocessor.size = (96 + padded, 96 + padded)
    cfg = prepare_config(cfg)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.train(), build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.mark.slow
@pytest.mark.parametrize("path", DISTILLED, ids=name)
def test_config_takes_a_real_step(path, tmp_path):
    """The whole networks of the setting, with random weights for the teacher."""
    model, optimizer = distilled(path, tmp_path)
    distiller = model.distiller
    learning = {
        "logits": [model.decode_head.conv_seg.weight],
        "adapters": [*distiller.adapters.parameters()],
        "critics": distiller.critic_parameters(),
    }
    before = {what: [p.detach().clone() for p in group] for what, group in learning.items()}
    crops = [street(96, 96) for _ in range(2)]
    data = {key: [crop[key][0] for crop in crops] for key in crops[0]}
    logged = model.train_step(data, optimizer)
    assert all(value.isfinite().all() for value in logged.values())
    for pair in distiller.recipe.pairs:
        assert logged[f"kd_{pair.name}_raw"] != 0
        assert (f"loss_critic_{pair.name}" in logged) == (pair.loss == "Holistic")
    for what, group in learning.items():
        moved = [not torch.equal(old, p) for old, p in zip(before[what], group, strict=True)]
        assert any(moved) or not moved, what
    for teacher in distiller.teachers.values():
        assert all(p.grad is None for p in teacher.model.parameters())


# -- structured distillation on Cityscapes -------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parameters", "macs"),
    [(STUDENT, 13_068_134, 125.8e9), (TEACHER, 70_436_838, 574.9e9)],
    ids=["student", "teacher"],
)
def test_networks_are_as_large_as_the_paper_says(path, parameters, macs):
    """13.07 M and 70.43 M parameters, 125.8 G and 574.9 G for an image of 512x1024."""
    model = build(path)
    assert count_parameters(model) == parameters
    settings = read(path).model.data_preprocessor
    # The config's padding, one row and column beyond its crop, at this size.
    rows, columns = (side - 512 for side in settings.size)
    settings.size = (512 + rows, 1024 + columns)
    image = MODELS.build(settings)(street(512, 1024), training=True)["inputs"].to("meta")
    logits, auxiliary = heads(model, image)
    assert logits.shape[2:] == auxiliary.shape[2:] == (65, 129)
    assert count_macs(lambda: heads(model, image)) == pytest.approx(macs, rel=0.01)


def heads(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    features = model.extract_feat(image)
    return model.decode_head.forward(features), model.auxiliary_head.forward(features)


def test_a_crop_gives_maps_of_65x65_and_its_padding_has_no_label():
    model = build(STUDENT)
    settings = read(STUDENT).model.data_preprocessor
    batch = MODELS.build(settings)(street(512, 512), training=True)
    labels = batch["data_samples"][0].gt_sem_seg.data[0]
    assert labels.shape == (513, 513)
    assert (labels[512] == 255).all() and (labels[:, 512] == 255).all()
    assert heads(model, batch["inputs"].to("meta"))[0].shape == (1, 19, 65, 65)


def test_the_critic_is_the_papers():
    """Probabilities of 19 classes and the image; attention over 64 and 16 places."""
    pairs = Recipe.from_config(read(STUDENT).distill.pairs).pairs
    loss: Any = next(pair for pair in pairs if pair.loss == "Holistic").build_loss()
    assert isinstance(loss, Holistic)
    loss.prepare(torch.zeros(1, 19, 65, 65), torch.zeros(1, 3, 513, 513))
    critic = loss.critic
    assert isinstance(critic, MapCritic) and critic.in_channels == 22
    assert sum(isinstance(module, nn.LeakyReLU) for module in critic.body) == 4
    tokens = []
    for module in critic.modules():
        if isinstance(module, SelfAttention2d):
            module.register_forward_hook(lambda _, __, out: tokens.append(out[0, 0].numel()))
    critic(torch.zeros(1, 22, 65, 65))
    assert tokens == [64, 16]
    assert loss.penalty == 10.0


def test_pixel_wise_weight_is_that_of_the_authors_sum():
    """10 times the cross-entropy summed over 8 images, divided by the map's size alone."""
    pair = Recipe.from_config(read(STUDENT).distill.pairs).pairs[0]
    loss = pair.build_loss()
    assert isinstance(loss, PixelWise)
    student, teacher = torch.randn(2, 8, 19, 5, 6, dtype=torch.float64)
    student.requires_grad_()
    theirs = -10.0 * (teacher.softmax(1) * student.log_softmax(1)).sum() / (5 * 6)
    (expected,) = torch.autograd.grad(theirs, student)
    (found,) = torch.autograd.grad(pair.weight * loss(student, teacher), student)
    torch.testing.assert_close(found, expected)


def test_critic_steps_are_those_of_a_loss_a_tenth_as_large():
    """Their discriminator's loss has the factor 0.1 of the student's term; ours has none."""
    ours: dict[str, Any] = dict(read(STUDENT).distill.critic.optimizer)
    theirs: dict[str, Any] = dict(type="SGD", lr=4e-4, momentum=0.9, weight_decay=5e-4)
    ends = []
    for settings, factor in ((ours, 1.0), (theirs, 0.1)):
        weight = nn.Parameter(torch.linspace(-2, 2, 5, dtype=torch.float64))
        assert settings.pop("type") == "SGD"
        optimizer = torch.optim.SGD([weight], **settings)
        for _ in range(4):
            optimizer.zero_grad()
            (factor * weight.sin().sum()).backward()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


def test_a_whole_image_is_padded_for_the_network_and_predicted_at_its_own_size():
    cfg = read(STUDENT)
    whole = MODELS.build(cfg.model.data_preprocessor)(street(1024, 2048))
    assert whole["inputs"].shape == (1, 3, 1025, 2049)
    assert whole["inputs"][..., 1024, :].eq(0).all()
    # The same, at a size that a processor runs fast: one row and one column again.
    cfg.model.data_preprocessor.test_cfg = dict(size=(65, 129))
    torch.manual_seed(0)
    model = MODELS.build(without_downloads(cfg.model)).eval()
    data = street(64, 128, img_shape=(64, 128))
    prepared = model.data_preprocessor(data, training=False)
    (sample,) = model.test_step(data)
    assert sample.pred_sem_seg.data.shape == (1, 64, 128)
    with torch.no_grad():
        logits = heads(model, prepared["inputs"])[0]
    assert logits.shape[2:] == (9, 17)
    # 65 = 8 * 8 + 1 with aligned corners: every place of the map is at a pixel of its own.
    full = F.interpolate(logits, (65, 129), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(full[:, ::8, ::8], logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample.seg_logits.data, full[:, :64, :128])


def test_learning_rates_fall_to_zero_over_the_run():
    cfg = prepare_config(read(STUDENT))
    for schedule in (cfg.param_scheduler.student, cfg.param_scheduler.critic):
        (poly,) = schedule
        assert (poly.type, poly.power, poly.eta_min, poly.end) == ("PolyLR", 0.9, 0.0, 40000)
    assert math.prod((cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters)) == 320_000
