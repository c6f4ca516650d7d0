"""What a task tells the shared wrapper: how to run its networks, and what it can compare."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import Registry
from torch import Tensor, nn

from ...core.distiller import Context
from ...core.errors import ConfigError, did_you_mean
from ...core.recipe import Recipe
from ...core.taps import Captured

__all__ = ["TASK_ADAPTERS", "TaskAdapter", "adapter_of_scope", "bare", "task_of"]

# Told where to look, the registry does not search the package by mmengine's naming rules.
TASK_ADAPTERS = Registry("distillation task adapter", locations=["taskdistill.tasks.openmm"])

# Which package serves which mm library, or which task by its own name (a config's `task`) where
# the networks are ours; imported only when such a config is trained.
_PACKAGES = {
    "mmdet": "taskdistill.tasks.detection",
    "mmseg": "taskdistill.tasks.segmentation",
    "gan": "taskdistill.tasks.gan",
    "classification": "taskdistill.tasks.classification",
}


_TRIAL_PIXELS, _TRIAL_IMAGES = 65536, 32


class TaskAdapter(ABC):
    """The seam between a kind of network and the distiller.

    Args:
        student: The student, as its framework builds it.
        teachers: By name, the teachers whose outputs are compared.
        recipe: What is compared.
        probe_size: Side in pixels of a zero image that both networks can be tried on; or its
            height and width, where a task's images are not square.
        preprocess: By name, how a teacher's inputs are made from the student's, where they differ.
    """

    outputs: Mapping[str, str] = {}
    """Names under ``outputs.`` that pairs may compare, and what each is."""
    regions: Mapping[str, str] = {}
    """Regions that pairs may be limited to, and what each is."""
    regions_are_maps: bool = False
    """Whether regions say something of every place of the image, so that taps may have one too."""
    teacher_regions: Collection[str] = ()
    """Regions that are made from what the teachers say, so that these must run to their end."""
    default_region: str | Mapping[str, str] | None = None
    """Region of the outputs' pairs that name none, where their loss weighs positions; one for all,
    or by the output's name."""
    sparse_outputs: Collection[str] = ()
    """Outputs that losses are given as the teacher gives them, with the classes on the last axis:
    a cache keeps only the classes that are read."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        recipe: Recipe = Recipe(()),  # noqa: B008 - frozen
        probe_size: Any = 128,
        preprocess: Mapping[str, Any] | None = None,
    ) -> None:
        self.student = student
        self.teachers = teachers
        self.recipe = recipe
        self.probe_size = probe_size
        self.preprocess = dict(preprocess or {})

    @classmethod
    def of(cls, student: nn.Module) -> type[TaskAdapter]:
        """The adapter for a kind of student, where a task has several."""
        return cls

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskAdapter:
        # An EMA copies the whole model; the teachers are shared.
        copied = copy.copy(self)
        copied.student = copy.deepcopy(self.student, memo)
        return copied

    @classmethod  # noqa: B027 - not every task has something to look at
    def check_data(cls, cfg: Config) -> None:
        """Look at the datasets of a config before anything is built from it.

        Raises:
            DataError: If annotations are absent or malformed.
        """
        return None  # not every task has something to look at

    @classmethod  # noqa: B027 - most libraries train their networks without help
    def prepare(cls, cfg: Config) -> None:
        """Add to a config, in place, what its training needs, with or without a teacher."""
        return None

    @classmethod
    def teacher_config(
        cls, config: Mapping[str, Any], name: str, student: nn.Module
    ) -> Mapping[str, Any]:
        """Return a teacher's entry as :func:`.build_teacher` reads it, from a shorter one.

        Args:
            config: The entry.
            name: The teacher's.
            student: Whose teacher it is.

        Raises:
            ConfigError: If it cannot be meant.
        """
        return config

    def probe(self) -> Tensor:
        """Return a zero batch that both networks can be tried on."""
        return torch.zeros(1, 3, self.probe_size, self.probe_size)

    def trial(self) -> Tensor:
        """Return a batch of some 65,000 pixels, on which teachers are timed."""
        probe = self.probe()
        count = max(1, min(_TRIAL_IMAGES, _TRIAL_PIXELS // (probe.shape[-1] * probe.shape[-2])))
        return probe[:1].expand(count, *probe.shape[1:])

    def check_init(self, init: Mapping[str, Any], teachers: Mapping[str, Any]) -> None:
        """Refuse, before training, an ``init`` that this task cannot follow.

        Args:
            init: The ``init`` of a ``distill`` entry.
            teachers: The teachers' entries by name.

        Raises:
            ConfigError: If an option is unknown or does not go with the networks.
        """
        if init:
            raise ConfigError(
                f"distill.init={dict(init)}: this task knows no way to begin from a teacher's "
                "weights. Leave it out, or give load_from=... in the config."
            )

    def initialise(self, init: Mapping[str, Any], teachers: Mapping[str, nn.Module]) -> None:
        """Begin the student from its teachers; called after its own initialisation."""
        raise NotImplementedError(type(self).__name__)

    @property
    def reads(self) -> Sequence[str]:
        """Taps on the student that :meth:`context` needs."""
        return ()

    @abstractmethod
    def forward(self, model: nn.Module) -> Callable[[Tensor], Any]:
        """Return what maps a batch of images to the raw outputs, for a student or a teacher."""

    def teacher_forward(
        self, name: str, model: nn.Module, seen: Captured | None, data_samples: Any
    ) -> Callable[[Tensor], Any]:
        """Return what asks a teacher about the student's batch; :meth:`forward` by default.

        Args:
            name: The teacher's.
            model: The teacher.
            seen: What the student's taps saw on this batch; None where :meth:`depends_on_student`
                says that nothing of it is read.
            data_samples: The batch's annotations.
        """
        return self.forward(model)

    def depends_on_student(self, name: str) -> str | None:
        """Why a teacher's answer to a picture is not of the picture alone, or None where it is.

        What a cache keeps is read again when the student has become another.

        Args:
            name: The teacher's.
        """
        return None

    def check_assignment(self, options: Mapping[str, Any], teachers: Mapping[str, Any]) -> str:
        """Prepare to train the student on labels that a teacher assigns.

        Args:
            options: The ``assignment`` of a ``distill`` entry.
            teachers: The teachers by name.

        Returns:
            The name of the teacher that assigns, which then runs to its end.

        Raises:
            ConfigError: If this task or this student knows no such thing.
        """
        raise ConfigError(
            f"distill.assignment={dict(options)}: here the student's labels are the data's, which "
            "no teacher assigns. Leave it out."
        )

    def loss(self, inputs: Tensor, data_samples: Any, ask: Callable[[str], Any]) -> dict[str, Any]:
        """The student's own losses.

        Args:
            inputs: The batch, preprocessed.
            data_samples: Its annotations.
            ask: Gives a teacher's raw output on this batch, by its name.
        """
        return self.student(inputs, data_samples, mode="loss")

    def untapped_loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Any]:
        """Further losses of the student's own, from forwards that no tap shall see.

        Called when the taps are off again, before :meth:`context`.

        Args:
            inputs: The batch, preprocessed.
            data_samples: Its annotations.
        """
        return {}

    def inside(self, inputs: Tensor, data_samples: Any) -> Tensor:
        """Tell the pictures' own pixels from the padding, which mm puts to the right and below.

        Args:
            inputs: The batch ``(B, C, H, W)``.
            data_samples: Its annotations.

        Returns:
            ``(B, H, W)``, bool.
        """
        inside = torch.zeros_like(inputs[:, 0], dtype=torch.bool)
        for mask, sample in zip(inside, data_samples, strict=True):
            height, width = sample.metainfo.get("img_shape", mask.shape)[:2]
            mask[:height, :width] = True
        return inside

    def name_outputs(self, raw: Any) -> Mapping[str, Tensor]:
        """Name what :meth:`forward` gave, for losses that take their shape from an example."""
        return {}

    @abstractmethod
    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse, before training, networks whose outputs cannot be compared.

        Raises:
            TeacherError: Says what differs.
            ConfigError: If a name is not offered by this student.
        """

    @abstractmethod
    def context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Any,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """Compute outputs, regions and targets of one batch.

        Args:
            seen: The student's taps, :attr:`reads` among them.
            asked: The raw output of each of :attr:`teachers`.
            data_samples: The batch's annotations.
            outputs: Names needed.
            regions: Regions needed.
        """

    def check_names(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse names that this task does not know.

        Raises:
            ConfigError: Offers the nearest names.
        """
        for what, asked, known in (
            ("output", outputs, self.outputs),
            ("region", regions, self.regions),
        ):
            for name in asked:
                if name not in known:
                    listing = "; ".join(f"{key}: {text}" for key, text in known.items())
                    raise ConfigError(
                        f"There is no {what} {name!r}.{did_you_mean(name, known)} Known: {listing}."
                    )
        for pair in self.recipe.pairs:
            if pair.region is not None and not pair.is_output and not self.regions_are_maps:
                raise ConfigError(
                    f"Pair {pair.name!r} ({pair.student!r}) has region={pair.region!r}, but here "
                    "only outputs ('outputs.NAME') have regions; a tapped tensor is compared "
                    "everywhere."
                )


def bare(model: nn.Module) -> nn.Module:
    """Return the network on which taps are read: a model's ``bare``, where it is a mere holder."""
    return getattr(model, "bare", model)


def task_of(cfg: Config) -> str | None:
    """Return what names the task of a config: its ``task``, or else its ``default_scope``."""
    return cfg.get("task") or cfg.get("default_scope")


def adapter_of_scope(scope: str) -> type[TaskAdapter]:
    """Return the task adapter for an mm library, by its registry scope (``"mmdet"``), or for one of
    our own tasks, by its name (``"gan"``).

    Raises:
        ConfigError: If taskdistill has no task for it.
    """
    if scope not in _PACKAGES:
        raise ConfigError(
            f"taskdistill has no task for default_scope={scope!r}; it has {sorted(_PACKAGES)}. "
            "Set default_scope in the config (mm's own configs do), or task='gan' or "
            "task='classification'."
        )
    importlib.import_module(_PACKAGES[scope])
    adapter = TASK_ADAPTERS.get(scope)
    assert adapter is not None
    return adapter
