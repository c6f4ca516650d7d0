import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from torch import nn

from taskdistill.core.errors import ConfigError
from taskdistill.core.losses import feature_imitation
from taskdistill.tasks.openmm.preprocess import OwnImages, own_images
from taskdistill.tasks.openmm.teacher import build_teacher

SHAPES = [(64, 40), (50, 64)]


def pictures() -> list[torch.Tensor]:
    """Two raw pictures of other sizes, with black in them, which is no padding."""
    rng = np.random.default_rng(0)
    raw = [torch.from_numpy(rng.integers(0, 256, (3, *s), dtype=np.uint8)) for s in SHAPES]
    raw[0][:, 5, 5] = 0
    raw[1][:, 9:20] = 0
    return raw


def preprocessed(model) -> torch.Tensor:
    samples = [DetDataSample(metainfo=dict(img_shape=s, ori_shape=s, pad_shape=s)) for s in SHAPES]
    data = dict(inputs=pictures(), data_samples=samples)
    return model.data_preprocessor(data, training=True)["inputs"]


def inside(images: torch.Tensor) -> torch.Tensor:
    masks = torch.zeros(len(SHAPES), *images.shape[-2:], dtype=torch.bool)
    for mask, (h, w) in zip(masks, SHAPES, strict=True):
        mask[:h, :w] = True
    return masks


@pytest.fixture
def models(tiny):
    """A student and a teacher that differ in their preprocessing alone."""

    def make(student, teacher):
        return [tiny.build(tiny.model(preprocessor=options)) for options in (student, teacher)]

    return make


PLAIN = {"mean": None, "std": None, "bgr_to_rgb": False}
OTHER = {"mean": [10.0, 60.0, 130.0], "std": [20.0, 30.0, 40.0]}


@pytest.mark.parametrize("converts", [True, False])
@pytest.mark.parametrize("theirs", [OTHER, {"mean": None, "std": None}])
@pytest.mark.parametrize("ours", [{}, PLAIN])
@pytest.mark.parametrize("pad_value", [0, -1.5])
def test_a_teacher_sees_images_normalised_and_padded_its_own_way(
    models, ours, theirs, converts, pad_value
):
    """Equal to its own preprocessor on the same pictures, black pixels kept."""
    student, teacher = models(ours, {**theirs, "bgr_to_rgb": converts, "pad_value": pad_value})
    images, expected = preprocessed(student), preprocessed(teacher)
    own = own_images(student, teacher)
    if own is None:
        assert torch.equal(images, expected)
        return
    (found, rest), kwargs = own((images, "rest"), {"inside": inside(images), "mode": "loss"})
    assert (rest, kwargs) == ("rest", {"mode": "loss"})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert own.factors(images.shape) == (1.0, 1.0)
    # Without being told, the padding is picture.
    (found,), _ = own((images,), {})
    torch.testing.assert_close(
        found[inside(images)[:, None].expand_as(found)],
        expected[inside(images)[:, None].expand_as(found)],
        atol=1e-4,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({}, False),
        ({"mean": None, "std": None}, True),
        ({"std": [58.395, 57.12, 57.0]}, True),
        ({"bgr_to_rgb": False}, True),
        ({"bgr_to_rgb": False, "rgb_to_bgr": True}, False),  # either way the order is turned round
        ({"pad_value": 1}, True),
        ({"pad_size_divisor": 64}, False),  # the student's batch is what there is
    ],
)
def test_it_is_made_where_the_two_differ(models, change, needed):
    assert (own_images(*models({}, change)) is not None) is needed


def test_numbers_that_change_nothing_are_no_difference(models):
    zeros = {"mean": [0.0] * 3, "std": [1.0] * 3, "bgr_to_rgb": False}
    assert own_images(*models(PLAIN, zeros)) is None
    assert own_images(nn.Identity(), *models({}, {})[:1]) is None  # unknown: as they are


