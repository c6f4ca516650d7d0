"""What of two translators is compared, how a student begins, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn import functional as F

from taskdistill.core.errors import CheckpointError, ConfigError, TeacherError
from taskdistill.core.teacher import load_weights
from taskdistill.tasks.openmm.teacher import SAFE_GLOBALS, read_mm_checkpoint


def distilled(gan: Any, model: Any = None, **distill: Any) -> Any:
    config = gan.config(model or gan.model(), distill=gan.distill(**distill))
    built = MODELS.build(gan.wrap(config, gan.folder / "unused").model)
    torch.manual_seed(0)
    built.init_weights()
    return built


def teacher_of(model: Any) -> Any:
    return next(iter(model.distiller.teachers.values())).model


def weights(files: dict[str, str]) -> dict[str, torch.Tensor]:
    return read_mm_checkpoint(files["checkpoint"])["state_dict"]


def test_terms_are_what_they_are_called(gan):
    model = distilled(gan)
    data = model.data_preprocessor(gan.data(), True)
    losses = model(**data, mode="loss")
    x = data["inputs"]
    fake, target = model.student.generator(x), teacher_of(model).generator(x)
    torch.testing.assert_close(losses["kd_image_raw"], F.l1_loss(fake, target))
    torch.testing.assert_close(losses["loss_kd_image"], 10 * losses["kd_image_raw"])
    ours, theirs = (net.generator.model[:10](x) for net in (model.student, teacher_of(model)))
    project = model.distiller.adapters["down"][0].project
    assert project.weight.shape == (32, 16, 1, 1)
    torch.testing.assert_close(losses["kd_down_raw"], F.mse_loss(project(ours), theirs))


def test_the_teacher_stops_after_its_last_layer_where_no_image_is_compared(gan):
    model = distilled(gan)
    only = [dict(student="generator.model.9", loss="FeatureImitation")]
    config = gan.config(distill=gan.distill(*only))
    short = MODELS.build(gan.wrap(config, gan.folder / "unused").model)
    for each, runs in ((model, True), (short, False)):
        called = []
        last = each.distiller.teachers["teacher"].network.generator.model[-1]
        last.register_forward_hook(lambda *_, seen=called: seen.append(1))
        each(**each.data_preprocessor(gan.data(), True), mode="loss")
        assert bool(called) is runs


def test_a_cyclegan_teaches_by_its_generator(gan):
    teacher = gan.teacher("CycleGAN")
    model = distilled(gan, gan.model("ImageTranslator"), teacher=teacher)
    data = model.data_preprocessor(gan.data(), True)
    losses = model(**data, mode="loss")
    target = teacher_of(model).generator(data["inputs"])
    fake = model.student.generator(data["inputs"])
    torch.testing.assert_close(losses["kd_image_raw"], F.l1_loss(fake, target))
    assert "loss_G_recon" not in losses


def test_a_teacher_may_be_a_bare_file_of_the_releases(gan, tmp_path):
    teacher = gan.teacher()
    bare = {k.removeprefix("generator."): v for k, v in weights(teacher).items()}
    torch.save(bare, tmp_path / "latest_net_G.pth")
    files = dict(teacher, checkpoint=str(tmp_path / "latest_net_G.pth"))
    first, second = distilled(gan, teacher=teacher), distilled(gan, teacher=files)
    for name, value in teacher_of(first).state_dict().items():
        assert torch.equal(value, teacher_of(second).state_dict()[name])
    del bare["model.1.bias"]
    torch.save(bare, tmp_path / "latest_net_G.pth")
    with pytest.raises(CheckpointError, match="generator.model.1.bias"):
        distilled(gan, teacher=files)


# -- how a student begins ------------------------------------------------------------------------


def test_a_student_as_wide_as_its_teacher_begins_as_its_teacher(gan):
    teacher = gan.teacher()
    init = dict(generator="teacher", discriminator="teacher")
    model = distilled(gan, gan.model(generator=gan.wide), teacher=teacher, init=init)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(
        model.student.generator(x), teacher_of(model).generator(x), rtol=1e-4, atol=1e-5
    )
    kept = read_mm_checkpoint(teacher["checkpoint"])["gan"]["discriminators"]["discriminator"]
    for name, value in model.student.discriminator.state_dict().items():
        assert torch.equal(value, kept[name])


def test_a_thin_student_takes_the_teachers_strongest_channels(gan):
    model = distilled(gan, init=dict(generator="teacher"))
    ours, theirs = (net.generator.model[1].weight for net in (model.student, teacher_of(model)))
    chosen = theirs.abs().sum((1, 2, 3)).topk(4).indices
    assert torch.equal(ours, theirs[chosen])
    fresh = distilled(gan)
    assert not torch.equal(fresh.student.generator.model[1].weight, theirs[chosen])


def test_a_student_may_begin_from_files(gan, tmp_path):
    start = gan.build(gan.model(), 5)
    torch.save(start.generator.state_dict(), tmp_path / "net_G.pth")
    torch.save(start.discriminator.state_dict(), tmp_path / "net_D.pth")
    files = dict(generator=str(tmp_path / "net_G.pth"), discriminator=str(tmp_path / "net_D.pth"))
    model = distilled(gan, init=files)
    for name in ("generator", "discriminator"):
        for key, value in getattr(start, name).state_dict().items():
            assert torch.equal(value, getattr(model.student, name).state_dict()[key])


def test_a_generator_of_another_width_is_told(gan, tmp_path):
    wide = gan.build(gan.model(generator=gan.wide))
    torch.save(wide.generator.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match="other shape .*generator.model.1.weight"):
        distilled(gan, init=dict(generator=str(tmp_path / "wide.pth")))


def test_what_a_student_cannot_begin_with(gan, tmp_path):
    for init, words in (
        (dict(generater="teacher"), "Did you mean 'generator'"),
        (dict(generator=3), "expected 'teacher', a checkpoint, or None"),
    ):
        with pytest.raises(ConfigError, match=words):
            distilled(gan, init=init)
    with pytest.raises(CheckpointError, match="does not exist"):
        distilled(gan, init=dict(discriminator="absent.pth"))
    wider = gan.teacher()
    side = read_mm_checkpoint(wider["checkpoint"])
    del side["gan"]
    torch.save(side, tmp_path / "no_side.pth")
    with pytest.raises(CheckpointError, match="no discriminator of the student's shape"):
        distilled(gan, init=dict(discriminator=str(tmp_path / "no_side.pth")))
    other = gan.model()
    other["discriminator"]["width"] = 8
    with pytest.raises(CheckpointError, match="entries differ"):
        distilled(gan, other, init=dict(discriminator="teacher"))
    family = gan.model(generator=dict(type="ResnetGenerator", width=4, blocks=3))
    with pytest.raises(ConfigError, match="famil|ResnetGenerator"):
        distilled(gan, family, init=dict(generator="teacher"))


# -- what is refused -----------------------------------------------------------------------------


def test_pairs_of_a_super_network_are_sliced(gan):
    wide = gan.model(generator=gan.super)
    with pytest.raises(ConfigError, match="adapter='sliced'"):
        distilled(gan, wide)
    line = dict(student="generator.model.9", loss="FeatureImitation", adapter="sliced", name="down")
    config = gan.config(wide, distill=gan.distill(line))
    model = MODELS.build(gan.wrap(config, gan.folder / "unused").model)
    model.init_weights()
    data = model.data_preprocessor(gan.data(), True)
    project = model.distiller.adapters["down"][0].project
    for active in (model.student.generator.largest, model.student.generator.smallest):
        model.student.generator.active = active
        losses = model(**data, mode="loss")
        width = 4 * active[2]
        seen = model.student.generator.slice(active).model[:10](data["inputs"])
        assert seen.shape[1] == width
        theirs = teacher_of(model).generator.model[:10](data["inputs"])
        expected = F.mse_loss(F.conv2d(seen, project.weight[:, :width], project.bias), theirs)
        torch.testing.assert_close(losses["kd_down_raw"], expected, rtol=1e-5, atol=1e-6)


def test_networks_that_cannot_be_compared(gan):
    with pytest.raises(TeacherError, match="student is a CycleGAN.*without a cycle"):
        distilled(gan, gan.model("CycleGAN"))
    grey = gan.model("ImageTranslator", dict(gan.thin, in_channels=1))
    with pytest.raises(TeacherError, match="takes images of 3 channels, the student of 1"):
        distilled(gan, grey)
    second = dict(student="outputs.image", loss="Holistic")
    with pytest.raises(ConfigError, match="would be a second one"):
        config = gan.config(distill=gan.distill(second))
        MODELS.build(gan.wrap(config, gan.folder / "unused").model)
    wrong = dict(student="outputs.picture", loss="Reconstruction")
    with pytest.raises(ConfigError, match="no output 'picture'.*image"):
        config = gan.config(distill=gan.distill(wrong))
        MODELS.build(gan.wrap(config, gan.folder / "unused").model)


def test_a_grey_student_is_probed_with_grey_images(gan):
    grey = dict(gan.wide, in_channels=1)
    model = gan.model("ImageTranslator", grey)
    built = gan.build(model, 7)
    checkpoint = gan.folder / "grey.pth"
    torch.save({"state_dict": built.state_dict()}, checkpoint)
    teacher = dict(config=gan.write(gan.config(model)), checkpoint=str(checkpoint))
    student = gan.model("ImageTranslator", dict(gan.thin, in_channels=1))
    assert distilled(gan, student, teacher=teacher).distiller.is_set_up


def test_deployed_weights_load_into_the_plain_student(gan, tmp_path):
    model = distilled(gan)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "student.pth")
    plain = gan.build(gan.model(), 3)
    load_weights(plain, tmp_path / "student.pth", safe_globals=SAFE_GLOBALS)
    assert set(model.state_dict()) == set(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
