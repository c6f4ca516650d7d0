"""What GAN compression adds to a training step, in time and memory.

    python benchmarks/gan.py                # on the CPU, some minutes
    python benchmarks/gan.py --rounds 20 --write benchmarks/gan.md
    python benchmarks/gan.py --device cuda --batch 16

The networks and recipes are those of configs/gan/maps at 128x128, the images random, the teacher's
weights too: a step costs what it costs, whatever it learns. Every variant takes whole training
steps (preprocessing, generator, discriminator, both optimizers), all of them in turn in one
process, so that a busy machine slows all alike. The naive form distils the same four layers as
common code does: forward hooks, the teacher to its end, a 1x1 convolution and a mean squared error
for each layer. `x time` is the median over the rounds of variant / student alone; `peak` the
highest number of bytes allocated within a step.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure.steps import compare_steps, step_arguments
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

import taskdistill.tasks.gan  # noqa: F401
from taskdistill.tasks.gan.translation import Pix2Pix
from taskdistill.tasks.openmm import load_config, prepare_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "gan" / "maps"
LAYERS = (9, 12, 15, 18)
SIDE = 128


class Naive(Pix2Pix):
    """The same terms by hooks, with the teacher run to its end."""

    def __init__(self, teacher: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self._teacher = (teacher.eval(),)
        self._kept: dict[str, Tensor] = {}
        widths = (4 * g.channels[2] for g in (self.generator, teacher))
        ours, theirs = widths
        self.generator_maps = nn.ModuleDict({str(n): nn.Conv2d(ours, theirs, 1) for n in LAYERS})
        for side, network in (("s", self.generator), ("t", teacher)):
            for layer in LAYERS:
                network.model[layer].register_forward_hook(self._keeper(f"{side}{layer}"))

    def _keeper(self, key: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._kept[key] = output

        return keep

    def losses(self, inputs: Tensor, real: Tensor) -> dict[str, Tensor]:
        found = super().losses(inputs, real)
        with torch.no_grad():
            self._teacher[0](inputs)
        for n in LAYERS:
            mapped = self.generator_maps[str(n)](self._kept[f"s{n}"])
            found[f"loss_{n}"] = F.mse_loss(mapped, self._kept[f"t{n}"])
        return found


def stepper(model: Any, optim_wrapper: Any, batch: int) -> Callable[[], object]:
    """A function that takes one training step."""
    images, targets = torch.randint(256, (2, batch, 3, SIDE, SIDE), dtype=torch.uint8)
    samples = [BaseDataElement(target=target) for target in targets]

    def step() -> object:
        data = dict(inputs=list(images), data_samples=copy.deepcopy(samples))
        return model.train_step(data, optim_wrapper)

    return step


def build(cfg: Config, teacher: dict[str, str], args: Any) -> Callable[[], object]:
    """One training step of a config."""
    if cfg.get("distill"):
        cfg.distill.teacher = teacher
        cfg.distill.init = dict()
    cfg = prepare_config(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(args.device).train()
    return stepper(model, build_optim_wrapper(model, cfg.optim_wrapper), args.batch)


def build_naive(cfg: Config, teacher: nn.Module, args: Any) -> Callable[[], object]:
    """One training step of the naive form."""
    torch.manual_seed(0)
    options = {key: value for key, value in cfg.model.items() if key != "type"}
    model = Naive(teacher.to(args.device), **options).to(args.device).train()
    return stepper(model, build_optim_wrapper(model, cfg.optim_wrapper), args.batch)


def main() -> None:
    args = step_arguments(str(__doc__), batch=2)
    warnings.simplefilter("ignore")
    MMLogger.get_instance("benchmark", log_level="ERROR")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    init_default_scope("mmengine")
    with tempfile.TemporaryDirectory() as folder:
        path = CONFIGS / "teacher.py"
        teacher = MODELS.build(load_config(str(path)).model)
        torch.save(teacher.state_dict(), Path(folder) / "teacher.pth")
        link = dict(config=str(path), checkpoint=str(Path(folder) / "teacher.pth"))
        student, distilled, supernet = (
            load_config(str(CONFIGS / f"{name}.py"))
            for name in ("student", "distilled", "supernet")
        )
        unpaired = copy.deepcopy(distilled)
        line = dict(student="outputs.image", loss="Reconstruction", weight=10.0)
        unpaired.distill.pairs = [*unpaired.distill.pairs, line]
        steps = {
            "student alone": build(student, link, args),
            "+ four layers, naively": build_naive(student, teacher.generator, args),
            "+ four layers": build(distilled, link, args),
            "+ four layers and the image": build(unpaired, link, args),
            "once-for-all network, + four layers": build(supernet, link, args),
        }
    compare_steps("A step of GAN compression", steps, args)


if __name__ == "__main__":
    main()