# -- its own scale ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "shape", "size"),
    [
        (1, (50, 70), (50, 70)),  # no rounding either
        (2, (64, 96), (128, 192)),
        (1.5, (64, 96), (96, 160)),  # 144 lies midway between 128 and 160
        (2.5, (64, 32), (160, 96)),  # 80 between 64 and 96
        (0.5, (96, 128), (64, 64)),  # 48 between 32 and 64
        (0.1, (64, 64), (32, 32)),  # never nothing
        (1.5, (2, 3, 64, 64), (96, 96)),
    ],
)
def test_sizes_are_the_nearest_multiples(models, scale, shape, size):
    own = own_images(*models({}, {}), scale) or OwnImages(None, None)
    assert own.size(shape) == size
    assert own.factors(shape) == (size[0] / shape[-2], size[1] / shape[-1])


def test_the_multiple_is_the_teachers(models):
    own = own_images(*models({}, {"pad_size_divisor": 1}), 1.25)
    assert own.size((66, 50)) == (83, 63)
    own = own_images(*models({}, {"pad_size_divisor": 128}), 1.25)
    assert own.size((66, 150)) == (128, 128)


@pytest.mark.parametrize("scale", [2, 1.5, 0.5])
def test_images_are_normalised_then_resized_and_the_padding_kept(models, scale):
    student, teacher = models({}, {**OTHER, "pad_value": 3.0})
    images, own = preprocessed(student), own_images(student, teacher, scale)
    (found,), _ = own((images,), {"inside": inside(images)})
    normalised = preprocessed(teacher)
    expected = F.interpolate(normalised, own.size(images.shape), mode="bilinear", antialias=True)
    assert found.shape == expected.shape
    real = torch.zeros_like(expected, dtype=torch.bool)
    for mask, (h, w) in zip(real, SHAPES, strict=True):
        y, x = own.factors(images.shape)
        mask[:, : round(h * y), : round(w * x)] = True
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5)
    assert (found[~real] == 3.0).all() and (~real).any()


def test_a_uniform_picture_stays_uniform_at_every_scale(models):
    """Nothing of what is beyond the border comes in."""
    own = own_images(*models({}, {}), 0.5)
    (found,), _ = own((torch.full((1, 3, 64, 96), 1.25),), {})
    torch.testing.assert_close(found, torch.full_like(found, 1.25))


@pytest.mark.parametrize("scale", [0, -1.5, "2", None, True, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_meant_is_told(tiny, models, scale):
    student, _ = models({}, {})
    with pytest.raises(ConfigError, match="scale is .*; expected a number above 0"):
        build_teacher({**tiny.teacher(), "scale": scale}, student, "teacher")


@pytest.mark.parametrize("preprocessor", [{}, OTHER])
@pytest.mark.parametrize("scale", [2, 0.5])
def test_a_teacher_at_another_scale_is_the_teacher_asked_by_hand(tiny, scale, preprocessor):
    student = tiny.build(tiny.model())
    files = tiny.save_teacher(tiny.model(width=16, preprocessor=preprocessor))
    teacher = build_teacher({**files, "scale": scale}, student, "teacher")
    assert teacher.preprocess.scale == scale
    images, _ = tiny.batch(student)
    found = teacher.run(teacher.model.extract_feat, images)
    resized = F.interpolate(
        tiny.batch(teacher.model)[0], scale_factor=scale, mode="bilinear", antialias=scale < 1
    )
    with torch.no_grad():
        expected = teacher.model.extract_feat(resized)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("scale", [2, 0.5])
def test_features_of_another_scale_are_compared_at_the_smaller_size(tiny, scale):
    pair = dict(student="neck", loss="FeatureImitation", name="neck")
    files = tiny.save_teacher(tiny.model("RetinaNet"))
    distill = dict(teacher={**files, "scale": scale}, pairs=[pair])
    config = tiny.config(tiny.model("RetinaNet"), distill=distill)
    model = MODELS.build(tiny.wrap(config, tiny.folder).model)
    images, samples = tiny.batch(model)
    losses = model(images, samples, mode="loss")
    resized = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)
    with torch.no_grad():
        ours = model.student.extract_feat(images)
        theirs = model.distiller.teachers["teacher"].model.extract_feat(resized)
    values = []
    for s, t in zip(ours, theirs, strict=True):
        size = min(s.shape[-2:], t.shape[-2:])
        s, t = (F.adaptive_avg_pool2d(x, size) for x in (s, t))
        values.append(feature_imitation(s, t))
    torch.testing.assert_close(losses["kd_neck_raw"], torch.stack(values).mean())
    assert losses["loss_kd_neck"].requires_grad and losses["kd_neck_raw"] > 0
