from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

pytest.importorskip("mmengine")
pytest.importorskip("pytorch_fid")
pytest.importorskip("torchmetrics")

from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS
from mmengine.structures import BaseDataElement
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.image import PeakSignalNoiseRatio

from taskdistill.core.errors import CheckpointError, ConfigError, DataError, ShapeError
from taskdistill.tasks.gan.metrics.evaluator import ImageSetDistance, LabelMapIoU, PairedError
from taskdistill.tasks.gan.metrics.folders import measure_files
from taskdistill.tasks.gan.metrics.frechet import frechet_distance, kernel_distance
from taskdistill.tasks.gan.metrics.images import list_images, read_image
from taskdistill.tasks.gan.metrics.small import SmallNetwork

PALETTE = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def sample(fake: Tensor, target: Tensor, **metainfo: object) -> BaseDataElement:
    return BaseDataElement(metainfo=metainfo, fake=fake, target=target)


def samples(count: int, size: tuple[int, int] = (16, 16), **metainfo: object) -> list:
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        target = torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
        noise = torch.randint(-40, 41, (3, *size), generator=generator)
        fake = (target + noise).clamp(0, 255).byte()
        paths = {"img_path": f"in/{index}.png", "target_path": f"out/{index}.png"}
        made.append(sample(fake, target, **(paths | metainfo)))
    return made


def evaluate(metric: BaseMetric, data: list, batch: int = 4) -> dict[str, float]:
    evaluator = Evaluator(metric)
    for start in range(0, len(data), batch):
        evaluator.process(data_samples=data[start : start + batch])
    return evaluator.evaluate(len(data))


# -- sets ------------------------------------------------------------------------------------------


def test_found_by_name():
    for metric in (ImageSetDistance, PairedError, LabelMapIoU):
        assert METRICS.get(metric.__name__) is metric
    built = METRICS.build({"type": "ImageSetDistance", "network": "small", "prefix": "val"})
    assert set(evaluate(built, samples(3))) == {"val/SmallFD"}


def test_the_figures_are_those_of_folders_of_the_same_images(folders: tuple[Path, Path]):
    files = [list_images(folder)[:20] for folder in folders]
    network = SmallNetwork()
    (real, x), (fake, y) = (measure_files(f, network, keep_features=True) for f in files)
    data = [sample(read_image(f), read_image(r)) for r, f in zip(*files, strict=True)]
    figures = evaluate(ImageSetDistance(kid=True), data)
    assert figures["SmallFD"] == pytest.approx(frechet_distance(real, fake), rel=1e-5)
    assert x is not None and y is not None
    expected = kernel_distance(x, y, gamma=network.kernel_gamma)[0]
    assert figures["SmallKD"] == pytest.approx(expected, rel=1e-4)


def test_inception_gives_fid_and_kid(inception_weights: Path):
    with pytest.warns(UserWarning, match="published"):
        metric = ImageSetDistance("inception", str(inception_weights), kid=True, dims=64)
    with pytest.warns(UserWarning, match="singular"):
        figures = evaluate(metric, samples(4))
    assert set(figures) == {"FID", "KID"}
    assert figures["FID"] > 0


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_batch_size_does_not_matter(batch: int):
    data = samples(10)
    expected = evaluate(ImageSetDistance(kid=True), data, 4)
    assert evaluate(ImageSetDistance(kid=True), data, batch) == pytest.approx(expected, rel=1e-4)


def test_only_features_are_kept():
    metric = ImageSetDistance()
    metric.process({}, [element.to_dict() for element in samples(3, (200, 300))])
    assert len(metric.results) == 3
    # 2 x 16 x 72 float32, whatever the size of the images.
    assert max(len(pickle.dumps(entry)) for entry in metric.results) < 10_500
    assert metric.evaluate(3)["SmallFD"] > 0
    assert metric.results == []


def test_images_of_different_sizes():
    data = samples(4) + samples(4, (20, 30))
    assert evaluate(ImageSetDistance(), data)["SmallFD"] > 0


