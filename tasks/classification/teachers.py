"""Teachers of classifiers: short ways to name one, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.teacher import FrozenTeacher
from ..common.files import write_json
from ..openmm.model import DistilledModel

__all__ = ["TEACHERS_FILE", "TeacherAccuracyHook", "full_entry", "teacher_accuracy"]

TEACHERS_FILE = "teachers.json"
"""File of the work dir with what the teachers were found to be worth."""

_SHORT = ("network", "ensemble", "mean", "std", "average")


def full_entry(config: Mapping[str, Any], name: str, student: nn.Module) -> Mapping[str, Any]:
    """Write out a teacher's entry that names a network instead of a config.

    Four ways to name a teacher::

        dict(config="teacher.py", checkpoint="best.pth")               # trained by this package
        dict(network=dict(type="CifarResNet", depth=56), checkpoint="resnet56.th")
        dict(network=dict(type="torchvision", name="resnet50", weights="DEFAULT"))
        dict(ensemble=[dict(network=..., checkpoint=...), ...], average="probabilities")

    Args:
        config: The entry. With ``network`` (or ``ensemble``, several of them of one
            normalisation, whose predictions are averaged) may come ``mean`` and ``std`` of its
            images in units of 0 to 255; the student's by default.
        name: The teacher's name.
        student: Whose normalisation it shares, where it has none of its own.

    Raises:
        ConfigError: If two ways are mixed, or a member of an ensemble is no network.
    """
    given = [key for key in ("config", "network", "ensemble") if key in config]
    if len(given) != 1:
        raise ConfigError(
            f"Teacher {name!r} needs one of config=..., network=... or ensemble=[...]; it has "
            f"{given or 'none'}."
        )
    if "config" in config:
        if further := [key for key in _SHORT if key in config]:
            raise ConfigError(
                f"Teacher {name!r} has {further[0]!r} beside its config; it belongs in there."
            )
        return config
    network = config.get("network")
    if "ensemble" in config:
        members = config["ensemble"]
        if not isinstance(members, Sequence) or len(members) < 2:
            raise ConfigError(f"ensemble of teacher {name!r} needs a list of at least two members.")
        for member in members:
            if not isinstance(member, Mapping) or not set(member) <= {"network", "checkpoint"}:
                raise ConfigError(
                    f"A member of the ensemble of teacher {name!r} is dict(network=..., "
                    f"checkpoint=...), not {member!r}."
                )
        network = dict(
            type="Ensemble",
            networks=[member["network"] for member in members],
            checkpoints=[member.get("checkpoint") for member in members],
            average=config.get("average", "probabilities"),
        )
    preprocessor = dict(type="ClassifierPreprocessor")
    own: Any = getattr(student, "data_preprocessor", None)
    for key in ("mean", "std"):
        if key in config:
            preprocessor[key] = config[key]
        elif isinstance(value := getattr(own, key, None), Tensor):
            preprocessor[key] = value.flatten().tolist()  # type: ignore[assignment]
    model = dict(type="ImageClassifier", network=network, data_preprocessor=preprocessor)
    rest = {key: value for key, value in config.items() if key not in _SHORT}
    return {**rest, "config": dict(model=model)}


@torch.no_grad()
def teacher_accuracy(
    teacher: FrozenTeacher, batches: Any, preprocess: nn.Module, images: int | None = None
) -> tuple[float, int]:
    """Measure a teacher's top-1 accuracy as it is asked in training.

    Args:
        teacher: The teacher.
        batches: The validation loader.
        preprocess: The student's data preprocessor.
        images: How many images are looked at, at least; all by default.

    Returns:
        The accuracy in per cent over all processes, and the number of images.
    """
    right, seen = 0, 0
    for batch in batches:
        data: Any = preprocess(batch, False)  # type: ignore[operator]
        logits = teacher(data["inputs"])
        labels = data["data_samples"].to(logits.device)
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        if images is not None and seen >= images:
            break
    counts = torch.tensor([right, seen], dtype=torch.float64)
    all_reduce(counts)
    right, seen = (int(count) for count in counts.tolist())
    return 100.0 * right / max(1, seen), seen


@HOOKS.register_module()
class TeacherAccuracyHook(Hook):
    """Say before training how good each teacher is on the validation images, as the student's
    preprocessing shows them to it.

    The figures are in the log and in ``teachers.json`` of the work dir. A teacher near chance is
    warned of: its classes may be in another order, or its images normalised differently.

    Args:
        images: How many images are looked at; True for all.
    """

    priority = "LOW"

    def __init__(self, images: int | bool = True) -> None:
        if not (images is True or (isinstance(images, int) and images > 0)):
            raise ConfigError(
                f"distill.measure_teacher is {images!r}; expected True, False or a number of "
                "images."
            )
        self.images = None if images is True else images

    def before_train(self, runner: Any) -> None:
        """Measure every teacher."""
        model = getattr(runner.model, "module", runner.model)
        if not isinstance(model, DistilledModel) or runner.val_loop is None:
            return
        path = Path(runner.work_dir) / TEACHERS_FILE
        found = _measured(path)
        for name, teacher in model.distiller.teachers.items():
            if (before := found.get(name)) and before["sha256"] == teacher.sha256:
                accuracy, images = before["accuracy"], before["images"]  # of a run resumed
            else:
                loader = runner.val_loop.dataloader
                accuracy, images = teacher_accuracy(
                    teacher, loader, model.data_preprocessor, self.images
                )
            found[name] = dict(
                accuracy=accuracy, images=images, source=teacher.source, sha256=teacher.sha256
            )
            runner.logger.info(
                f"Teacher {name!r} ({teacher.source}): top-1 accuracy {accuracy:.2f} % on {images} "
                "validation images."
            )
            classes = len(getattr(runner.val_loop.dataloader.dataset, "metainfo", {})["classes"])
            if accuracy < 150.0 / classes:
                runner.logger.warning(
                    f"Teacher {name!r} is hardly better than chance ({100 / classes:.1f} %). Are "
                    "its classes in the order of the data, and its mean and std the right ones?"
                )
        if is_main_process():
            write_json(path, found)


def _measured(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
