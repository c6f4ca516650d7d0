"""What each way to distil a detector adds to a training step, in time and memory.

    python benchmarks/detection.py                # on the CPU, some minutes
    python benchmarks/detection.py --folder bccd_two_stage --rounds 20
    python benchmarks/detection.py --write benchmarks/detection.md
    python benchmarks/detection.py --device cuda --batch 32

The networks and recipes are those of the folders configs/detection/bccd* (bccd is a dense
detector), or of those that --folder names; each file but the teacher's is a variant. Images and
boxes are random, the teacher's weights too: a step costs what it costs, whatever it learns. Every
variant takes whole training steps (data preprocessing, forward, backward, optimizer), all of a
folder in turn in one process, so that a busy machine slows all alike. `x time` is the median over
the rounds of variant / student alone; `peak` the highest number of bytes allocated within a step.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measure.steps import compare_steps, step_arguments
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from taskdistill.tasks.detection import demo
from taskdistill.tasks.openmm import load_config, prepare_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "detection"
FOLDERS = sorted(student.parent.name for student in CONFIGS.glob("bccd*/student.py"))
TITLE = "A step of detection distillation"
OBJECTS = 13  # an image, as in BCCD
SIDES = (24, 72)  # of a box, in pixels


def variants(folder: str) -> dict[str, Path]:
    """The config of each variant by its label: those of the demos' table first, then the others."""
    labels: Mapping[str, str] = {}
    for table in vars(demo).values():
        if getattr(table, "folder", None) == f"detection/{folder}":
            labels = table.variants
    files = {file.stem: file for file in sorted((CONFIGS / folder).glob("*.py"))}
    student = files.pop("student")
    del files["teacher"]
    rest = {name: f"+ {name}" for name in files if name not in labels}
    named = {label: files[name] for name, label in {**labels, **rest}.items()}
    return {"student alone": student, **named}


Batch = tuple[list[torch.Tensor], list[DetDataSample]]


def random_batch(cfg: Config, batch: int) -> Batch:
    """Images of the config's size, each with boxes of its classes."""
    dataset: Any = DATASETS.get(cfg.train_dataloader.dataset.type)
    classes = len(dataset.METAINFO["classes"])
    width, height = cfg.scale
    samples = []
    for _ in range(batch):
        sides = torch.randint(*SIDES, (OBJECTS, 2))
        corners = (torch.rand(OBJECTS, 2) * (torch.tensor([width, height]) - sides)).floor()
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + sides], 1),
            labels=torch.randint(classes, (OBJECTS,)),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return list(torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)), samples


def build(cfg: Config, teacher: dict[str, str], batch: Batch, device: str) -> Callable[[], object]:
    """A function that takes one training step of a config."""
    if cfg.get("distill"):
        cfg.distill.teacher = {**cfg.distill.teacher, **teacher}
    cfg = prepare_config(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    images, samples = batch

    def step() -> object:
        data = dict(inputs=images, data_samples=copy.deepcopy(samples))
        return model.train_step(data, optim_wrapper)

    return step


def compare(folder: str, args: argparse.Namespace) -> None:
    """Measure the variants of one folder."""
    with tempfile.TemporaryDirectory() as scratch:
        path = CONFIGS / folder / "teacher.py"
        cfg = load_config(str(path))
        torch.manual_seed(1)
        checkpoint = Path(scratch) / "teacher.pth"
        torch.save(MODELS.build(cfg.model).state_dict(), checkpoint)
        batch = random_batch(cfg, args.batch)
        teacher = dict(config=str(path), checkpoint=str(checkpoint))
        steps = {
            name: build(load_config(str(file)), teacher, batch, args.device)
            for name, file in variants(folder).items()
        }
    compare_steps(TITLE, steps, args)


def main() -> None:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--folder", nargs="+", default=FOLDERS, choices=FOLDERS)
    chosen, sys.argv[1:] = own.parse_known_args()
    args = step_arguments(str(__doc__), batch=4)
    warnings.simplefilter("ignore")
    MMLogger.get_instance("benchmark", log_level="ERROR")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    init_default_scope("mmdet")
    title, command, sections = "", "", []
    for folder in chosen.folder:
        print(f"configs/detection/{folder}")
        compare(folder, args)
        if args.write:  # each table was written with a title and a command above it
            title, command, told, table = args.write.read_text(encoding="utf-8").split("\n\n", 3)
            sections.append(f"## configs/detection/{folder}\n\n{told}\n\n{table}")
    if args.write:
        if chosen.folder != FOLDERS:
            command += f" --folder {' '.join(chosen.folder)}"
        page = "\n\n".join([title, command, "\n".join(sections)])
        args.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