def test_repetitions_of_an_epoch_count_once():
    data = samples(6)
    expected = evaluate(ImageSetDistance(kid=True), data)
    repeated = data + [
        sample(new.fake, old.target, img_path=f"in/{i + 9}.png", target_path=old.target_path)
        for i, (new, old) in enumerate(zip(data, data, strict=True))
    ]
    figures = evaluate(ImageSetDistance(), repeated)
    # The targets count once, the generated images twice, which leaves mean and almost covariance.
    assert figures["SmallFD"] == pytest.approx(expected["SmallFD"], rel=0.1)
    assert evaluate(ImageSetDistance(kid=True), data + data) == pytest.approx(expected, rel=1e-4)


def test_equal_images_of_different_files_all_count():
    element = samples(1)[0]
    data = [
        sample(element.fake, element.target, img_path=f"{i}", target_path=f"{i}") for i in range(3)
    ]
    assert evaluate(ImageSetDistance(), data)["SmallFD"] > 0
    without = [sample(element.fake, element.target) for _ in range(3)]
    assert evaluate(ImageSetDistance(), without)["SmallFD"] > 0
    with pytest.raises(DataError, match="2 different images of each, got 1 targets and 1 gen"):
        evaluate(ImageSetDistance(), [element, element])


def test_errors_of_sets():
    with pytest.raises(DataError, match="got 0 targets and 0 generated ones"):
        evaluate(ImageSetDistance(), [])
    with pytest.raises(ConfigError, match="no feature network 'smal'.*'small'"):
        ImageSetDistance("smal")
    with pytest.raises(CheckpointError, match="FID needs the weights file"):
        ImageSetDistance("inception")
    with pytest.raises(DataError, match=r"no image 'fake'; it has \['target'\]"):
        ImageSetDistance().process({}, [{"target": torch.zeros(3, 8, 8).byte()}])
    with pytest.raises(ShapeError, match="'target' must be a uint8 image"):
        ImageSetDistance().process(
            {}, [{"fake": torch.zeros(3, 8, 8).byte(), "target": torch.zeros(3, 8, 8)}]
        )


def _metrics() -> list[BaseMetric]:
    return [ImageSetDistance(kid=True), PairedError(), LabelMapIoU(PALETTE)]


