"""ResNet-18 of torchvision with a ResNet-50: softened logits, and a hint in the middle.

Beside this package stand the usual loop (plain operations, the teacher whole, contiguous and in
float32), and torchdistill's own loss and hook manager where that package is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from taskdistill.tasks.classification import ImageClassifier
from taskdistill.tasks.classification.networks import build_network

from .mm import Training
from .subject import ALONE, AS_LOADED, WAYS, Built, Subject, Way, choose, side_of

__all__ = ["hint", "logits"]

CLASSES, TEMPERATURE, LAYER, HINT, TOP = 1000, 4.0, "layer3", 1.0, 10
TEACHER = dict(type="torchvision", name="resnet50", num_classes=CLASSES)
STUDENT = dict(type="torchvision", name="resnet18", num_classes=CLASSES)
KD = dict(student="outputs.logits", loss="KLDivergence", temperature=TEMPERATURE)
TOP_K = dict(KD, loss="TopKKLDivergence", k=TOP)
NAIVE, TORCHDISTILL = "distilled, by the usual loop", "distilled, by torchdistill"
OTHERS = {NAIVE: "plain", TORCHDISTILL: "torchdistill"}


@MODELS.register_module()
class UsualClassifier(ImageClassifier):
    """Distils as the common libraries do.

    Args:
        teacher: Its network and checkpoint.
        kind: "plain" operations, "torchdistill" or a "hint".
        **options: As for a classifier.
    """

    def __init__(self, teacher: Mapping[str, Any], kind: str, **options: Any) -> None:
        super().__init__(**options)
        network = build_network(teacher["network"])
        network.load_state_dict(torch.load(teacher["checkpoint"], weights_only=True))
        self._teacher = (network.eval().requires_grad_(False),)
        self.kind = kind
        if kind == "hint":
            self.adapter = nn.Conv2d(256, 1024, 1)
            self._kept: dict[str, Tensor] = {}
            for side, model in (("student", self.network), ("teacher", network)):
                model.get_submodule(LAYER).register_forward_hook(self._keeper(side))
        if kind == "torchdistill":
            from torchdistill.core.forward_hook import ForwardHookManager  # type: ignore
            from torchdistill.losses.mid_level import KDLoss  # type: ignore

            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._managers = []
            for model in (self.network, network):
                manager = ForwardHookManager(torch.device(device))
                manager.add_hook(model, "fc", requires_input=False, requires_output=True)
                self._managers.append(manager)
            taps = ("fc", "output", "fc", "output")
            self._loss = (KDLoss(*taps, temperature=TEMPERATURE, alpha=1.0, beta=1.0),)

    def _keeper(self, side: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._kept[side] = output

        return keep

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        ours, teacher = self.network(inputs), self._teacher[0].to(inputs.device)
        with torch.no_grad():
            theirs = teacher(inputs)
        if self.kind == "torchdistill":
            found = [manager.pop_io_dict() for manager in self._managers]
            return {"loss_all": self._loss[0](*found, labels)}
        task = F.cross_entropy(ours, labels)
        if self.kind == "hint":
            gap = F.mse_loss(self.adapter(self._kept["student"]), self._kept["teacher"])
            return {"loss_cls": task, "loss_hint": HINT * gap}
        soft = F.kl_div(
            F.log_softmax(ours / TEMPERATURE, 1),
            F.softmax(theirs / TEMPERATURE, 1),
            reduction="batchmean",
        )
        return {"loss_cls": task, "loss_kd": TEMPERATURE**2 * soft}


def _config(pairs: list[dict[str, Any]], args: argparse.Namespace, scratch: Path) -> Config:
    side = side_of(args, 224 if args.device != "cpu" else 128)
    batch = _batch(args)
    random = np.random.default_rng(0)
    np.savez(
        scratch / "images.npz",
        x_train=random.integers(0, 256, (2 * batch, side, side, 3), dtype=np.uint8),
        y_train=random.integers(0, CLASSES, 2 * batch),
        classes=np.array([str(number) for number in range(CLASSES)]),
    )
    torch.manual_seed(1)
    checkpoint = scratch / "teacher.pth"
    torch.save(build_network(TEACHER).state_dict(), checkpoint)
    sampler = dict(type="DefaultSampler", shuffle=True)
    dataset = dict(type="NpzImages", path=str(scratch / "images.npz"), split="train")
    return Config(
        dict(
            task="classification",
            default_scope="mmengine",
            model=dict(
                type="ImageClassifier",
                network=STUDENT,
                data_preprocessor=dict(
                    type="ClassifierPreprocessor", mean=[127.5] * 3, std=[64.0] * 3
                ),
            ),
            train_dataloader=dict(
                batch_size=batch, drop_last=True, sampler=sampler, dataset=dataset
            ),
            optim_wrapper=dict(
                type="OptimWrapper", optimizer=dict(type="SGD", lr=1e-3, momentum=0.9)
            ),
            distill=dict(teacher=dict(network=TEACHER, checkpoint=str(checkpoint)), pairs=pairs),
        )
    )


def _batch(args: argparse.Namespace) -> int:
    return args.batch or (256 if args.device != "cpu" else 8)


def _usual(training: Training, kind: str) -> Built:
    """A training by other code."""
    teacher = dict(training.config.distill.teacher)
    built = training(Way(distilled=False), type="UsualClassifier", teacher=teacher, kind=kind)
    return Built(built.step, {"teacher": "float32, contiguous, by its own forward"})


def logits(args: argparse.Namespace, scratch: Path) -> Subject:
    """Cross-entropy and T^2 KL at T = 4."""
    training = Training(_config([KD], args, scratch), args, scratch)
    variants = choose(training)
    others = {label: lambda kind=kind: _usual(training, kind) for label, kind in OTHERS.items()}
    if importlib.util.find_spec("torchdistill") is None:
        print("torchdistill is not installed: its row is left out. `make bench` installs it.")
        del others[TORCHDISTILL]
    first = variants.pop(ALONE)
    few = Training(_config([TOP_K], args, scratch), args, scratch / "top")
    top = {
        f"distilled, top {TOP}": lambda: few(Way()),
        f"distilled, top {TOP}, cache": lambda: few(Way(cache=True)),
    }
    side = side_of(args, 224 if args.device != "cpu" else 128)
    return Subject(
        f"ResNet-50 to ResNet-18, {side}x{side} pixels, {CLASSES} classes, cross-entropy and "
        f"KL at T = {TEMPERATURE:g}, SGD with momentum",
        _batch(args),
        {ALONE: first, **others, **variants, **top},
        alike=[(*others, AS_LOADED)],
    )


def hint(args: argparse.Namespace, scratch: Path) -> Subject:
    """Cross-entropy and a 1x1 convolution with half a mean squared error in the middle."""
    # Hint is half of the mean squared difference.
    pair = dict(student=LAYER, loss="Hint", adapter="conv1x1", weight=2 * HINT)
    training = Training(_config([pair], args, scratch), args, scratch)
    ways = {label: way for label, way in WAYS.items() if not (way.cache or way.switches)}
    variants = choose(training, ways)
    first = variants.pop(ALONE)
    side = side_of(args, 224 if args.device != "cpu" else 128)
    return Subject(
        f"ResNet-50 to ResNet-18, {side}x{side} pixels, a hint at {LAYER}: a 1x1 convolution "
        "and the mean squared error",
        _batch(args),
        {ALONE: first, NAIVE: lambda: _usual(training, "hint"), **variants},
    )
