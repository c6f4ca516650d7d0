"""The students and teachers of the demos, on the first batch of their data."""

from __future__ import annotations

import argparse
from pathlib import Path

from taskdistill.tasks.openmm import load_config

from .mm import Training, random_checkpoint
from .subject import Subject, choose

__all__ = ["classification", "detection", "gan", "segmentation"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What makes a data set short, so that the cache is soon written.
SHORTER = {"DigitScenes": "indices", "DigitOutlines": "limit"}


def _demo(task: str, args: argparse.Namespace, scratch: Path) -> Subject:
    folder = CONFIGS / task / "demo"
    cfg = load_config(str(folder / "distilled.py"))
    cfg.distill.teacher = random_checkpoint(str(folder / "teacher.py"), scratch)
    cfg.distill.pop("init", None)  # random weights are no start
    loader = cfg.train_dataloader
    loader.batch_size = args.batch or loader.batch_size
    if (key := SHORTER.get(loader.dataset.type)) is not None:
        loader.dataset[key] = 2 * loader.batch_size
    training = Training(cfg, args, scratch)
    return Subject(f"configs/{task}/demo", loader.batch_size, choose(training))


def classification(args: argparse.Namespace, scratch: Path) -> Subject:
    """A ResNet-8 that reads digits of 8x8 pixels."""
    return _demo("classification", args, scratch)


def detection(args: argparse.Namespace, scratch: Path) -> Subject:
    """A small GFL on digit scenes."""
    return _demo("detection", args, scratch)


def segmentation(args: argparse.Namespace, scratch: Path) -> Subject:
    """A small U-Net on digit scenes."""
    return _demo("segmentation", args, scratch)


def gan(args: argparse.Namespace, scratch: Path) -> Subject:
    """A thin pix2pix from outlines to digits."""
    return _demo("gan", args, scratch)