def _rank(rank: int, world: int, folder: str) -> None:
    os.chdir(folder)  # mmengine collects in a folder below the current one
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    evaluator = Evaluator(_metrics())
    data = samples(7, paired=True)
    # As mmengine's sampler deals them out: padded to a multiple of the processes.
    evaluator.process(data_samples=[data[i % 7] for i in range(rank, 8, world)])
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(evaluator.evaluate(7)))
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path: Path):
    expected: dict[str, float] = {}
    for metric in _metrics():
        expected |= evaluate(metric, samples(7, paired=True))
    assert len(expected) == 6
    mp.spawn(_rank, (2, str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    for rank in range(2):
        figures = pickle.loads((tmp_path / f"{rank}.pkl").read_bytes())
        assert figures == pytest.approx(expected, rel=1e-4)


# -- pairs -----------------------------------------------------------------------------------------


def test_paired_error_by_hand_and_by_torchmetrics():
    data = samples(6, (9, 13), paired=True) + samples(2, (30, 20), paired=True)
    figures = evaluate(PairedError(), data)
    fake = torch.cat([element.fake.flatten() for element in data]).float()
    target = torch.cat([element.target.flatten() for element in data]).float()
    assert figures["L1"] == pytest.approx((fake - target).abs().mean().item() / 255, rel=1e-6)
    psnr = PeakSignalNoiseRatio(data_range=255.0)
    assert figures["PSNR"] == pytest.approx(psnr(fake, target).item(), rel=1e-5)


def test_black_and_white_are_1_apart_and_equal_images_0():
    black, white = torch.zeros(1, 8, 8).byte(), torch.full((1, 8, 8), 255).byte()
    assert evaluate(PairedError(), [sample(black, white, paired=True)]) == {"L1": 1.0, "PSNR": 0.0}
    figures = evaluate(PairedError(), [sample(white, white, paired=True)])
    assert figures == {"L1": 0.0, "PSNR": math.inf}


def test_unpaired_samples_do_not_count():
    paired = samples(4, paired=True)
    other = samples(3, (8, 8), paired=False) + [sample(paired[0].fake, paired[1].target)]
    assert evaluate(PairedError(), other + paired) == evaluate(PairedError(), paired)
    with pytest.raises(DataError, match="None of 4 samples has paired=True"):
        evaluate(PairedError(), other)


def test_pairs_of_different_shape():
    with pytest.raises(ShapeError, match=r"is \(3, 8, 8\) and its target \(3, 8, 9\)"):
        evaluate(
            PairedError(),
            [sample(torch.zeros(3, 8, 8).byte(), torch.zeros(3, 8, 9).byte(), paired=True)],
        )


# -- label maps ------------------------------------------------------------------------------------


def label_maps(count: int, classes: int) -> tuple[list[BaseDataElement], Tensor, Tensor]:
    """Colours that are a little off, and the labels they stand for."""
    palette = torch.tensor(PALETTE)
    target = torch.randint(classes, (count, 10, 12))
    fake = torch.where(torch.rand(target.shape) < 0.7, target, torch.randint_like(target, classes))

    def colours(labels: Tensor) -> Tensor:
        exact = palette[labels].permute(2, 0, 1)
        return (exact + torch.randint(-60, 61, exact.shape)).clamp(0, 255).byte()

    pairs = zip(fake, target, strict=True)
    return [sample(colours(f), colours(t)) for f, t in pairs], fake, target


@pytest.mark.parametrize("classes", [4, 3])  # with 3, one class occurs nowhere
def test_label_map_iou_equals_torchmetrics(classes: int):
    data, fake, target = label_maps(5, classes)
    names = ["a", "b", "c", "d"]
    figures = evaluate(LabelMapIoU(PALETTE, names), data, batch=2)
    jaccard = MulticlassJaccardIndex(classes, average=None)(fake, target)
    for name, value in zip(names, jaccard, strict=False):
        assert figures[f"IoU.{name}"] == pytest.approx(100 * value.item(), rel=1e-6)
    assert figures["mIoU"] == pytest.approx(100 * jaccard.mean().item(), rel=1e-6)
    expected = (fake == target).double().mean().item()
    assert figures["accuracy"] == pytest.approx(100 * expected)
    assert 50 < figures["accuracy"] < 95
    assert len(figures) == 2 + classes
    assert set(evaluate(LabelMapIoU(PALETTE), data)) == {"mIoU", "accuracy"}


def test_the_nearest_colour_decides():
    metric = LabelMapIoU([(0, 0, 0), (100, 100, 100), (255, 255, 255)])
    grey = torch.tensor([[[0, 49, 50, 51, 177, 178]]], dtype=torch.uint8)
    assert metric.labels(grey).tolist() == [[0, 0, 0, 1, 1, 2]]  # 50 is as near to both
    image = torch.randint(256, (3, 7, 9), dtype=torch.uint8)
    colours = torch.tensor(PALETTE).double()
    distances = torch.cdist(image.flatten(1).mT.double(), colours)
    assert torch.equal(LabelMapIoU(PALETTE).labels(image).flatten(), distances.argmin(1))


def test_errors_of_label_maps():
    for palette in ([], [(0, 0, 0)], [(0, 0, 0), (0, 0, 0)]):
        with pytest.raises(ConfigError, match="at least two colours, all different"):
            LabelMapIoU(palette)
    for palette in ([(0, 0, 0), (1, 1)], [(0, 0, 0), (0, 0, 256)]):
        with pytest.raises(ConfigError, match="0 to 255"):
            LabelMapIoU(palette)
    with pytest.raises(ConfigError, match="4 colours need as many different classes"):
        LabelMapIoU(PALETTE, ["a", "b", "c", "c"])
    with pytest.raises(DataError, match="no label map"):
        evaluate(LabelMapIoU(PALETTE), [])
    with pytest.raises(ShapeError, match="one size"):
        evaluate(
            LabelMapIoU(PALETTE), [sample(torch.zeros(3, 8, 8).byte(), torch.zeros(3, 9, 8).byte())]
        )


def test_numpy_types_do_not_get_out():
    """What is logged must be plain numbers."""
    data = samples(3, paired=True)
    for metric in (ImageSetDistance(kid=True), PairedError(), LabelMapIoU(PALETTE, list("abcd"))):
        assert {type(value) for value in evaluate(metric, data).values()} == {float}
