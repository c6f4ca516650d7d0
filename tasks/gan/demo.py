"""The GAN demos: teacher, student alone and distilled, side by side; on maps also the search."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from ..common.demo import DemoOptions, Metric
from ..common.demo.jobs import EVALUATION_DIR, Job
from ..common.demo.report import Figure, Gallery, Picture, Section
from ..openmm.config import load_config
from ..openmm.demo import MmTask
from ..openmm.demo.task import option_text, signature, training_length
from .generate import build_translator

__all__ = ["GanDemo", "MapsTable", "RestyleDemo", "picture"]

IMAGES = 10

_SMALL = 320  # pictures less wide than this are enlarged in sharp squares


class GanDemo(MmTask):
    """Outlines of digits, filled: teacher, student alone and student distilled."""

    name = "gan"
    folder = "gan/demo"
    title = "Distilling an image translator: outlines of handwritten digits, filled"
    metrics = (
        Metric("SmallFD", "random-network distance", digits=2, lower_is_better=True),
        Metric("L1", "L1", digits=4, lower_is_better=True),
        Metric("PSNR", "PSNR", digits=2),
    )
    packages = ("torch", "onedl-mmengine", "torchmetrics")
    latency_note = "one validation image through the generator, from tensor to tensor"
    truth = "target"

    def __init__(self) -> None:
        self._datasets: dict[str, Any] = {}

    def prepare(self, cfg: Config) -> str:
        """See the base class."""
        train, val = (len(self.dataset(cfg, f"{part}_dataloader")) for part in ("train", "val"))
        return (
            f"Data: {train} images for training, {val} for validation. The distance is the Fréchet "
            "distance of features of a small network with fixed random weights; it is no FID, "
            "which needs the Inception network's."
        )

    def load(self, cfg: Config, checkpoint: Path) -> nn.Module:
        """See the base class."""
        return build_translator(cfg, checkpoint)

    def deployed(self, model: nn.Module) -> nn.Module:
        """The generator; the discriminator is not deployed."""
        return model.generator  # type: ignore[return-value]

    def forward_call(self, model: nn.Module, cfg: Config) -> Callable[[], object]:
        """See the base class."""
        image = self._batch(model, cfg, 0)["inputs"]
        return lambda: model(image, mode="tensor")

    predict_call = forward_call

    def gallery(self, cfg: Config, models: Mapping[str, nn.Module]) -> Gallery:
        """Show input, truth, and what each model makes of it."""
        dataset = self.dataset(cfg, "val_dataloader")
        count = min(IMAGES, len(dataset))
        rows = []
        for index in (place * len(dataset) // count for place in range(count)):
            item = dataset[index]
            row = [picture(item["inputs"]), picture(item["data_samples"].target)]
            for model in models.values():
                with torch.no_grad():
                    fake = model.val_step(pseudo_collate([dataset[index]]))[0].fake  # type: ignore
                error = (fake.float() - item["data_samples"].target.float()).abs().mean() / 255
                row.append(picture(fake, f"L1 {error:.4f}"))
            rows.append(row)
        return Gallery(
            headings=["input", self.truth, *models],
            rows=rows,
            note=f"{count} validation images at even distances in the list, the first one among "
            "them; not a selection. L1: mean absolute difference from the target, of 1.",
        )

    def dataset(self, cfg: Config, loader: str) -> Any:
        """Return the data set of a loader of the config; built once."""
        settings = cfg[loader].dataset
        key = f"{loader} {settings}"
        if key not in self._datasets:
            init_default_scope(cfg.default_scope)
            self._datasets[key] = DATASETS.build(settings)
        return self._datasets[key]

    def _batch(self, model: Any, cfg: Config, index: int) -> dict[str, Any]:
        sample = self.dataset(cfg, "val_dataloader")[index]
        return model.data_preprocessor(pseudo_collate([sample]), False)


class RestyleDemo(GanDemo):
    """Digits in another style, learnt without pairs: a CycleGAN and its thin student."""

    name = "restyle"
    folder = "gan/restyle"
    title = "Distilling an unpaired image translator: handwritten digits in another style"


class MapsTable(GanDemo):
    """GAN compression whole on aerial photographs and maps, which are not part of the package."""

    name = "maps"
    folder = "gan/maps"
    title = "Compressing an image translator: from aerial photographs to maps"
    metrics = (*GanDemo.metrics, Metric("mIoU", "mIoU of map colours", digits=2))
    derived = {"search": "searched, as found", "searched": "searched, fine-tuned"}

    def further_jobs(
        self, folder: Path, configs: Mapping[str, Config], jobs: Sequence[Job], options: DemoOptions
    ) -> list[Job]:
        """For each seed: train the once-for-all network, search it, fine-tune what was found."""
        cfg = load_config(str(folder / "supernet.py"))
        teacher = jobs[0]
        tools, main = options.root / "tools", self.metrics[0].key
        made: list[Job] = []
        for seed in range(options.seeds):
            base, search, tuned = (
                options.work_dir / f"{name}-{seed}" for name in ("supernet", "search", "searched")
            )
            length = training_length(cfg)
            changes: dict[str, Any] = {"randomness.seed": seed}
            links = {
                "distill.teacher.config": str(configs["teacher"].filename),
                "distill.teacher.checkpoint": str(teacher.checkpoint),
            }
            arguments = [option_text(key, value) for key, value in (changes | links).items()]
            supernet = Job(
                name=base.name,
                command=(
                    sys.executable,
                    str(tools / "train.py"),
                    str(cfg.filename),
                    *("--work-dir", str(base), "--resume", "--cfg-options", *arguments),
                ),
                work_dir=base,
                length=length,
                checkpoint=base / f"epoch_{length}.pth",
                metric=main,
                signature=signature(cfg, changes),
                needs=(teacher.name,),
                effort=2.0,
                evaluate=(
                    sys.executable,
                    str(tools / "test.py"),
                    str(cfg.filename),
                    str(base / f"epoch_{length}.pth"),
                    *("--work-dir", str(base / EVALUATION_DIR)),
                ),
                role="supernet",
            )
            searched = Job(
                name=search.name,
                command=(
                    sys.executable,
                    str(tools / "search.py"),
                    str(cfg.filename),
                    str(supernet.checkpoint),
                    *("--work-dir", str(search), "--jobs", "1", "--seed", str(seed)),
                    *("--teacher", str(configs["teacher"].filename)),
                ),
                work_dir=search,
                length=1,
                checkpoint=search / "best.pth",
                metric=main,
                signature=signature(cfg, changes),
                needs=(supernet.name,),
                evaluate=(
                    sys.executable,
                    str(tools / "test.py"),
                    str(search / "best.py"),
                    str(search / "best.pth"),
                    *("--work-dir", str(search / EVALUATION_DIR)),
                ),
                role="search",
                after=(supernet.name,),
            )
            epochs = int(cfg.search.finetune_epochs)
            made += [
                supernet,
                searched,
                Job(
                    name=tuned.name,
                    command=(
                        sys.executable,
                        str(tools / "train.py"),
                        str(search / "finetune.py"),
                        *("--work-dir", str(tuned), "--resume", "--cfg-options"),
                        *(option_text(key, value) for key, value in links.items()),
                    ),
                    work_dir=tuned,
                    length=epochs,
                    checkpoint=tuned / f"epoch_{epochs}.pth",
                    metric=main,
                    signature=signature(cfg, changes),
                    needs=(searched.name,),
                    effort=0.5,
                    evaluate=(
                        sys.executable,
                        str(tools / "test.py"),
                        str(search / "best.py"),
                        str(tuned / f"epoch_{epochs}.pth"),
                        *("--work-dir", str(tuned / EVALUATION_DIR)),
                    ),
                    role="searched",
                    after=(supernet.name, searched.name),
                ),
            ]
        return made

    def further_sections(
        self, jobs: Sequence[Job], models: Mapping[str, nn.Module]
    ) -> list[Section]:
        """The front of each search: cost against distance."""
        figures = []
        for job in jobs:
            if job.role == "search":
                figures.append(
                    Figure(
                        (job.work_dir / "front.png").read_bytes(),
                        f"Cost against distance of the sub-networks evaluated in {job.name}.",
                        f"{job.name}: sub-networks of the once-for-all network as they are, before "
                        "fine-tuning.",
                    )
                )
        return [
            Section(
                "Searching the once-for-all network",
                text="A search takes the sub-network with the smallest distance on the validation "
                "images, on which the table measures it too: as found, its distance is flattered "
                "by having been picked among all that were evaluated.",
                figures=figures,
            )
        ]

    def derived_config(self, role: str, job: Job) -> Config:
        """See the base class."""
        seed = job.name.rpartition("-")[2]
        return load_config(str(job.work_dir.with_name(f"search-{seed}") / "best.py"))


def picture(pixels: Tensor, note: str = "") -> Picture:
    """Return an 8-bit image ``(C, H, W)`` as a picture of the report."""
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", optimize=True)
    height, width = array.shape[:2]
    return Picture(buffer.getvalue(), width, height, note=note, pixelated=width < _SMALL)
