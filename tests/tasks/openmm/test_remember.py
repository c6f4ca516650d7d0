from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taskdistill.core.answers import AnswerLayout, Probe
from taskdistill.core.cache import CacheSpec, TeacherCache
from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.core.taps import Taps
from taskdistill.tasks.openmm.remember import IMAGE, CacheOptions, ImageGuard, Remembered, Store


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(), "needs path="),
        (dict(path=""), "path is ''"),
        (dict(path="a", veiws=1), "no 'veiws'. Did you mean 'views'"),
        (dict(path="a", views=0), "views is 0; expected"),
        (dict(path="a", views=True), "views is True"),
        (dict(path="a", views="epoch"), "views is 'epoch'"),
        (dict(path="a", seed=-1), "seed is -1"),
        (dict(path="a", dtype="float16"), "dtype is 'float16'; expected one of fp32, fp16, bf16"),
        (dict(path="a", build="no"), "build is 'no'"),
        (dict(path="a", shard_mb=0), "shard_mb is 0"),
        (["a"], "expected dict"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_told(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CacheOptions.from_config(entry)


@pytest.mark.parametrize("shape", [(3, 33, 47), (1, 8, 8), (3, 1, 2)])
def test_the_guard_knows_a_picture_again_and_no_other(shape: tuple[int, ...]) -> None:
    images = torch.randn(16, *shape) * 60
    guard = ImageGuard(shape)
    probe = guard.probe(images)
    assert probe.shape == (16, 4) and probe.dtype == torch.float32
    assert not guard.differs(images, probe).any()
    # What another library rounds, and how the batch lies in memory, are no difference.
    assert not guard.differs(images * (1 + 1e-6), probe).any()
    assert not guard.differs(images.contiguous(memory_format=torch.channels_last), probe).any()
    assert guard.differs(images.roll(1, 0), probe).all()
    assert guard.differs(images + 1, probe).sum() > 8
    assert guard.differs(images * float("nan"), probe).all()
    assert torch.equal(ImageGuard(shape).probe(images), probe)


def test_the_guard_tells_flips_crops_and_colours() -> None:
    ramp = torch.arange(64.0).expand(1, 3, 64, 64) + torch.randn(1, 3, 64, 64)
    guard = ImageGuard((3, 64, 64))
    probe = guard.probe(ramp)
    for other in (ramp.flip(3), ramp.flip(2), ramp.roll(1, 3), ramp * 1.01, ramp.flip(1)):
        assert guard.differs(other, probe).all()
    with pytest.raises(CacheError, match=r"shows images \(3, 32, 64\).*saw \(3, 64, 64\)"):
        guard.differs(ramp[:, :, :32], probe)


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 5))


@pytest.fixture
def remembered(net: nn.Sequential, tmp_path: Path) -> tuple[Remembered, torch.Tensor]:
    """Two views of three samples, whose taps and logits are kept."""
    taps = Taps(net, ["0", "2@weight"])

    def ask(images: torch.Tensor) -> Any:
        with torch.no_grad(), taps.capture() as captured:
            output = {"logits": net(images)}
        return captured, output

    images = torch.randn(6, 3, 4, 4)
    layout = AnswerLayout.learn([Probe(*ask(images[:n]), n) for n in (2, 3)], dtype="fp32")
    guard = ImageGuard((3, 4, 4))
    spec = CacheSpec((*layout.fields, guard.field), 6, {"seed": 0}, 4)
    cache = TeacherCache(tmp_path / "cache", spec)
    for shard in range(cache.shards):
        own = images[cache.positions(shard)]
        cache.write(shard, {**layout.take_apart(*ask(own)), IMAGE: guard.probe(own)})
    return Remembered({"teacher": Store(cache, layout, taps, guard)}, 3), images


def test_the_answer_to_a_batch_is_the_teachers(
    net: nn.Sequential, remembered: tuple[Remembered, torch.Tensor]
) -> None:
    memory, images = remembered
    assert not memory.knows("teacher")
    order = [5, 0, 3]
    memory.show(order)
    assert memory.knows("teacher") and not memory.knows("another")
    captured, output = memory.answer("teacher", images[order])
    memory.verify()
    assert torch.equal(captured.tensors("0")[0], net[0](images[order]))
    assert torch.equal(output["logits"], net(images[order]))
    assert captured.tensors("2@weight")[0] is net[2].weight
    memory.show(None)
    assert not memory.knows("teacher")


def test_another_picture_is_named_by_sample_and_view(
    remembered: tuple[Remembered, torch.Tensor],
) -> None:
    memory, images = remembered
    memory.show([5, 0, 3])
    memory.answer("teacher", images[[5, 1, 4]])
    with pytest.raises(CacheError, match="saw: sample 0 in view 0, sample 0 in view 1. Causes"):
        memory.verify()
    memory.verify()  # told once
    with pytest.raises(CacheError, match="batch has 2 images, but its loader gave 3"):
        memory.answer("teacher", images[:2])


def test_a_copy_of_the_model_shares_it(remembered: tuple[Remembered, torch.Tensor]) -> None:
    memory, _ = remembered
    assert copy.deepcopy({"memory": memory})["memory"] is memory
