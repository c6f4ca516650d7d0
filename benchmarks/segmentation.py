"""What each term of segmentation distillation adds to a training step, in time and memory.

    python benchmarks/segmentation.py                # on the CPU, a few minutes
    python benchmarks/segmentation.py --rounds 20 --write benchmarks/segmentation.md
    python benchmarks/segmentation.py --device cuda --batch 32

The networks and recipes are those of configs/segmentation/camvid, the images random, the teacher's
weights too: a step costs what it costs, whatever it learns. Every variant takes whole training
steps (data preprocessing, forward, backward, both optimizers), all of them in turn in one process,
so that a busy machine slows all alike. `x time` is the median over the rounds of variant / student
alone; `peak` the highest number of bytes allocated within a step.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from measure.steps import compare_steps, step_arguments
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import taskdistill.tasks.segmentation  # noqa: F401
from taskdistill.tasks.openmm import load_config, prepare_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "segmentation" / "camvid"
ALONE = "student alone"
VARIANTS = {
    ALONE: "student.py",
    "+ pixel-wise": "pixel.py",
    "+ pixel-wise, pair-wise": "pixel_pair.py",
    "+ pixel-wise, pair-wise, holistic": "structured.py",
    "+ channel-wise": "cwd.py",
}


def build(cfg: Config, teacher: dict[str, str], device: str, batch: int) -> Callable[[], object]:
    """A function that takes one training step of a config."""
    if cfg.get("distill"):
        cfg.distill.teacher = teacher
    cfg = prepare_config(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    settings = (cfg.model.get("student") or cfg.model).data_preprocessor
    height, width = settings["size"]
    classes = int(model.num_classes)
    samples = []
    for _ in range(batch):
        sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
        sample.gt_sem_seg = PixelData(data=torch.randint(classes, (1, height, width)))
        samples.append(sample)
    images = list(torch.randint(256, (batch, 3, height, width), dtype=torch.uint8))

    def step() -> object:
        data = dict(inputs=images, data_samples=copy.deepcopy(samples))
        return model.train_step(data, optim_wrapper)

    return step


def main() -> None:
    args = step_arguments(str(__doc__), batch=8)
    warnings.simplefilter("ignore")
    MMLogger.get_instance("benchmark", log_level="ERROR")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    init_default_scope("mmseg")
    with tempfile.TemporaryDirectory() as folder:
        path = CONFIGS / "teacher.py"
        weights = MODELS.build(load_config(str(path)).model).state_dict()
        checkpoint = Path(folder) / "teacher.pth"
        torch.save(weights, checkpoint)
        teacher = dict(config=str(path), checkpoint=str(checkpoint))
        steps = {
            name: build(load_config(str(CONFIGS / file)), teacher, args.device, args.batch)
            for name, file in VARIANTS.items()
        }
    compare_steps("A step of segmentation distillation", steps, args)


if __name__ == "__main__":
    main()
