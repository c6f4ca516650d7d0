"""Loading, costs and predictions are tested with each library's demo; here what all share."""

from pathlib import Path

import pytest
import torch

from taskdistill.core.errors import CheckpointError
from taskdistill.tasks.openmm.demo import MmDemoTask


class TinyDemo(MmDemoTask):  # its gallery is not asked for
    scope = "mmdet"


@pytest.fixture
def task() -> MmDemoTask:
    TinyDemo.__abstractmethods__ = frozenset()
    return TinyDemo()  # type: ignore[abstract]


def test_data_sets_are_built_once_and_counted(tiny, task):
    cfg = tiny.wrap(tiny.config(), tiny.folder)
    assert task.prepare(cfg) == "Data: 12 images for training, 6 for validation."
    assert task.dataset(cfg, "val_dataloader") is task.dataset(cfg, "val_dataloader")
    assert task.dataset(cfg, "val_dataloader") is not task.dataset(cfg, "train_dataloader")


def test_a_model_is_loaded_strictly_and_predicts(tiny, task, tmp_path: Path):
    cfg = tiny.wrap(tiny.config(), tiny.folder)
    state = tiny.build(tiny.model()).state_dict()
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    model = task.load(cfg, tmp_path / "model.pth")
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    sample = task.predict(model, cfg, 2)
    assert sample.img_path.endswith("2.png") and len(sample.pred_instances) > 0
    assert sample.pred_instances.scores.requires_grad is False
    del state["neck.fpn_convs.0.conv.bias"]
    torch.save({"state_dict": state}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="neck.fpn_convs.0.conv.bias"):
        task.load(cfg, tmp_path / "part.pth")
