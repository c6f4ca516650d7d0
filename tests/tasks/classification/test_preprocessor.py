from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import nn

from taskdistill.core.errors import ConfigError, DataError, ShapeError
from taskdistill.tasks.classification.preprocessor import ClassifierPreprocessor
from taskdistill.tasks.openmm.preprocess import own_images

MEAN, STD = [110.0, 100.0, 90.0], [60.0, 50.0, 40.0]


def images(count: int = 4, channels: int = 3, size: int = 6) -> torch.Tensor:
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8)


def mixes(kind: str, **options) -> ClassifierPreprocessor:
    return ClassifierPreprocessor(MEAN, STD, mixing=dict(type=kind, **options), num_classes=5)


def test_it_is_mmengines_normalisation():
    pixels = images()
    ours = ClassifierPreprocessor(MEAN, STD)({"inputs": pixels})["inputs"]
    theirs = ImgDataPreprocessor(MEAN, STD)({"inputs": list(pixels)})["inputs"]
    torch.testing.assert_close(ours, theirs)


def test_both_ways_of_collating():
    preprocessor = ClassifierPreprocessor(MEAN, STD)
    pixels, labels = images(), torch.tensor([3, 0, 1, 2])
    stacked = preprocessor({"inputs": pixels, "data_samples": labels})
    listed = preprocessor({"inputs": list(pixels), "data_samples": labels.tolist()})
    for key in ("inputs", "data_samples"):
        assert torch.equal(stacked[key], listed[key])
    assert stacked["data_samples"].dtype == torch.int64
    assert preprocessor({"inputs": pixels})["data_samples"] is None


def test_soft_labels_stay_soft():
    soft = torch.rand(4, 5, dtype=torch.float64)
    found = ClassifierPreprocessor()({"inputs": images(), "data_samples": soft}, True)
    torch.testing.assert_close(found["data_samples"], soft.float())


def test_nothing_of_it_is_in_a_state_dict():
    assert not ClassifierPreprocessor(MEAN, STD).state_dict()


def test_one_number_serves_all_channels():
    found = ClassifierPreprocessor()({"inputs": images(channels=2)})["inputs"]
    assert 0 <= found.min() and found.max() <= 1


def test_a_teacher_with_other_statistics_sees_its_own_images():
    student, teacher = nn.Module(), nn.Module()
    student.data_preprocessor = ClassifierPreprocessor(MEAN, STD)
    teacher.data_preprocessor = ClassifierPreprocessor([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    pixels = {"inputs": images()}
    convert = own_images(student, teacher)
    assert convert is not None
    (seen,), _ = convert((student.data_preprocessor(pixels)["inputs"],), {})
    torch.testing.assert_close(seen, teacher.data_preprocessor(pixels)["inputs"])
    assert own_images(student, student) is None


# -- mixing ----------------------------------------------------------------------------------------


def share_of(labels: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The share of each image's own label."""
    return soft[torch.arange(len(labels)), labels]


def test_mixup_is_a_weighted_mean_of_two_images():
    pixels, labels = images(), torch.tensor([3, 0, 1, 2])
    batch = {"inputs": pixels, "data_samples": labels}
    plain = ClassifierPreprocessor(MEAN, STD)(batch)["inputs"]
    found = mixes("MixUp")(batch, training=True)
    shares = share_of(labels, found["data_samples"])
    share = shares[0]
    assert 0 < share < 1 and (shares == share).all()
    expected = share * plain + (1 - share) * plain.roll(1, 0)
    torch.testing.assert_close(found["inputs"], expected)
    hard = F.one_hot(labels, 5).float()
    torch.testing.assert_close(found["data_samples"], share * hard + (1 - share) * hard.roll(1, 0))


def test_cutmix_pastes_a_rectangle():
    pixels, labels = images(size=20), torch.tensor([3, 0, 1, 2])
    batch = {"inputs": pixels, "data_samples": labels}
    plain = ClassifierPreprocessor(MEAN, STD)(batch)["inputs"]
    found = mixes("CutMix")(batch, training=True)
    own = (found["inputs"] == plain).all(1)
    pasted = (found["inputs"] == plain.roll(1, 0)).all(1)
    assert (own | pasted).all()
    share = share_of(labels, found["data_samples"])
    torch.testing.assert_close(1 - share, (~own).float().mean((1, 2)), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["MixUp", "CutMix"])
def test_it_mixes_in_training_only_and_repeats_itself(kind):
    preprocessor = mixes(kind, alpha=0.5)
    batch = {"inputs": images(), "data_samples": torch.tensor([3, 0, 1, 2])}
    assert torch.equal(preprocessor(batch)["data_samples"], batch["data_samples"])
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(preprocessor(batch, training=True)["inputs"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_one_of_several_is_drawn():
    both = [dict(type="MixUp"), dict(type="CutMix")]
    preprocessor = ClassifierPreprocessor(mixing=both, num_classes=2)
    # Of black and white, CutMix leaves nothing in between.
    pixels = torch.zeros(2, 1, 20, 20, dtype=torch.uint8)
    pixels[0] = 255
    pasted = []
    for seed in range(12):
        torch.manual_seed(seed)
        found = preprocessor({"inputs": pixels, "data_samples": [0, 1]}, training=True)["inputs"]
        pasted.append(bool(((found == 0) | (found == 1)).all()))
    assert any(pasted) and not all(pasted)


def test_a_batch_of_one_stays_itself():
    found = mixes("MixUp")({"inputs": images(1), "data_samples": [4]}, training=True)
    torch.testing.assert_close(found["data_samples"], torch.tensor([[0.0, 0, 0, 0, 1]]))


def test_the_classifier_fills_in_its_classes(tiny_data):
    preprocessor = dict(type="ClassifierPreprocessor", mixing=dict(type="MixUp"))
    model = tiny_data.build(tiny_data.model(data_preprocessor=preprocessor))
    batch = model.data_preprocessor(tiny_data.batch(), True)
    assert batch["data_samples"].shape == (6, 3)
    assert model(**batch, mode="loss")["loss_cls"].isfinite()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mean=[1, 2], std=[1, 2, 3]), "mean has 2 numbers and std 3"),
        (dict(mean=[], std=[1]), "mean has 0 numbers"),
        (dict(mean=[0.5, -1, 0]), "mean=-1; expected a number from 0 to 255"),
        (dict(std=[0.0]), "std=0.0; expected a number above 0"),
        (dict(mixing=dict(type="Mixup"), num_classes=2), "Did you mean 'MixUp'"),
        (dict(mixing=dict(type="MixUp", beta=1), num_classes=2), "takes 'alpha' alone, got beta"),
        (dict(mixing=dict(type="MixUp", alpha=0), num_classes=2), "alpha=0"),
        (dict(mixing=dict(type="MixUp")), "needs num_classes"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        ClassifierPreprocessor(**options)


def test_pixels_are_uint8():
    with pytest.raises(DataError, match="got torch.float32.*ToDtype"):
        ClassifierPreprocessor()({"inputs": torch.zeros(1, 3, 4, 4)})


def test_channels_must_be_the_images():
    with pytest.raises(DataError, match="Images have 1 channels, but mean and std .* 3 and 3"):
        ClassifierPreprocessor(MEAN, STD)({"inputs": images(channels=1)})


def test_images_of_several_sizes():
    several = [images(1, size=size)[0] for size in (4, 5)]
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\), \(3, 5, 5\).*crops or resizes"):
        ClassifierPreprocessor()({"inputs": several})
