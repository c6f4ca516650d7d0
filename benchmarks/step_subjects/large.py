"""Detectors and segmenters of the papers' size, for a GPU; `--size` makes them small.

Images are random, of the size that training sees; data and loss are what they are with real ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from taskdistill.tasks.openmm import load_config

from .mm import Training, random_checkpoint, without_downloads
from .subject import Subject, choose, side_of

__all__ = ["gfl", "pspnet"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OBJECTS, CLASSES = 7, 80  # as COCO has in the mean
SHAPES = 19  # classes of Cityscapes


def gfl(args: argparse.Namespace, scratch: Path) -> Subject:
    """GFL ResNet-101 to ResNet-18 by localization distillation, 800x1333 pixels."""
    height = side_of(args, 800)
    width = height * 1333 // 800
    batch = args.batch or 8
    cfg = load_config(
        str(CONFIGS / "detection/localization_distillation/ld_gfl-r18_gfl-r101_coco.py")
    )
    without_downloads(cfg)
    cfg.distill.teacher = random_checkpoint(_packaged("mmdet", cfg.distill.teacher.config), scratch)
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True),
        dict(type="PackDetInputs"),
    ]
    dataset = dict(
        type="CocoDataset",
        data_root=str(scratch),
        data_prefix=dict(img=""),
        ann_file=_boxes(scratch, 2 * batch, height, width),
        pipeline=pipeline,
    )
    _feed(cfg, batch, dataset)
    return Subject(
        f"GFL ResNet-101 to ResNet-18 with localization distillation, {height}x{width} pixels",
        batch,
        choose(Training(cfg, args, scratch)),
    )


def pspnet(args: argparse.Namespace, scratch: Path) -> Subject:
    """PSPNet ResNet-101 to ResNet-18 by structured distillation, 512x512 pixels."""
    side = side_of(args, 512)
    batch = args.batch or 8
    folder = CONFIGS / "segmentation/structured"
    cfg = load_config(str(folder / "skd_pspnet-r18_pspnet-r101_cityscapes.py"))
    without_downloads(cfg)
    cfg.distill.teacher = random_checkpoint(str(folder / "pspnet_r101_cityscapes.py"), scratch)
    # A row and a column of padding, as the config has them.
    cfg.model.data_preprocessor.size = (side + 1, side + 1)
    cfg.distill.probe_size = min(side, 128) + 1
    dataset = dict(
        type="BaseSegDataset",
        data_root=str(scratch),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        img_suffix=".png",
        metainfo=dict(classes=[str(number) for number in range(SHAPES)]),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    )
    _maps(scratch, 2 * batch, side)
    _feed(cfg, batch, dataset)
    return Subject(
        f"PSPNet ResNet-101 to ResNet-18 with all three structured terms, {side}x{side} pixels",
        batch,
        choose(Training(cfg, args, scratch)),
    )


def _packaged(package: str, config: str) -> str:
    """The file of a config named as `package::path`."""
    import importlib

    folder = Path(str(importlib.import_module(package).__file__)).parent / ".mim" / "configs"
    return str(folder / config.partition("::")[2])


def _feed(cfg: Config, batch: int, dataset: dict[str, Any]) -> None:
    sampler = dict(type="DefaultSampler", shuffle=True)
    cfg.train_dataloader = dict(batch_size=batch, drop_last=True, sampler=sampler, dataset=dataset)


def _image(path: Path, random: np.random.Generator, *shape: int, most: int = 256) -> None:
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), random.integers(0, most, shape, dtype=np.uint8))


def _boxes(scratch: Path, count: int, height: int, width: int) -> str:
    """Write images and their boxes as COCO has them."""
    from mmdet.datasets import CocoDataset

    random = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(count):
        name = f"{number}.png"
        _image(scratch / name, random, height, width, 3)
        images.append(dict(id=number, file_name=name, height=height, width=width))
        for _ in range(OBJECTS):
            w, h = (float(random.uniform(0.1, 0.4)) * side for side in (width, height))
            x, y = float(random.uniform(0, width - w)), float(random.uniform(0, height - h))
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=number,
                    category_id=int(random.integers(CLASSES)),
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
    names = CocoDataset.METAINFO["classes"]
    categories = [dict(id=number, name=name) for number, name in enumerate(names)]
    path = scratch / "boxes.json"
    path.write_text(
        json.dumps(dict(images=images, annotations=boxes, categories=categories)), encoding="utf-8"
    )
    return path.name


def _maps(scratch: Path, count: int, side: int) -> None:
    """Write images and a label for each pixel, in patches."""
    random = np.random.default_rng(0)
    for number in range(count):
        _image(scratch / "images" / f"{number}.png", random, side, side, 3)
        patches = random.integers(0, SHAPES, (8, 8), dtype=np.uint8)
        label = cv2.resize(patches, (side, side), interpolation=cv2.INTER_NEAREST)
        path = scratch / "labels" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), label)
